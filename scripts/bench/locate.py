"""locate: hands located per second, with reading them, by each engine; the share of it that is reading."""

from __future__ import annotations

import os

from bonecaffe.caffe.nets import KINDS

from .workbench import Row, Workbench, decode, seconds_of, timed

MOST = 60


def measure(bench: Workbench) -> list[Row]:
    """Hands per second, start-up included."""
    few = bench.folder / "few"
    few.mkdir(exist_ok=True)
    paths = sorted((bench.phantoms() / "images").glob("*.png"))[:MOST]
    for path in paths:
        (few / path.name).write_bytes(path.read_bytes())
    reading = seconds_of(lambda: decode(paths))
    rows = []
    for engine in KINDS:
        seconds = timed("locate", few, "--points", bench.folder / f"{engine}.csv", "--engine", engine)
        speed = f"{len(paths) / seconds:.1f} hands/s on {os.cpu_count()} cores, start-up included"
        rows.append(
            Row(f"locate, {engine}", f"{speed}; reading them on one core takes {reading / seconds:.0%} of that time")
        )
    return rows
