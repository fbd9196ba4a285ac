"""Recipes: validated, and honest about their distance from the paper."""

from __future__ import annotations

import pytest

from bonecaffe.errors import RecipeError
from bonecaffe.recipe import Recipe

APPENDIX_2 = {
    "net": "train_val.prototxt",
    "test_iter": 100,
    "test_interval": 100,
    "base_lr": 0.000003,
    "lr_policy": "step",
    "gamma": 0.1,
    "stepsize": 800,
    "display": 20,
    "max_iter": 3000,
    "momentum": 0.9,
    "weight_decay": 0.0005,
    "snapshot": 1000,
    "snapshot_prefix": "SNAPSHOT",
    "solver_mode": "GPU",
}


def test_paper_holds_appendix_2():
    """Each of the fourteen printed solver values, with the appendix named as its source."""
    paper = Recipe.load("paper")
    for field, value in APPENDIX_2.items():
        assert getattr(paper.solver, field) == value
        assert paper.source_of(f"solver.{field}").startswith("appendix 2")


@pytest.mark.parametrize("name", Recipe.names())
def test_every_field_has_a_source_or_reason(name):
    """No value without its origin; every departure with a reason."""
    recipe = Recipe.load(name)
    for section in ("data", "preparation", "network", "solver", "training"):
        for field in type(getattr(recipe, section)).model_fields:
            assert recipe.source_of(f"{section}.{field}").strip()
    for departure in recipe.departures():
        assert len(departure.reason) > 5
    assert bool(recipe.departures()) == (name != "paper")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("extends: paper\nsolver:\n  base_lr: {value: 1}\n", "without a reason"),
        ("extends: paper\nsolver:\n  base_lr: {value: 1, reason: ' '}\n", "without a reason"),
        ("extends: paper\nsolver:\n  base_lr: {value: 1, source: appendix 2}\n", "without a reason"),
        ("extends: paper\nsolver:\n  base_lrr: {value: 1, reason: faster}\n", "base_lrr"),
        ("extends: paper\nsolver:\n  base_lr: {value: fast, reason: faster}\n", "solver.base_lr"),
        ("extends: paper\nsolver:\n  base_lr: {value: .nan, reason: faster}\n", "solver.base_lr"),
        ("extends: paper\nsolver: 3\n", "solver"),
        ("extends: nowhere\n", "nowhere"),
        ("[1, 2", "YAML"),
        ("- 1", "mapping"),
        ("name: alone\n", "data"),
    ],
)
def test_faulty_recipe_is_refused(tmp_path, text, said):
    """A typo is an error that names the file and the field."""
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=said) as error:
        Recipe.load(path)
    assert "mine.yaml" in str(error.value) or said == "nowhere"


def test_recipe_survives_its_own_file(tmp_path):
    """What a run keeps is read back the same."""
    recipe = Recipe.load("demo").with_values({"data.split_seed": 3}, "another draw")
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    assert Recipe.load(tmp_path / "recipe.yaml") == recipe


def test_extending_oneself_is_refused(tmp_path):
    """A circle of recipes ends in an error, not in a recursion."""
    path = tmp_path / "round.yaml"
    path.write_text(f"extends: {path}\n")
    with pytest.raises(RecipeError, match="extends itself"):
        Recipe.load(path)
