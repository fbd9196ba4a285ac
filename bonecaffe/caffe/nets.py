"""A trained net, ready for input: by pycaffe, by ONNX Runtime, or by OpenCV's importer of the same two files. Only
this module makes nets.

pycaffe is the default, and ONNX Runtime where no Caffe is installed. OpenCV is an independent check of both.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from bonecaffe.caffe import gpus, installation, onnx_net, programs
from bonecaffe.caffe.caffemodel import Caffemodel
from bonecaffe.caffe.deploy import INPUT, parse
from bonecaffe.errors import CaffeError, ModelError, WeightsError
from bonecaffe.files import read_text

Batch = NDArray[np.float32]
"""Inputs (count, channels, height, width), or outputs (count, outputs)."""
Kind = Literal["caffe", "onnx", "opencv"]
KINDS: tuple[Kind, ...] = ("caffe", "onnx", "opencv")


_WITHOUT_CAFFE = f"the same files can be used with --engine onnx. {onnx_net.INSTALL}"


class Engine(Protocol):
    """A net with its weights."""

    def forward(self, data: Batch) -> Batch:
        """The net's output, (count, outputs), for a batch of float32 (count, channels, height, width)."""
        ...

    def load(self, caffemodel: Path) -> None:
        """Switch to other weights of the same net."""
        ...


def default() -> Kind:
    """The engine that is used unless the user names one: ``caffe``, or ``onnx`` where no Caffe is installed.

    A Caffe that is installed and does not work, or that ``CAFFE_ROOT`` names, is never replaced silently.
    """
    try:
        installation.find()
    except CaffeError:
        chosen = os.environ.get("CAFFE_ROOT") or installation.NOTE.is_file()
        if not chosen and all(map(importlib.util.find_spec, ("onnx", "onnxruntime"))):
            return "onnx"
    return "caffe"


def make(kind: Kind | None, deploy: Path, caffemodel: Path, gpu: int | None = None) -> Engine:
    """The net of a deploy file and its weights. ``kind`` None is the `default`, or Caffe where a GPU is given.

    Raises CaffeError when the engine is not installed, or the GPU cannot be used; WeightsError for a file that is cut
    off or not a caffemodel (Caffe would abort this process); ModelError for a net that ONNX cannot express.
    """
    with Caffemodel(caffemodel):
        pass
    if kind is None:
        kind = default() if gpu is None else "caffe"
    if kind not in KINDS:
        raise CaffeError(f"no engine is named {kind}; the engines are {', '.join(KINDS)}.")
    if kind == "caffe":
        return _Caffe(deploy, caffemodel, gpu)
    if gpu is not None:
        raise CaffeError(f"The engine {kind} computes on the CPU. Leave --gpu out, or use --engine caffe.")
    return _Onnx(deploy, caffemodel) if kind == "onnx" else _OpenCV(deploy, caffemodel)


class _Caffe:
    def __init__(self, deploy: Path, caffemodel: Path, gpu: int | None) -> None:
        try:
            caffe = programs.import_pycaffe()
        except CaffeError as error:
            raise CaffeError(f"{error} Without Caffe, {_WITHOUT_CAFFE}.") from error
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


class _Onnx:
    """ONNX Runtime, on the CPU. The net is made from the same two files each time, in memory (`onnx_net.convert`)."""

    def __init__(self, deploy: Path, caffemodel: Path) -> None:
        try:
            text = read_text(deploy, "settings", ModelError)
        except OSError as error:
            raise ModelError(f"{deploy}: {error.strerror}.") from error
        self._deploy = parse(text, str(deploy))
        self.load(caffemodel)

    def forward(self, data: Batch) -> Batch:
        (output,) = self._session.run(None, {INPUT: np.ascontiguousarray(data, np.float32)})
        return np.asarray(output, np.float32).reshape(len(data), -1)

    def load(self, caffemodel: Path) -> None:
        with Caffemodel(caffemodel) as model:
            net = onnx_net.convert(self._deploy, model, caffemodel.name)
        self._session = _session(net)
        self._weights = net.weights  # the session computes with this very memory


def _session(net: onnx_net.Converted) -> Any:
    """An ONNX Runtime session of a net, whose weights must stay in memory; CaffeError without onnxruntime.

    It uses as many threads as ``OMP_NUM_THREADS`` states, like Caffe, or one for each core.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise CaffeError(f"ONNX Runtime is not usable here ({error}). {onnx_net.INSTALL}.") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    # a waiting thread gives up its core: twice as fast on a busy machine, equally fast on an idle one
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # without a second copy of the weights in another order: half the memory and half the time to load, as fast
    options.add_session_config_entry("session.disable_prepacking", "1")
    threads = os.environ.get("OMP_NUM_THREADS", "")
    options.intra_op_num_threads = int(threads) if threads.isascii() and threads.isdigit() else 0
    given = [onnxruntime.OrtValue.ortvalue_from_numpy(values) for values in net.weights.values()]
    options.add_external_initializers(list(net.weights), given)
    return onnxruntime.InferenceSession(net.graph, options, providers=["CPUExecutionProvider"])


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
