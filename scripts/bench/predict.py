"""predict: pycaffe, ONNX Runtime and OpenCV on the same files: cold (process start to months), one warm, 32 warm."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from bonecaffe import Predictor
from bonecaffe.caffe.nets import KINDS, Kind
from bonecaffe.hands.images import read_image

from .workbench import Row, Workbench, best, timed

BATCH = 32
WHAT = ("cold", "one image, warm", "32 images, warm")


def measure(bench: Workbench) -> list[Row]:
    """Milliseconds of each, and pycaffe's time in those of the others."""
    cv2.setNumThreads(-1)  # all cores again, after parts that decode on one
    run, data = bench.full_net(), bench.phantoms()
    normals = [read_image(path) for path in sorted((run / "images").glob("*.png"))[:BATCH]]
    caffe, onnx, opencv = (_seconds(run, data, normals, engine) for engine in KINDS)
    return [
        Row(
            f"predict, {what}",
            f"pycaffe {a * 1000:.0f} ms, ONNX {b * 1000:.0f} ms: {a / b:.2f} times, "
            f"OpenCV {c * 1000:.0f} ms: {a / c:.2f} times",
        )
        for what, a, b, c in zip(WHAT, caffe, onnx, opencv, strict=True)
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
