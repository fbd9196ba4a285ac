"""A training that differs from the recipe or the paper is listed: edits by hand, where it was computed."""

from __future__ import annotations

import pytest
from click.testing import CliRunner
from conftest import tiny

from bonecaffe.cli import main
from bonecaffe.evaluation.evaluate import predict_and_evaluate
from bonecaffe.network import definitions
from bonecaffe.recipe import Recipe
from bonecaffe.records import Attempt
from bonecaffe.training import launch, train


def listed(run):
    return {departure.field: departure for departure in launch.departures(run)}


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_an_edited_solver_is_listed_by_field_and_stays_so(own_run):
    """With the value that was trained, in the report too; writing the files again afterwards changes nothing."""
    definitions.write(own_run, own_run.recipe())
    edit(own_run.solver, "base_lr: 0.001", "base_lr: 0.002 clip_gradients: 5")
    before = listed(own_run)
    train.train(own_run)
    rows = listed(own_run)
    assert rows == before, "the same before the training and after it"
    assert (rows["solver.base_lr"].paper, rows["solver.base_lr"].here) == (0.000003, "0.002")
    assert "solver.prototxt was edited by hand; the recipe gives 0.001" in rows["solver.base_lr"].reason
    assert rows["solver.prototxt"].here == "edited by hand"
    assert "clip_gradients: 5, the recipe gives not set" in rows["solver.prototxt"].reason
    predict_and_evaluate(own_run)
    assert "clip_gradients: 5" in own_run.report.read_text()
    own_run.solver.unlink()
    assert CliRunner().invoke(main, ["prototxt", str(own_run.path)]).exit_code == 0
    assert listed(own_run) == rows


def test_an_edit_of_what_the_paper_does_not_state_is_a_choice(own_run):
    """Another seed in solver.prototxt is not a departure; a second edit, of a field that the paper states, is."""
    definitions.write(own_run, own_run.recipe())
    before = listed(own_run)
    edit(own_run.solver, "random_seed: 2018", "random_seed: 7")
    assert listed(own_run) == before
    (seed,) = [each for each in launch.compare(own_run).choices if each.field == "solver.random_seed"]
    assert (seed.default, seed.here) == (2018, "7") and "solver.prototxt was edited by hand" in seed.reason
    edit(own_run.solver, "momentum: 0.9", "momentum: 0.5")
    assert listed(own_run).keys() - before.keys() == {"solver.prototxt", "solver.momentum"}


def test_an_edited_net_is_listed(own_run):
    """By its file: a net is not compared field by field."""
    definitions.write(own_run, own_run.recipe())
    edit(own_run.train_val, "lr_mult: 2", "lr_mult: 3")
    train.train(own_run)
    assert listed(own_run)["train_val.prototxt"].here == "edited by hand"


def test_comments_layout_and_notation_are_no_departure(own_run):
    """The same values in another notation train the same."""
    definitions.write(own_run, own_run.recipe())
    before = listed(own_run)
    edit(own_run.solver, "base_lr: 0.001", "# mine\nbase_lr :  1e-3")
    edit(own_run.train_val, "# The network", "# My network")
    train.train(own_run)
    assert listed(own_run) == before


def test_a_field_edited_to_the_papers_value_is_no_departure_of_that_field(own_run):
    """The recipe's departure does not apply to what was trained; the edit of the file does."""
    assert "solver.stepsize" in listed(own_run)
    definitions.write(own_run, own_run.recipe())
    edit(own_run.solver, "stepsize: 8", "stepsize: 800")
    train.train(own_run)
    assert "solver.stepsize" not in listed(own_run) and "solver.prototxt" in listed(own_run)


def test_the_papers_recipe_with_an_edited_solver_departs(own_run, prepared):
    """The paper's own recipe, above all, must not claim what was not trained."""
    plan = definitions.intend(own_run, Recipe.load("paper"))
    texts = {**plan.texts, own_run.solver: plan.texts[own_run.solver].replace("momentum: 0.9", "momentum: 0.5")}
    fields = plan._replace(texts=texts, edited=[own_run.solver]).by_hand()
    assert fields == {"solver.prototxt": {"momentum": ("0.9", "0.5")}}


def attempts(own, *parts):
    made = own.read().train.attempts[0]
    return [made.model_copy(update={"started_at": first, "gpus": count}) for first, count in parts]


@pytest.mark.parametrize(
    "parts, mode, gpus",
    [
        ([(0, 1)], None, None),
        ([(0, 0), (4, 1)], "CPU from iteration 0, GPU from iteration 4", None),
        ([(0, 1), (4, 0), (8, 1)], "GPU from iteration 0, CPU from iteration 4, GPU from iteration 8", None),
        ([(0, 0), (0, 1)], None, None),  # started again: the first one is another training
        ([(0, 1), (4, 0), (4, 1)], None, None),  # the second one was not resumed
        ([(0, 2)], None, 2),
        ([(0, 1), (4, 2), (8, 1)], None, 2),
    ],
)
def test_where_each_part_was_computed_is_listed(own_trained, parts, mode, gpus):
    """A union over the attempts that led to the model; several GPUs multiply the batch."""
    record = own_trained.read().train
    last = "0" if parts[-1][1] else None
    on_gpu = record.launch.model_copy(update={"gpus": last})
    own_trained.record(record.model_copy(update={"launch": on_gpu, "attempts": tuple(attempts(own_trained, *parts))}))
    rows = listed(own_trained)
    assert (rows["solver.solver_mode"].here if "solver.solver_mode" in rows else None) == mode
    assert (rows["GPUs"].here if "GPUs" in rows else None) == gpus
    if gpus:
        assert "an iteration learns from 2 x 4 images" in rows["GPUs"].reason


def test_an_attempt_records_where_it_began_and_was_computed(own_trained):
    """On the CPU, from the fillers; resumed, from its snapshot."""
    first: Attempt = own_trained.read().train.attempts[0]
    assert (first.started_at, first.gpus) == (0, 0)
    (own_trained.snapshots / "SNAPSHOT_iter_12.solverstate").unlink()
    train.train(own_trained, resume=True)
    assert [attempt.started_at for attempt in own_trained.read().train.attempts] == [0, 8]


def test_an_unedited_run_lists_only_the_departures_of_its_recipe(trained):
    """Nothing is added where nothing was edited."""
    assert launch.departures(trained) == launch.recipe_as_trained(trained).departures()
    assert tiny().departures()
