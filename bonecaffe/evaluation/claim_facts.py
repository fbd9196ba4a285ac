"""What a run's records contain for the items of the CLAIM checklist. Nothing is predicted, trained or written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from pydantic import TypeAdapter, ValidationError

from bonecaffe.errors import BonecaffeError, EvaluateError
from bonecaffe.evaluation.groups import BySex, Group
from bonecaffe.evaluation.metrics import Metrics
from bonecaffe.hands.cases import Case
from bonecaffe.prepare.outputs import prepared_of, split_of
from bonecaffe.recipe import Recipe
from bonecaffe.records import Prepared, State, Trained, is_intact
from bonecaffe.run import RunDir
from bonecaffe.training.launch import recipe_as_trained
from bonecaffe.trees import read_json


@dataclass(frozen=True)
class Measured:
    """What ``metrics.json`` holds: the model's iteration, the figures by split, how the intervals were made."""

    iteration: int
    splits: dict[str, Metrics]
    groups: dict[str, list[Group]]
    sex: dict[str, BySex]
    intervals: str


class Partition(NamedTuple):
    """The hands of a split: how many, their sexes, their ages in months."""

    hands: int
    boys: int
    girls: int
    unknown: int
    mean_months: float
    sd_months: float
    youngest_months: float
    oldest_months: float


@dataclass(frozen=True)
class Facts:
    """The facts on record; ``recipe`` is the one that was trained, ``measured`` is None before the evaluation."""

    run: str
    data: str
    """What kind of images they are."""
    recipe: Recipe
    prepared: Prepared
    partitions: Mapping[str, Partition]
    state: State
    trained: Trained | None
    measured: Measured | None
    surveyed: bool
    """Whether every snapshot was also measured on the test split."""
    months_per_percent: float | None
    """How far the predictions move when the points are moved by a percent of the palm; None when not studied."""


# ---- from a run ------------------------------------------------------------------------------------------------------


def facts_of(run: RunDir) -> Facts:
    """The facts in a run's records; RunError when it is not prepared."""
    recipe = recipe_as_trained(run)
    prepared = prepared_of(run)
    manifest = run.read()
    return Facts(
        run=run.path.resolve().name,
        data=data_named(run),
        recipe=recipe,
        prepared=prepared,
        partitions={split: _partition(cases) for split, cases in split_of(run).items()},
        state=run.state(),
        trained=manifest.train,
        measured=_measured(run),
        surveyed=manifest.evaluate_all is not None,
        months_per_percent=_months_per_percent(run),
    )


def data_named(run: RunDir) -> str:
    """What kind of images a run has, as far as its records show."""
    prepared = prepared_of(run)
    hands = sum(prepared.records.values())
    if "phantoms" not in prepared.model_fields_set:  # prepared before they were counted
        return f"{hands} images of hands; whether they are radiographs or phantoms is not on record"
    if not prepared.phantoms:
        return f"{hands} images of hands; none is listed as a phantom"
    made = "all of them" if prepared.phantoms == hands else f"{prepared.phantoms} of them"
    return f"{hands} images, {made} phantoms: synthetic hands that bonecaffe made"


def _partition(cases: list[Case]) -> Partition:
    ages = np.array([case.boneage_months for case in cases])
    boys, girls = (sum(case.male is sex for case in cases) for sex in (True, False))
    return Partition(
        len(cases),
        boys,
        girls,
        len(cases) - boys - girls,
        float(ages.mean()),
        float(ages.std(ddof=1)) if len(cases) > 1 else 0.0,
        float(ages.min()),
        float(ages.max()),
    )


def _measured(run: RunDir) -> Measured | None:
    """The figures in ``metrics.json``; None when it is missing, changed, or of another model or version."""
    manifest = run.read()
    name = run.name_of(run.metrics)
    evaluated = manifest.evaluate
    if evaluated is None or not manifest.is_evaluated() or not is_intact(run.path, evaluated, name):
        return None
    try:
        return TypeAdapter(Measured).validate_python(read_json(run.metrics, "record", EvaluateError))
    except ValidationError:
        return None


def _months_per_percent(run: RunDir) -> float | None:
    """The outcome of ``bonecaffe sensitivity``; None when it was not run, or its file is not as it writes it."""
    try:
        return float(read_json(run.sensitivity, "record", EvaluateError)["months_per_percent"])
    except (OSError, BonecaffeError, KeyError, TypeError, ValueError):
        return None
