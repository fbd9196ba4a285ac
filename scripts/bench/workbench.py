"""What the parts share: seconds and memory of bonecaffe's commands, phantoms, the full-size net, the builder of Caffe.

The parts use the command line and the public API where that does not distort what they measure.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import pandas

from bonecaffe import Recipe
from bonecaffe.hands.images import encode_png, read_image

REPOSITORY = Path(__file__).resolve().parents[2]
CORES = len(os.sched_getaffinity(0))


class Row(NamedTuple):
    """A line of the table: what was measured, and the figure with what it is compared to."""

    what: str
    figure: str


class Memory(NamedTuple):
    """Peak memory in MB that is not a view of a file: of bonecaffe's processes together, and of Caffe's programs."""

    ours: float = 0.0
    caffe: float = 0.0

    def __str__(self) -> str:
        return f"{self.ours:.0f} MB in bonecaffe's processes together, {self.caffe:.0f} MB in Caffe's"


class Cost(NamedTuple):
    """What a command took."""

    seconds: float
    peak: Memory


def vary(image: Path, target: Path, number: int) -> None:
    """Write a copy of an image with one changed pixel: `prepare` refuses the same image on both sides of the split."""
    pixels = read_image(image)
    pixels[-1, -1] = (int(pixels[-1, -1]) + number) % 256
    target.write_bytes(encode_png(pixels))


@dataclass(frozen=True)
class Workbench:
    """The folder of one bench, empty at first, and how many hands the parts work on."""

    folder: Path
    count: int

    def phantoms(self) -> Path:
        """``count`` phantoms of 1000 x 1300 pixels, made once."""
        data = self.folder / "data"
        if not data.is_dir():
            self.make_phantoms(data)
        return data

    def make_phantoms(self, data: Path) -> float:
        """Make ``count`` phantoms of 1000 x 1300 pixels; the seconds it took."""
        return timed("phantom", data, "--count", self.count, "--size", "1000x1300")

    def rsna(self, copies: int = 1) -> Path:
        """Half of ``count`` phantoms of RSNA's sizes (1500 x 2000), each under ``copies`` ids, one pixel changed."""
        count = self.count // 2
        made, data = self.folder / f"rsna{count}", self.folder / f"rsna{count}x{copies}"
        if data.is_dir():
            return data
        if not made.is_dir():
            timed("phantom", made, "--count", count)
        (data / "images").mkdir(parents=True)
        for name in ("ages.csv", "points.csv"):
            cells = pandas.read_csv(made / name, dtype=str)
            ids = [f"{copy}{case_id}" for copy in range(copies) for case_id in cells.id]
            pandas.concat([cells] * copies).assign(id=ids).to_csv(data / name, index=False)
        for image in (made / "images").iterdir():
            for copy in range(copies):
                vary(image, data / "images" / f"{copy}{image.name}", copy)
        return data

    def recipe(self, name: str, extends: str, values: Mapping[str, object]) -> Path:
        """A recipe file: one of bonecaffe's recipes with other values."""
        path = self.folder / f"{name}.yaml"
        path.write_text(Recipe.load(extends).with_values(dict(values), "bench").to_yaml(), encoding="utf-8")
        return path

    def full_net(self) -> Path:
        """A run with all phantoms and the paper's full-size net after one iteration: it need not have learned."""
        run, data, train, test = self.folder / "full", self.phantoms(), self.count * 2 // 3, self.count // 3
        if run.is_dir():
            return run
        one_iteration = {"solver.max_iter": 1, "solver.snapshot": 1, "solver.test_iter": test, "solver.base_lr": 0.0}
        on_the_cpu = {"solver.solver_mode": "CPU", "network.train_batch": 32, "network.test_batch": 1}
        by_chance = {
            "training.initial_weights": "none",
            "network.weight_filler": Recipe.load("smoke").network.weight_filler,
        }
        cases = {"data.train_cases": train, "data.test_cases": test}
        recipe = self.recipe("full", "paper", {**one_iteration, **on_the_cpu, **by_chance, **cases})
        timed("prepare", run, *inputs(data), "--recipe", recipe)
        timed("train", run)
        return run


Measure = Callable[[Workbench], list[Row]]
"""What each part's module has as ``measure``."""


# ---- time ----------------------------------------------------------------------------------------------------------


def best(work: Callable[[], object], times: int = 5) -> float:
    """Seconds of the quickest of some calls."""
    return min(seconds_of(work) for _ in range(times))


def seconds_of(work: Callable[[], object]) -> float:
    """Seconds of one call."""
    began = time.monotonic()
    work()
    return time.monotonic() - began


def timed(*arguments: object) -> float:
    """Seconds that a command of bonecaffe takes; the bench ends with its message when it fails."""
    began = time.monotonic()
    done = subprocess.run(_command(arguments), check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"bench: bonecaffe {arguments[0]} failed:\n{done.stderr}")
    return time.monotonic() - began


def _command(arguments: tuple[object, ...]) -> list[str]:
    return [sys.executable, "-m", "bonecaffe", *map(str, arguments)]


# ---- time and memory -----------------------------------------------------------------------------------------------


def watched(*arguments: object) -> Cost:
    """Seconds that a command of bonecaffe takes, and the peak memory of all its processes."""
    began, peak = time.monotonic(), Memory()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(_command(arguments), stdout=output, stderr=output, start_new_session=True)
        while process.poll() is None:
            now = memory_of(process.pid)
            peak = Memory(max(peak.ours, now.ours), max(peak.caffe, now.caffe))
            time.sleep(0.05)
        seconds = time.monotonic() - began
        output.seek(0)
        if process.returncode:
            raise SystemExit(f"bench: bonecaffe {arguments[0]} failed:\n{output.read()}")
    return Cost(seconds, peak)


def memory_of(ancestor: int) -> Memory:
    """What a process and all its descendants hold now; Caffe trains in a session of its own."""
    ours, caffe, family = 0, 0, {str(ancestor)}
    for number in sorted(int(name) for name in os.listdir("/proc") if name.isdigit()):  # parents come first
        try:
            status = Path(f"/proc/{number}/status").read_text()
            if str(number) not in family and status.split("PPid:")[1].split()[0] not in family:
                continue
            family.add(str(number))
            held_kb = int(status.split("RssAnon:")[1].split()[0])
        except (OSError, IndexError):  # the process has ended
            continue
        if status.startswith(("Name:\tconvert_image", "Name:\tcaffe")):
            caffe += held_kb
        else:
            ours += held_kb
    return Memory(ours / 1024, caffe / 1024)


def prepared(run: Path, data: Path, *options: object) -> Cost:
    """What prepare takes for all hands of ``data``, a fifth of them for test."""
    count = len(list((data / "images").iterdir()))
    return watched("prepare", run, *inputs(data), "--train", count - count // 5, "--test", count // 5, *options)


def inputs(data: Path) -> tuple[object, ...]:
    """The options of prepare for a folder of phantoms."""
    return ("--images", data / "images", "--ages", data / "ages.csv", "--points", data / "points.csv")


# ---- what is compared with -----------------------------------------------------------------------------------------


def decode(paths: list[Path]) -> int:
    """Only decode, by bonecaffe's decoder on one core; the number of pixels."""
    cv2.setNumThreads(1)
    return sum(read_image(path).size for path in paths)


def built_caffe(**environment: str) -> Path:
    """Where Caffe is installed once `make setup`'s builder has built it, or found it built, with some variables set."""
    done = subprocess.run(
        [sys.executable, "scripts/build_caffe.py"],
        cwd=REPOSITORY,
        env={**os.environ, **environment},
        check=True,
        capture_output=True,
        text=True,
    )
    return Path(done.stdout.split("root=")[1].split("\n")[0])
