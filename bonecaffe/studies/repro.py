"""How a run departs from the paper, for people and for other programs."""

from __future__ import annotations

import json

from bonecaffe.files import write_text
from bonecaffe.recipe import Departure, Recipe
from bonecaffe.run import RunDir
from bonecaffe.training import launch
from bonecaffe.training.launch import recipe_as_trained


def write_departures(run: RunDir) -> tuple[Recipe, list[Departure]]:
    """Write and return departures.json: where a run's recipe, and how it was started, are not the paper's."""
    recipe = recipe_as_trained(run)
    departures = launch.departures(run, recipe)
    content = {"recipe": recipe.name, "departures": [departure._asdict() for departure in departures]}
    write_text(run.departures, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    return recipe, departures
