"""How a training is started: from which weights or snapshot, and where it is computed. Decided and checked here."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

from bonecaffe.caffe import caffemodel, gpus
from bonecaffe.errors import CaffeError, TrainError
from bonecaffe.files import open_regular, sha256_file
from bonecaffe.recipe import Departure, Recipe
from bonecaffe.records import GivenWeights, Launch, Trained
from bonecaffe.run import RunDir
from bonecaffe.training import preflight

STOCK_SHA1 = "4c8d77deb20ea792f84eb5e6d0a11ca0a8660a46"
"""BVLC's bvlc_reference_caffenet.caffemodel, the paper's ImageNet weights."""


def gpus_for(recipe: Recipe, gpu: str | None, cpu: bool, before: Trained | None = None) -> str | None:
    """The GPUs to compute on (``0``, ``0,1``, ``all``), None for the CPU.

    As asked for, else as the training before it in the same run, else as the recipe has it. Raises CaffeError when a
    GPU is wanted of a build without one.
    """
    if cpu and gpu is not None:
        raise TrainError("--cpu and --gpu exclude each other.")
    if gpu is not None:
        wanted: str | None = gpu
    elif cpu:
        wanted = None
    elif before is not None:
        wanted = before.launch.gpus
    else:
        wanted = "0" if recipe.solver.solver_mode == "GPU" else None
    Launch.of(None, None, wanted)  # RunError for what is no list of GPUs
    if wanted is not None and (problem := gpus.problem(wanted)):
        raise CaffeError(problem)
    return wanted


def given_weights(path: Path) -> GivenWeights:
    """What is recorded of the weights to start from: name, hash, whether they are BVLC's by their sha1; TrainError."""
    try:
        with open_regular(path, TrainError) as file:
            imagenet = hashlib.file_digest(file, "sha1").hexdigest() == STOCK_SHA1
        return GivenWeights(name=path.name, sha256=sha256_file(path), imagenet=imagenet)
    except OSError as error:
        raise TrainError(f"{path}: {error.strerror}: no weights to start from.") from error


def start_of(weights: GivenWeights | None) -> str:
    """What a training starts from, in words that follow it: the file's name, or the fillers."""
    return f"from {weights.name}" if weights else "from the fillers"


def as_launched(recipe: Recipe, weights: GivenWeights | None, gpus: str | None) -> Recipe:
    """The recipe with what the launch decides: which weights it started from, and where it was computed.

    It is what the definition files are written from, and what is compared with the paper.
    """
    if gpus is None:
        recipe = recipe.with_values({"solver.solver_mode": "CPU"}, "train --cpu: computed without a GPU")
    else:
        recipe = recipe.with_values({"solver.solver_mode": "GPU"}, f"train --gpu {gpus}")
    if weights is None:
        return recipe
    kind, what = (
        ("imagenet", "BVLC's file") if weights.imagenet else ("given", "not BVLC's ImageNet weights, by its sha1")
    )
    return recipe.with_values({"training.initial_weights": kind}, f"train --weights {weights.name}: {what}")


def recipe_as_trained(run: RunDir) -> Recipe:
    """The recipe of a run with what its training decided; its own when it is not trained yet."""
    trained = run.read().train
    recipe = run.recipe()
    return as_launched(recipe, trained.weights, trained.launch.gpus) if trained else recipe


def departures(run: RunDir, recipe: Recipe | None = None) -> list[Departure]:
    """In what a run departs from the paper: by its recipe, by how its training was started, by files edited by hand.

    ``recipe`` is that of the run as it was trained, where the caller has it.
    """
    found = (recipe or recipe_as_trained(run)).departures()
    defined = run.read().prototxt
    if defined is not None:
        edited = [name for name, made in defined.generated.items() if defined.outputs.get(name, made) != made]
        found += [Departure(name, "as the recipe gives it", "edited by hand", _EDITED) for name in edited]
    return found


_EDITED = "edited by hand in the run folder; the recipe's values are not those of this file"


def init_weights(given: Path, target: Path, recipe: Recipe) -> str:
    """Write the weights that Caffe accepts beside the paper's ``fc8``; tell in words what was done."""
    net = recipe.network
    return caffemodel.initial_weights(given, target, net.fc8_name, (net.fc8_outputs, net.fc_outputs[1]))


def check_weights_given(recipe: Recipe) -> None:
    """TrainError when a recipe starts from pretrained weights; for a training to which none were given."""
    if recipe.training.initial_weights != "none":
        raise TrainError(
            f"the recipe starts from pretrained weights ({recipe.training.initial_weights}; paper II.3), "
            "and no --weights were given. Download the ImageNet weights with "
            "scripts/fetch_caffenet.py and give the file, or use a recipe with training.initial_weights: none."
        )


def schedule(run: RunDir, gpus_used: str | None) -> preflight.Schedule:
    """The course of the training; with several GPUs each of them takes a whole batch."""
    course = preflight.schedule(run)
    return replace(course, images=course.images * gpus.count(gpus_used))
