"""How much the seven points matter: they are moved a little, and the change of the predicted age is measured.

The paper gives no repeat-marking error. Here points are moved by a percentage of the palm, or replaced by another
marking of the same hands. The change of the predictions, in months, is the cost of a careless click.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bonecaffe.errors import EvaluateError, PointsError
from bonecaffe.evaluation import metrics
from bonecaffe.files import table_text, write_text
from bonecaffe.hands import images as hand_images
from bonecaffe.hands.agreement import compare, overlap, palm
from bonecaffe.hands.cases import Case
from bonecaffe.hands.images import Image
from bonecaffe.hands.reference_points import ReferencePoints
from bonecaffe.hands.standard_view import StandardView, turned
from bonecaffe.predict import Predictor
from bonecaffe.prepare.normalize import normalize_viewed, viewed
from bonecaffe.prepare.outputs import read_prepared, split_of
from bonecaffe.progress import Progress, unseen
from bonecaffe.run import RunDir

PERCENT = (0.5, 1.0, 2.0, 4.0)
"""Standard deviations of each coordinate of each point, in percent of the palm."""


class Moved(NamedTuple):
    """One hand with its points moved: standard deviation in percent of the palm, prediction, overlap of rectangles."""

    id: str
    percent: float
    months: float
    shift_months: float
    iou: float


@dataclass(frozen=True)
class Level:
    """How predictions change, in months, when points move by a standard deviation of ``percent`` of the palm."""

    percent: float
    mean_shift: float
    sd: float
    p95_shift: float
    largest_shift: float
    median_iou: float


@dataclass(frozen=True)
class Against:
    """The same hands with the run's own points and with other points: MAD in months, CCC, mean absolute shift."""

    hands: int
    mad_marked: float
    mad_other: float
    ccc_marked: float | None
    ccc_other: float | None
    mean_shift: float
    median_iou: float


@dataclass(frozen=True)
class Study:
    """The outcome: each level, months per percent (a line through zero), and other markings compared with the run's."""

    hands: int
    repeats: int
    levels: tuple[Level, ...]
    months_per_percent: float
    against: dict[str, Against]


def study(
    run: RunDir,
    images: hand_images.Folders,
    points: Mapping[str, ReferencePoints],
    others: Mapping[str, Mapping[str, ReferencePoints]],
    percents: Sequence[float] = PERCENT,
    repeats: int = 5,
    split: str = "test",
    seed: int = 2018,
    progress: Progress = unseen,
) -> tuple[Study, list[Moved]]:
    """Move the points of a split's hands, predict, and compare.

    Writes ``sensitivity.json`` and ``sensitivity.csv`` into the run. ``others`` are further markings by name, such as
    those that `locate` found; each is compared on the hands that it has. Raises PointsError or EvaluateError when the
    points are not those that the run was prepared with, RunError while another command holds the run.
    """
    run.recipe()  # raises for a folder that is not a run, before the lock
    percents = tuple(dict.fromkeys(percents))  # two equal levels would be pooled
    with run.lock("sensitivity"):
        looks = _Looks(Predictor(run), split_of(run)[split], hand_images.find_in_all(images), points, others)
        looks.check(images)
        base: dict[str, float] = {}
        moved: list[Moved] = []
        other: dict[str, dict[str, tuple[float, float]]] = {name: {} for name in others}
        for number, (look, months) in enumerate(looks.predicted(percents, repeats, seed), start=1):
            iou = overlap(points[look.id].rectangle(), look.hand.rectangle())
            if look.what is None:
                base[look.id] = months
            elif isinstance(look.what, str):
                other[look.what][look.id] = months, iou
            else:
                moved.append(Moved(look.id, look.what, months, months - base[look.id], iou))
            progress(number, looks.count(percents, repeats))
        levels = tuple(_level(percent, [m for m in moved if m.percent == percent]) for percent in percents)
        ages = {case.id: case.boneage_months for case in looks.cases}
        against = {name: _against(ages, base, found) for name, found in other.items() if found}
        outcome = Study(len(looks.cases), repeats, levels, _slope(levels), against)
        _write(run, split, outcome, moved)
    return outcome, moved


class _Look(NamedTuple):
    """A hand with points: its own (``what`` is None), moved by ``what`` percent, or those of the marking ``what``."""

    id: str
    what: str | float | None
    hand: ReferencePoints


@dataclass(frozen=True)
class _Looks:
    """The hands of a study, each with its own points, with points that are moved, and with other markings."""

    predictor: Predictor
    cases: list[Case]
    files: Mapping[str, Path]
    points: Mapping[str, ReferencePoints]
    others: Mapping[str, Mapping[str, ReferencePoints]]

    def check(self, images: hand_images.Folders) -> None:
        """PointsError or EvaluateError when a hand has no points or no image."""
        run = self.predictor.run
        if missing := [case.id for case in self.cases if case.id not in self.points]:
            raise PointsError(
                f"no points for {', '.join(missing[:5])}, cases of {run}. Give the table that it was prepared with."
            )
        if missing := [case.id for case in self.cases if case.id not in self.files]:
            where = hand_images.listed_folders(images)
            raise EvaluateError(
                f"{where}: no image of {', '.join(missing[:5])}, cases of {run}. Give the folder it was prepared from."
            )

    def count(self, percents: Sequence[float], repeats: int) -> int:
        """How many predictions there will be."""
        marked = sum(case.id in table for table in self.others.values() for case in self.cases)
        return len(self.cases) * (1 + len(percents) * repeats) + marked

    def predicted(self, percents: Sequence[float], repeats: int, seed: int) -> Iterator[tuple[_Look, float]]:
        """Each look with its prediction, in months; predictions are computed in batches."""
        looked_at: list[_Look] = []

        def normals() -> Iterator[Image]:
            for look, normal in self._all(percents, repeats, seed):
                looked_at.append(look)
                yield normal

        for number, months in enumerate(self.predictor.predict_normalized(normals())):
            yield looked_at[number], months

    def _all(self, percents: Sequence[float], repeats: int, seed: int) -> Iterator[tuple[_Look, Image]]:
        run = self.predictor.run
        for case in self.cases:
            image, own = hand_images.read_image(self.files[case.id]), self.points[case.id]
            view = _viewed(image, own)
            normal = self._normal(view, own)
            if not np.array_equal(normal, read_prepared(run, case.id)):
                raise PointsError(
                    f"id {case.id}: these points or this image are not those that {run} was prepared with."
                )
            yield _Look(case.id, None, own), normal
            rng = np.random.default_rng([seed, *case.id.encode()])
            for percent in (percent for percent in percents for _ in range(repeats)):
                moved = _moved(own, percent, rng)
                yield _Look(case.id, percent, moved), self._normal(view, moved)
            for name, table in self.others.items():
                if case.id in table:
                    hand = table[case.id]
                    yield _Look(case.id, name, hand), self._normal(view, hand)

    def _normal(self, view: StandardView, hand: ReferencePoints) -> Image:
        """The crop at other points of a hand, which was turned and inverted according to its own points."""
        here = view._replace(points=turned(hand, view.quarters))
        try:
            return normalize_viewed(here, self.predictor.recipe.preparation)
        except ValueError as error:
            raise PointsError(f"id {hand.id}: {error}.") from error


def _slope(levels: Sequence[Level]) -> float:
    """Months per percent: the slope of the best line through zero."""
    steps = np.array([(level.percent, level.mean_shift) for level in levels])
    return float((steps[:, 0] * steps[:, 1]).sum() / (steps[:, 0] ** 2).sum()) if len(steps) else math.nan


def _viewed(image: Image, hand: ReferencePoints) -> StandardView:
    try:
        return viewed(image, hand)
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

    The variance of the difference of two markings is twice that of one, so it is divided by two.
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
