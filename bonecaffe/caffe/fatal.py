"""The cause and remedy of Caffe's known fatal messages, in plain words. Pure: text in, text out."""

from __future__ import annotations

import re

_KNOWN = (
    (
        r"out of memory|cudaErrorMemoryAllocation|CUDNN_STATUS_ALLOC_FAILED",
        "the GPU's memory is full. Lower network.train_batch",
    ),
    (
        r"bad_alloc|Cannot allocate memory",
        "this machine's memory is full. Lower network.train_batch",
    ),
    (
        r"Cannot use GPU in CPU-only Caffe",
        "this Caffe was built without a GPU. Train with --cpu, or build it with CUDA",
    ),
    (
        r"cudaSuccess \((?:35|100|999|3) vs",
        "no usable GPU driver, or no GPU. See nvidia-smi, or train with --cpu",
    ),
    (
        r"cudaSuccess \((?:8|209|48) vs|no kernel image|invalid device function",
        "this Caffe was not built for this GPU's architecture. Build it again",
    ),
    (
        r"CUDNN_STATUS_\w+",
        "cuDNN failed. Check that its version is the one Caffe was built with",
    ),
    (
        r"mdb_status == 0 \(2 vs",
        "an LMDB is missing. Run prepare again",
    ),
    (
        r"mdb_status == 0 \(",
        "an LMDB cannot be read. Run prepare again",
    ),
    (
        r"Cannot copy param \d+ weights from layer",
        "the weights do not fit the network. Give them with --weights, which removes fc8 from a copy",
    ),
    (
        r"WriteProtoToBinaryFile|SerializeToOstream|SerializeToZeroCopyStream|No space left",
        "a snapshot could not be written: the disk is full, or its folder is missing",
    ),
    (
        r"ReadProtoFromBinaryFile|Failed to parse NetParameter",
        "a file is cut off or not a caffemodel. Resume from another snapshot",
    ),
    (
        r"Failed to parse SolverParameter|Error parsing text-format",
        "a prototxt cannot be read. Delete it and run bonecaffe prototxt",
    ),
    (
        r"Unknown layer type",
        "this Caffe does not know a layer of the network",
    ),
    (
        r"Could not open or find file|File not found",
        "a file is missing",
    ),
)


def explain(message: str) -> str:
    """The meaning of Caffe's last message, or "" where it is not known.

    >>> explain("Check failed: error == cudaSuccess (2 vs. 0)  out of memory")
    "the GPU's memory is full. Lower network.train_batch"
    """
    return next((meaning for pattern, meaning in _KNOWN if re.search(pattern, message)), "")
