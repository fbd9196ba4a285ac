"""The cause and remedy of Caffe's known fatal messages, in plain words. Pure: text in, text out."""

from __future__ import annotations

import re

_KNOWN = (
    (
        r"out of memory|cudaErrorMemoryAllocation|cudaSuccess \(2 vs|CU(?:DNN|BLAS)_STATUS_ALLOC_FAILED",
        "the GPU's memory is full. Lower network.train_batch, or end other programs that use it (see nvidia-smi)",
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
        r"cudaSuccess \(80[34] vs|system has unsupported display driver / cuda driver combination",
        "the GPU's driver and CUDA's libraries do not fit each other, often after an update. Restart the machine. If "
        "that does not help, update the driver, or build Caffe with an older CUDA",
    ),
    (
        r"cudaSuccess \((?:35|38|100|999|3) vs",
        "no usable GPU driver, or no GPU. See nvidia-smi, or train with --cpu",
    ),
    (
        r"cudaSuccess \((?:10|101) vs|invalid device ordinal",
        "there is no GPU of this number. See nvidia-smi, and CUDA_VISIBLE_DEVICES",
    ),
    (
        r"cudaSuccess \(46 vs|all CUDA-capable devices are busy or unavailable",
        "the GPU is in use by another program, and it is set to allow one only (nvidia-smi -q shows its compute mode). "
        "Wait for the other program, or use another GPU",
    ),
    (
        r"cudaSuccess \(222 vs|unsupported toolchain",
        "Caffe was built with a newer CUDA than the GPU's driver supports. Update the driver, or build Caffe for this "
        "GPU: make caffe GPU=1",
    ),
    (
        r"cudaSuccess \((?:8|209|48) vs|no kernel image|invalid device function|CUDNN_STATUS_ARCH_MISMATCH",
        "this Caffe was not built for this GPU's architecture. Build it again: make caffe GPU=1",
    ),
    (
        r"cudaSuccess \((?:6|702) vs|launch timed out",
        "a computation took too long for a GPU that also shows the screen. Lower network.train_batch, or use another",
    ),
    (
        r"cudaSuccess \((?:4|77|700|719) vs|illegal memory access|unspecified launch failure",
        "a computation failed on the GPU. If it happens again at another iteration, suspect the GPU's memory, heat or "
        "overclocking; at the same one, please report it with the output of make gpu-check",
    ),
    (
        r"ncclSuccess|NCCL",
        "the GPUs could not exchange their gradients. Train on one, --gpu 0; NCCL_DEBUG=INFO prints more",
    ),
    (
        r"SUBLIBRARY_(?:VERSION_MISMATCH|LOADING_FAILED)",
        "cuDNN's parts are of different versions, or one is missing. bonecaffe doctor lists the files that are found",
    ),
    (
        r"CUDNN_STATUS_(?:EXECUTION_FAILED|NOT_SUPPORTED|INTERNAL_ERROR)\w*",
        "an algorithm of cuDNN failed. The log's last line with 'cuDNN:' names it; exclude it with "
        "BONECAFFE_CUDNN_EXCLUDE (docs/guide/gpu.md)",
    ),
    (
        r"CUDNN_STATUS_\w+",
        "cuDNN failed. Check that its version is the one Caffe was built with: bonecaffe doctor",
    ),
    (
        r"CU(?:BLAS|RAND)_STATUS_(?:ARCH_MISMATCH|NOT_INITIALIZED|INITIALIZATION_FAILED)",
        "CUDA's mathematical libraries could not start on this GPU: its memory is full, or they do not fit the driver",
    ),
    (
        r"CU(?:BLAS|RAND)_STATUS_\w+",
        "a computation of CUDA's mathematical libraries failed. Check their versions: bonecaffe doctor",
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
    "the GPU's memory is full. Lower network.train_batch, or end other programs that use it (see nvidia-smi)"
    """
    return next((meaning for pattern, meaning in _KNOWN if re.search(pattern, message)), "")
