"""What prepare leaves in a run: moved into place whole, remembered by hash, asked after by the stages that follow."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from bonecaffe.errors import RunError
from bonecaffe.files import sha256_file, write_bytes
from bonecaffe.hands import images as hand_images
from bonecaffe.hands.cases import Case, read_cases
from bonecaffe.hands.reference_points import ReferencePoints, write_points
from bonecaffe.recipe import Recipe
from bonecaffe.run import SPLITS, RunDir

EXAMPLE_SIDE = 800
"""Pixels of the longer side of the example hand that the report shows."""


def split_of(run: RunDir) -> dict[str, list[Case]]:
    """The cases of a run's two splits, with their exact ages, as prepare wrote them."""
    try:
        train = int(run.manifest()["prepare"]["records"]["train"])
    except (KeyError, TypeError, ValueError):
        raise RunError(f"{run.manifest_file}: no whole record of prepare. Run prepare again.") from None
    cases = read_cases(run.cases_file)
    return {"train": cases[:train], "test": cases[train:]}


def files(run: RunDir) -> list[Path]:
    """The files that Caffe will read and that say who is in which split, so far as they are there."""
    of_splits = [
        path
        for split in SPLITS
        for path in (run.list_file(split), run.lmdb(split) / "data.mdb", run.labels_lmdb(split) / "data.mdb")
    ]
    return [path for path in (run.cases_file, *of_splits) if path.is_file()]


def remember(run: RunDir) -> dict[str, dict[str, Any]]:
    """Size, time and hash of each of them, by its path in the run."""
    return {str(path.relative_to(run.path)): _facts(path) for path in files(run)}


def _facts(path: Path) -> dict[str, Any]:
    about = os.stat(path)
    return {"bytes": about.st_size, "mtime_ns": about.st_mtime_ns, "sha256": sha256_file(path)}


def changed(run: RunDir) -> list[str]:
    """Which files are not those that prepare wrote: gone, or of another content. A file whose size and time stand is not read."""
    found = []
    for name, facts in run.manifest().get("prepare", {}).get("files", {}).items():
        try:
            about = os.stat(run.path / name)
        except OSError:
            found.append(name)
            continue
        if (about.st_size, about.st_mtime_ns) == (facts["bytes"], facts["mtime_ns"]):
            continue
        if about.st_size != facts["bytes"] or sha256_file(run.path / name) != facts["sha256"]:
            found.append(name)
    return found


def stands(run: RunDir, key: str) -> bool:
    """Whether the run was prepared from the same inputs, and what that made is all there."""
    facts = run.manifest().get("prepare")
    if not facts or facts.get("key") != key or "files" not in facts or not run.recipe_file.is_file() or changed(run):
        return False
    images = {f"{case_id}.png" for case_id in facts["cases"]}
    return run.images.is_dir() and images <= set(os.listdir(run.images))


def write_example(run: RunDir, image: Path, points: ReferencePoints) -> None:
    """Keep one hand with its points, made smaller, for the report's picture of the preparation."""
    import cv2

    pixels = hand_images.read_image(image)
    scale = min(1.0, EXAMPLE_SIDE / max(pixels.shape))
    size = max(1, round(points.width * scale)), max(1, round(points.height * scale))
    small = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA) if scale < 1 else pixels
    moved = tuple(
        (min(x * size[0] / points.width, size[0] - 1), min(y * size[1] / points.height, size[1] - 1))
        for x, y in points.points
    )
    write_bytes(run.example / "hand.png", hand_images.encode_png(small), parents=True)
    write_points(run.example / "points.csv", [ReferencePoints(points.id, *size, moved)])


def move_into_place(run: RunDir, staged: RunDir, recipe: Recipe, facts: dict[str, Any]) -> None:
    """Swap the staged outputs in. The manifest loses its entry first and gets it last, so a torn swap is redone."""
    run.record("prepare", None)
    old = staged.path / "old"
    shutil.rmtree(old, ignore_errors=True)
    old.mkdir()
    of_splits = [
        path.name for split in SPLITS for path in (run.list_file(split), run.lmdb(split), run.labels_lmdb(split))
    ]
    for name in [run.images.name, run.example.name, run.cases_file.name, *of_splits]:
        target = run.path / name
        if target.exists():
            os.rename(target, old / name)
        if (staged.path / name).exists():  # exact labels are not always asked for
            os.rename(staged.path / name, target)
    run.write_recipe(recipe)
    run.record("prepare", {**facts, "files": remember(run)})
    shutil.rmtree(staged.path)
