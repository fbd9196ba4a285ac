"""`make bench`: each part is a module with one function; the parts work at a tiny scale."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import re
import subprocess
import sys

import pytest
from conftest import REPOSITORY


@pytest.fixture
def bench(monkeypatch):
    """The package of the benchmarks; its parts are run as `make bench` runs them."""
    monkeypatch.syspath_prepend(str(REPOSITORY))
    return importlib.import_module("scripts.bench.__main__")


def test_every_part_is_a_module_that_measures(bench):
    """Each name has a module with a typed ``measure(bench)``; no module is a part without a name."""
    for part in bench.PARTS:
        measure = bench.measure_of(part)
        first, *others = inspect.signature(measure).parameters.values()
        assert first.annotation == "Workbench" and all(one.default is not one.empty for one in others), part
        assert inspect.signature(measure).return_annotation == "list[Row]", part
        assert sys.modules[measure.__module__].__doc__.startswith(f"{part}: "), part
    modules = {path.stem for path in (REPOSITORY / "scripts" / "bench").glob("*.py")}
    assert modules == {*bench.PARTS, "__init__", "__main__", "workbench"}


def test_documented_parts_exist(bench):
    """Every ``ONLY=`` that the Makefile and the documents show names parts of the benchmark."""
    documents = [REPOSITORY / "Makefile", *REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md")]
    lines = [line for path in documents for line in path.read_text(encoding="utf-8").splitlines()]
    text = "\n".join(line for line in lines if "mutants" not in line)  # whose ONLY= names modules
    shown = re.findall(r'ONLY=(?:"([^"]*)"|([a-z]+))', text)
    assert len(shown) >= 4
    for quoted, plain in shown:
        assert {*(quoted or plain).split()} <= {*bench.PARTS}


def test_unknown_part_is_refused():
    """One sentence with the existing parts, exit 1, nothing measured."""
    command = [sys.executable, "-m", "scripts.bench", "phantom", "fantom"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("bench: no part fantom; the parts are setup, start, phantom, ")


def test_table_is_printed_and_kept(bench, tmp_path, monkeypatch, capsys):
    """A line for each figure as soon as it is measured; the same figures and the machine in the file."""
    monkeypatch.setenv("BENCH_COUNT", "1")
    kept = tmp_path / "runs" / "bench.json"
    assert bench.main(["phantom"], kept) == 0
    record = json.loads(kept.read_text(encoding="utf-8"))
    assert capsys.readouterr().out == f"{'phantom':24} {record['figures']['phantom']}\n"
    assert re.fullmatch(r"\d+\.\d images/s of 1000 x 1300 on \d+ cores", record["figures"]["phantom"])
    assert record["machine"]["host"]["cores"] >= 1


def test_prepare_is_measured_with_its_memory(bench, hands, tmp_path, monkeypatch):
    """The part with the most helpers, on twelve small hands: seven figures, memory among them."""
    (tmp_path / "rsna12").symlink_to(hands, target_is_directory=True)  # in place of those that the bench would make
    monkeypatch.setattr("scripts.bench.prepare.COPIES", 1)
    figures = dict(bench.measure_of("prepare")(bench.Workbench(tmp_path, 24)))
    assert [*figures] == [
        "prepare",
        "prepare, decode limit",
        "prepare, OpenCV",
        "prepare, plain script",
        "prepare, memory",
        "prepare again",
        "prepare, ten more",
    ]
    ours = re.match(r"(\d+) MB in bonecaffe's processes together, \d+ MB in Caffe's", figures["prepare, memory"])
    assert ours and int(ours[1]) > 20
    assert (tmp_path / "many" / "train_lmdb" / "data.mdb").is_file()
    assert (tmp_path / "plain" / "lmdb" / "data.mdb").is_file()


def test_log_is_read_whole(bench):
    """One point for each iteration that the log shows, whatever the number of lines."""
    ((what, figure),) = bench.measure_of("log")(None, 4000)
    assert what == "log" and figure.endswith(" s for 4000 lines, 1000 points")


def test_failing_command_ends_the_bench(bench):
    """The bench ends with the message of a command that failed, timed or watched."""
    workbench = importlib.import_module("scripts.bench.workbench")
    for run in (workbench.timed, workbench.watched):
        with pytest.raises(SystemExit, match="(?s)bench: bonecaffe phantom failed:.*--nosuch"):
            run("phantom", "--nosuch")


def test_memory_counts_descendants(bench):
    """A child's memory belongs to its ancestor."""
    workbench = importlib.import_module("scripts.bench.workbench")
    before = workbench.memory_of(os.getpid())
    code = "held = bytearray(b'x') * 50_000_000; print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        during = workbench.memory_of(os.getpid())
        child.communicate(b"\n")
    assert during.ours > before.ours + 45
