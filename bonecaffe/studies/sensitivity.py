"""How much the seven points matter: they are moved a little, and the predicted ages with them.

The paper gives no repeat-marking error. Here points are moved by a share of the palm, or as far as two markings of the
same hands lie apart, and the months by which predictions move are what a careless click costs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bonecaffe.errors import EvaluateError, PointsError
from bonecaffe.evaluation import metrics
from bonecaffe.files import table_text, write_text
from bonecaffe.hands import images as hand_images
from bonecaffe.hands.agreement import compare, overlap, palm
from bonecaffe.hands.images import Image
from bonecaffe.hands.reference_points import ReferencePoints
from bonecaffe.predict import Predictor
from bonecaffe.prepare.normalize import normalize
from bonecaffe.prepare.outputs import read_prepared, split_of
from bonecaffe.run import RunDir

PERCENT = (0.5, 1.0, 2.0, 4.0)
"""Of the palm, the standard deviation of each coordinate of each point."""


class Moved(NamedTuple):
    """One hand with its points moved: standard deviation in percent of the palm, prediction, overlap of rectangles."""

    id: str
    percent: float
    months: float
    shift_months: float
    iou: float


@dataclass(frozen=True)
class Level:
    """What moving the points by a standard deviation of ``percent`` of the palm does to predictions, in months."""

    percent: float
    mean_shift: float
    sd: float
    p95_shift: float
    largest_shift: float
    median_iou: float


@dataclass(frozen=True)
class Against:
    """The same hands, with the points of their preparation and with others: MAD in months, CCC, mean absolute shift."""

    hands: int
    mad_marked: float
    mad_other: float
    ccc_marked: float | None
    ccc_other: float | None
    mean_shift: float
    median_iou: float


@dataclass(frozen=True)
class Study:
    """The outcome: each level, months per percent (a line through zero), and other markings against the run's own."""

    hands: int
    repeats: int
    levels: tuple[Level, ...]
    months_per_percent: float
    against: dict[str, Against]


def study(
    run: RunDir,
    images: Path,
    points: Mapping[str, ReferencePoints],
    others: Mapping[str, Mapping[str, ReferencePoints]],
    percents: Sequence[float] = PERCENT,
    repeats: int = 5,
    split: str = "test",
    seed: int = 2018,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Study, list[Moved]]:
    """Move the points of a split's hands, predict, and compare.

    Writes ``sensitivity.json`` and ``sensitivity.csv`` into the run. ``others`` are further markings by name, such as
    those that `locate` found; hands that one of them lacks are left out of it. Raises PointsError or EvaluateError when
    the points are not those that the run was prepared with.
    """
    predictor = Predictor(run)
    cases = split_of(run)[split]
    files = hand_images.find_images(images)
    if missing := [case.id for case in cases if case.id not in points]:
        raise PointsError(
            f"no points of {', '.join(missing[:5])}, cases of {run}. Give the table that it was prepared with."
        )
    if missing := hand_images.missing([case.id for case in cases], files):
        raise EvaluateError(f"{images}: no image of {', '.join(missing[:5])}, cases of {run}.")
    shared = {name: [case for case in cases if case.id in table] for name, table in others.items()}
    total = len(cases) * (1 + len(percents) * repeats) + sum(map(len, shared.values()))

    def hands() -> Iterator[tuple[str, str | float | None, ReferencePoints, Image]]:
        for case in cases:
            image, own = hand_images.read_image(files[case.id]), points[case.id]
            normal = _normal(image, own, predictor)
            if not np.array_equal(normal, read_prepared(run, case.id)):
                raise PointsError(
                    f"id {case.id}: these points or this image are not those that {run} was prepared with."
                )
            yield case.id, None, own, normal
            rng = np.random.default_rng([seed, *case.id.encode()])
            for percent in percents:
                for _ in range(repeats):
                    moved = _moved(own, percent, rng)
                    yield case.id, percent, moved, _normal(image, moved, predictor)
            for name, table in others.items():
                if case.id in table:
                    yield case.id, name, table[case.id], _normal(image, table[case.id], predictor)

    looked_at: list[tuple[str, str | float | None, ReferencePoints]] = []

    def normals() -> Iterator[Image]:
        for case_id, what, hand, normal in hands():
            looked_at.append((case_id, what, hand))
            yield normal

    base: dict[str, float] = {}
    moved: list[Moved] = []
    other: dict[str, dict[str, tuple[float, float]]] = {name: {} for name in others}
    for number, months in enumerate(predictor.predict_normalized(normals())):
        case_id, what, hand = looked_at[number]
        iou = overlap(points[case_id].rectangle(), hand.rectangle())
        if what is None:
            base[case_id] = months
        elif isinstance(what, str):
            other[what][case_id] = months, iou
        else:
            moved.append(Moved(case_id, what, months, months - base[case_id], iou))
        progress(number + 1, total)
    levels = tuple(_level(percent, [m for m in moved if m.percent == percent]) for percent in percents)
    steps = np.array([(level.percent, level.mean_shift) for level in levels])
    slope = float((steps[:, 0] * steps[:, 1]).sum() / (steps[:, 0] ** 2).sum()) if len(steps) else math.nan
    ages = {case.id: case.boneage_months for case in cases}
    against = {name: _against(ages, base, found) for name, found in other.items() if found}
    outcome = Study(len(cases), repeats, levels, slope, against)
    _write(run, split, outcome, moved)
    return outcome, moved


def _normal(image: Image, hand: ReferencePoints, predictor: Predictor) -> Image:
    try:
        return normalize(image, hand, predictor.recipe.preparation)
    except ValueError as error:
        raise PointsError(f"id {hand.id}: {error}.") from error


def _moved(hand: ReferencePoints, percent: float, rng: np.random.Generator) -> ReferencePoints:
    """The hand with each coordinate of each point moved by a normal deviate, kept inside the image."""
    places = np.array(hand.points) + rng.normal(0, percent / 100 * palm(hand), (7, 2))
    places = np.clip(places, 0, (hand.width - 1, hand.height - 1))
    return ReferencePoints(hand.id, hand.width, hand.height, tuple((float(x), float(y)) for x, y in places))


def _level(percent: float, moved: Sequence[Moved]) -> Level:
    shifts = np.array([m.shift_months for m in moved])
    by_hand: dict[str, list[float]] = {}
    for m in moved:
        by_hand.setdefault(m.id, []).append(m.months)
    within = [np.var(months, ddof=1) for months in by_hand.values() if len(months) > 1]
    return Level(
        percent,
        float(np.abs(shifts).mean()),
        math.sqrt(float(np.mean(within))) if within else math.nan,
        float(np.quantile(np.abs(shifts), 0.95)),
        float(np.abs(shifts).max()),
        float(np.median([m.iou for m in moved])),
    )


def _against(ages: Mapping[str, float], base: Mapping[str, float], found: Mapping[str, tuple[float, float]]) -> Against:
    ids = sorted(found)
    truth, marked = [ages[case_id] for case_id in ids], [base[case_id] for case_id in ids]
    other = [found[case_id][0] for case_id in ids]

    def ccc(predicted: list[float]) -> float | None:
        try:
            return metrics.ccc(truth, predicted)
        except EvaluateError:
            return None

    return Against(
        len(ids),
        metrics.mad(truth, marked),
        metrics.mad(truth, other),
        ccc(marked),
        ccc(other),
        metrics.mad(marked, other),
        float(np.median([found[case_id][1] for case_id in ids])),
    )


def repeat_marking_percent(first: Mapping[str, ReferencePoints], second: Mapping[str, ReferencePoints]) -> float:
    """The repeat-marking error of one marking, from two: a coordinate's standard deviation, in percent of the palm.

    The difference of two markings varies twice as much as one does, hence the root of two.
    """
    squares = [p**2 for difference in compare(first, second) for p in difference.percent]
    return math.sqrt(float(np.mean(squares)) / 2 / 2)  # two coordinates, two markings


def _write(run: RunDir, split: str, outcome: Study, moved: Sequence[Moved]) -> None:
    facts = {
        "split": split,
        "points_moved_by": "normal deviates, percent of the palm per coordinate",
        **asdict(outcome),
    }
    write_text(run.sensitivity, json.dumps(facts, indent=2) + "\n")
    rows = ((m.id, f"{m.percent:g}", f"{m.months:.3f}", f"{m.shift_months:.3f}", f"{m.iou:.4f}") for m in moved)
    columns = ("id", "percent", "predicted_months", "shift_months", "iou")
    write_text(run.sensitivity_table, table_text(columns, rows))
