"""How a run differs from the paper, for people and for other programs."""

from __future__ import annotations

import json
from typing import Any

from bonecaffe.files import write_text
from bonecaffe.recipe import Recipe
from bonecaffe.run import RunDir
from bonecaffe.training.launch import Comparison, compare, recipe_as_trained


def comparison_of(run: RunDir) -> tuple[Recipe, Comparison]:
    """A run's recipe as it was trained, and how it and its launch differ from the paper. Writes nothing."""
    recipe = recipe_as_trained(run)
    return recipe, compare(run, recipe)


def facts(recipe: Recipe, compared: Comparison) -> dict[str, Any]:
    """The content of departures.json."""
    content = {
        "recipe": recipe.name,
        "departures": [each._asdict() for each in compared.departures],
        "choices": [{**each._asdict(), "paper": "not stated"} for each in compared.choices],
    }
    return dict(json.loads(json.dumps(content)))  # as it is read back: no tuples


def write_departures(run: RunDir) -> tuple[Recipe, Comparison]:
    """Write departures.json, and return what `comparison_of` does; RunError while another command holds the run."""
    comparison_of(run)  # raises for a folder that is not a run, before the lock
    with run.lock("repro"):
        recipe, compared = comparison_of(run)
        write_text(run.departures, json.dumps(facts(recipe, compared), indent=2, ensure_ascii=False) + "\n")
    return recipe, compared
