"""How a training starts: from which weights or snapshot, and where it is computed. Decided and checked here."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from bonecaffe.caffe import caffemodel, gpus
from bonecaffe.caffe.arithmetic import TF32, UNKNOWN, Arithmetic
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

    As requested, else as in the earlier training of the same run, else as in the recipe. Raises CaffeError when the
    requested GPU cannot be used.
    """
    if cpu and gpu is not None:
        raise TrainError("--cpu and --gpu exclude each other.")
    if gpu is not None:
        wish: str | None = gpu
    elif cpu:
        wish = None
    elif before is not None:
        wish = before.launch.gpus
    else:
        wish = "0" if recipe.solver.solver_mode == "GPU" else None
    Launch.of(None, None, wish)  # RunError for what is not a list of GPUs
    if wish is not None and (problem := gpus.problem(wish)):
        raise CaffeError(problem)
    return wish


def given_weights(path: Path) -> GivenWeights:
    """The record of the weights to start from: name, hash, whether they are BVLC's by their sha1; TrainError."""
    try:
        with open_regular(path, TrainError) as file:
            imagenet = hashlib.file_digest(file, "sha1").hexdigest() == STOCK_SHA1
        return GivenWeights(name=path.name, sha256=sha256_file(path), imagenet=imagenet)
    except OSError as error:
        raise TrainError(f"{path}: {error.strerror}. Give the file of weights to start from.") from error


def start_of(weights: GivenWeights | None) -> str:
    """What a training starts from, as text: the file's name, or the fillers."""
    return f"from {weights.name}" if weights else "from the fillers"


def as_launched(recipe: Recipe, weights: GivenWeights | None, gpus: str | None) -> Recipe:
    """The recipe with what the launch decides: which weights it started from, and where it was computed.

    The definition files are written from this recipe, and it is the one compared with the paper.
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
    """The recipe of a run with what its training decided; the run's own recipe before a training."""
    trained = run.read().train
    recipe = run.recipe()
    return as_launched(recipe, trained.weights, trained.launch.gpus) if trained else recipe


class Comparison(NamedTuple):
    """A run compared with the paper: where it departs, and what it chose where the paper is silent."""

    departures: list[Departure]
    choices: list[Choice]


def compare(run: RunDir, recipe: Recipe | None = None) -> Comparison:
    """Compare a run with the paper: its recipe, files edited by hand, and where each part was computed.

    ``recipe`` is the run's recipe as it was trained, where the caller has it. Before a training, the files are compared
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
        choices |= _arithmetic(trained)
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
            f"{name} was edited by hand; the recipe gives {given}",
        )
        for field, (given, here) in fields.items()
        if (dotted := f"solver.{field}") in paper.notes and not stated(dotted)
    }


def _edited(name: str, fields: Mapping[str, tuple[str, str]]) -> dict[str, Departure]:
    """The departures of a file that was edited by hand: the file, and each edited field that the paper states.

    A field that was edited to the paper's value is not a departure, whatever the recipe gives.
    """
    listed = "; ".join(f"{field}: {here}, the recipe gives {given}" for field, (given, here) in fields.items())
    reason = "edited by hand in the run folder" + (f": {listed}" if listed else "; the recipe's values do not apply")
    rows = {name: Departure(name, "as the recipe gives it", "edited by hand", reason)}
    paper = Recipe.load("paper")
    for field, (given, here) in fields.items():
        dotted = f"solver.{field}"
        if not stated(dotted):
            continue
        value = paper.value_of(dotted)
        now = value if _same_value(here, value) else here
        rows[dotted] = Departure(dotted, value, now, f"{name} was edited by hand; the recipe gives {given}")
    return rows


def _same_value(text: str, value: object) -> bool:
    try:
        return float(text) == float(str(value))
    except ValueError:
        return text == str(value)


def _computed(trained: Trained, recipe: Recipe) -> dict[str, Departure]:
    """How the iterations that led to the model were computed, by attempt, unless one GPU computed all in float32."""
    parts = _parts(trained.attempts)
    counts = [attempt.gpus or 0 for attempt in parts]
    rows = {}
    if len({count == 0 for count in counts}) == 2:
        here = ", ".join(f"{'GPU' if each.gpus else 'CPU'} from iteration {each.started_at}" for each in parts)
        rows["solver.solver_mode"] = Departure("solver.solver_mode", "GPU", here, "train --cpu for a part of it")
    if (most := max(counts, default=0)) > 1:
        batch = recipe.network.train_batch * recipe.solver.iter_size
        reason = f"each GPU takes a whole batch: an iteration learns from {most} x {batch} images"
        rows["GPUs"] = Departure("GPUs", 1, most, reason)
    if any(each.arithmetic.startswith("TF32") for each in parts):
        reason = f"{TF32}=1 in the training's environment; the paper's GPU, a GTX 1060, has no TF32"
        rows["arithmetic"] = Departure("arithmetic", "float32", "TF32", reason)
    return rows


def _arithmetic(trained: Trained) -> dict[str, Choice]:
    """How a GPU chose cuDNN's algorithms, on which the paper is silent, in the attempts that led to the model."""
    here = ", then ".join(dict.fromkeys(each.arithmetic for each in _parts(trained.attempts) if each.arithmetic))
    if not here:
        return {}
    default, reason = Arithmetic().words(), "set in the training's environment"
    if here == default:
        reason = "the same seed gives the same model"
    elif UNKNOWN in here:
        reason = "this Caffe was not built by bonecaffe: the same seed may give another model"
    return {"GPU arithmetic": Choice("GPU arithmetic", default, here, reason)}


def _parts(attempts: Sequence[Attempt]) -> list[Attempt]:
    """The attempts that led to the model, from the start on.

    An attempt whose snapshots were not resumed does not count; attempts before a start belong to another training.
    """
    parts: list[Attempt] = []
    for attempt in reversed(attempts):
        if attempt.started_at is None or attempt.gpus is None:  # recorded by a version without these fields
            break
        if not parts or attempt.started_at < (parts[0].started_at or 0):
            parts.insert(0, attempt)
        if attempt.started_at == 0:
            break
    return parts


def init_weights(given: Path, target: Path, recipe: Recipe) -> str:
    """Write the weights that Caffe accepts together with the paper's ``fc8``; return what was done, as text."""
    net = recipe.network
    return caffemodel.initial_weights(given, target, net.fc8_name, (net.fc8_outputs, net.fc_outputs[1]))


def check_weights_given(recipe: Recipe) -> None:
    """TrainError when a recipe starts from pretrained weights; called when no weights were given."""
    if recipe.training.initial_weights != "none":
        raise TrainError(
            f"the recipe starts from pretrained weights ({recipe.training.initial_weights}; paper II.3), "
            "and no --weights were given. Download the ImageNet weights with "
            "scripts/fetch_caffenet.py and give the file, or use a recipe with training.initial_weights: none."
        )


def schedule(run: RunDir, gpus_used: str | None) -> preflight.Schedule:
    """The schedule of the training; with several GPUs, each takes a whole batch."""
    course = preflight.schedule(run)
    return replace(course, images=course.images * gpus.count(gpus_used))
