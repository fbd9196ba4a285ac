"""A trained net, ready for input: by pycaffe, or by OpenCV's importer of the same two files. Only this module makes
nets.

pycaffe is the default; OpenCV is for machines without Caffe, and for a second opinion.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from bonecaffe.caffe import gpus, programs
from bonecaffe.caffe.caffemodel import Caffemodel
from bonecaffe.errors import CaffeError, WeightsError

Batch = NDArray[np.float32]
"""Inputs (count, channels, height, width), or outputs (count, outputs)."""
Kind = Literal["caffe", "opencv"]
KINDS: tuple[Kind, ...] = ("caffe", "opencv")


class Engine(Protocol):
    """A net with its weights."""

    def forward(self, data: Batch) -> Batch:
        """The net's output, (count, outputs), for a batch of float32 (count, channels, height, width)."""
        ...

    def load(self, caffemodel: Path) -> None:
        """Switch to other weights of the same net."""
        ...


def make(kind: Kind, deploy: Path, caffemodel: Path, gpu: int | None = None) -> Engine:
    """The net of a deploy file and its weights.

    Raises CaffeError when there is no Caffe, or the GPU cannot be used, and WeightsError for a file that is cut off or
    not a caffemodel: Caffe would abort this process.
    """
    with Caffemodel(caffemodel):
        pass
    if kind == "opencv":
        if gpu is not None:
            raise CaffeError("OpenCV's engine computes on the CPU. Leave --gpu out, or use --engine caffe.")
        return _OpenCV(deploy, caffemodel)
    return _Caffe(deploy, caffemodel, gpu)


class _Caffe:
    def __init__(self, deploy: Path, caffemodel: Path, gpu: int | None) -> None:
        try:
            caffe = programs.import_pycaffe()
        except CaffeError as error:
            raise CaffeError(f"{error} Without Caffe, the same files can be used with --engine opencv.") from error
        if gpu is not None and (problem := gpus.problem(str(gpu))):
            raise CaffeError(problem)
        self._caffe, self._gpu = caffe, gpu
        self._set_mode()
        self._net = caffe.Net(str(deploy), str(caffemodel), caffe.TEST)
        self._output = self._net.outputs[0]

    def _set_mode(self) -> None:
        """Caffe's mode belongs to the thread, not to the net: another net may have changed it."""
        if self._gpu is None:
            self._caffe.set_mode_cpu()
        else:
            self._caffe.set_device(self._gpu)
            self._caffe.set_mode_gpu()

    def forward(self, data: Batch) -> Batch:
        self._set_mode()
        blob = self._net.blobs["data"]
        if tuple(blob.shape) != data.shape:
            blob.reshape(*data.shape)
            self._net.reshape()
        blob.data[...] = data
        return np.array(self._net.forward()[self._output], np.float32).reshape(len(data), -1)

    def load(self, caffemodel: Path) -> None:
        self._net.copy_from(str(caffemodel))


class _OpenCV:
    def __init__(self, deploy: Path, caffemodel: Path) -> None:
        self._deploy = deploy
        self.load(caffemodel)

    def forward(self, data: Batch) -> Batch:
        self._net.setInput(np.ascontiguousarray(data, np.float32))
        return np.array(self._net.forward(), np.float32).reshape(len(data), -1)

    def load(self, caffemodel: Path) -> None:
        import cv2

        try:
            self._net = cv2.dnn.readNetFromCaffe(str(self._deploy), str(caffemodel))
        except cv2.error as error:
            raise WeightsError(f"{caffemodel}: OpenCV cannot read it with {self._deploy.name}: {error.err}.") from error
        self._net.setPreferableBackend(cv2.dnn.DNN_BACKEND_OPENCV)
        self._net.setPreferableTarget(cv2.dnn.DNN_TARGET_CPU)
