"""The files that prepare writes into a run: moved into place together, and checked when later stages read them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bonecaffe.errors import CasesError, Problems, RunError
from bonecaffe.files import make_folder, move, read_bytes, remove, sha256, write_bytes
from bonecaffe.hands import ids
from bonecaffe.hands import images as hand_images
from bonecaffe.hands.cases import Case, read_cases
from bonecaffe.hands.reference_points import ReferencePoints, write_points
from bonecaffe.prepare.normalize import viewed
from bonecaffe.records import Prepared, damaged, is_intact
from bonecaffe.run import SPLITS, RunDir

EXAMPLE_SIDE = 800
"""Pixels of the longer side of the example hand that the report shows."""


# ---- reading -----------------------------------------------------------------------------------------------------


def prepared_of(run: RunDir) -> Prepared:
    """The record of a run's preparation; RunError when there is none."""
    prepared = run.read().prepare
    if prepared is None:
        reason = "" if run.path.is_dir() else "no such folder, so this is "
        raise RunError(f"{run}: {reason}not a prepared run. Start with: bonecaffe prepare {run} …")
    return prepared


def split_of(run: RunDir) -> dict[str, list[Case]]:
    """The cases of a run's two splits, with their exact ages, as prepare wrote them; RunError when they changed."""
    prepared = prepared_of(run)
    name = run.name_of(run.cases_file)
    if not is_intact(run.path, prepared, name):
        raise RunError(f"{run.cases_file}: changed since prepare wrote it. Run prepare again to repair it.")
    try:
        cases = {case.id: case for case in read_cases(run.cases_file)}
        return {split: [cases[case_id] for case_id in prepared.split[split]] for split in SPLITS}
    except (CasesError, KeyError) as error:
        raise RunError(f"{run.cases_file}: not the cases that were prepared ({error}). Run prepare again.") from error


def read_prepared(run: RunDir, case_id: str) -> NDArray[np.uint8]:
    """The normalized image of a case, uint8 (height, width); RunError when it is not the one that prepare wrote."""
    path = run.image(case_id)
    expected = prepared_of(run).outputs.get(run.name_of(path))
    try:
        content = read_bytes(path, "image", RunError)
    except OSError as error:
        raise RunError(f"{path}: {error.strerror}. Run prepare again to repair it.") from error
    if sha256(content) != expected:
        raise RunError(f"{path}: not the image that prepare wrote. Run prepare again to repair it.")
    return hand_images.decode(content, str(path))


def view_remarks(prepared: Prepared) -> list[str]:
    """Sentences that name the hands which were turned or inverted for the crop, or could not be seen."""
    turned = {case_id: f"{case_id} ({90 * case.quarters})" for case_id, case in prepared.cases.items() if case.quarters}
    dark, unseen = (
        [case_id for case_id, case in prepared.cases.items() if case.polarity == polarity]
        for polarity in ("dark", "unseen")
    )
    found = []
    if turned:
        each = "hand was" if len(turned) == 1 else "hands were"
        found.append(
            f"{len(turned)} {each} turned upright, counter-clockwise, in degrees: {ids.listed(turned.values())}"
        )
    if dark:
        each = "image has" if len(dark) == 1 else "images have"
        found.append(f"{len(dark)} {each} dark bones, inverted for the crop: {ids.listed(dark)}")
    if unseen:
        each = "image hardly shows" if len(unseen) == 1 else "images hardly show"
        found.append(f"{len(unseen)} {each} a hand at the points; check them: {ids.listed(unseen)}")
    return found


def check_images(run: RunDir) -> None:
    """RunError naming the prepared images that are missing or changed, before hours are spent on the others."""
    prepared = prepared_of(run)
    names = [name for name in prepared.outputs if name.startswith("images/")]
    found = damaged(run.path, prepared, names)
    if not found:
        return
    missing = {name for name in found if not os.path.lexists(run.path / name)}
    listed = ", ".join(f"{name} ({'missing' if name in missing else 'changed'})" for name in found[: Problems.SHOWN])
    more = f" and {len(found) - Problems.SHOWN} more" if len(found) > Problems.SHOWN else ""
    what = "image is" if len(found) == 1 else "images are"
    raise RunError(
        f"{run}: {len(found)} {what} not as prepare wrote them: {listed}{more}. Run prepare again to repair them."
    )


def changed(run: RunDir) -> list[str]:
    """The files for Caffe that changed since prepare wrote them: lists, LMDBs, cases. All are read."""
    prepared = prepared_of(run)
    return damaged(run.path, prepared, [name for name in prepared.outputs if not name.startswith("images/")], read=True)


# ---- writing -----------------------------------------------------------------------------------------------------


def write_example(staged: RunDir, image: Path, points: ReferencePoints) -> None:
    """Store one hand with its points, upright and reduced, for the report's picture of the preparation."""
    import cv2

    pixels, points, *_ = viewed(hand_images.read_image(image), points)
    scale = min(1.0, EXAMPLE_SIDE / max(pixels.shape))
    size = max(1, round(points.width * scale)), max(1, round(points.height * scale))
    small = np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8) if scale < 1 else pixels
    moved = tuple(
        (min(x * size[0] / points.width, size[0] - 1), min(y * size[1] / points.height, size[1] - 1))
        for x, y in points.points
    )
    make_folder(staged.example)
    write_bytes(staged.example / "hand.png", hand_images.encode_png(small))
    write_points(staged.example / "points.csv", [ReferencePoints(points.id, *size, moved)])


@contextlib.contextmanager
def moved_into_place(run: RunDir, staged: RunDir) -> Iterator[None]:
    """Swap the staged outputs in, and swap them back when the body fails.

    The body writes the record last. After a kill, the earlier record is still there, its outputs count as damaged, and
    the swap is repeated. A trained model is protected all the time.
    """
    old = staged.path / "old"
    remove(old)
    make_folder(old)
    names = _names(run)
    made: list[str] = []
    try:
        for name in names:
            target = run.path / name
            if os.path.lexists(target):
                move(target, old / name)
            if (staged.path / name).exists():  # exact labels are optional
                move(staged.path / name, target)
                made.append(name)
        yield
    except BaseException:
        for name in made:
            remove(run.path / name)
        for name in names:
            if os.path.lexists(old / name):
                move(old / name, run.path / name)
        raise


def _names(run: RunDir) -> list[str]:
    by_split = [
        path.name for split in SPLITS for path in (run.list_file(split), run.lmdb(split), run.labels_lmdb(split))
    ]
    return [run.images.name, run.example.name, run.cases_file.name, *by_split]


def files_of(run: RunDir, case_ids: Iterable[str]) -> list[Path]:
    """Every file that prepare may write for later stages, in order, whether it exists or not."""
    by_split = [
        path
        for split in SPLITS
        for path in (run.list_file(split), run.lmdb(split) / "data.mdb", run.labels_lmdb(split) / "data.mdb")
    ]
    example = [run.example / "hand.png", run.example / "points.csv"]
    return [run.cases_file, *by_split, *example, *(run.image(case_id) for case_id in case_ids)]
