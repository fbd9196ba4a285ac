"""What a result was computed with: machine, Python, packages, Caffe. Facts for the manifest; no host or user name."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path

from bonecaffe import __version__
from bonecaffe.caffe import installation
from bonecaffe.errors import BonecaffeError
from bonecaffe.files import sha256_file
from bonecaffe.records import CaffeBuild, Host, MadeWith

PACKAGES = (
    "numpy",
    "scipy",
    "opencv-python",
    "kornia-rs",
    "simplejpeg",
    "lmdb",
    "protobuf",
    "scikit-image",
    "pyyaml",
    "pydantic",
    "pandas",
    "matplotlib",
    "jinja2",
)


def version_of(package: str) -> str | None:
    """The installed version of a package; None when it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def describe() -> MadeWith:
    """Versions of bonecaffe, Python and packages; the machine's kind; Caffe's build and the hashes of its binaries."""
    return MadeWith(
        bonecaffe=__version__,
        python=platform.python_version(),
        packages={package: version_of(package) or "not installed" for package in PACKAGES},
        host=_host(),
        caffe=_caffe(),
    )


def _host() -> Host:
    try:
        system = platform.freedesktop_os_release()["PRETTY_NAME"]
    except OSError:
        system = platform.system()
    return Host(
        system=system,
        kernel=f"{platform.system()} {platform.release()}",
        machine=platform.machine(),
        cpu=_cpu(),
        cores=len(os.sched_getaffinity(0)),
        omp_num_threads=os.environ.get("OMP_NUM_THREADS", "not set"),
        memory_gb=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
    )


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def _caffe() -> CaffeBuild | None:
    try:
        caffe = installation.find()
        program = caffe.program("caffe")
    except BonecaffeError:
        return None
    library = next((path for name, path in caffe.libraries.items() if name.startswith("libcaffe")), "")
    binaries = [path for path in (str(program), library) if os.path.isfile(path)]
    return CaffeBuild(
        origin=caffe.origin,
        build={name: str(value) for name, value in caffe.build.items()},
        blas_file=os.path.basename(caffe.blas),
        gpu=caffe.has_gpu,
        cudnn=caffe.has_cudnn,
        nccl=caffe.has_nccl,
        binaries={os.path.basename(path): sha256_file(path) for path in binaries},
    )
