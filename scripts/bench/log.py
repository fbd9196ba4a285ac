"""log: a million lines of Caffe's log, parsed."""

from __future__ import annotations

from collections.abc import Iterator

from bonecaffe.caffe.log import Curve, parse

from .workbench import Row, Workbench, seconds_of

LINES = (
    "solver.cpp:239] Iteration {} (2.8 iter/s, 7.1s/20 iters), loss = 196.5",
    "solver.cpp:258]     Train net output #0: loss = 196.5 (* 1 = 196.5 loss)",
    "solver.cpp:112] Iteration {}, lr = 3e-06",
    "net.cpp:129] Top shape: 256 3 224 224 (38535168)",
)
MILLION = 1_000_000


def measure(bench: Workbench, count: int = MILLION) -> list[Row]:
    """Seconds for ``count`` lines."""
    lines = list(_lines(count // len(LINES)))
    points: list[object] = []
    seconds = seconds_of(lambda: points.extend(Curve(parse(lines)).points()))
    return [Row("log", f"{seconds:.1f} s for {len(lines)} lines, {len(points)} points")]


def _lines(iterations: int) -> Iterator[str]:
    for iteration in range(iterations):
        for line in LINES:
            yield f"I1123 19:53:52.223456 10177 {line.format(iteration)}"
