"""Where a run's files are: one name for each path, its records, and its lock.

A run is a folder, ``runs/NAME``. Caffe is always started in it, so that the paths in its prototxts are short and the
folder can be moved. The folder itself may be a link; links inside it are not followed.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from bonecaffe import files
from bonecaffe.errors import RunError
from bonecaffe.recipe import Change, Recipe
from bonecaffe.records import Manifest, Record, State, Trained, is_intact, parse_manifest

SPLITS = ("train", "test")

WORK = ".prepare"
"""The folder in a run where `prepare` works; removed when it is done."""


def written_by(run: RunDir, trained: Trained, file: Path, sha256: str | None = None) -> bool:
    """Whether a snapshot's file was written by the recorded training and is unchanged.

    ``sha256`` is its hash where it is known; otherwise a file with the recorded size and time is not read. While a
    training runs, or after it was killed together with its driver, the files it wrote since its start are not recorded
    yet: they count as its own.
    """
    name = run.name_of(file)
    if name in trained.outputs:
        return is_intact(run.path, trained, name) if sha256 is None else sha256 == trained.outputs[name]
    number = re.search(r"_iter_(\d+)\.", file.name)
    return trained.state is State.RUNNING and number is not None and int(number[1]) > trained.iteration


class RunDir:
    """The paths of one run, its recipe, its records and its lock.

    Nothing is created by naming a path; a stage makes what it writes.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.recipe_file = self.path / "recipe.yaml"
        self.manifest_file = self.path / "manifest.json"
        self._lock_file = self.path / ".lock"
        # prepare
        self.work = self.path / WORK
        self.images = self.path / "images"
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
        # studies
        self.departures = self.path / "departures.json"
        self.sensitivity = self.path / "sensitivity.json"
        self.sensitivity_table = self.path / "sensitivity.csv"
        self._read: tuple[tuple[int, int, int], Manifest] | None = None
        self._checked = False

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
        """The LMDB of exact ages for an image LMDB, where the recipe asks for one: ``train_labels_lmdb``."""
        return self.path / f"{split}_labels_lmdb"

    def predictions(self, split: str) -> Path:
        """The predictions for a split: ``predictions_train.csv`` or ``predictions_test.csv``."""
        return self.path / f"predictions_{split}.csv"

    def name_of(self, path: Path) -> str:
        """A path in the run as the records name it: relative, with slashes."""
        return path.relative_to(self.path).as_posix()

    # ---- a folder from a stranger ------------------------------------------------------------------------------

    def _names(self) -> Iterator[str]:
        """The names of what bonecaffe reads or writes at the top of a run, earlier logs included."""
        own = (value for value in vars(self).values() if isinstance(value, Path) and value != self.path)
        by_split = (
            path
            for split in SPLITS
            for path in (self.list_file(split), self.lmdb(split), self.labels_lmdb(split), self.predictions(split))
        )
        yield from (path.name for path in (*own, *by_split))
        with contextlib.suppress(OSError), os.scandir(self.path) as entries:
            yield from (entry.name for entry in entries if entry.name.startswith(f"{self.caffe_log.name}."))

    def check(self) -> None:
        """Refuse a run with a link or a special file where bonecaffe would read or write; RunError naming it."""
        if not self._checked:
            files.check_tree(self.path, self._names(), RunError)
            self._checked = True

    def inside(self, path: str, whose: str) -> Path:
        """A path that a file of the run names; RunError when it leads out of the run. ``whose`` is the file's name."""
        if not files.is_inside(path):
            raise RunError(f"{whose}: names {path!r}, which is outside of the run. Put a copy into {self.path}.")
        found = self.path / path
        for part in (found, *found.parents):
            if part == self.path:
                break
            if part.is_symlink():
                raise RunError(
                    f"{whose}: names {path!r}, but {part} is a link and may lead out of the run. Replace it by a copy."
                )
        return found

    # ---- records -----------------------------------------------------------------------------------------------

    def read(self) -> Manifest:
        """What each stage recorded; an empty manifest for a new run. Parsed once, until the file changes.

        Raises RunError in one sentence when the file is not a manifest of this version, or the run holds links.
        """
        self.check()
        try:
            status = os.stat(self.manifest_file)
        except (FileNotFoundError, NotADirectoryError):
            return Manifest()
        stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
        if self._read is None or self._read[0] != stamp:
            content = files.read_bytes(self.manifest_file, "record", RunError)
            manifest = parse_manifest(content, str(self.manifest_file))
            named = {name.split("/")[0] for record in manifest.records().values() for name in record.outputs}
            files.check_tree(self.path, named - set(self._names()), RunError)
            self._read = stamp, manifest
        return self._read[1]

    def record(self, record: Record) -> None:
        """Put a stage's record into the manifest, under its seal."""
        self._write(self.read().with_record(record))

    def forget(self, *stages: str) -> None:
        """Remove the records of stages from the manifest."""
        manifest = self.read()
        if any(stage in manifest.records() for stage in stages):
            self._write(manifest.without(stages))

    def _write(self, manifest: Manifest) -> None:
        try:
            files.write_text(self.manifest_file, manifest.to_json())
        except FileNotFoundError:
            raise RunError(f"{self.path}: no longer exists; it was moved or removed while bonecaffe ran.") from None
        status = os.stat(self.manifest_file)
        self._read = (status.st_mtime_ns, status.st_size, status.st_ino), manifest

    # ---- recipe ------------------------------------------------------------------------------------------------

    def recipe(self) -> Recipe:
        """The recipe this run was prepared with.

        RunError when the folder is not a prepared run, or when recipe.yaml was edited since: it lists what changed, and
        how to apply or undo it.
        """
        recipe, changes = self.recipe_as_edited()
        if changes:
            listed = "".join(f"\n  {change}" for change in changes)
            remedy = (
                "The run holds a model that was trained without these changes. Undo them, or prepare another run."
                if self.holds_model()
                else f"Apply them with: bonecaffe prepare {self.path} …"
            )
            raise RunError(f"{self.recipe_file}: edited since the run was prepared:{listed}\n{remedy}")
        return recipe

    def recipe_as_edited(self) -> tuple[Recipe, list[Change]]:
        """The recipe in recipe.yaml, and what was edited in it since the run was prepared; RunError without a run.

        Changed names and reasons do not count as edits. In a run with a trained model the recorded ones apply: the
        definition files and the departures were written with them.
        """
        prepared = self.read().prepare
        if not self.recipe_file.is_file():
            reason = "no recipe.yaml here" if self.path.is_dir() else "no such folder"
            raise RunError(
                f"{self.path}: {reason}, so this is not a prepared run. Start with: bonecaffe prepare {self.path} …"
            )
        recipe = Recipe.load(self.recipe_file)
        if prepared is None or recipe.to_yaml() == prepared.recipe:
            return recipe, []
        before = Recipe.parse(prepared.recipe, f"{self.manifest_file}, prepare.recipe")
        changes = before.changes(recipe)
        return before if not changes and self.holds_model() else recipe, changes

    def write_recipe(self, recipe: Recipe) -> None:
        """Write the recipe, every field with its source or reason; only `prepare` calls this."""
        heading = "# The recipe of this run, complete; written by bonecaffe prepare.\n"
        files.write_text(self.recipe_file, heading + recipe.to_yaml())

    def holds_model(self) -> bool:
        """Whether a training left weights or a solver's state here, which another preparation would orphan."""
        try:
            with os.scandir(self.snapshots) as entries:
                return any(
                    entry.name.removesuffix(".h5").endswith((".caffemodel", ".solverstate")) for entry in entries
                )
        except (FileNotFoundError, NotADirectoryError):
            return False

    # ---- one at a time -----------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def lock(self, doing: str, wait_s: float = 0.0) -> Iterator[int]:
        """Hold an existing run for one stage; RunError when another process still holds it after ``wait_s`` seconds.

        Yields the open lock file: the lock lasts until every process that has it open has ended, however it ended.
        """
        if not self.path.is_dir():
            raise RunError(f"{self.path}: no such run. Start with: bonecaffe prepare {self.path} …")
        self.check()

        def busy(holder: str) -> RunError:
            return RunError(
                f"{self.path}: in use by {holder or 'another process'}. Wait for it, or stop it, and try again."
            )

        with files.held(self._lock_file, doing, busy, wait_s) as file:
            for folder in (self.path, self.figures, self.snapshots, self.example):
                files.sweep(folder)
            yield file

    def holder(self) -> str:
        """Which process works on the run now, such as ``bonecaffe train, process 77``; empty if none."""
        return files.holder(self._lock_file)

    def state(self) -> State:
        """The state of the run, by its records.

        A training that is recorded as running while no process holds the run was killed together with its driver.
        """
        manifest = self.read()
        trained = manifest.train
        if trained is None:
            return State.PREPARED if manifest.prepare else State.EMPTY
        if trained.state is State.RUNNING:
            return State.TRAINING if self.holder().startswith("bonecaffe train") else State.KILLED
        if trained.state is State.FINISHED and not any(self.snapshots.glob(f"*_iter_{trained.iteration}.caffemodel")):
            return State.MODEL_GONE
        return trained.state
