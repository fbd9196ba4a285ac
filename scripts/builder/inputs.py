"""Everything that a built Caffe depends on, and its key in the cache."""

from __future__ import annotations

import os
import platform
import sys
import sysconfig
import time
from dataclasses import dataclass
from pathlib import Path

from bonecaffe import files
from bonecaffe.errors import CaffeError
from builder.gpu import Gpu
from builder.source import COMMIT, Source
from builder.steps import ask

SCRIPTS = Path(__file__).resolve().parent.parent
EDITS = ("caffe_edits.py", "caffe_parallel.py", "caffe_parallel.hpp")
"""The files that change Caffe's source. A changed byte in one of them means another build."""
CUDA_EDIT = "caffe_cuda.h"
"""Included by every file of a GPU build."""
LIBRARIES = (
    "libboost-python-dev",
    "libopencv-dev",
    "libprotobuf-dev",
    "libgoogle-glog-dev",
    "libgflags-dev",
    "libhdf5-dev",
    "liblmdb-dev",
    "libopenblas-dev",
)
"""Debian's packages whose versions decide a build."""
PARALLEL_CXX_FLAGS = "-fno-math-errno -fno-trapping-math"
"""Without them, loops with sqrt and max are not vectorized; Caffe reads neither errno nor floating-point traps."""


@dataclass(frozen=True)
class Python:
    """The Python that pycaffe is built for: its version, headers and library, and NumPy's."""

    version: str
    include: str
    library: str
    numpy_include: str
    numpy_major: str


def this_python() -> Python:
    """The Python that runs this script. Raises CaffeError when pycaffe cannot be built for it."""
    numpy = ask([sys.executable, "-c", "import numpy; print(numpy.get_include()); print(numpy.__version__)"])
    if numpy.returncode:
        raise CaffeError(
            f"{sys.executable} cannot import numpy. Run scripts/setup.sh: it makes an environment with numpy."
        )
    numpy_include, numpy_version = numpy.stdout.splitlines()
    include = sysconfig.get_path("include")
    if not os.path.isfile(os.path.join(include, "Python.h")):
        raise CaffeError(f"no {include}/Python.h. Install it: apt-get install python3-dev")
    folder, name, multiarch = (sysconfig.get_config_var(name) or "" for name in ("LIBDIR", "LDLIBRARY", "MULTIARCH"))
    candidates = (os.path.join(folder, name), os.path.join(folder, multiarch, name))
    return Python(
        f"{sys.version_info.major}.{sys.version_info.minor}",
        include,
        next((path for path in candidates if os.path.exists(path)), "missing-libpython"),
        numpy_include,
        numpy_version.split(".")[0],
    )


@dataclass(frozen=True)
class Inputs:
    """Everything that a build depends on."""

    source_sha256: str
    edits_sha256: str
    cuda_header_sha256: str
    python: Python
    parallel: bool
    gpu: Gpu | None
    compiler: str
    machine: str
    libraries: str

    @property
    def flags(self) -> list[str]:
        """CMake's flags that decide what is built."""
        return [
            "-DCMAKE_BUILD_TYPE=Release",
            *(self.gpu.flags if self.gpu else ["-DCPU_ONLY=ON"]),
            f"-DUSE_OPENMP={'ON' if self.parallel else 'OFF'}",
            "-DUSE_LEVELDB=OFF",
            "-DBUILD_docs=OFF",
            "-DBUILD_python=ON",
            "-DBUILD_python_layer=ON",
            "-DBLAS=Open",
            f"-Dpython_version={self.python.version}",
            "-DCMAKE_POLICY_VERSION_MINIMUM=3.5",
        ]

    @property
    def key(self) -> str:
        """16 hexadecimal digits: a hash of all inputs, and the name of a built Caffe in the cache."""
        lines = [
            self.source_sha256,
            self.edits_sha256,
            " ".join(self.flags),
            self.compiler,
            self.machine,
            f"{self.python.version} numpy{self.python.numpy_major}",
            self.libraries,
        ]
        if self.gpu:
            # the last one in sha256sum's format, which keeps the keys of version 0.1 valid
            lines += [self.gpu.summary, " ".join(self.gpu.paths), f"{self.cuda_header_sha256}  -"]
        return files.sha256("".join(f"{line}\n" for line in lines))[:16]

    def cmake_arguments(self, tree: Path, cuda_header: Path) -> list[str]:
        """CMake's arguments, except its folders.

        ``tree`` is the folder of source and build. Its path has a user's name and stays out of what is compiled.
        ``cuda_header`` is the path of `CUDA_EDIT` in Caffe's source.
        """
        cxx_flags = [f"-ffile-prefix-map={tree}=caffe", *([PARALLEL_CXX_FLAGS] if self.parallel else [])]
        paths: list[str] = []
        if self.gpu:
            cxx_flags += [*self.gpu.cxx_flags, f"-include {cuda_header}"]
            nvcc_flags = ["-std=c++17", "-O3", "-Wno-deprecated-gpu-targets", "-include", str(cuda_header)]
            paths = [*self.gpu.paths, f"-DCUDA_NVCC_FLAGS={';'.join(nvcc_flags)}"]
        return [
            *self.flags,
            *paths,
            f"-DCMAKE_CXX_FLAGS={' '.join(cxx_flags)}",
            f"-DPYTHON_EXECUTABLE={sys.executable}",
            f"-DPYTHON_INCLUDE_DIR={self.python.include}",
            f"-DPYTHON_LIBRARY={self.python.library}",
            f"-DNUMPY_INCLUDE_DIR={self.python.numpy_include}",
        ]

    def record(self, origin: str) -> dict[str, str]:
        """How a Caffe was built, for its ``bonecaffe-build.json``."""
        blas = ask(["dpkg-query", "-W", "-f", "${Version}", "libopenblas-dev"]).stdout
        return {
            "source": origin,
            "source_sha256": self.source_sha256,
            "commit": COMMIT,
            "edits_sha256": self.edits_sha256,
            "flags": " ".join(self.flags),
            "compiler": f"g++ {self.compiler}",
            "python": self.python.version,
            "blas": f"OpenBLAS {blas}",
            "gpu": self.gpu.summary if self.gpu else "none",
            "built": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }


def gather(source: Source, parallel: bool, gpu: Gpu | None) -> Inputs:
    """The inputs of a build on this machine. Raises CaffeError when a needed program or file is missing."""
    compiler = ask(["g++", "-dumpfullversion"])
    if compiler.returncode:
        raise CaffeError("no C++ compiler: g++ is missing. Install it: apt-get install g++")
    return Inputs(
        source_sha256=source.sha256,
        edits_sha256=files.sha256(b"".join((SCRIPTS / name).read_bytes() for name in EDITS)),
        cuda_header_sha256=files.sha256_file(SCRIPTS / CUDA_EDIT),
        python=this_python(),
        parallel=parallel,
        gpu=gpu,
        compiler=compiler.stdout.strip(),
        machine=platform.machine(),
        libraries=_library_versions(),
    )


def _library_versions() -> str:
    """The versions of the libraries, from dpkg, and from pkg-config too if dpkg does not know all of them."""
    debian = ask(["dpkg-query", "-W", "-f", "${Package} ${Version}\n", *LIBRARIES])
    versions = debian.stdout
    if debian.returncode:
        versions += ask(["pkg-config", "--modversion", "opencv4", "protobuf"]).stdout
    return versions.rstrip("\n")
