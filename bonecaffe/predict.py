"""A model and an image -> months (paper II.3: "during the test and deployment phases").

>>> from bonecaffe import Predictor                            # doctest: +SKIP
>>> Predictor("runs/paper").predict("hand.png", points)        # doctest: +SKIP
118.4

Many hands, with their points found automatically; each gets an age, or a reason why it has none:

>>> from bonecaffe.locate.locate import hands_in               # doctest: +SKIP
>>> for result in Predictor("runs/paper").predict_hands(hands_in([Path("radiographs")])):  # doctest: +SKIP
...     print(facts(result))
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bonecaffe.caffe import environment, snapshots
from bonecaffe.caffe import nets as engines
from bonecaffe.errors import BonecaffeError, ImageError, PredictError
from bonecaffe.files import sha256_file, table_text, write_text
from bonecaffe.hands import ids
from bonecaffe.hands.cases import Case, months_text
from bonecaffe.hands.images import Image, id_of, read_image
from bonecaffe.hands.reference_points import POINT_NAMES, ReferencePoints
from bonecaffe.model import model as models
from bonecaffe.model.model import Model
from bonecaffe.network import definitions, mean
from bonecaffe.prepare.normalize import normalize_viewed, viewed
from bonecaffe.prepare.outputs import check_images, prepared_of, read_prepared, split_of
from bonecaffe.progress import Progress, unseen
from bonecaffe.records import Predicted, is_current, outputs_of
from bonecaffe.run import RunDir, written_by

PREDICTION_COLUMNS = ("id", "boneage_months", "predicted_months", "male")
BATCH = 32


class HandWarning(UserWarning):
    """A hand was not stored upright with bright bones, and was turned or inverted before the prediction."""


# ---- hands and their results -------------------------------------------------------------------------------------

Source = Literal["table", "found"]
"""Where the points of a hand come from: a table that was given, or the locator."""


@dataclass(frozen=True)
class Hand:
    """A radiograph with its points, ready to be predicted.

    ``confidence`` is the locator's, 0 to 1, and None for the points of a table. ``remarks`` are sentences that the
    reader of the age must see. ``pixels`` is the radiograph that the points belong to, uint8 (height, width). It is set
    where it was read already, or differs from what the file holds; with None it is read from ``image``.
    """

    image: Path
    points: ReferencePoints
    source: Source
    confidence: float | None = None
    remarks: tuple[str, ...] = ()
    pixels: Image | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Refused:
    """A radiograph without a predicted age, and the reason: a sentence that names the file.

    ``error`` is set when the hand is not to blame: a bug in bonecaffe, or a machine short of memory.
    """

    image: Path
    reason: str
    source: Source | None = None
    confidence: float | None = None
    remarks: tuple[str, ...] = ()
    error: Exception | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Prediction:
    """The age of a hand in months, and the iteration of the snapshot that predicted it."""

    hand: Hand
    months: float
    iteration: int


def refusal(
    image: Path,
    error: Exception,
    source: Source | None = None,
    confidence: float | None = None,
    remarks: tuple[str, ...] = (),
) -> Refused:
    """The refusal of one hand because of an error; the other hands are not affected."""
    if isinstance(error, BonecaffeError):
        return Refused(image, str(error), source, confidence, remarks)
    reason = f"{image}: failed with {type(error).__name__}: {' '.join(str(error).split())}".rstrip(": ") + "."
    return Refused(image, reason, source, confidence, remarks, error)


def facts(result: Prediction | Refused) -> dict[str, Any]:
    """A result as `bonecaffe predict --json` prints it; the same keys for every hand, None where there is no value.

    ``image``, ``id``; ``months``, ``iteration`` of the snapshot; ``points``, by name, as pairs (x, y) in pixels;
    ``points_from``, "table" or "found"; ``confidence`` of found points, 0 to 1; ``remarks``; ``refused``, the reason.
    """
    months = iteration = points = reason = None
    hand: Hand | Refused
    if isinstance(result, Refused):
        hand, reason = result, result.reason
    else:
        hand, months, iteration = result.hand, round(result.months, 2), result.iteration
        points = dict(zip(POINT_NAMES, map(list, hand.points.points), strict=True))
    return {
        "image": str(hand.image),
        "id": _id_shown(hand),
        "months": months,
        "iteration": iteration,
        "points": points,
        "points_from": hand.source,
        "confidence": hand.confidence,
        "remarks": list(hand.remarks),
        "refused": reason,
    }


def _id_shown(hand: Hand | Refused) -> str:
    """The id of a hand; the name of its file where it has no other."""
    try:
        return id_of(hand.image)
    except ImageError:
        return ids.of_file(hand.image)


# ---- a model -----------------------------------------------------------------------------------------------------


def model_file(run: RunDir, iteration: int | None = None) -> snapshots.Snapshot:
    """The requested snapshot, or the last one; PredictError when it is missing or incomplete."""
    found = snapshots.find(run.snapshots)
    if not found:
        raise PredictError(f"{run}: no snapshots here; train it first: bonecaffe train {run}")
    last = found[-1].iteration if iteration is None else iteration
    matching = [snapshot for snapshot in found if snapshot.iteration == last]
    if not matching:
        existing = ", ".join(str(snapshot.iteration) for snapshot in found)
        raise PredictError(f"{run.snapshots}: no snapshot of iteration {iteration}. Available: {existing}.")
    chosen = matching[-1]
    flaw = chosen.model_flaw()
    if flaw:
        raise PredictError(f"{flaw} Continue the training with --resume, or name another snapshot with --snapshot.")
    for each in matching:  # two of one iteration: do not guess which one is meant
        _check_written_here(run, each)
    return chosen


def _check_written_here(run: RunDir, snapshot: snapshots.Snapshot, sha256: str | None = None) -> None:
    """Refuse a model that the recorded training did not write: its predictions would be those of another training."""
    trained = run.read().train
    if trained is not None and not written_by(run, trained, snapshot.caffemodel, sha256):
        raise PredictError(
            f"{snapshot.caffemodel}: not as the recorded training of {run} wrote it. Restore it or move it away, or "
            "name another snapshot with --snapshot."
        )


def _check_unchanged(run: RunDir) -> None:
    """Refuse a model whose images, network or mean changed since it was trained: its predictions would mean nothing."""
    manifest = run.read()
    if manifest.train is None:
        return
    if manifest.prepare is not None and manifest.prepare.key != manifest.train.inputs["prepare"]:
        raise _not_its_model(run, "the images were prepared again")
    now, then = definitions.files_in_use(run), manifest.train.files
    if then["mean"] and not now["mean"]:
        raise PredictError(
            f"{run.mean_file}: missing, but the model was trained with it. Copy it from the run it was trained in."
        )
    for name, what in (("deploy", "deploy.prototxt changed"), ("mean", "the mean changed")):
        if then[name] != now[name]:
            raise _not_its_model(run, what)


def _not_its_model(run: RunDir, what: str) -> PredictError:
    return PredictError(f"{run}: {what} after the training, so the model no longer fits the run. Train it again.")


def model_of(source: str | os.PathLike[str] | RunDir, snapshot: int | None = None) -> Model:
    """The model in a run's folder, of a snapshot (default: the last one), or in a model file.

    Raises PredictError when the run holds no such model, ModelError for a file that is not a model file.
    """
    if not isinstance(source, RunDir) and os.path.isfile(source):
        model = models.read(source).model
        if snapshot not in (None, model.iteration):
            raise PredictError(f"{model.name}: holds the model of iteration {model.iteration} only. Omit --snapshot.")
        return model
    if not isinstance(source, RunDir) and not os.path.exists(source):
        raise PredictError(f"{os.fspath(source)}: no such run or model file.")
    run = source if isinstance(source, RunDir) else RunDir(source)
    recipe = run.recipe()
    chosen = model_file(run, snapshot)
    _check_unchanged(run)
    if not run.deploy.is_file():
        raise PredictError(f"{run.deploy}: missing. Write it with: bonecaffe prototxt {run}")
    name = str(chosen.caffemodel)
    return Model(name, chosen.iteration, recipe, mean.array(run, recipe), run.deploy, chosen.caffemodel)


class Predictor:
    """A trained model, ready to predict the bone age of hands.

    Parameters: a run's folder or a model file; the iteration of the snapshot (default: the last one); the GPU's number
    (default: the CPU); the number of images in a forward pass; the engine: ``caffe``, ``onnx`` or ``opencv`` (default:
    Caffe, or ONNX Runtime where none is installed).

    Raises PredictError when the run holds no model, ModelError for a file that is not a model file, CaffeError when
    the engine is not installed.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | RunDir,
        snapshot: int | None = None,
        gpu: int | None = None,
        batch: int = BATCH,
        engine: engines.Kind | None = None,
    ) -> None:
        self.model = model_of(model, snapshot)
        self.recipe = self.model.recipe
        self.batch = batch
        self._run = model if isinstance(model, RunDir) else None if os.path.isfile(model) else RunDir(model)
        self._net = engines.make(engine, self.model.deploy, self.model.caffemodel, gpu)

    @property
    def run(self) -> RunDir:
        """The run that the model is of; PredictError for a model file."""
        if self._run is None:
            raise PredictError(f"{self.model.name}: a model file, not a run.")
        return self._run

    @property
    def snapshot(self) -> snapshots.Snapshot:
        """The snapshot that predicts."""
        return snapshots.Snapshot(self.model.iteration, self.model.caffemodel)

    def use(self, snapshot: snapshots.Snapshot) -> None:
        """Switch to the weights of another snapshot of the run; the net is not built again."""
        self._net.load(snapshot.caffemodel)
        self.model = replace(
            self.model, name=str(snapshot.caffemodel), iteration=snapshot.iteration, caffemodel=snapshot.caffemodel
        )

    def predict(
        self, image: str | os.PathLike[str] | Image, points: ReferencePoints | Sequence[Sequence[float]]
    ) -> float:
        """The bone age, in months, of one hand.

        ``image`` is a file or a uint8 array (height, width); ``points`` are the seven reference points, as read from
        points.csv or as seven pairs (x, y) in the order ulna, radius, thumb … little finger. Raises ImageError or
        PredictError for an image or points that cannot be used.
        """
        return next(self.predict_many([(image, points)]))

    def predict_many(
        self, hands: Iterable[tuple[str | os.PathLike[str] | Image, ReferencePoints | Sequence[Sequence[float]]]]
    ) -> Iterator[float]:
        """The bone ages of many hands, in batches; memory does not grow with their number.

        A hand that had to be turned upright or inverted is reported by a warning (`HandWarning`).
        """

        def normals() -> Iterator[Image]:
            for image, points in hands:
                name = "image" if isinstance(image, np.ndarray) else str(image)
                normal, remarks = self._normal(image, points, name)
                for remark in remarks:
                    warnings.warn(f"{name}: {remark}.", HandWarning, stacklevel=2)
                yield normal

        return self.predict_normalized(normals())

    def predict_hands(self, hands: Iterable[Hand | Refused]) -> Iterator[Prediction | Refused]:
        """The result of each hand, in order, as soon as it is known: see `bonecaffe.locate.locate.hands_in`.

        A hand that cannot be predicted is refused; the others are still predicted. The first hand, and each hand whose
        points were found, is computed by itself: finding takes several times longer than a forward pass, so a batch
        would save nothing and only delay its hands. Hands with points from a table are computed in batches.
        """
        waiting: list[tuple[Hand, Image] | Refused] = []
        at_most = 1
        for hand in hands:
            waiting.append(hand if isinstance(hand, Refused) else self._ready(hand))
            if len(waiting) >= at_most or isinstance(waiting[0], Refused) or hand.source == "found":
                if any(not isinstance(each, Refused) for each in waiting):
                    at_most = self.batch
                yield from self._results(waiting)
                waiting = []
        yield from self._results(waiting)

    def predict_normalized(self, images: Iterable[Image]) -> Iterator[float]:
        """The bone ages of images that `normalize` made, uint8 (height, width)."""
        pending = iter(images)
        while batch := list(islice(pending, self.batch)):
            yield from self._forward(batch)

    def feed(self, normal: Image) -> NDArray[np.float32]:
        """The net's input for a normalized image: float32 (3, height, width), BGR less the mean.

        Caffe's Data layer computes the same.
        """
        return normal.astype(np.float32)[None] - self.model.mean

    def _ready(self, hand: Hand) -> tuple[Hand, Image] | Refused:
        """A hand without its pixels, to save memory, and its normalized image."""
        try:
            image = hand.image if hand.pixels is None else hand.pixels
            normal, remarks = self._normal(image, hand.points, str(hand.image))
            return replace(hand, pixels=None, remarks=(*hand.remarks, *remarks)), normal
        except Exception as error:
            return refusal(hand.image, error, hand.source, hand.confidence, hand.remarks)

    def _results(self, hands: Sequence[tuple[Hand, Image] | Refused]) -> Iterator[Prediction | Refused]:
        months = self.predict_normalized([each[1] for each in hands if not isinstance(each, Refused)])
        for each in hands:
            yield each if isinstance(each, Refused) else self._result(each[0], next(months))

    def _result(self, hand: Hand, months: float) -> Prediction | Refused:
        if math.isfinite(months):
            return Prediction(hand, months, self.model.iteration)
        reason = f"{hand.image}: {self.model.name} predicts {months:g}. Its training diverged; train it again."
        return Refused(hand.image, reason, hand.source, hand.confidence, hand.remarks)

    def _normal(
        self,
        image: str | os.PathLike[str] | Image,
        points: ReferencePoints | Sequence[Sequence[float]],
        name: str,
    ) -> tuple[Image, tuple[str, ...]]:
        """The normalized image of a hand, and remarks on how the hand was stored."""
        pixels = image if isinstance(image, np.ndarray) else read_image(image)
        if pixels.ndim != 2 or pixels.dtype != np.uint8:
            raise PredictError(
                f"{name}: a {pixels.dtype} array of shape {pixels.shape}; uint8 (height, width) is needed."
            )
        if not isinstance(points, ReferencePoints):
            if len(points) != 7 or any(len(point) != 2 for point in points):
                raise PredictError(f"{name}: {len(points)} reference points; seven pairs (x, y) are needed.")
            pairs = tuple((float(x), float(y)) for x, y in points)
            points = ReferencePoints(name, pixels.shape[1], pixels.shape[0], pairs)
        problems = points.problems()
        if problems:
            raise PredictError(f"{name}: {problems[0]}.")
        try:
            view = viewed(pixels, points)
            return normalize_viewed(view, self.recipe.preparation), view.remarks
        except ValueError as error:
            raise PredictError(f"{name}: {error}. Mark the points on exactly this image.") from error

    def _forward(self, batch: list[Image]) -> list[float]:
        return [float(value) for value in self._net.forward(np.stack([self.feed(normal) for normal in batch]))[:, 0]]


# ---- a run's own cases -----------------------------------------------------------------------------------------


def predict_run(run: RunDir, snapshot: int | None = None, progress: Progress = unseen, gpu: int | None = None) -> int:
    """Predict both splits of a run, into predictions_train.csv and predictions_test.csv.

    Returns the snapshot's iteration. Does nothing when the files already exist for this very snapshot. Raises
    PredictError when the images were prepared again since the training, and RunError naming the images that are missing
    or changed. Both are raised before the first prediction, and earlier predictions stay.
    """
    prepared = prepared_of(run)
    run.recipe()
    _check_unchanged(run)
    chosen = model_file(run, snapshot)
    sha256 = sha256_file(chosen.caffemodel)
    _check_written_here(run, chosen, sha256)
    inputs = {"prepare": prepared.key, run.name_of(chosen.caffemodel): sha256}
    if is_current(run.path, run.read().predict, inputs):
        return chosen.iteration
    check_images(run)
    predictor = Predictor(run, chosen.iteration, gpu, engine="caffe")
    tables = {split: _table(cases, months) for split, cases, months in _predict_splits(predictor, progress)}
    files = [run.predictions(split) for split in tables]
    for path, text in zip(files, tables.values(), strict=True):
        write_text(path, text)
    run.record(
        Predicted(inputs=inputs, **outputs_of(run.path, files), by=environment.describe(), iteration=chosen.iteration)
    )
    return chosen.iteration


def _table(cases: Sequence[Case], months: Sequence[float]) -> str:
    """The text of a predictions file."""
    rows = (
        (case.id, months_text(case.boneage_months), f"{predicted:.4f}", "" if case.male is None else case.male)
        for case, predicted in zip(cases, months, strict=True)
    )
    return table_text(PREDICTION_COLUMNS, rows)


def _predict_splits(
    predictor: Predictor, progress: Progress, before: int = 0, total: int = 0
) -> Iterator[tuple[str, list[Case], list[float]]]:
    """Predict both splits of a predictor's run: split, cases, months. ``before`` of ``total`` are done already."""
    splits = split_of(predictor.run)
    total = total or sum(len(cases) for cases in splits.values())
    for split, cases in splits.items():
        months = []
        normals = (read_prepared(predictor.run, case.id) for case in cases)
        for predicted in predictor.predict_normalized(normals):
            months.append(predicted)
            before += 1
            progress(before, total)
        yield split, cases, months


def complete_models(run: RunDir) -> list[snapshots.Snapshot]:
    """The snapshots of a run that can predict, the newest last; PredictError when there is none."""
    found = [snapshot for snapshot in snapshots.find(run.snapshots) if snapshot.model_flaw() is None]
    if not found:
        raise PredictError(f"{run}: no complete snapshots here; train it first: bonecaffe train {run}")
    for snapshot in found:
        _check_written_here(run, snapshot)
    return found


def predict_snapshots(
    run: RunDir,
    chosen: Sequence[snapshots.Snapshot],
    progress: Progress = unseen,
    gpu: int | None = None,
) -> Iterator[tuple[snapshots.Snapshot, dict[str, tuple[list[Case], list[float]]]]]:
    """Predict both splits with one snapshot after the other; the net is built once, only its weights change."""
    check_images(run)
    predictor = Predictor(run, chosen[0].iteration, gpu, engine="caffe")
    each = sum(len(cases) for cases in split_of(run).values())
    for number, snapshot in enumerate(chosen):
        predictor.use(snapshot)
        done = _predict_splits(predictor, progress, number * each, each * len(chosen))
        yield snapshot, {split: (cases, months) for split, cases, months in done}


# ---- images with points ------------------------------------------------------------------------------------------


def points_for(image: Path, table: Mapping[str, ReferencePoints], path: Path | None = None) -> ReferencePoints:
    """The points of an image, by its id; PredictError when the table (at ``path``) has none."""
    case_id = id_of(image)
    if case_id in table:
        return table[case_id]
    where = f" in {path}" if path else ""
    raise PredictError(f"{image}: no points for id {ids.listed([case_id], table)}{where}. Mark its seven points first.")
