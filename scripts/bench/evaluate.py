"""evaluate: all hands with the full-size net, against the bare forward time of the same net."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bonecaffe.caffe import programs

from .workbench import Row, Workbench, seconds_of, timed

BATCH = 32


def measure(bench: Workbench) -> list[Row]:
    """Seconds from the start to report.html, as a ratio, and what is not forward passes."""
    run = bench.full_net()
    for predictions in run.glob("predictions_*.csv"):  # or there would be nothing to do
        predictions.unlink()
    seconds = timed("evaluate", run)
    bare = _forward(run, bench.count)
    rest = "start-up, reading, bootstrap, figures, report.html"
    return [
        Row("evaluate", f"{seconds:.1f} s for {bench.count} hands, full-size net, start to report.html"),
        Row("evaluate, ratio", f"{seconds / bare:.2f} times the bare forward passes ({bare:.1f} s)"),
        Row("report", f"{seconds - bare:.1f} s of it: {rest}"),
    ]


def _forward(run: Path, count: int) -> float:
    """Seconds in which pycaffe alone passes ``count`` images forward, in batches."""
    caffe = programs.import_pycaffe()
    weights = next((run / "snapshots").glob("*.caffemodel"))
    net = caffe.Net(str(run / "deploy.prototxt"), str(weights), caffe.TEST)
    net.blobs["data"].reshape(BATCH, 3, 224, 224)
    net.blobs["data"].data[...] = np.random.default_rng(0).normal(0, 50, (BATCH, 3, 224, 224))
    net.forward()
    batches = -(-count // BATCH)

    def all_batches() -> None:
        for _ in range(batches):
            net.forward()

    return seconds_of(all_batches) * count / (batches * BATCH)
