"""repeat: the same recipe over seeds, in sequence and on a cluster, interrupted and continued; the spread."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas
import pytest
from click.testing import CliRunner
from conftest import caffes, tiny

from bonecaffe.cli import main
from bonecaffe.errors import RepeatError, RepeatInterrupted
from bonecaffe.evaluation import metrics
from bonecaffe.files import write_text
from bonecaffe.hands.phantom import dataset
from bonecaffe.recipe import Recipe
from bonecaffe.run import RunDir
from bonecaffe.studies import repeat, results, verify
from bonecaffe.studies.repetition import HandTested, Repetition, Result
from bonecaffe.training.launch import recipe_as_trained


def plan_for(out, hands, **changes) -> Repetition:
    return Repetition(
        out, tiny(**changes).to_yaml(), hands / "images", hands / "ages.csv", hands / "points.csv", cpu=True
    )


def finished(number, test_mad, test_ccc=0.8) -> Result:
    """A seed with these figures; its three hands do not matter."""
    hands = tuple(HandTested(str(n), 100.0 + n, 110.0 + 2 * n) for n in range(3))
    figures = {"train_mad": 6.0, "train_ccc": 0.98, "test_mad": test_mad, "test_ccc": test_ccc, "test_max": 60.0}
    return Result(number=number, state="finished", iteration=12, **figures, hands=hands)


def test_repeat_by_command(hands, tmp_path):
    """Three seeds: three runs with different splits and models; table, CSV, JSON; called again it does nothing."""
    recipe = tmp_path / "tiny.yaml"
    write_text(recipe, tiny().to_yaml())
    out = tmp_path / "out"
    data = [f"--images={hands / 'images'}", f"--ages={hands / 'ages.csv'}", f"--points={hands / 'points.csv'}"]
    command = ["repeat", str(recipe), "--out", str(out), "--seeds", "3", *data, "--cpu"]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.output
    table = pandas.read_csv(out / "repeat.csv")
    assert table.seed.tolist() == [1, 2, 3] and set(table.state) == {"finished"}
    assert len({RunDir(out / f"seed-{seed}").list_file("test").read_text() for seed in (1, 2, 3)}) == 3
    facts = json.loads((out / "repeat.json").read_text())
    spread = {entry["figure"]: entry for entry in facts["spread"]}
    assert spread["test_mad"]["mean"] == pytest.approx(table.test_mad.mean(), abs=1e-3)
    assert spread["test_mad"]["sd"] == pytest.approx(table.test_mad.std(), abs=1e-3)
    assert spread["test_mad"]["paper"] == 18.9
    assert "Test MAD over 3 seeds" in done.output and "Test CCC over 3 seeds" in done.output
    assert "3 seeds are weak evidence" in done.output and "Not comparable with the paper" in done.output
    tested = pandas.read_csv(out / "predictions.csv", dtype={"id": str})
    assert tested.columns.tolist() == ["id", "boneage_months", "predicted_months", "male", "seed"] and len(tested) == 12
    of_two = tested[tested.seed == 2].drop(columns="seed").reset_index(drop=True)
    run = RunDir(out / "seed-2")
    pandas.testing.assert_frame_equal(of_two, pandas.read_csv(run.predictions("test"), dtype={"id": str}))
    assert (tested.predicted_months - tested.boneage_months).abs().groupby(tested.seed).mean().tolist() == (
        pytest.approx(table.test_mad.tolist(), abs=1e-3)
    )
    log = (out / "seed-2" / "caffe.log").read_bytes()
    assert CliRunner().invoke(main, command).exit_code == 0
    assert (out / "seed-2" / "caffe.log").read_bytes() == log
    links = verify.verify(RunDir(out / "seed-2"))
    assert verify.first_broken(links) is None, links
    choices = {choice.field: choice for choice in RunDir(out / "seed-2").recipe().choices()}
    assert choices["data.split_seed"].here == 2 and "seed 2" in choices["data.split_seed"].reason


def test_an_interrupted_first_seed_is_not_continued_by_another_plan(hands, tmp_path, monkeypatch):
    """The plan is recorded before the first seed; a call that made nothing does not fix the plan."""
    out = tmp_path / "out"
    data = [f"--images={hands / 'images'}", f"--ages={hands / 'ages.csv'}", f"--points={hands / 'points.csv'}"]

    def command(name, **changes):
        write_text(tmp_path / f"{name}.yaml", tiny(**changes).to_yaml())
        return ["repeat", str(tmp_path / f"{name}.yaml"), "--out", str(out), "--seeds", "2", *data, "--cpu"]

    def refused(*arguments):
        raise RepeatError("no such data")

    def interrupted(plan, seed, watch, say):
        (out / f"seed-{seed}").mkdir()
        raise RepeatInterrupted("stopped in seed 1")

    monkeypatch.setattr(repeat, "one", refused)
    assert CliRunner().invoke(main, command("first", solver__base_lr=0.5)).exit_code == 1
    monkeypatch.setattr(repeat, "one", interrupted)
    assert CliRunner().invoke(main, command("second")).exit_code == 130
    done = CliRunner().invoke(main, command("third", solver__base_lr=0.1))
    assert done.exit_code == 1 and "repeats of another recipe" in done.output


def test_more_seeds_are_added_and_another_plan_refused(hands, tmp_path):
    """Seeds 1 to 2, then 3: the table holds all three; another recipe into the same folder is refused."""
    plan = plan_for(tmp_path, hands)
    two = [finished(n, 18.0 + n) for n in (1, 2)]
    results.write(plan, two)
    assert results.earlier(plan) == two
    for other in (
        plan_for(tmp_path, hands, solver__max_iter=7),
        replace(plan, folds=2),
        replace(plan, ages_in="years"),
    ):
        with pytest.raises(RepeatError, match="another recipe"):
            results.earlier(other)
    text = (tmp_path / "repeat.json").read_text()
    for odd, expected in (
        ("{", "not readable as JSON: .* Remove it, or give another --out"),
        ("[]", "not as bonecaffe writes it"),
        (text.replace('"test_mad": 19.0', '"test_mad": "x"'), r"results.0.test_mad: .*valid number.* Remove it"),
        (text.replace('"results": [', '"results": [1, '), "results.0: "),
        (text.replace('"test_mad": 19.0', '"test_mad": NaN'), "NaN is not a number"),
        (text.replace('"test_mad": 19.0', '"test_mad": null'), "results.0: .*without figures"),
        (text.replace('"number": 2', '"number": 1'), "a seed is listed twice"),
        (text.replace('"version": 2', '"version": 1'), "another version .* not trained again"),
        (re.sub('"version": 2,', "", text), "another version"),
        (re.sub('"plan"', '"other"', text), "plan"),
    ):
        assert odd != text
        (tmp_path / "repeat.json").write_text(odd)
        with pytest.raises(RepeatError, match=expected) as error:
            results.earlier(plan)
        assert "\n" not in str(error.value)


def test_weights_stay_declared_when_it_continues(hands, trained, tmp_path):
    """Started from given weights, interrupted, called again: the record still names the weights."""
    weights = trained.snapshots / "SNAPSHOT_iter_12.caffemodel"
    long = {"solver__max_iter": 300, "solver__snapshot": 100, "solver__test_interval": 300}
    plan = replace(plan_for(tmp_path, hands, **long), weights=weights)

    def stop(progress):
        if progress.iteration >= 5 and not signals:
            signals.append(os.kill(os.getpid(), signal.SIGINT))

    signals = []
    with pytest.raises(RepeatInterrupted):
        repeat.one(plan, 1, stop)
    for _ in range(2):
        assert repeat.one(plan, 1).state == "finished"
        run = RunDir(tmp_path / "seed-1")
        assert recipe_as_trained(run).training.initial_weights == "given"
        assert verify.first_broken(verify.verify(run)) is None


def test_interrupted_seed_is_continued(hands, tmp_path):
    """Ctrl-C in a seed: an error with that reason; the next call resumes it."""
    plan = plan_for(tmp_path, hands, solver__max_iter=300, solver__snapshot=100, solver__test_interval=150)

    def stop(progress):
        if progress.iteration >= 5 and not signals:
            signals.append(os.kill(os.getpid(), signal.SIGINT))

    signals = []
    with pytest.raises(RepeatInterrupted, match="Call repeat again"):
        repeat.one(plan, 1, stop)
    assert repeat.one(plan, 1).state == "finished"
    assert [a.state for a in RunDir(tmp_path / "seed-1").read().train.attempts] == [
        "interrupted",
        "finished",
    ]


def test_diverged_seed_is_counted_not_averaged(hands, tmp_path):
    """nan in one seed: stated, and left out of the spread."""
    plan = plan_for(tmp_path, hands, solver__type="SGD", solver__base_lr=10.0)
    result = repeat.one(plan, 1)
    assert result.state == "diverged" and result.test_mad is None
    log = (tmp_path / "seed-1" / "caffe.log").read_bytes()
    assert repeat.one(plan, 1) == result and (tmp_path / "seed-1" / "caffe.log").read_bytes() == log
    found = [result, *(finished(n, mad) for n, mad in ((2, 18.0), (3, 20.0)))]
    assert any("1 of 3 seeds diverged" in line for line in results.verdict(plan, found))
    assert next(each for each in results.spreads(found)).seeds == 2
    results.write(plan, found)
    assert pandas.read_csv(tmp_path / "repeat.csv").test_mad.isna().tolist() == [True, False, False]


def test_verdict_names_what_the_intervals_are_for(hands, tmp_path):
    """MAD and CCC; another seed, other hands; the paper's recipe is compared with the paper, others are not."""
    dice = np.random.default_rng(4)
    ages, hand_errors = dice.normal(125, 40, 600), dice.normal(0, 21, 600)

    def seeds(count, bias, factor=1.0, tested=200):
        for number in range(1, count + 1):
            drawn = dice.permutation(600)[:tested]
            errors = 25 - 0.2 * ages[drawn] + bias + hand_errors[drawn] + dice.normal(0, 8, tested)
            months = ages[drawn] + factor * errors
            of_test = tuple(HandTested(str(n), float(ages[n]), float(m)) for n, m in zip(drawn, months, strict=True))
            yield finished(number, metrics.mad(ages[drawn], months), metrics.ccc(ages[drawn], months)).model_copy(
                update={"hands": of_test}
            )

    paper = replace(plan_for(tmp_path, hands), recipe=Recipe.load("paper").to_yaml())
    like = list(seeds(5, 0))
    mad_line, ccc_line, less_mad, less_ccc = results.verdict(paper, like)
    assert mad_line.startswith("Test MAD over 5 seeds: ") and ccc_line.startswith("Test CCC over 5 seeds: ")
    for line in (mad_line, ccc_line):
        assert " Another seed on these hands: " in line and " The same study on other hands: " in line
    assert less_mad.startswith("Test MAD less the paper’s 18.9: ") and less_mad.endswith(
        "agrees with the paper, to within 4.7 months."
    )
    assert less_ccc.startswith("Test CCC less the paper’s 0.78: ") and less_ccc.endswith("to within 0.12.")
    found = {each.figure: each for each in results.spreads(like)}
    for figure in ("test_mad", "test_ccc"):
        each = found[figure]
        assert each.other_hands_95[0] < each.next_seed_95[0] < each.mean < each.next_seed_95[1] < each.other_hands_95[1]
        assert each.less_paper_95 == pytest.approx([end - each.paper for end in each.other_hands_95])  # 200 hands, too
    assert found["train_mad"].other_hands_95 is None
    worse = results.verdict(paper, list(seeds(5, 60)))
    assert worse[2].endswith("worse than the paper.") and worse[3].endswith("worse than the paper.")
    three = results.verdict(paper, like[:3])
    assert three[-1].startswith("3 seeds are weak evidence") and "Another seed" in three[0]
    two = results.verdict(paper, like[:2])
    assert "Another seed" not in two[0] and two[-1].startswith("No intervals: they need three seeds")
    assert results.verdict(paper, like[:1]) == ["Fewer than two seeds finished: there is no spread to report."]
    assert "Not comparable" in results.verdict(plan_for(tmp_path, hands), like)[2]
    few = results.verdict(paper, list(seeds(5, 0, tested=30)))
    assert few[2].endswith("unclear: neither a difference nor agreement to within 4.7 months is shown.")
    far = list(seeds(5, 0, factor=0.2))
    assert "suspicious" in results.verdict(paper, far)[2] and results.spreads(far)[0].word == "suspicious"
    by_launch = results.verdict(paper, [each.model_copy(update={"departures": 1}) for each in like])
    assert "the runs depart from the paper in 1 field." in by_launch[2]
    leaking = results.verdict(paper, [like[0].model_copy(update={"word": "suspicious"}), *like[1:]])
    assert leaking[0].startswith("1 of 5 seeds: suspicious.")
    phantoms = results.verdict(paper, [each.model_copy(update={"phantoms": 600}) for each in like])
    assert phantoms[2] == "Not comparable with the paper’s 18.9 months and 0.78: the hands are phantoms."
    assert (
        "2 of 200 predictions are extrapolations"
        in results.verdict(paper, [like[0].model_copy(update={"outside": 2})])[-1]
    )


# ---- folds -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def thirty(tmp_path_factory) -> Path:
    """Thirty small phantoms."""
    out = tmp_path_factory.mktemp("thirty") / "data"
    dataset.write(out, 30, seed=7, size=(300, 390))
    return out


def test_five_folds_interrupted_and_continued(thirty, tmp_path):
    """30 hands, each tested once by a network that was not trained on it; Ctrl-C in fold 3, then continued."""
    recipe = tmp_path / "tiny.yaml"
    write_text(recipe, tiny().to_yaml())
    out = tmp_path / "out"
    data = [f"--images={thirty / 'images'}", f"--ages={thirty / 'ages.csv'}", f"--points={thirty / 'points.csv'}"]
    command = ["repeat", str(recipe), "--out", str(out), "--folds", "5", "--first-seed", "3", *data, "--cpu"]
    real, calls = repeat.one, []

    def stopped_in_three(plan, number, watch, say):
        calls.append(number)
        if number == 3:
            stop = iter([True])
            return real(plan, number, lambda p: next(stop, False) and os.kill(os.getpid(), signal.SIGINT), say)
        return real(plan, number, watch, say)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(repeat, "one", stopped_in_three)
        done = CliRunner().invoke(main, command)
    assert done.exit_code == 130 and calls == [1, 2, 3], done.output
    assert "2 of 5 folds finished. There are no pooled figures until all are." in done.output
    assert json.loads((out / "repeat.json").read_text())["pooled"] is None
    log = (out / "fold-1" / "caffe.log").read_bytes()
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.output
    assert (out / "fold-1" / "caffe.log").read_bytes() == log

    ages = pandas.read_csv(thirty / "ages.csv", dtype={"id": str})
    pooled = pandas.read_csv(out / "predictions.csv", dtype={"id": str})
    assert sorted(pooled["id"]) == sorted(ages["id"]) and pooled.fold.value_counts().tolist() == [6] * 5
    runs = [RunDir(out / f"fold-{number}") for number in range(1, 6)]
    outside = 0
    for number, run in enumerate(runs, start=1):
        split = run.read().prepare.split
        assert set(split["test"]) == set(pooled["id"][pooled.fold == number])
        assert set(split["train"]) | set(split["test"]) == set(ages["id"]) and len(split["train"]) == 24
        values = run.recipe()
        assert (values.data.split, values.data.split_seed, values.data.train_cases) == (f"fold {number} of 5", 3, 24)
        assert values.solver.test_iter * values.network.test_batch == values.data.test_cases == 6
        assert any(d.field == "data.split" and "--folds 5" in d.reason for d in values.departures())
        assert verify.first_broken(verify.verify(run)) is None
        of_test = ages["id"].isin(split["test"])
        trained_on = ages.boneage[~of_test]
        outside += int((~ages.boneage[of_test].between(trained_on.min(), trained_on.max())).sum())
    assert outside and f"{outside} of 30 predictions are extrapolations" in done.output
    assert len({run.recipe().solver.random_seed for run in runs}) == 1  # the same initial weights
    facts = json.loads((out / "repeat.json").read_text())
    assert facts["kind"] == "fold" and facts["pooled"]["cases"] == 30 and facts["spread"] == []
    assert facts["pooled"]["mad_months"] == pytest.approx(metrics.mad(pooled.boneage_months, pooled.predicted_months))
    assert facts["pooled"]["ccc"] == pytest.approx(metrics.ccc(pooled.boneage_months, pooled.predicted_months))
    low, high = facts["pooled"]["mad_interval_95"]
    assert 0 < low < facts["pooled"]["mad_months"] < high
    table = pandas.read_csv(out / "repeat.csv")
    assert table.fold.tolist() == [1, 2, 3, 4, 5] and table.test_cases.tolist() == [6] * 5
    assert facts["pooled"]["max_error_months"] == pytest.approx(table.test_max.max(), abs=1e-3)
    assert "5-fold cross-validation, 30 hands, each tested once: MAD" in done.output
    assert "Not comparable with the paper" in done.output


def test_folds_exclude_what_they_decide(hands, tmp_path):
    """--seeds, --train and --test together with --folds; more folds than hands; a folder of seeds."""
    recipe = tmp_path / "tiny.yaml"
    write_text(recipe, tiny().to_yaml())
    data = [f"--images={hands / 'images'}", f"--ages={hands / 'ages.csv'}", f"--points={hands / 'points.csv'}"]
    out = tmp_path / "out"

    def call(*options):
        return CliRunner().invoke(main, ["repeat", str(recipe), f"--out={out}", *data, "--cpu", *options])

    for option in ("--seeds=3", "--train=8", "--test=4"):
        done = call("--folds=3", option)
        assert done.exit_code == 2 and f"--folds and {option[:-2]} cannot be combined" in done.output
    assert not out.exists()
    done = call("--folds=13")
    assert done.exit_code == 1 and "13" in done.output and "12" in done.output, done.output
    assert not any(out.glob("fold-*"))
    plan = plan_for(out, hands)
    results.write(plan, [finished(1, 18.0)])
    done = call("--folds=3")
    assert done.exit_code == 1 and "Give another --out" in done.output


def test_groups_stay_together_in_folds_and_intervals(hands, tmp_path):
    """Three films of each child: children are assigned whole, and the interval counts children, not films.

    With a learning rate of 0 the networks stay as they started: the same in both folds.
    """
    table = pandas.read_csv(hands / "ages.csv", dtype=str, keep_default_na=False)
    table["group"] = [f"child {row // 3}" for row in range(len(table))]
    table.to_csv(tmp_path / "ages.csv", index=False)
    plan = replace(plan_for(tmp_path / "out", hands, solver__base_lr=0.0), ages=tmp_path / "ages.csv", folds=2)
    found = [repeat.one(plan, number) for number in (1, 2)]
    first, second = (plan.run_of(number).snapshots / "SNAPSHOT_iter_12.caffemodel" for number in (1, 2))
    assert first.read_bytes() == second.read_bytes()
    by_fold = [{hand.group for hand in result.hands} for result in found]
    assert not by_fold[0] & by_fold[1] and len(by_fold[0] | by_fold[1]) == 4
    assert len(results.measured_of("mad", [*found[0].hands, *found[1].hands]).shares) == 4
    whole = results.pooled(plan, found)
    assert whole.cases == 12 and whole.mad_interval_95 is None
    assert any("No interval over fewer than 10" in line for line in results.verdict(plan, found))


# ---- a cluster -------------------------------------------------------------------------------------------------


@contextmanager
def cluster(workers: int):
    """A Dask scheduler and workers, separate processes on the loopback; yields the address."""
    pytest.importorskip("distributed")
    env = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start(*arguments):
        command = [sys.executable, "-m", "distributed.cli." + arguments[0], *arguments[1:]]
        return subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    scheduler = start("dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard")
    address = None
    for line in scheduler.stderr:
        if "Scheduler at:" in line:
            address = line.split()[-1]
            break
    assert address
    processes = [scheduler]
    try:
        for _ in range(workers):
            processes.append(start("dask_worker", address, "--no-nanny", "--nthreads", "1", "--no-dashboard"))
        yield address, processes[1:]
    finally:
        for process in reversed(processes):
            process.kill()
            process.communicate()


def test_cluster_loses_a_worker_and_completes(hands, tmp_path):
    """Two workers, three folds; one is killed while it trains: the other worker completes its fold."""
    plan = plan_for(tmp_path, hands, solver__max_iter=150, solver__snapshot=30, solver__test_interval=50)
    plan = replace(plan, folds=3)
    with cluster(2) as (address, workers):
        coming = repeat.on_cluster(plan, [1, 2, 3], address)
        finished_folds, failed = [], []

        def collect():
            try:
                finished_folds.extend(coming)
            except Exception as error:
                failed.append(error)

        thread = threading.Thread(target=collect)
        thread.start()
        deadline = time.monotonic() + 300
        at_work = []
        while not at_work and time.monotonic() < deadline:
            runs = [plan.run_of(number) for number in (1, 2, 3)]
            at_work = [pid for run in runs if run.curve.is_file() for pid in caffes(run)]
            time.sleep(0.02)
        parent = int(Path(f"/proc/{at_work[0]}/stat").read_text().rsplit(")", 1)[1].split()[1])
        assert parent in [worker.pid for worker in workers]
        os.kill(parent, signal.SIGKILL)
        thread.join(600)
    assert not failed and not thread.is_alive(), failed
    assert sorted(result.number for result in finished_folds) == [1, 2, 3]
    assert {(result.state, result.iteration) for result in finished_folds} == {("finished", 150)}
    attempts = [len(plan.run_of(number).read().train.attempts) for number in (1, 2, 3)]
    assert max(attempts) == 2, attempts  # the killed worker's


def test_scheduler_not_reached(hands, tmp_path, monkeypatch):
    """No scheduler at the address, no Dask: an error with the remedy."""
    pytest.importorskip("distributed")
    import distributed

    real = distributed.Client
    monkeypatch.setattr(distributed, "Client", lambda address, timeout: real(address, timeout=1))
    with pytest.raises(RepeatError, match="not reached"):
        list(repeat.on_cluster(plan_for(tmp_path, hands), [1, 2], "tcp://127.0.0.1:9"))
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(RepeatError, match=r"bonecaffe\[cluster\]"):
        list(repeat.on_cluster(plan_for(tmp_path, hands), [1, 2], "tcp://127.0.0.1:9"))
