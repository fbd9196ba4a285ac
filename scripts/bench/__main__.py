"""Run the benchmarks: `make bench`, or only some parts with `make bench ONLY="prepare train"`.

Other work may run on the same machine. So every figure comes with another that was measured in the same minute.
``BENCH_COUNT`` sets the number of hands (600, as in the paper).
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bonecaffe.caffe import environment
from bonecaffe.files import write_text

from .workbench import Measure, Workbench

PARTS = (
    "setup",
    "start",
    "phantom",
    "prepare",
    "growth",
    "log",
    "locate",
    "annotate",
    "train",
    "predict",
    "evaluate",
)
"""The parts, in order. Each is a module of this package."""


def measure_of(part: str) -> Measure:
    """The function that measures a part. Its module is imported only when it is needed."""
    measure: Measure = importlib.import_module(f".{part}", __package__).measure
    return measure


def table(parts: Sequence[str], bench: Workbench) -> dict[str, str]:
    """Measure some parts and print each figure at once. Returns the figures by what was measured."""
    figures: dict[str, str] = {}
    for part in parts:
        for what, figure in measure_of(part)(bench):
            print(f"{what:24} {figure}", flush=True)
            figures[what] = figure
    return figures


def main(arguments: Sequence[str], keep: Path = Path("runs/bench.json")) -> int:
    """Measure the chosen parts, print a table, and write it with the machine's description to ``keep``."""
    parts = arguments or PARTS
    unknown = [part for part in parts if part not in PARTS]
    if unknown:
        print(f"bench: no part {unknown[0]}; the parts are {', '.join(PARTS)}", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder:
        figures = table(parts, Workbench(Path(folder), int(os.environ.get("BENCH_COUNT", "600"))))
    kept = {
        "machine": environment.describe().model_dump(mode="json"),
        "at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "figures": figures,
    }
    write_text(keep, json.dumps(kept, indent=2, ensure_ascii=False) + "\n", parents=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
