"""How far predictions move with the points."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas
import pytest
from click.testing import CliRunner

from bonecaffe.cli import main
from bonecaffe.errors import PointsError, RunError
from bonecaffe.hands.agreement import palm
from bonecaffe.hands.reference_points import read_points, write_points
from bonecaffe.predict import Predictor
from bonecaffe.run import RunDir
from bonecaffe.studies import repro, sensitivity


def moved_by(points, percent, seed):
    """The same hands marked by a second person with this repeat-marking error."""
    rng = np.random.default_rng(seed)
    return {i: sensitivity._moved(hand, percent, rng) for i, hand in points.items()}


def test_months_by_percent(own_trained, hands):
    """Levels hold what predicting the moved points one by one gives; nothing moved moves nothing; files are written."""
    points = read_points(hands / "points.csv")
    outcome, moved = sensitivity.study(own_trained, hands / "images", points, {"same": points}, (1.0, 8.0), repeats=3)
    assert outcome.hands == 4 and len(moved) == 4 * 2 * 3
    same = outcome.against["same"]
    assert same.hands == 4 and same.mean_shift == 0 and same.mad_marked == same.mad_other and same.median_iou == 1
    small, large = outcome.levels
    assert 0 < small.mean_shift < large.mean_shift and small.median_iou > large.median_iou > 0.3
    shifts = [m.shift_months for m in moved if m.percent == 8.0]
    assert large.mean_shift == pytest.approx(np.abs(shifts).mean())
    line = (1 * small.mean_shift + 8 * large.mean_shift) / (1 + 64)
    assert outcome.months_per_percent == pytest.approx(line)
    table = pandas.read_csv(own_trained.path / "sensitivity.csv", dtype={"id": str})
    assert len(table) == len(moved) and set(table.percent) == {1.0, 8.0}
    predictor, first = Predictor(own_trained), moved[0]
    base = predictor.predict(hands / "images" / f"{first.id}.png", points[first.id])
    assert first.months - first.shift_months == pytest.approx(base, abs=1e-3)
    assert (
        json.loads((own_trained.path / "sensitivity.json").read_text())["months_per_percent"]
        == outcome.months_per_percent
    )


def test_the_same_seed_gives_the_same(own_trained, hands):
    """Repeatable, and another seed differs."""
    points = read_points(hands / "points.csv")
    first, second, third = (
        sensitivity.study(own_trained, hands / "images", points, {}, (2.0,), 2, seed=s)[1] for s in (1, 1, 2)
    )
    assert first == second != third


def test_repeat_marking_error_is_found_again(hands):
    """Two markings made with a known error give that error."""
    points = read_points(hands / "points.csv")
    errors = [
        sensitivity.repeat_marking_percent(moved_by(points, 1.5, seed), moved_by(points, 1.5, seed + 100))
        for seed in range(10)
    ]
    assert np.mean(errors) == pytest.approx(1.5, rel=0.05)
    assert sensitivity.repeat_marking_percent(points, points) == 0
    assert palm(next(iter(points.values()))) > 50


def test_other_points_than_the_run_s_are_refused(own_trained, hands):
    """A base that is not the run's own would measure something else."""
    points = read_points(hands / "points.csv")
    shifted = {i: replace(h, points=tuple((x + 4, y) for x, y in h.points)) for i, h in points.items()}
    with pytest.raises(PointsError, match="not those that .* was prepared with"):
        sensitivity.study(own_trained, hands / "images", shifted, {}, (1.0,), 2)
    with pytest.raises(PointsError, match="no points for"):
        sensitivity.study(own_trained, hands / "images", {}, {}, (1.0,), 2)


def test_by_command(own_trained, hands, tmp_path):
    """The verb reports the repeat-marking error, the table and what other points do to MAD and CCC."""
    points = read_points(hands / "points.csv")
    write_points(tmp_path / "again.csv", moved_by(points, 1.0, 3).values())
    write_points(tmp_path / "found.csv", list(moved_by(points, 3.0, 4).values())[:9])
    tables = ["--points", hands / "points.csv", "--again", tmp_path / "again.csv", "--found", tmp_path / "found.csv"]
    arguments = ["--images", hands / "images", *tables, "--percent", "2", "--repeats", "2"]
    done = CliRunner().invoke(main, ["sensitivity", str(own_trained.path), *map(str, arguments)])
    assert done.exit_code == 0, done.output
    assert "repeat-marking error: 0." in done.output or "repeat-marking error: 1." in done.output
    assert "months per percent of the palm" in done.output and "found: " in done.output and "MAD" in done.output


def test_equal_levels_are_one(own_trained, hands):
    """The hands of two equal levels were pooled, and their figures listed twice."""
    points = read_points(hands / "points.csv")
    once, moved = sensitivity.study(own_trained, hands / "images", points, {}, (1.0,), 2)
    twice, moved_twice = sensitivity.study(own_trained, hands / "images", points, {}, (1.0, 1.0), 2)
    assert twice == once and moved_twice == moved


def test_no_other_command_works_on_the_run_meanwhile(own_trained, hands, monkeypatch):
    """Its lock is held while files are written, or another command's sweep would take them away half-written."""
    holders = []
    real = sensitivity.write_text

    def write(path, text):
        holders.append(own_trained.holder().partition(",")[0])
        real(path, text)

    monkeypatch.setattr(sensitivity, "write_text", write)
    points = read_points(hands / "points.csv")
    sensitivity.study(own_trained, hands / "images", points, {}, (1.0,), 2)
    assert holders == ["bonecaffe sensitivity"] * 2
    with RunDir(own_trained.path).lock("train"), pytest.raises(RunError, match="in use by bonecaffe train"):
        sensitivity.study(own_trained, hands / "images", points, {}, (1.0,), 2)


def test_departures_are_written_by_who_holds_the_run(own_run, tmp_path, monkeypatch):
    """repro too: while a training holds the run, they are shown and not written; no lock file where no run is."""
    with RunDir(own_run.path).lock("train"):
        shown = CliRunner().invoke(main, ["repro", str(own_run.path)])
    assert shown.exit_code == 1 and "solver.type" in shown.output and "in use by bonecaffe train" in shown.output
    assert not own_run.departures.exists()
    holders = []
    monkeypatch.setattr(repro, "write_text", lambda *given: holders.append(own_run.holder().partition(",")[0]))
    assert CliRunner().invoke(main, ["repro", str(own_run.path)]).exit_code == 0
    assert holders == ["bonecaffe repro"]
    assert CliRunner().invoke(main, ["repro", str(tmp_path)]).exit_code == 1
    assert not (tmp_path / ".lock").exists()
