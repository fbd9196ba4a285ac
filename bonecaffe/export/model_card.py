"""The model card: what a model is, what it was made from, how good it is, what it is not for. From the records.

The topics are those of Mitchell et al., Model Cards for Model Reporting (FAT* 2019). What no record contains is marked
for the authors: a plausible guess would be worse than no answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from bonecaffe import __version__
from bonecaffe.evaluation.claim_answers import AUTHORS, answers_of, plain
from bonecaffe.evaluation.claim_facts import Facts, Measured
from bonecaffe.evaluation.words import between, between_signed, number, signed
from bonecaffe.training.launch import Comparison


def text_of(
    facts: Facts,
    compared: Comparison,
    iteration: int,
    measured: Measured | None,
    licence: str | None,
    weights_sha256: str,
) -> str:
    """The model card as Markdown. ``measured`` are the figures of this very model; None when it was not evaluated."""
    answers = answers_of(facts)
    lines = [
        "# Model card: bone age from a radiograph of the hand",
        "",
        "This is not a medical device. Fields in bold are for the authors; everything else is from the records.",
        "",
        "## Model",
        "",
        f"- Recipe: {plain(facts.recipe.name)}, {plain(facts.recipe.description)}",
        f"- Snapshot: iteration {iteration} of {facts.recipe.solver.max_iter}",
        f"- Weights: SHA-256 `{weights_sha256}`",
        f"- Written by: bonecaffe {__version__}",
        f"- Network: {answers[22]}",
        f"- Input: {answers[9].text}.",
        f"- Method: Lee & Kim 2018, with {len(compared.departures)} departures (below)",
        f"- Licence: {plain(licence) if licence else _authors('its licence (--licence)')}",
        f"- Authors, contact, citation: {_authors('names')}",
        "",
        "## Intended use",
        "",
        f"- Purpose and users: {_authors('what the model is for, and who may use it')}",
        f"- Ages: it has seen ages from {_ages(facts)}. Predictions outside this range mean nothing.",
        "- Not for: a diagnosis or a treatment decision; images other than one hand, from above, with five fingers;",
        "  hands with hardware, casts or malformations, unless the authors tested them; ages of adults.",
        f"- Other limits: {_authors('devices, populations and diseases that the data do not cover')}",
        "",
        "## Data",
        "",
        *_table(("split", "hands", "boys", "girls", "sex unknown", "ages in months: mean (SD), range"), _splits(facts)),
        "",
        f"- Source: {answers[7]}",
        f"- Selection: {answers[8]}",
        f"- Split: {answers[19].text}.",
        f"- Points: {answers[10]}",
        f"- Reference ages: {answers[14]}",
        f"- Readers: {answers[16]}",
        "",
        "## Training",
        "",
        f"- Initial weights: {answers[24]}",
        f"- Schedule: {answers[25]}",
        f"- Software: {answers[23]}",
        "",
        "Departures from the paper:",
        "",
        *_departures(compared),
        "",
        "Choices where the paper does not state a value, if they are not bonecaffe's own:",
        "",
        *_choices(compared),
        "",
        "## Figures",
        "",
        *_figures(measured),
        "",
        "## Risks",
        "",
        f"- {_authors('known failures, risks of use, and how they are contained')}",
    ]
    return "\n".join(lines) + "\n"


def _authors(what: str) -> str:
    return f"**{AUTHORS}**: {what}"


def _ages(facts: Facts) -> str:
    seen = facts.partitions["train"]
    return f"{seen.youngest_months:g} to {seen.oldest_months:g} months in training"


def _splits(facts: Facts) -> Iterable[Sequence[object]]:
    for split, p in facts.partitions.items():
        ages = f"{number(p.mean_months)} ({number(p.sd_months)}), {p.youngest_months:g} to {p.oldest_months:g}"
        yield split, p.hands, p.boys, p.girls, p.unknown, ages


def _departures(compared: Comparison) -> list[str]:
    rows = [(each.field, each.paper, each.here, each.reason) for each in compared.departures]
    return _table(("field", "paper", "here", "reason"), rows) if rows else ["None."]


def _choices(compared: Comparison) -> list[str]:
    rows = [(each.field, each.default, each.here, each.reason) for each in compared.choices if not each.is_default]
    return _table(("field", "bonecaffe's", "here", "reason"), rows) if rows else ["None."]


def _figures(measured: Measured | None) -> list[str]:
    if measured is None:
        return ["This model was not evaluated: `bonecaffe evaluate RUN`, then export it again."]
    whole = [
        (
            split,
            m.cases,
            f"{number(m.mad_months)} ({between(m.mad_interval_95, 1, 'not defined')})",
            f"{number(m.ccc, 2)} ({between(m.ccc_interval_95, 2, 'not defined')})",
            number(m.max_error_months),
            signed(m.bias_months),
            number(m.guess_mad_months),
        )
        for split, m in measured.splits.items()
    ]
    parts = [
        (
            group.name,
            group.cases,
            f"{number(group.mad_months)} ({between(group.mad_interval_95, 1, 'too few')})",
            f"{signed(group.bias_months)} ({between_signed(group.bias_interval_95) or 'too few'})",
            number(group.max_error_months),
        )
        for group in measured.groups["test"]
    ]
    return [
        f"In months, at iteration {measured.iteration}. Intervals in brackets: {plain(measured.intervals)}.",
        "",
        *_table(("split", "hands", "MAD", "CCC", "largest error", "bias", "MAD of guessing the mean"), whole),
        "",
        "Subgroups of the test split:",
        "",
        *_table(("group", "hands", "MAD", "bias", "largest error"), parts),
        "",
        plain(measured.sex["test"].verdict),
    ]


def _table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    cells = [columns, ["---"] * len(columns), *([plain(str(cell)) for cell in row] for row in rows)]
    return [f"| {' | '.join(row)} |" for row in cells]
