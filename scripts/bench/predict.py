"""predict: pycaffe against OpenCV's importer of the same files: cold (process start to months), one warm, 32 warm."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from bonecaffe import Predictor
from bonecaffe.caffe.nets import Kind
from bonecaffe.hands.images import read_image

from .workbench import Row, Workbench, best, timed

BATCH = 32
WHAT = ("cold", "one image, warm", "32 images, warm")


def measure(bench: Workbench) -> list[Row]:
    """Milliseconds of both, and their ratio."""
    cv2.setNumThreads(-1)  # all cores again, after parts that decode on one
    run, data = bench.full_net(), bench.phantoms()
    normals = [read_image(path) for path in sorted((run / "images").glob("*.png"))[:BATCH]]
    caffe, opencv = _seconds(run, data, normals, "caffe"), _seconds(run, data, normals, "opencv")
    return [
        Row(
            f"predict, {what}",
            f"pycaffe {ours * 1000:.0f} ms, OpenCV {other * 1000:.0f} ms: {ours / other:.2f} times",
        )
        for what, ours, other in zip(WHAT, caffe, opencv, strict=True)
    ]


def _seconds(run: Path, data: Path, normals: list[np.ndarray], engine: Kind) -> tuple[float, float, float]:
    """Seconds of each of ``WHAT``."""
    image = next((data / "images").glob("*.png"))
    cold = min(timed("predict", run, image, "--points", data / "points.csv", "--engine", engine) for _ in range(3))
    predictor = Predictor(run, engine=engine)

    def warm(images: list[np.ndarray]) -> list[float]:
        return list(predictor.predict_normalized(images))

    warm(normals)
    return cold, best(lambda: warm(normals[:1]), 20), best(lambda: warm(normals))
