"""Where a run's files lie: one name for each path, one way of writing a file, and the manifest.

A run is a folder, ``runs/NAME``. Caffe is always started in it, so that the paths in its prototxts are
short and the folder can be moved.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bonecaffe.errors import RunError
from bonecaffe.files import held, holder, sha256, write_text
from bonecaffe.recipe import Recipe

SPLITS = ("train", "test")


def seal(facts: dict[str, Any]) -> str:
    """The hash of a stage's record, by which an edit of the manifest shows."""
    return sha256(json.dumps(facts, sort_keys=True, ensure_ascii=False))


class RunDir:
    """The paths of one run, its recipe, its manifest and its lock.

    Nothing is created by naming a path; a stage makes what it writes.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.recipe_file = self.path / "recipe.yaml"
        self.manifest_file = self.path / "manifest.json"
        self._lock_file = self.path / ".lock"
        # prepare
        self.images = self.path / "images"
        self.departures = self.path / "departures.json"
        self.cases_file = self.path / "cases.csv"
        self.example = self.path / "example"
        # network
        self.train_val = self.path / "train_val.prototxt"
        self.solver = self.path / "solver.prototxt"
        self.deploy = self.path / "deploy.prototxt"
        self.mean_file = self.path / "mean.binaryproto"
        self.init_weights = self.path / "init.caffemodel"
        # training
        self.caffe_log = self.path / "caffe.log"
        self.curve = self.path / "curve.csv"
        self.snapshots = self.path / "snapshots"
        # evaluation
        self.metrics = self.path / "metrics.json"
        self.by_snapshot = self.path / "metrics_by_snapshot.csv"
        self.figures = self.path / "figures"
        self.report = self.path / "report.html"

    def __repr__(self) -> str:
        return f"RunDir({str(self.path)!r})"

    def __str__(self) -> str:
        return str(self.path)

    def image(self, case_id: str) -> Path:
        """The normalized image of a case."""
        return self.images / f"{case_id}.png"

    def list_file(self, split: str) -> Path:
        """The list that convert_imageset reads: ``train.txt`` or ``test.txt``."""
        return self.path / f"{split}.txt"

    def lmdb(self, split: str) -> Path:
        """The LMDB that convert_imageset writes: ``train_lmdb`` or ``test_lmdb``."""
        return self.path / f"{split}_lmdb"

    def labels_lmdb(self, split: str) -> Path:
        """Exact ages beside an image LMDB, where the recipe asks for them: ``train_labels_lmdb``."""
        return self.path / f"{split}_labels_lmdb"

    def predictions(self, split: str) -> Path:
        """The predictions for a split: ``predictions_train.csv`` or ``predictions_test.csv``."""
        return self.path / f"predictions_{split}.csv"

    # ---- recipe ------------------------------------------------------------------------------------------------

    def recipe(self) -> Recipe:
        """The recipe this run was prepared with; RunError when the folder holds none."""
        if not self.recipe_file.is_file():
            raise RunError(
                f"{self.path}: no recipe.yaml here, so this is not a prepared run. Start with: bonecaffe prepare {self.path} …"
            )
        return Recipe.load(self.recipe_file)

    def trained_recipe(self) -> Recipe:
        """The recipe this run was trained with, which a later prepare does not change; its own when not trained yet."""
        kept = self.manifest().get("train", {}).get("recipe")
        return Recipe.parse(kept, f"{self.manifest_file}, train") if kept else self.recipe()

    def write_recipe(self, recipe: Recipe) -> None:
        """Keep the recipe, every field with its source or reason."""
        heading = "# The recipe of this run, complete; written by bonecaffe.\n"
        write_text(self.recipe_file, heading + recipe.to_yaml())

    # ---- manifest ----------------------------------------------------------------------------------------------

    def manifest(self) -> dict[str, Any]:
        """What each stage recorded; empty for a new run. RunError for a file that is not JSON."""
        try:
            manifest = json.loads(self.manifest_file.read_text(encoding="utf-8"))
            if not isinstance(manifest, dict) or not all(isinstance(facts, dict) for facts in manifest.values()):
                raise ValueError("not an object of objects")
            return manifest
        except FileNotFoundError:
            return {}
        except (ValueError, UnicodeDecodeError) as error:
            raise RunError(
                f"{self.manifest_file}: not readable as JSON ({error}). Delete it and run prepare again."
            ) from error

    def record(self, stage: str, facts: dict[str, Any] | None) -> None:
        """Put a stage's record into the manifest under its seal, or take it out (None)."""
        manifest = self.manifest()
        seals = manifest.pop("seals", {})
        for entries, entry in ((manifest, facts), (seals, None if facts is None else seal(facts))):
            if entry is None:
                entries.pop(stage, None)
            else:
                entries[stage] = entry
        content = {**manifest, "seals": seals}
        write_text(self.manifest_file, json.dumps(content, indent=2, ensure_ascii=False) + "\n")

    # ---- one at a time -----------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def lock(self, doing: str, wait_s: float = 0.0) -> Iterator[int]:
        """Hold the run for one stage; RunError when another process holds it still after ``wait_s`` seconds.

        Yields the open lock file: it is held until every process that has it open has ended, however they end.
        """

        def busy(holder: str) -> RunError:
            return RunError(
                f"{self.path}: in use by {holder or 'another process'}. Wait for it, or stop it, and try again."
            )

        self.path.mkdir(parents=True, exist_ok=True)
        with held(self._lock_file, doing, busy, wait_s) as file:
            yield file

    def holder(self) -> str:
        """Who works on the run now, such as ``bonecaffe train, process 77``; empty when nobody does."""
        return holder(self._lock_file)
