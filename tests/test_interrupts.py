"""Ctrl-C ends `prepare` at any moment, and the next call continues: no hang, no orphan, the same bytes in the end.

Sixty interrupts; ``BONECAFFE_INTERRUPTS=1000`` asks for more, ``BONECAFFE_INTERRUPT_SEED`` for others.
"""

from __future__ import annotations

import contextlib
import csv
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import REPOSITORY, tiny

from bonecaffe.hands import cases
from bonecaffe.hands.cases import split_cases
from bonecaffe.hands.phantom import dataset

INTERRUPTS = int(os.environ.get("BONECAFFE_INTERRUPTS", "60"))
SEED = int(os.environ.get("BONECAFFE_INTERRUPT_SEED", "1"))
IMAGES = 160
LIMIT_S = 2.0
SLACK_S = 6.0  # for a busy machine; a hang would last forever

INT, TERM = signal.SIGINT, signal.SIGTERM
KINDS = {  # (signal, to the whole group?), one after the other
    "Ctrl-C, to the process alone": [(INT, False)],
    "Ctrl-C": [(INT, True)],
    "Ctrl-C twice": [(INT, True), (INT, True)],
    "twice, to the process alone": [(INT, False), (INT, False)],
    "Ctrl-C three times": [(INT, True), (INT, True), (INT, True)],
    "timeout -s INT": [(INT, False), (INT, True)],
    "SIGTERM": [(TERM, False)],
    "SIGTERM to the group": [(TERM, True)],
}


@dataclass
class Case:
    """The call of `prepare` that is interrupted, and the result of an uninterrupted one."""

    data: Path
    recipe: Path
    expected: dict[str, bytes]
    first_s: float  # from the start to the first image

    def start(self, run: Path, mark: str, log: Path) -> subprocess.Popen[bytes]:
        """Start `prepare` in its own process group, as a shell does; ``mark`` is in the environment of all children."""
        command = [sys.executable, "-m", "bonecaffe", "prepare", str(run), "--recipe", str(self.recipe), "--jobs", "2"]
        for name, value in (("images", "images"), ("ages", "ages.csv"), ("points", "points.csv")):
            command += [f"--{name}", str(self.data / value)]
        with open(log, "wb") as stderr:
            return subprocess.Popen(
                command,
                cwd=REPOSITORY,
                env={**os.environ, "BONECAFFE_TEST_MARK": mark},
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                start_new_session=True,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # `make test &` ignores it
            )


def outputs(run: Path) -> dict[str, bytes]:
    """The files that `prepare` wrote, without the manifest, whose times differ."""
    names = [
        path for path in run.rglob("*") if path.is_file() and path.name not in ("manifest.json", "lock.mdb", ".lock")
    ]
    return {str(path.relative_to(run)): path.read_bytes() for path in names}


def family(mark: str) -> list[str]:
    """The live processes that have ``mark`` in their environment."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            alive = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0] not in "ZX"
            if alive and f"BONECAFFE_TEST_MARK={mark}\0".encode() in Path(f"/proc/{pid}/environ").read_bytes():
                found.append(f"{pid} {Path(f'/proc/{pid}/cmdline').read_bytes()!r}")
    return found


@pytest.fixture(scope="module")
def case(tmp_path_factory) -> Case:
    """Three large phantoms, each under many names on one side of the split: slow to read, and quick to make."""
    folder = tmp_path_factory.mktemp("large")
    few, data = folder / "few", folder / "data"
    dataset.write(few, 3, 8, (1600, 2080))
    recipe_of = tiny(data__train_cases=IMAGES - 60, data__test_cases=60)
    ids = [str(2000 + n) for n in range(IMAGES)]
    train, _ = split_cases([cases.Case(each, 100) for each in ids], IMAGES - 60, 60, recipe_of.data.split_seed)
    trained = {each.id for each in train}
    which = {each: n % 2 if each in trained else 2 for n, each in enumerate(ids)}
    (data / "images").mkdir(parents=True)
    for name in ("ages.csv", "points.csv"):
        with open(few / name, newline="") as file:
            header, *rows = csv.reader(file)
        with open(data / name, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(header)
            writer.writerows([each, *rows[which[each]][1:]] for each in ids)
    names = [row[0] for row in rows]
    for each in ids:
        os.link(few / "images" / f"{names[which[each]]}.png", data / "images" / f"{each}.png")
    recipe = folder / "recipe.yaml"
    recipe.write_text(recipe_of.to_yaml())
    made = Case(data, recipe, {}, 0.0)
    began = time.monotonic()
    process = made.start(folder / "run", "undisturbed", folder / "log")
    journal = folder / "run" / ".prepare" / "journal.jsonl"
    while process.poll() is None and not (journal.exists() and journal.stat().st_size):
        time.sleep(0.01)
    made.first_s = time.monotonic() - began
    assert process.wait(300) == 0
    made.expected = outputs(folder / "run")
    return made


def interrupt(process: subprocess.Popen[bytes], kind: str, rng: random.Random) -> None:
    """Send the signals of a kind, up to 0.1 s apart."""
    for number, (what, to_group) in enumerate(KINDS[kind]):
        if number:
            time.sleep(rng.choice([0, 0, rng.uniform(0, 0.1)]))
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if to_group else os.kill)(process.pid, what)


def test_interrupted_prepare_ends_at_once_and_continues(case, tmp_path):
    """Seeded moments, from the start of Python to the last file: none hangs, leaves a process, or costs a byte."""
    rng = random.Random(SEED)
    run, log = tmp_path / "run", tmp_path / "log"
    kinds = [*KINDS] * (INTERRUPTS // len(KINDS) + 1)
    rng.shuffle(kinds)
    done = completed = 0
    took = []
    while done < INTERRUPTS or not completed:
        if done >= INTERRUPTS:
            process = case.start(run, "last", log)
            assert process.wait(300) == 0, log.read_text()
        else:
            kind, mark = kinds[done], f"{os.getpid()}.{done}"
            early = rng.random() < 0.3
            moment = case.first_s * rng.uniform(0.1, 1) if early else case.first_s + rng.uniform(0, 0.7)
            process = case.start(run, mark, log)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(moment)
            running = process.poll() is None
            began = time.monotonic()
            interrupt(process, kind, rng)
            where = f"interrupt {done}, {kind}, after {moment:.2f} s"
            try:
                code = process.wait(60)
            except subprocess.TimeoutExpired:
                pytest.fail(f"{where}: hangs; see process {process.pid}")
            if code == 0:  # it was done before the signal came
                pass
            else:
                assert running, (where, code, log.read_text())
                took.append(time.monotonic() - began)
                assert took[-1] < LIMIT_S + SLACK_S, where
                output = log.read_text()
                expected = (-TERM,) if "TERM" in kind else (130, -INT)  # the latter while Python itself starts
                assert code in expected, (where, code, output)
                if code == 130:
                    assert "interrupted" in output, (where, output)
                    assert "Traceback" not in output and "xception" not in output, (where, output)
                done += 1
            while left := family(mark):
                assert time.monotonic() - began < 60, (where, "processes live on", left)
                time.sleep(0.02)
        if process.returncode == 0:
            assert outputs(run) == case.expected
            completed += 1
            shutil.rmtree(run)
    took.sort()
    print(
        f"{done} interrupts, {completed} completed calls; ended within {took[len(took) // 2]:.2f} s (median), "
        f"{took[-1]:.2f} s (longest); {sum(seconds > LIMIT_S for seconds in took)} took more than {LIMIT_S:g} s"
    )
