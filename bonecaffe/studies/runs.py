"""The runs in a folder, one line each."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from bonecaffe.errors import BonecaffeError, RunError
from bonecaffe.files import read_text
from bonecaffe.recipe import Recipe
from bonecaffe.records import Manifest, Prepared
from bonecaffe.run import RunDir
from bonecaffe.trees import read_json

DEPTH = 3
"""Depth of the search for runs, in folders: runs/NAME, and runs/NAME/seed-1 of a repeat."""


class Summary(NamedTuple):
    """One run: the iteration reached and the last one; the test figures, None when not evaluated."""

    run: str
    recipe: str
    state: str
    iteration: int
    max_iter: int
    evaluated: int | None
    mad_months: float | None
    ccc: float | None


def runs_in(folder: Path) -> list[Summary]:
    """The runs in a folder, by name; RunError when there is no such folder."""
    if not folder.is_dir():
        raise RunError(f"{folder}: no such folder of runs.")
    found = []
    for parent, folders, names in os.walk(folder):
        here = Path(parent)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if "recipe.yaml" in names and "manifest.json" in names:
            folders.clear()
            found.append(_summary(RunDir(here), str(here.relative_to(folder)) if here != folder else here.name))
        elif len(here.relative_to(folder).parts) >= DEPTH:
            folders.clear()
    return found


def _summary(run: RunDir, name: str) -> Summary:
    try:
        manifest = run.read()
        recipe = _recipe(run, manifest.prepare)
        state = run.state()
        iteration = max(manifest.train.iteration if manifest.train else 0, _last_of_curve(run))
    except (BonecaffeError, OSError) as error:
        return Summary(name, "?", f"unreadable: {error}", 0, 0, None, None, None)
    return Summary(name, recipe.name, state, iteration, recipe.solver.max_iter, *_figures(run, manifest))


def _recipe(run: RunDir, prepared: Prepared | None) -> Recipe:
    """The recipe as it was prepared, even if recipe.yaml was edited since."""
    if prepared is None:
        return Recipe.load(run.recipe_file)
    return Recipe.parse(prepared.recipe, f"{run.manifest_file}, prepare.recipe")


def _figures(run: RunDir, manifest: Manifest) -> tuple[int | None, float | None, float | None]:
    """Iteration, MAD and CCC of the evaluation, when it belongs to this training's model and these predictions."""
    if manifest.predict is None or not manifest.is_evaluated():
        return None, None, None
    try:
        test = read_json(run.metrics, "record", RunError)["splits"]["test"]
        return manifest.predict.iteration, float(test["mad_months"]), float(test["ccc"])
    except (OSError, BonecaffeError, ValueError, KeyError, TypeError):
        return None, None, None


def _last_of_curve(run: RunDir) -> int:
    try:
        return int(read_text(run.curve, "record", RunError).splitlines()[-1].split(",")[0])
    except (OSError, BonecaffeError, ValueError, IndexError):
        return 0
