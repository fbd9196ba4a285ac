"""How a training is started: from which weights or snapshot, and where it is computed. Decided and checked here."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from bonecaffe.caffe import caffemodel, gpus
from bonecaffe.errors import CaffeError, TrainError
from bonecaffe.files import open_regular, sha256_file
from bonecaffe.network import definitions
from bonecaffe.recipe import Choice, Departure, Recipe, stated
from bonecaffe.records import Attempt, GivenWeights, Launch, Trained
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


class Comparison(NamedTuple):
    """A run held against the paper: where it departs from it, and what it chose where the paper is silent."""

    departures: list[Departure]
    choices: list[Choice]


def compare(run: RunDir, recipe: Recipe | None = None) -> Comparison:
    """Hold a run against the paper: by its recipe, by files edited by hand, by where each part was computed.

    ``recipe`` is that of the run as it was trained, where the caller has it. Before a training, the files are looked at
    as they are.
    """
    recipe = recipe or recipe_as_trained(run)
    trained = run.read().train
    departures = {departure.field: departure for departure in recipe.departures()}
    choices = {choice.field: choice for choice in recipe.choices()}
    edited = trained.edited if trained else definitions.intend(run, recipe).by_hand()
    for name, fields in edited.items():
        of_fields = _edited_choices(name, fields)
        choices |= of_fields
        if not fields or len(of_fields) < len(fields):
            departures |= _edited(name, fields)
    if trained is not None:
        departures |= _computed(trained, recipe)
    return Comparison([each for each in departures.values() if each.paper != each.here], list(choices.values()))


def departures(run: RunDir) -> list[Departure]:
    """The departures of `compare`."""
    return compare(run).departures


def _edited_choices(name: str, fields: Mapping[str, tuple[str, str]]) -> dict[str, Choice]:
    """The fields of an edited file that the paper does not state."""
    paper = Recipe.load("paper")
    return {
        dotted: Choice(
            dotted,
            default := paper.value_of(dotted),
            default if _same_value(here, default) else here,
            f"{name} was edited by hand; the recipe gives {ours}",
        )
        for field, (ours, here) in fields.items()
        if (dotted := f"solver.{field}") in paper.notes and not stated(dotted)
    }


def _edited(name: str, fields: Mapping[str, tuple[str, str]]) -> dict[str, Departure]:
    """The rows of a file that was edited by hand: the file, and each field that the paper states and that is not as the
    recipe has it.

    A field that was edited to the paper's value is no departure, whatever the recipe gives.
    """
    listed = "; ".join(f"{field}: {here}, the recipe gives {ours}" for field, (ours, here) in fields.items())
    reason = "edited by hand in the run folder" + (f": {listed}" if listed else "; the recipe's values are not its own")
    rows = {name: Departure(name, "as the recipe gives it", "edited by hand", reason)}
    paper = Recipe.load("paper")
    for field, (ours, here) in fields.items():
        dotted = f"solver.{field}"
        if not stated(dotted):
            continue
        value = paper.value_of(dotted)
        now = value if _same_value(here, value) else here
        rows[dotted] = Departure(dotted, value, now, f"{name} was edited by hand; the recipe gives {ours}")
    return rows


def _same_value(text: str, value: object) -> bool:
    try:
        return float(text) == float(str(value))
    except ValueError:
        return text == str(value)


def _computed(trained: Trained, recipe: Recipe) -> dict[str, Departure]:
    """Where the iterations that led to the model were computed, by attempt, when it was not one GPU for all of them."""
    parts = _parts(trained.attempts)
    rows = {}
    if len({count == 0 for _, count in parts}) == 2:
        here = ", ".join(f"{'GPU' if count else 'CPU'} from iteration {first}" for first, count in parts)
        rows["solver.solver_mode"] = Departure("solver.solver_mode", "GPU", here, "train --cpu for a part of it")
    if (most := max((count for _, count in parts), default=0)) > 1:
        batch = recipe.network.train_batch * recipe.solver.iter_size
        reason = f"each GPU takes a whole batch: an iteration learns from {most} x {batch} images"
        rows["GPUs"] = Departure("GPUs", 1, most, reason)
    return rows


def _parts(attempts: Sequence[Attempt]) -> list[tuple[int, int]]:
    """First iteration and number of GPUs of each attempt that led to the model, from the start on.

    An attempt whose snapshots were not gone on from led nowhere; what came before a start belongs to another training.
    """
    parts: list[tuple[int, int]] = []
    for attempt in reversed(attempts):
        if attempt.started_at is None or attempt.gpus is None:  # recorded before these were
            break
        if not parts or attempt.started_at < parts[0][0]:
            parts.insert(0, (attempt.started_at, attempt.gpus))
        if attempt.started_at == 0:
            break
    return parts


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
