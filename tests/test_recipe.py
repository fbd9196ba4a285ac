"""Recipes: validated, with every departure from the paper listed."""

from __future__ import annotations

import random
import time

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
    """Every value has its origin; every departure has a reason."""
    recipe = Recipe.load(name)
    for section in ("data", "preparation", "network", "solver", "training"):
        for field in type(getattr(recipe, section)).model_fields:
            assert recipe.source_of(f"{section}.{field}").strip()
    for departure in recipe.departures():
        assert len(departure.reason) > 5
    assert bool(recipe.departures()) == (name != "paper")


@pytest.mark.parametrize(
    ("text", "message"),
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
        ("name: alone\n", "data.train_cases"),
        ("extends: paper\nsolvr:\n  base_lr: {value: 1, reason: faster}\n", "no section solvr.*a typo for solver"),
        ("extends: papr\n", "extends papr: neither a file nor .*a typo for paper"),
        (
            "extends: demo\nnetwork:\n  train_batch: {value: lots, reason: faster}\n",
            "network.train_batch must be a whole number, not 'lots'",
        ),
        (
            "extends: demo\nsolver:\n  type: {value: SDG, reason: faster}\n",
            "solver.type must be 'SGD', 'Nesterov' or 'Adam', not 'SDG'",
        ),
        ("extend: paper\n", "no section extend.*a typo for extends"),
        ("solver:\n  base_lrr: {value: 1, reason: faster}\n", "no field solver.base_lrr.*a typo for solver.base_lr"),
        ("extends: paper\nsolver:\n  stepsise: {value: 1, reason: faster}\n", "a typo for solver.stepsize"),
        ("extends: paper\nnetwork:\n  momentum: {value: 1, reason: it}\n", "no field network.momentum"),
        ("extends: paper\nsolver:\n  gamma: {vlaue: 1, reason: faster}\n", "vlaue; perhaps a typo for value"),
        ("extends: paper\nnotes:\n  a: {value: 1, reason: faster}\n", "no section notes"),
        ("extends: paper\ndescription: [a]\n", "description must be one line of text"),
        ("extends: paper\ndata: {split_seed: {value: " + "[" * 300 + "]" * 300 + ", reason: it}}\n", "64 levels"),
        ("extends: paper\ndata: {split_seed: {value: 0x" + "f" * 4000 + ", reason: it}}\n", "a number of 16000 bits"),
        ("extends: paper\ndata: {split_seed: {value: 2019-99-99, reason: it}}\n", "'2019-99-99' does not fit its type"),
        ("extends: paper\ndata: {split_seed: {value: !!timestamp x, reason: it}}\n", "'x' does not fit its type"),
    ],
)
def test_faulty_recipe_is_refused(tmp_path, text, message):
    """A typo is an error that names the file and the field."""
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=message) as error:
        Recipe.load(path)
    assert "mine.yaml" in str(error.value) or message == "nowhere"


def test_recipe_that_extends_nothing_is_refused_in_one_sentence(tmp_path):
    """With what to write, instead of a line for each missing field."""
    path = tmp_path / "mine.yaml"
    path.write_text("solver:\n  base_lr: {value: 1, reason: faster}\n")
    with pytest.raises(RecipeError) as error:
        Recipe.load(path)
    assert len(str(error.value)) < 300 and "\n" not in str(error.value)
    assert "mine.yaml" in str(error.value) and "data.train_cases" in str(error.value)
    assert str(error.value).endswith("begins with the line: extends: paper")


def test_a_bomb_of_aliases_ends_at_once(tmp_path):
    """Nine lines that expand to a billion values; version 0.1 wrote them all into its error."""
    path = tmp_path / "bomb.yaml"
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    path.write_text("extends: paper\ndata:\n  " + "\n  ".join(lines) + "\n")
    began = time.monotonic()
    with pytest.raises(RecipeError, match=r"bomb\.yaml: .*line 4 has an alias \(\*a0\)"):
        Recipe.load(path)
    assert time.monotonic() - began < 2


def test_damaged_recipes_are_read_or_refused_with_a_message(tmp_path):
    """Characters removed and inserted, 600 times: a recipe, or a RecipeError of readable length."""
    rng = random.Random(7)
    path = tmp_path / "mine.yaml"
    marks = [
        *"[]{}:,-?*&!|>'\"%@`#\\ \n\t0x.e~",
        "!!int ",
        "!!set ",
        "!!omap ",
        "<<: ",
        "null",
        ".inf",
        "9" * 30,
        "value",
    ]
    text = (
        "extends: paper\nname: x\nsolver:\n  base_lr: {value: 1, reason: faster}\n  type: {value: Adam, reason: it}\n"
    )
    text += "network:\n  mean_value: {value: [1, 2, 3], reason: it}\ndata: {test_cases: {value: 7, reason: it}}\n"
    for _ in range(600):
        damaged = list(text)
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(damaged))
            damaged[at : at + rng.choice((0, 0, 1, 1, 5))] = rng.choices(marks, k=rng.randint(0, 2))
        path.write_text("".join(damaged))
        try:
            assert Recipe.load(path).to_yaml()
        except RecipeError as error:
            assert str(error).startswith((f"{path}: ", "recipe ")) and len(str(error)) < 1000
    path.write_text(f"extends: {'x' * 10_000}\n")
    with pytest.raises(RecipeError, match="File name too long"):
        Recipe.load(path)


@pytest.mark.parametrize(
    ("data", "network", "solver", "expected"),
    [
        ("test_cases: {value: 50, reason: fewer}", "", "", (2, 25)),
        ("test_cases: {value: 51, reason: fewer}", "", "", (1, 51)),
        ("", "test_batch: {value: 4, reason: faster}", "", (4, 50)),
        ("test_cases: {value: 50, reason: fewer}", "test_batch: {value: 25, reason: faster}", "", (25, 2)),
        ("test_cases: {value: 51, reason: fewer}", "test_batch: {value: 2, reason: mine}", "", (2, 100)),
        ("test_cases: {value: 50, reason: fewer}", "", "test_iter: {value: 9, reason: mine}", (2, 9)),
        ("train_cases: {value: 50, reason: fewer}", "", "", (2, 100)),
    ],
)
def test_test_pass_follows_the_test_cases(tmp_path, data, network, solver, expected):
    """A recipe with other test cases gets the test_iter that sees each once, declared; its own values stay."""
    sections = {"data": data, "network": network, "solver": solver}
    text = "".join(f"{name}:\n  {entry}\n" for name, entry in sections.items() if entry)
    (tmp_path / "mine.yaml").write_text(f"extends: paper\n{text}")
    (tmp_path / "mine_too.yaml").write_text("extends: mine.yaml\n")
    for name in ("mine.yaml", "mine_too.yaml"):
        recipe = Recipe.load(tmp_path / name)
        assert (recipe.network.test_batch, recipe.solver.test_iter) == expected
        reasons = {departure.field: departure.reason for departure in recipe.departures()}
        if expected[1] not in (9, 100):
            assert reasons["solver.test_iter"] == f"one test pass over {recipe.data.test_cases} test cases"


def test_recipe_survives_its_own_file(tmp_path):
    """The recipe that a run stores is read back the same."""
    recipe = Recipe.load("demo").with_values({"data.split_seed": 3}, "another draw")
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    assert Recipe.load(tmp_path / "recipe.yaml") == recipe


def test_extending_oneself_is_refused(tmp_path):
    """A circle of recipes ends in an error, not in a recursion."""
    path = tmp_path / "round.yaml"
    path.write_text(f"extends: {path}\n")
    with pytest.raises(RecipeError, match="extends itself"):
        Recipe.load(path)
