"""The evaluate stage: predictions in; metrics.json, figures and report.html out. Needs no Caffe."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from bonecaffe.caffe import environment
from bonecaffe.errors import EvaluateError
from bonecaffe.evaluation import by_snapshot, plots, report
from bonecaffe.evaluation.metrics import PAPER, RESAMPLES, SEED, Group, Metrics, groups, measure
from bonecaffe.files import sha256_file, write_text
from bonecaffe.hands.cases import Case
from bonecaffe.prepare.outputs import split_of
from bonecaffe.run import SPLITS, RunDir


@dataclass(frozen=True)
class Evaluation:
    """The figures of both splits, whole and by group, and the verdict against the paper."""

    iteration: int
    splits: dict[str, Metrics]
    groups: dict[str, list[Group]]
    verdict: str


def read_predictions(run: RunDir, split: str):
    """The predictions of a split as a table; EvaluateError naming the file for anything that is not one."""
    import pandas

    path = run.predictions(split)
    try:
        table = pandas.read_csv(path, dtype=str, keep_default_na=False)
    except FileNotFoundError:
        raise EvaluateError(f"{path}: not there. Write it with: bonecaffe evaluate {run}") from None
    except (ValueError, OSError) as error:
        raise EvaluateError(f"{path}: not readable as CSV: {error}.") from error
    if list(table.columns) != ["id", "boneage_months", "predicted_months", "male"]:
        raise EvaluateError(f"{path}: the header must be id,boneage_months,predicted_months,male.")
    if table["id"].eq("").any():
        raise EvaluateError(f"{path}: row {int(table['id'].eq('').to_numpy().argmax()) + 2}: no id.")
    table["male"] = table["male"].where(table["male"].isin(["True", "False"]), None)
    for column in ("boneage_months", "predicted_months"):
        numbers = pandas.to_numeric(table[column], errors="coerce")
        if not numbers.between(-1e9, 1e9).all():
            row = int((~numbers.between(-1e9, 1e9)).to_numpy().argmax())
            raise EvaluateError(
                f"{path}: row {row + 2} (id {table['id'][row]}): {column} is {table[column][row]!r}, not a finite number of months."
            )
        table[column] = numbers
    if table["id"].duplicated().any():
        raise EvaluateError(f"{path}: the id {table['id'][table['id'].duplicated()].iloc[0]} stands twice.")
    return table


def check_cases(path: Path, table, cases: list[Case]) -> None:
    """EvaluateError unless the predictions are for the very cases of the split, with their ages."""
    ages = {case.id: case.boneage_months for case in cases}
    here = set(table["id"])
    for wrong, what in ((here - ages.keys(), "not a case of this split"), (ages.keys() - here, "has no prediction")):
        if wrong:
            shown = ", ".join(sorted(wrong)[:5])
            raise EvaluateError(f"{path}: {len(wrong)} id{'s' * (len(wrong) > 1)} ({shown}): {what}. Evaluate again.")
    for row, (case_id, age) in enumerate(zip(table["id"], table["boneage_months"], strict=True)):
        if abs(age - ages[case_id]) > 1e-6:
            raise EvaluateError(
                f"{path}: row {row + 2} (id {case_id}): boneage_months is {age:g}, but cases.csv says {ages[case_id]:g}. Evaluate again."
            )


def verdict(recipe_departs: bool, test: Metrics) -> str:
    """One sentence that holds the test split against the paper's 18.9 months and 0.78."""
    paper = PAPER["test"]
    interval = test.mad_interval_95
    sure = f", 95 % interval {interval[0]:.1f} to {interval[1]:.1f}" if interval else ""
    against = f"MAD {test.mad_months:.1f} months{sure} (paper {paper['mad_months']}), CCC {test.ccc:.2f} (paper {paper['ccc']})"
    learned = test.mad_months < test.guess_mad_months
    guess = f"answering the mean age for every hand would give {test.guess_mad_months:.1f}"
    if not learned:
        return f"The network has learned nothing: {against}; {guess}."
    if recipe_departs:
        return f"Not a reproduction of the paper, because the recipe departs from it: {against}; {guess}."
    reached = test.mad_months <= paper["mad_months"] * 1.1 and test.ccc >= paper["ccc"] - 0.05
    found = "are reached, to within a tenth of its MAD and 0.05 of its CCC" if reached else "are not reached"
    return f"The paper’s figures {found}: {against}; {guess}."


def evaluate(run: RunDir) -> Evaluation:
    """Measure a run's predictions, draw its figures, write its report; EvaluateError for what cannot be compared."""
    manifest = run.manifest()
    tables = {split: read_predictions(run, split) for split in SPLITS}
    for split, cases in split_of(run).items():
        check_cases(run.predictions(split), tables[split], cases)
    evaluation = measure_tables(run, tables, int(manifest.get("predict", {}).get("iteration", 0)))
    facts = {
        "iteration": evaluation.iteration,
        "verdict": evaluation.verdict,
        "paper": PAPER,
        "splits": {split: asdict(metrics) for split, metrics in evaluation.splits.items()},
        "groups": {split: [asdict(group) for group in found] for split, found in evaluation.groups.items()},
        "ccc_variance": "ccc: over n (Lin 1989); ccc_n_minus_1: over n - 1",
        "intervals": f"95 %, percentiles of {RESAMPLES} bootstrap samples, seed {SEED}",
    }
    write_text(run.metrics, json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
    drawn = plots.draw_all(run, tables)
    write_text(run.report, report.render(run, evaluation, tables, drawn, manifest, by_snapshot.current(run)))
    run.record(
        "evaluate",
        {
            "predictions": {split: sha256_file(run.predictions(split)) for split in SPLITS},
            "metrics": sha256_file(run.metrics),
            "figures": {path.name: sha256_file(path) for path in sorted(run.figures.glob("*.png"))},
            "report": sha256_file(run.report),
            "by": environment.describe(),
        },
    )
    return evaluation


def measure_tables(run: RunDir, tables, iteration: int) -> Evaluation:
    """The figures of both splits, from their tables of predictions."""
    guess = float(tables["train"]["boneage_months"].mean())
    columns = {
        split: (table["boneage_months"], table["predicted_months"], _male(table)) for split, table in tables.items()
    }
    measured = {}
    for split, (truth, predicted, _) in columns.items():
        try:
            measured[split] = measure(truth, predicted, guess)
        except EvaluateError as error:
            raise EvaluateError(f"{run.predictions(split)}: {error}") from error
    departs = bool(run.trained_recipe().departures())
    by_group = {split: groups(*given) for split, given in columns.items()}
    return Evaluation(iteration, measured, by_group, verdict(departs, measured["test"]))


def _male(table) -> list[bool | None]:
    return [{"True": True, "False": False}.get(str(value)) for value in table["male"]]
