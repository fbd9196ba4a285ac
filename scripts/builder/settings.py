"""The user's settings for a build, from environment variables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bonecaffe.errors import CaffeError


@dataclass(frozen=True)
class Settings:
    """The variables that decide what is built. An unset one is an empty text."""

    source: str  # CAFFE_SOURCE: a folder or tarball of Caffe's source
    gpu: str  # BONECAFFE_GPU: "1", "0", or "auto": when nvcc and a driver are present
    parallel: bool  # BONECAFFE_FAST: the CPU part on all cores (caffe_parallel.hpp), not with Caffe's own loops
    architectures: str  # CUDA_ARCH: compute capabilities, such as "86 8.9"
    cuda: str  # CUDA_HOME: the toolkit's folder
    host_compiler: str  # CUDAHOSTCXX: the C++ compiler for nvcc
    cudnn: bool  # CUDNN=0 leaves cuDNN out
    cudnn_root: str
    nccl: bool  # NCCL=0 leaves NCCL out
    nccl_root: str

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> Settings:
        """The settings of an environment. CaffeError for an invalid value. An empty variable counts as not set.

        >>> Settings.read({"CUDNN": "0", "CUDA_HOME": "", "CUDA_PATH": "/opt/cuda"}).cuda
        '/opt/cuda'
        """

        def value(*names: str) -> str:
            return next((environment[name] for name in names if environment.get(name)), "")

        gpu, fast = value("BONECAFFE_GPU") or "auto", value("BONECAFFE_FAST") or "1"
        if gpu not in ("0", "1", "auto"):
            raise CaffeError(f"BONECAFFE_GPU={gpu} (make caffe GPU=…): 1 builds for a GPU, 0 for the CPU.")
        if fast not in ("0", "1"):
            raise CaffeError(
                f"BONECAFFE_FAST={fast} (make caffe FAST=…): 1 computes on all cores of a CPU (caffe_parallel.hpp), "
                "0 with Caffe's own loops."
            )
        return cls(
            source=value("CAFFE_SOURCE"),
            gpu=gpu,
            parallel=fast == "1",
            architectures=value("CUDA_ARCH"),
            cuda=value("CUDA_HOME", "CUDA_PATH"),
            host_compiler=value("CUDAHOSTCXX"),
            cudnn=value("CUDNN") != "0",
            cudnn_root=value("CUDNN_ROOT"),
            nccl=value("NCCL") != "0",
            nccl_root=value("NCCL_ROOT", "NCCL_DIR"),
        )
