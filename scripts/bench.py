#!/usr/bin/env python3
"""Benchmarks, side by side in one run: `make bench`, or one part alone with `make bench ONLY=prepare`.

These machines are shared, so a figure stands beside another that was measured in the same minute.
"""

import os
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

COUNT = int(os.environ.get("BENCH_COUNT", "600"))


def bonecaffe(*arguments: object) -> float:
    """Seconds that a command takes; its own words when it fails."""
    began = time.monotonic()
    command = [sys.executable, "-m", "bonecaffe", *map(str, arguments)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"bench: bonecaffe {arguments[0]} failed:\n{done.stderr}")
    return time.monotonic() - began


def decode(paths: list[Path]) -> int:
    """Only decode, as the floor for prepare."""
    import cv2

    from bonecaffe.hands.images import read_image

    cv2.setNumThreads(1)
    return sum(read_image(path).size for path in paths)


def start(folder: Path) -> list[tuple[str, str]]:
    """How long `import bonecaffe` and `--help` take, against a bare interpreter."""

    def best(code: list[str]) -> float:
        times = []
        for _ in range(5):
            began = time.monotonic()
            subprocess.run([sys.executable, *code], check=True, capture_output=True)
            times.append(time.monotonic() - began)
        return min(times)

    bare = best(["-c", ""])
    return [
        ("import bonecaffe", f"{best(['-c', 'import bonecaffe']):.3f} s (a bare interpreter {bare:.3f} s)"),
        ("bonecaffe --help", f"{best(['-m', 'bonecaffe', '--help']):.3f} s"),
    ]


def phantom(folder: Path) -> list[tuple[str, str]]:
    """Phantoms of 1000 x 1300 a second."""
    seconds = bonecaffe("phantom", folder / "data", "--count", COUNT, "--size", "1000x1300")
    return [("phantom", f"{COUNT / seconds:.1f} images/s of 1000 x 1300 on {os.cpu_count()} cores")]


def prepare(folder: Path) -> list[tuple[str, str]]:
    """prepare against the bare decoding of the same files; its memory; the rerun with nothing changed."""
    data = folder / "data"
    if not data.is_dir():
        phantom(folder)
    paths = sorted((data / "images").glob("*.png"))
    cores = len(os.sched_getaffinity(0))
    began = time.monotonic()
    with ProcessPoolExecutor(cores) as pool:
        list(pool.map(decode, [paths[i::cores] for i in range(cores)]))
    floor = time.monotonic() - began
    inputs = ("--images", data / "images", "--ages", data / "ages.csv", "--points", data / "points.csv")
    split = ("--train", COUNT * 2 // 3, "--test", COUNT // 3)
    seconds = bonecaffe("prepare", folder / "run", *inputs, *split)
    again = bonecaffe("prepare", folder / "run", *inputs, *split)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return [
        (
            "prepare",
            f"{COUNT / seconds:.1f} images/s, with packing and audit; {floor / seconds:.0%} of bare decoding ({COUNT / floor:.0f} images/s)",
        ),
        ("prepare again", f"{again:.2f} s with nothing changed"),
        ("prepare, memory", f"{peak:.0f} MB in the largest process so far"),
    ]


def log(folder: Path) -> list[tuple[str, str]]:
    """A million lines of Caffe's log, parsed."""
    from bonecaffe.training.log import Curve, parse

    said = "I1123 19:53:52.223456 10177 solver.cpp:{}"
    lines = [
        said.format("239] Iteration %d (2.8 iter/s, 7.1s/20 iters), loss = 196.5"),
        said.format("258]     Train net output #0: loss = 196.5 (* 1 = 196.5 loss)"),
        said.format("112] Iteration %d, lr = 3e-06"),
        "I1123 19:53:50.223456 10177 net.cpp:129] Top shape: 256 3 224 224 (38535168)",
    ]
    million = [line % number if "%d" in line else line for number in range(250_000) for line in lines]
    began = time.monotonic()
    points = len(Curve(parse(million)).points())
    return [("log", f"{time.monotonic() - began:.1f} s for {len(million)} lines, {points} points")]


def evaluate(folder: Path) -> list[tuple[str, str]]:
    """evaluate on the paper's 600 hands with the full-size net, against the bare forward time of the same net."""
    import numpy as np

    from bonecaffe import caffe_tools
    from bonecaffe.recipe import Recipe
    from bonecaffe.run import RunDir

    data, run = folder / "data", RunDir(folder / "full")
    if not data.is_dir():
        phantom(folder)
    smoke = Recipe.load("smoke")
    one = {
        "solver.max_iter": 1,
        "solver.snapshot": 1,
        "solver.test_iter": COUNT // 3,
        "data.train_cases": COUNT * 2 // 3,
        "data.test_cases": COUNT // 3,
    }
    recipe = Recipe.load("paper").with_values(
        {**one, "solver.solver_mode": "CPU", "training.initial_weights": "none", "network.train_batch": 2, "network.test_batch": 1,
         "network.weight_filler": smoke.network.weight_filler, "solver.base_lr": 0.0},
        "bench: a full-size net that need not have learned",
    )  # fmt: skip
    (folder / "full.yaml").write_text(recipe.to_yaml())
    inputs = ("--images", data / "images", "--ages", data / "ages.csv", "--points", data / "points.csv")
    bonecaffe("prepare", run, *inputs, "--recipe", folder / "full.yaml")
    bonecaffe("train", run)
    seconds = bonecaffe("evaluate", run)
    caffe = caffe_tools.import_pycaffe()
    net = caffe.Net(str(run.deploy), str(next(run.snapshots.glob("*.caffemodel"))), caffe.TEST)
    net.blobs["data"].reshape(32, 3, 224, 224)
    net.blobs["data"].data[...] = np.random.default_rng(0).normal(0, 50, (32, 3, 224, 224))
    net.forward()
    began = time.monotonic()
    for _ in range(-(-COUNT // 32)):
        net.forward()
    bare = (time.monotonic() - began) * COUNT / (-(-COUNT // 32) * 32)
    return [
        ("evaluate", f"{seconds:.1f} s for {COUNT} hands, full-size net, start to report.html"),
        ("evaluate, ratio", f"{seconds / bare:.2f} times the bare forward passes ({bare:.1f} s)"),
    ]


PARTS = {"start": start, "phantom": phantom, "prepare": prepare, "log": log, "evaluate": evaluate}


def main() -> int:
    """Run the parts asked for, print one table."""
    wanted = sys.argv[1:] or list(PARTS)
    unknown = [name for name in wanted if name not in PARTS]
    if unknown:
        print(f"bench: no part {unknown[0]}; there are {', '.join(PARTS)}", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder:
        for name in wanted:
            for what, figure in PARTS[name](Path(folder)):
                print(f"{what:18} {figure}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
