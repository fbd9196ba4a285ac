"""The CI smoke test: a tiny LMDB, CPU mode, a few iterations of the paper's full-size net and of the demo's."""

from __future__ import annotations

import pandas
import pytest
from conftest import SAMPLE, prepare_run

from bonecaffe.evaluation import evaluate
from bonecaffe.predict import predict_run
from bonecaffe.recipe import Recipe
from bonecaffe.training import train


@pytest.mark.parametrize("name", ["smoke", "demo"])
def test_pipeline_runs(name, tmp_path):
    """From the dozen sample hands to a report; the full-size net under the paper's solver, and the demo's net."""
    recipe = Recipe.load(name)
    if name == "demo":
        smoke = Recipe.load("smoke")
        few = ["data.train_cases", "data.test_cases", "network.train_batch"]
        few += [f"solver.{field}" for field in ("test_iter", "test_interval", "display", "max_iter", "snapshot")]
        recipe = recipe.with_values({field: smoke.value_of(field) for field in few}, "the demo's net on a tiny LMDB")
    run = prepare_run(tmp_path / "run", SAMPLE, recipe)
    outcome = train.train(run)
    assert (outcome.state, outcome.iteration) == ("finished", 4), outcome
    predict_run(run)
    evaluation = evaluate.evaluate(run)
    assert evaluation.iteration == 4 and run.report.is_file()
    assert len(pandas.read_csv(run.predictions("train"))) == 8
    if name == "smoke":
        assert 220e6 < (run.snapshots / "SNAPSHOT_iter_4.caffemodel").stat().st_size < 250e6
