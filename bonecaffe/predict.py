"""A model and an image -> months (paper II.3: "during the test and deployment phases").

>>> from bonecaffe import Predictor                            # doctest: +SKIP
>>> Predictor("runs/paper").predict("hand.png", points)        # doctest: +SKIP
118.4
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from bonecaffe.caffe import nets as engines
from bonecaffe.caffe import snapshots
from bonecaffe.errors import PredictError
from bonecaffe.files import sha256_file, write_text
from bonecaffe.hands.cases import Case, months_text
from bonecaffe.hands.images import read_image
from bonecaffe.hands.reference_points import ReferencePoints
from bonecaffe.network import mean
from bonecaffe.prepare.normalize import normalize
from bonecaffe.prepare.outputs import split_of
from bonecaffe.run import SPLITS, RunDir
from bonecaffe.training import launch

BATCH = 32


def model_file(run: RunDir, iteration: int | None = None) -> snapshots.Snapshot:
    """The snapshot asked for, or the last one; PredictError when it is not there or not complete."""
    found = snapshots.find(run.snapshots)
    if not found:
        raise PredictError(f"{run}: no snapshots here; train it first: bonecaffe train {run}")
    if iteration is None:
        chosen = found[-1]
    else:
        chosen = next((snapshot for snapshot in found if snapshot.iteration == iteration), None)
        if chosen is None:
            there = ", ".join(str(snapshot.iteration) for snapshot in found)
            raise PredictError(f"{run.snapshots}: no snapshot of iteration {iteration}. There are: {there}.")
    flaw = chosen.model_flaw()
    if flaw:
        raise PredictError(f"{flaw} Train on with --resume, or name another with --snapshot.")
    return chosen


def _check_unchanged(run: RunDir) -> None:
    """Refuse a model whose images, network or mean changed since it was trained: its numbers would mean nothing."""
    train = run.manifest().get("train", {})
    if "inputs" not in train or "files" not in train:
        return
    now = {"prepare": launch.prepared_key(run), **launch.files_in_use(run)}
    then = {"prepare": train["inputs"]["prepare"], **train["files"]}
    names = {
        "prepare": "the images were prepared anew",
        "deploy": "deploy.prototxt changed",
        "mean": "the mean changed",
    }
    for name, changed in names.items():
        if name == "mean" and then["mean"] and not now["mean"]:
            raise PredictError(f"{run.mean_file}: not there, and the model was trained with it. Copy it from the run it was trained in.")  # fmt: skip
        if then[name] != now[name]:
            raise PredictError(
                f"{run}: {changed} after it was trained, so its model does not belong to it. Train it again."
            )


class Predictor:
    """A trained run, ready to say the bone age of hands.

    Parameters: the run's folder, the iteration of the snapshot (the last one), the GPU's number (the CPU), the
    number of images in a forward pass, what computes: ``caffe``, or ``opencv`` where there is no Caffe.

    Raises PredictError when the run holds no model, CaffeError when there is no Caffe.
    """

    def __init__(
        self,
        run: str | os.PathLike[str] | RunDir,
        snapshot: int | None = None,
        gpu: int | None = None,
        batch: int = BATCH,
        engine: engines.Kind = "caffe",
    ) -> None:
        self.run = run if isinstance(run, RunDir) else RunDir(run)
        self.run.recipe()  # says so when this is no run
        self.recipe = self.run.trained_recipe()
        self.snapshot = model_file(self.run, snapshot)
        _check_unchanged(self.run)
        self.batch = batch
        if not self.run.deploy.is_file():
            raise PredictError(f"{self.run.deploy}: not there. Write it with: bonecaffe prototxt {self.run}")
        self._net = engines.make(engine, self.run.deploy, self.snapshot.caffemodel, gpu)
        self._mean = mean.array(self.run, self.recipe)

    def use(self, snapshot: snapshots.Snapshot) -> None:
        """Go on with the weights of another snapshot of the run; the net is not built anew."""
        self._net.load(snapshot.caffemodel)
        self.snapshot = snapshot

    def predict(
        self, image: str | os.PathLike[str] | np.ndarray, points: ReferencePoints | Sequence[Sequence[float]]
    ) -> float:
        """The bone age, in months, of one hand.

        ``image`` is a file or a uint8 array (height, width); ``points`` are the seven reference points, as read from
        points.csv or as seven pairs (x, y) in the order ulna, radius, thumb … little finger. Raises ImageError or
        PredictError for an image or points that cannot be used.
        """
        return next(self.predict_many([(image, points)]))

    def predict_many(
        self, hands: Iterable[tuple[str | os.PathLike[str] | np.ndarray, ReferencePoints | Sequence[Sequence[float]]]]
    ) -> Iterator[float]:
        """The bone ages of many hands, in batches; memory does not grow with their number."""
        return self.predict_normalized(self._normal(image, points) for image, points in hands)

    def predict_normalized(self, images: Iterable[np.ndarray]) -> Iterator[float]:
        """The bone ages of images that `normalize` made, uint8 (height, width)."""
        pending = iter(images)
        while batch := list(islice(pending, self.batch)):
            yield from self._forward(batch)

    def feed(self, normal: np.ndarray) -> np.ndarray:
        """What the net is given for a normalized image: float32 (3, height, width), BGR less the mean, as Caffe's Data layer makes it."""
        return normal.astype(np.float32)[None] - self._mean

    def _normal(
        self, image: str | os.PathLike[str] | np.ndarray, points: ReferencePoints | Sequence[Sequence[float]]
    ) -> np.ndarray:
        name = "image" if isinstance(image, np.ndarray) else str(image)
        pixels = image if isinstance(image, np.ndarray) else read_image(image)
        if pixels.ndim != 2 or pixels.dtype != np.uint8:
            raise PredictError(
                f"{name}: a {pixels.dtype} array of shape {pixels.shape}; uint8 (height, width) is needed."
            )
        if not isinstance(points, ReferencePoints):
            pairs = tuple(tuple(float(value) for value in point) for point in points)
            if len(pairs) != 7 or any(len(pair) != 2 for pair in pairs):
                raise PredictError(f"{name}: {len(pairs)} reference points; seven pairs (x, y) are needed.")
            points = ReferencePoints(name, pixels.shape[1], pixels.shape[0], pairs)
        problems = points.problems()
        if problems:
            raise PredictError(f"{name}: {problems[0]}.")
        try:
            return normalize(pixels, points, self.recipe.preparation)
        except ValueError as error:
            raise PredictError(f"{name}: {error}. Mark the points on this very image.") from error

    def _forward(self, batch: list[np.ndarray]) -> list[float]:
        return [float(value) for value in self._net.forward(np.stack([self.feed(normal) for normal in batch]))[:, 0]]


# ---- a run's own cases -----------------------------------------------------------------------------------------


def predict_run(
    run: RunDir,
    snapshot: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    gpu: int | None = None,
) -> int:
    """Predict both splits of a run into predictions_train.csv and predictions_test.csv; return the snapshot's iteration.

    Does nothing when they stand for this very snapshot. Raises PredictError when the run was prepared anew since
    it was trained.
    """
    run.recipe()
    manifest = run.manifest()
    if "prepare" not in manifest:
        raise PredictError(
            f"{run}: not prepared, so there is nothing to predict. Start with: bonecaffe prepare {run} …"
        )
    _check_unchanged(run)
    chosen = model_file(run, snapshot)
    facts = {
        "iteration": chosen.iteration,
        "caffemodel_sha256": sha256_file(chosen.caffemodel),
        "prepare": manifest["prepare"]["key"],
    }
    before = manifest.get("predict", {})
    files = {split: run.predictions(split) for split in SPLITS}
    if {**facts, "predictions": None} == {**before, "predictions": None} and all(
        path.is_file() and sha256_file(path) == before["predictions"][split] for split, path in files.items()
    ):
        return chosen.iteration
    predictor = Predictor(run, chosen.iteration, gpu)
    for split, cases, months in _predict_splits(predictor, progress or (lambda done, total: None)):
        out = io.StringIO()
        out.write("id,boneage_months,predicted_months,male\n")
        for case, predicted in zip(cases, months, strict=True):
            sex = "" if case.male is None else case.male
            out.write(f"{_cell(case.id)},{months_text(case.boneage_months)},{predicted:.4f},{sex}\n")
        write_text(files[split], out.getvalue())
    run.record("predict", {**facts, "predictions": {split: sha256_file(path) for split, path in files.items()}})
    return chosen.iteration


def _predict_splits(
    predictor: Predictor, progress: Callable[[int, int], None], before: int = 0, total: int = 0
) -> Iterator[tuple[str, list[Case], list[float]]]:
    """Predict both splits of a predictor's run: split, cases, months. ``before`` of ``total`` were done already."""
    splits = split_of(predictor.run)
    total = total or sum(len(cases) for cases in splits.values())
    for split, cases in splits.items():
        months = []
        normals = (read_image(predictor.run.image(case.id)) for case in cases)
        for predicted in predictor.predict_normalized(normals):
            months.append(predicted)
            before += 1
            progress(before, total)
        yield split, cases, months


def complete_models(run: RunDir) -> list[snapshots.Snapshot]:
    """The snapshots of a run that can be predicted with, the newest last; PredictError when there is none."""
    found = [snapshot for snapshot in snapshots.find(run.snapshots) if snapshot.model_flaw() is None]
    if not found:
        raise PredictError(f"{run}: no complete snapshots here; train it first: bonecaffe train {run}")
    return found


def predict_snapshots(
    run: RunDir,
    wanted: Sequence[snapshots.Snapshot],
    progress: Callable[[int, int], None] = lambda done, total: None,
    gpu: int | None = None,
) -> Iterator[tuple[snapshots.Snapshot, dict[str, tuple[list[Case], list[float]]]]]:
    """Predict both splits with one snapshot after the other; the net is built once, its weights are changed."""
    predictor = Predictor(run, wanted[0].iteration, gpu)
    each = sum(len(cases) for cases in split_of(run).values())
    for number, snapshot in enumerate(wanted):
        predictor.use(snapshot)
        done = _predict_splits(predictor, progress, number * each, each * len(wanted))
        yield snapshot, {split: (cases, months) for split, cases, months in done}


def _cell(text: str) -> str:
    return '"' + text.replace('"', '""') + '"' if any(character in text for character in ',"') else text


def points_for(image: Path, table: dict[str, ReferencePoints]) -> ReferencePoints:
    """The points of an image, by its name without suffix; PredictError when it is not marked."""
    try:
        return table[image.stem]
    except KeyError:
        raise PredictError(f"{image}: no points for id {image.stem}. Mark its seven points first.") from None
