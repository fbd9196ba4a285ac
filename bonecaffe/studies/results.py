"""The results of `repeat`: stored in repeat.json, printed as tables, and compared with the paper."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pydantic import ValidationError

from bonecaffe.errors import EvaluateError, RepeatError
from bonecaffe.evaluation.metrics import PAPER, PAPER_CASES, ccc, mad, max_error
from bonecaffe.evaluation.verdict import FAR_BETTER, MARGIN, Word, word_for
from bonecaffe.evaluation.words import number, signed
from bonecaffe.files import number_text, table_text, write_text
from bonecaffe.records import Frozen, Sha256
from bonecaffe.studies import spread
from bonecaffe.studies.repetition import HandTested, Kind, Repetition, Result, measured_of
from bonecaffe.studies.spread import Figure, Interval
from bonecaffe.trees import read_json

VERSION: Literal[2] = 2
"""Version of the format of repeat.json. The format before it had no version and no predictions."""
FEW_SEEDS = 5
"""With fewer seeds, the intervals are so wide that the verdict adds a remark."""


# ---- the record --------------------------------------------------------------------------------------------------


class Record(Frozen):
    """The part of repeat.json that is read back; the rest is computed from it."""

    version: Literal[2]
    kind: Kind
    plan: Sha256
    results: tuple[Result, ...]


def earlier(plan: Repetition) -> list[Result]:
    """The results in OUT/repeat.json; RepeatError when they belong to another recipe or data, or are not readable."""
    path, remedy = plan.out / "repeat.json", "Remove it, or give another --out"
    try:
        tree = read_json(path, "record", RepeatError)
    except FileNotFoundError:
        return []
    except RepeatError as error:
        raise RepeatError(f"{error} {remedy}.") from None
    if isinstance(tree, dict) and tree.get("version") != VERSION and {"plan", "results"} <= tree.keys():
        raise RepeatError(
            f"{path}: written by another version of bonecaffe, in another format. Remove this file and call repeat "
            f"again: the finished runs in {plan.out} are not trained again. Or give another --out."
        )
    try:
        if not isinstance(tree, dict):
            raise TypeError("it must be a mapping")
        record = Record.model_validate({name: tree[name] for name in Record.model_fields})
        numbers = [result.number for result in record.results]
        if len(set(numbers)) < len(numbers):
            raise TypeError(f"a {record.kind} is listed twice")
    except (ValidationError, KeyError, TypeError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else {"loc": (), "msg": str(error)}
        place = ".".join(map(str, first["loc"])) or "results"
        raise RepeatError(f"{path}: not as bonecaffe writes it ({place}: {first['msg']}). {remedy}.") from None
    if record.plan != plan.key() and (record.results or any(plan.out.glob(f"{record.kind}-*"))):
        raise RepeatError(
            f"{path}: holds repeats of another recipe, ages, points, weights or folds. Give another --out."
        )
    return list(record.results)


def write(plan: Repetition, results: Sequence[Result]) -> None:
    """Write OUT/repeat.json, OUT/repeat.csv and OUT/predictions.csv, by seed or fold."""
    results = sorted(results, key=lambda result: result.number)
    facts: dict[str, Any] = {
        "version": VERSION,
        "kind": plan.kind,
        "plan": plan.key(),
        "verdict": verdict(plan, results),
        "spread": [asdict(each) for each in spreads(results)] if plan.folds is None else [],
        "pooled": None if (whole := pooled(plan, results)) is None else asdict(whole),
        "note": "intervals are 95 %; spread: next_seed_95 is for another seed on these hands, other_hands_95 for the "
        "same study on other hands; a seed changes split, initial weights and the order of images together",
        "results": [result.model_dump(mode="json") for result in results],
    }
    write_text(plan.out / "repeat.json", json.dumps(facts, indent=1, ensure_ascii=False) + "\n", parents=True)
    write_text(plan.out / "repeat.csv", table_text(_columns(plan), (_row(result) for result in results)))
    rows = (
        [
            hand.id,
            number_text(hand.boneage_months),
            number_text(hand.predicted_months),
            "" if hand.male is None else hand.male,
            result.number,
        ]
        for result in results
        for hand in result.hands
    )
    columns = ["id", "boneage_months", "predicted_months", "male", plan.kind]
    write_text(plan.out / "predictions.csv", table_text(columns, rows))


def _columns(plan: Repetition) -> list[str]:
    return [
        *(plan.kind, "state", "iteration", "train_mad", "train_ccc", "test_cases"),
        *("test_mad", "test_mad_low", "test_mad_high", "test_ccc", "test_ccc_low", "test_ccc_high", "test_max"),
    ]


def _row(result: Result) -> list[str]:
    """A line of repeat.csv; low and high are the 95 % interval over hands."""
    mads, cccs = (_over_hands(figure, result.hands) or (None, None) for figure in FIGURES)
    figures = [result.train_mad, result.train_ccc, len(result.hands), result.test_mad, *mads]
    figures += [result.test_ccc, *cccs, result.test_max]
    return [str(result.number), str(result.state), str(result.iteration), *map(_cell, figures)]


def _cell(value: object) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


FIGURES: tuple[Figure, ...] = ("mad", "ccc")


def _over_hands(figure: Figure, hands: tuple[HandTested, ...]) -> Interval | None:
    """The interval over hands of one test; None where there is none."""
    try:
        found = measured_of(figure, hands)
    except EvaluateError:  # of one hand, or of none
        return None
    return found.interval_95 if found else None


# ---- over seeds --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spread:
    """A figure over the seeds: mean, standard deviation (over n - 1), extremes; MADs in months.

    The intervals are 95 %. They are None for fewer than three seeds; training figures have only ``next_seed_95``.
    """

    figure: str
    seeds: int
    mean: float
    sd: float
    lowest: float
    highest: float
    paper: float
    next_seed_95: Interval | None
    """Where one more seed on the same hands would be."""
    other_hands_95: Interval | None
    """Where the same study of one seed would be, on other hands of the same kind."""
    less_paper_95: Interval | None
    """The difference from the paper (here less paper), whose study had other hands: 200 for the test."""
    word: Word
    """The verdict on this difference, by the rule of `evaluate`."""


def spreads(results: Sequence[Result]) -> list[Spread]:
    """The spread of MAD and CCC over the seeds that finished; none when fewer than two did."""
    done = [result for result in results if result.finished]
    if len(done) < 2:
        return []
    return [_spread(split, figure, done) for split in ("test", "train") for figure in FIGURES]


def _spread(split: str, figure: Figure, done: Sequence[Result]) -> Spread:
    import numpy as np

    values = np.array([getattr(result, f"{split}_{figure}") for result in done], float)
    paper = PAPER[split]["mad_months" if figure == "mad" else "ccc"]
    next_seed = spread.next_seed(figure, [spread.to_scale(figure, float(value)) for value in values])
    tests = [result.measured(figure) for result in done] if split == "test" else []
    whole = [test for test in tests if test is not None]
    elsewhere = less = less_90 = None
    if whole and len(whole) == len(done):
        elsewhere = spread.other_hands(whole)
        less, less_90 = (_less(spread.other_hands(whole, PAPER_CASES[split], level), paper) for level in (0.95, 0.9))
    word = word_for(split, figure, less_90, less) if less and less_90 else Word.UNCLEAR
    if split == "test" and figure == "mad" and elsewhere and elsewhere[1] < FAR_BETTER * paper:
        word = Word.SUSPICIOUS
    return Spread(
        f"{split}_{figure}",
        len(done),
        float(values.mean()),
        float(values.std(ddof=1)),
        float(values.min()),
        float(values.max()),
        paper,
        next_seed,
        elsewhere,
        less,
        word,
    )


def _less(interval: Interval | None, paper: float) -> Interval | None:
    return (interval[0] - paper, interval[1] - paper) if interval else None


# ---- over folds --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pooled:
    """The figures of all hands, each tested once by the model of its fold; 95 % intervals over hands."""

    folds: int
    cases: int
    mad_months: float
    mad_interval_95: Interval | None
    ccc: float
    ccc_interval_95: Interval | None
    max_error_months: float


def pooled(plan: Repetition, results: Sequence[Result]) -> Pooled | None:
    """The pooled figures of a cross-validation; None over seeds, and until every fold has finished."""
    done = [result for result in results if result.finished]
    if plan.folds is None or len(done) < plan.folds:
        return None
    hands = tuple(hand for result in done for hand in result.hands)
    truth, predicted = [hand.boneage_months for hand in hands], [hand.predicted_months for hand in hands]
    return Pooled(
        plan.folds,
        len(hands),
        mad(truth, predicted),
        _over_hands("mad", hands),
        ccc(truth, predicted),
        _over_hands("ccc", hands),
        max_error(truth, predicted),
    )


# ---- as text -----------------------------------------------------------------------------------------------------


def shown(figure: str, value: float) -> str:
    """A figure for print: months to a tenth, CCCs to a hundredth.

    >>> shown("test_mad", 18.94), shown("test_ccc", 0.784)
    ('18.9', '0.78')
    """
    return number(value, 1 if figure.endswith("mad") else 2)


def shown_interval(figure: str, interval: Interval | None) -> str:
    """An interval for print.

    >>> shown_interval("mad", (17.21, 20.08)), shown_interval("mad", None)
    ('17.2 to 20.1', '–')
    """
    return "–" if interval is None else " to ".join(shown(figure, value) for value in interval)


def verdict(plan: Repetition, results: Sequence[Result]) -> list[str]:
    """The conclusions from the results, as sentences."""
    lines = _of_seeds(plan, results) if plan.folds is None else _of_folds(plan, results)
    for word in (Word.SUSPICIOUS, Word.MEMORIZED, Word.LEARNED_NOTHING):
        if count := sum(result.word == word for result in results):
            lines.insert(0, f"{count} of {len(results)} {plan.kind}s: {word}. See the reports of their runs.")
    diverged = [result for result in results if not result.finished]
    if diverged:
        lines.append(f"{len(diverged)} of {len(results)} {plan.kind}s diverged and are not in these figures.")
    if outside := sum(result.outside for result in results):
        tested = sum(len(result.hands) for result in results)
        lines.append(
            f"{outside} of {tested} predictions are extrapolations: their hands are younger or older than every hand "
            "in the training."
        )
    return lines


def _of_seeds(plan: Repetition, results: Sequence[Result]) -> list[str]:
    found = [each for each in spreads(results) if each.figure.startswith("test")]
    if not found:
        return ["Fewer than two seeds finished: there is no spread to report."]
    lines = []
    for each in found:
        name, unit = ("MAD", " months") if each.figure == "test_mad" else ("CCC", "")
        mean, sd, low, high = (shown(each.figure, v) for v in (each.mean, each.sd, each.lowest, each.highest))
        line = f"Test {name} over {each.seeds} seeds: {mean} ± {sd}{unit} (SD), {low} to {high}."
        if each.next_seed_95:
            line += f" Another seed on these hands: {shown_interval(each.figure, each.next_seed_95)} (95 %)."
        if each.other_hands_95:
            line += f" The same study on other hands: {shown_interval(each.figure, each.other_hands_95)} (95 %)."
        lines.append(line)
    lines += _against_paper(plan, results, found)
    seeds = found[0].seeds
    if seeds < spread.SEEDS_FOR_AN_INTERVAL:
        lines.append("No intervals: they need three seeds. Ask for more with --seeds.")
    elif seeds < FEW_SEEDS:
        lines.append(
            f"{seeds} seeds are weak evidence: their spread is known to a factor of two at best, so the intervals are "
            f"wide. Ask for {FEW_SEEDS} or more with --seeds."
        )
    return lines


def _against_paper(plan: Repetition, results: Sequence[Result], found: Sequence[Spread]) -> list[str]:
    if (refusal := _not_comparable(plan, results)) is not None:
        return [refusal]
    lines = []
    for each in found:
        if each.less_paper_95 is None:
            continue
        name, unit = ("MAD", " months") if each.figure == "test_mad" else ("CCC", "")
        less = signed(each.mean - each.paper, 1 if unit else 2)
        margin = shown(each.figure, MARGIN["test", "mad" if unit else "ccc"])
        meaning = {
            Word.AGREES: f"agrees with the paper, to within {margin}{unit}",
            Word.BETTER: "better than the paper",
            Word.SUSPICIOUS: "suspicious, because it is better than this method can be expected to be. Look for test "
            "hands among the training hands",
            Word.WORSE: "worse than the paper",
            Word.UNCLEAR: f"unclear: neither a difference nor agreement to within {margin}{unit} is shown",
        }[each.word]
        lines.append(
            f"Test {name} less the paper’s {each.paper}: {less}{unit}, "
            f"95 % interval {shown_interval(each.figure, each.less_paper_95)}: {meaning}."
        )
    return lines


def _not_comparable(plan: Repetition, results: Sequence[Result]) -> str | None:
    """Why the figures cannot be compared with the paper's; None where they can."""
    reasons = []
    if any(result.phantoms for result in results):
        reasons.append("the hands are phantoms")
    if departures := max([len(plan.departures()), *(result.departures for result in results)]):
        reasons.append(f"the runs depart from the paper in {departures} field{'s' * (departures > 1)}")
    if not reasons:
        return None
    paper = PAPER["test"]
    return f"Not comparable with the paper’s {paper['mad_months']} months and {paper['ccc']}: {' and '.join(reasons)}."


def _of_folds(plan: Repetition, results: Sequence[Result]) -> list[str]:
    whole = pooled(plan, results)
    if whole is None:
        done = sum(result.finished for result in results)
        return [f"{done} of {plan.folds} folds finished. There are no pooled figures until all are."]
    intervals = [
        f" (95 % over hands: {shown_interval(figure, interval)})" if interval else ""
        for figure, interval in (("mad", whole.mad_interval_95), ("ccc", whole.ccc_interval_95))
    ]
    lines = [
        f"{whole.folds}-fold cross-validation, {whole.cases} hands, each tested once: MAD {whole.mad_months:.1f} "
        f"months{intervals[0]}, CCC {shown('ccc', whole.ccc)}{intervals[1]}, largest error "
        f"{whole.max_error_months:.1f} months.",
    ]
    if not all(intervals):
        lines.append(f"No interval over fewer than {spread.UNITS_FOR_AN_INTERVAL} hands or groups.")
    refusal = _not_comparable(plan, results)
    return [*lines, refusal] if refusal else lines
