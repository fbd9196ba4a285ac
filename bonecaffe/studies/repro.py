"""How a run departs from the paper, for people and for other programs."""

from __future__ import annotations

import json

from bonecaffe.files import write_text
from bonecaffe.recipe import Departure, Recipe
from bonecaffe.run import RunDir
from bonecaffe.training import launch
from bonecaffe.training.launch import recipe_as_trained


def departures_of(run: RunDir) -> tuple[Recipe, list[Departure]]:
    """A run's recipe as it was trained, and where it and how it was started are not the paper's. Writes nothing."""
    recipe = recipe_as_trained(run)
    return recipe, launch.departures(run, recipe)


def write_departures(run: RunDir) -> tuple[Recipe, list[Departure]]:
    """Write departures.json, and return what `departures_of` does; RunError while another command holds the run."""
    departures_of(run)  # so that a folder that is no run gets no lock file
    with run.lock("repro"):
        recipe, departures = departures_of(run)
        content = {"recipe": recipe.name, "departures": [departure._asdict() for departure in departures]}
        write_text(run.departures, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    return recipe, departures
