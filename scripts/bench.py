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
    """Seconds that a command takes."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", "bonecaffe", *map(str, arguments)], check=True, capture_output=True)
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


PARTS = {"start": start, "phantom": phantom, "prepare": prepare}


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
