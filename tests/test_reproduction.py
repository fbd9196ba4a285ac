"""docs/explanation/REPRODUCTION.md: every statement has its place in the code, and the place exists."""

from __future__ import annotations

import ast
import re

import pytest
from click.testing import CliRunner
from conftest import REPOSITORY, tiny

from bonecaffe.caffe import programs
from bonecaffe.cli import main
from bonecaffe.network import appendices
from bonecaffe.recipe import Recipe
from bonecaffe.run import RunDir

DOCUMENT = REPOSITORY / "docs" / "explanation" / "REPRODUCTION.md"
ENTRIES = [  # number, statement, verdict with its reason, place in the project
    [" ".join(part.split()) for part in entry]
    for entry in re.findall(
        r"(?ms)^\*\*(\d+)\.\*\* (.+?)\n\n- (\*\*\w+\*\*.*?)\n- Here: (.+?)\n(?=\n|\Z)",
        DOCUMENT.read_text(encoding="utf-8"),
    )
]
VERDICTS = ("**verbatim**", "**departed**", "**choice**", "**misprint**")


def names_in(path):
    """Functions, classes and constants of a module."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return found


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry[0])
def test_every_statement_has_its_place(entry):
    """The file, function or field named exists, and the verdict is one of four, with its reason."""
    _, _, verdict, here = entry
    assert verdict.startswith(VERDICTS), verdict
    if not verdict.startswith("**verbatim**"):
        assert len(verdict) > 30
    places = re.findall(r"`([^`]+)`", here)
    assert places
    fields = Recipe.load("paper").notes
    for place in [*places, *re.findall(r"`((?:docs|tests|data|prototxt)/[^`]+)`", verdict)]:
        file, _, name = place.partition(":")
        if "/" not in file:
            assert place in fields, f"no field {place}"
        else:
            assert (REPOSITORY / file).is_file(), file
            assert not name or name in names_in(REPOSITORY / file), place


def test_statements_are_numbered_and_many():
    """Without gaps, none overlooked by the pattern; every field of the paper's recipe is accounted for."""
    assert [int(entry[0]) for entry in ENTRIES] == list(range(1, len(ENTRIES) + 1))
    assert len(ENTRIES) == len(re.findall(r"(?m)^\*\*\d", DOCUMENT.read_text(encoding="utf-8"))) > 80
    named = {field for entry in ENTRIES for field in fields_of(entry)}
    assert named == set(Recipe.load("paper").notes)


def fields_of(entry):
    """The fields of the recipe that an entry names as its place."""
    return re.findall(r"`((?:data|preparation|network|solver|training)\.[a-z0-9_]+)`", entry[3])


@pytest.mark.parametrize("entry", [entry for entry in ENTRIES if fields_of(entry)], ids=lambda entry: entry[0])
def test_choices_are_what_the_recipe_does_not_state(entry):
    """Recipe and document agree: a field is a choice exactly where its source begins with "not stated"."""
    paper = Recipe.load("paper")
    silent = {paper.source_of(field).startswith("not stated") for field in fields_of(entry)}
    assert silent == {entry[2].startswith("**choice**")}, (entry[0], fields_of(entry))


CHOICES = [entry for entry in ENTRIES if entry[2].startswith("**choice**")]


@pytest.mark.parametrize("entry", CHOICES, ids=lambda entry: entry[0])
def test_a_choice_names_its_reason(entry):
    """As in the recipe: "not stated", then what was chosen."""
    assert entry[2].startswith("**choice**: not stated")


def test_caffe_averages_over_the_batch(tmp_path):
    """Not summed, as the paper has it: the same step for a batch of 1 and of 8, for one pass and for three."""
    caffe = programs.import_pycaffe()
    caffe.set_mode_cpu()
    weights = []
    for batch, passes in ((1, 1), (8, 1), (8, 3)):
        shape = f"shape {{ dim: {batch} dim: 1 }}"
        (tmp_path / "net.prototxt").write_text(
            f"""
            layer {{ name: "data" type: "DummyData" top: "one" top: "label" dummy_data_param {{
              {shape} {shape}
              data_filler {{ type: "constant" value: 1 }} data_filler {{ type: "constant" value: 0 }} }} }}
            layer {{ name: "fc8" type: "InnerProduct" bottom: "one" top: "fc8" inner_product_param {{
              num_output: 1 bias_term: false weight_filler {{ type: "constant" value: 2 }} }} }}
            layer {{ name: "loss" type: "EuclideanLoss" bottom: "fc8" bottom: "label" top: "loss" }}
            """
        )
        (tmp_path / "solver.prototxt").write_text(
            f'net: "{tmp_path}/net.prototxt" base_lr: 0.1 lr_policy: "fixed" max_iter: 1 iter_size: {passes} '
            "snapshot_after_train: false"
        )
        solver = caffe.SGDSolver(str(tmp_path / "solver.prototxt"))
        solver.step(1)
        assert solver.net.blobs["loss"].data == pytest.approx(2.0)  # 2² / 2, whatever the batch
        weights.append(solver.net.params["fc8"][0].data.item())
    assert weights == pytest.approx([1.8, 1.8, 1.8])  # 2 - 0.1 (2 - 0); a sum over 8 would give 0.4


def test_appendices_are_printed_verbatim():
    """Letter by letter as in the paper, where it is available; misprints are named."""
    output = CliRunner().invoke(main, ["prototxt", "--verbatim"]).output
    assert appendices.APPENDIX_1 in output and appendices.APPENDIX_2 in output
    assert output.count("# Appendix 1: ") == 3 and "braces" in output
    paper = REPOSITORY.parent / "shared" / "paper.txt"
    if paper.is_file():
        printed = [line.strip() for line in paper.read_text(encoding="utf-8").splitlines()]
        for appendix in (appendices.APPENDIX_1, appendices.APPENDIX_2):
            lines = [line.strip() for line in appendix.splitlines()]
            start = printed.index(lines[0])
            assert printed[start : start + len(lines)] == lines


def test_repro_writes_departures(tmp_path):
    """departures.json holds field, paper, here and reason of each; none for the paper's own recipe."""
    import json

    for name, recipe in (("paper", Recipe.load("paper")), ("tiny", tiny())):
        run = RunDir(tmp_path / name)
        run.path.mkdir()
        run.write_recipe(recipe)
        assert CliRunner().invoke(main, ["repro", str(run)]).exit_code == 0
        facts = json.loads(run.departures.read_text())
        assert [entry["field"] for entry in facts["departures"]] == [
            departure.field for departure in recipe.departures()
        ]
        assert bool(facts["departures"]) == (name == "tiny")
        assert all(
            set(entry) == {"field", "paper", "here", "reason"} and entry["reason"] for entry in facts["departures"]
        )
        assert [entry["field"] for entry in facts["choices"]] == [choice.field for choice in recipe.choices()]
        assert all(entry["paper"] == "not stated" and entry["reason"] for entry in facts["choices"])


def test_other_seeds_are_no_departure(tmp_path):
    """A recipe that differs only where the paper is silent: choices, each with its default and its reason."""
    others = {
        "data.split_seed": 7,
        "solver.random_seed": 8,
        "network.train_batch": 64,
        "preparation.histeq_levels": 256,
    }
    recipe = Recipe.load("paper").with_values(others, "to try it")
    assert recipe.departures() == []
    changed = {choice.field: choice for choice in recipe.choices() if not choice.is_default}
    assert {field: choice.here for field, choice in changed.items()} == others
    assert changed["data.split_seed"].default == 2018 and changed["data.split_seed"].reason == "to try it"
    assert all(choice.is_default for choice in recipe.choices() if choice.field == "network.mirror")
    run = RunDir(tmp_path / "run")
    run.path.mkdir()
    run.write_recipe(recipe)
    shown = CliRunner().invoke(main, ["repro", str(run)]).output
    assert "no departures from what the paper states" in shown
    assert re.search(r"data.split_seed\W+not stated\W+2018\W+7\W+to try it", shown)


def test_a_type_of_solver_is_a_departure():
    """Appendix 2 prints the whole file without a type, which is SGD to Caffe."""
    (departure,) = Recipe.load("paper").with_values({"solver.type": "Adam"}, "to try it").departures()
    assert (departure.field, departure.paper, departure.here) == ("solver.type", "SGD", "Adam")
