"""What is installed here, and the command that fixes what is missing."""

from __future__ import annotations

import importlib
import os
import platform
import sys
from pathlib import Path
from typing import NamedTuple

from bonecaffe.caffe import environment, gpu_libraries, gpus, installation
from bonecaffe.caffe.arithmetic import Arithmetic
from bonecaffe.errors import BonecaffeError
from bonecaffe.files import cache_folder

SETUP = "make setup"
MODULES = {
    "opencv-python": "cv2",
    "kornia-rs": "kornia_rs",
    "protobuf": "google.protobuf",
    "scikit-image": "skimage",
    "pyyaml": "yaml",
}
"""What is imported of a package whose module has another name."""
WITHOUT_X = (
    "as root: apt-get install libxcb1 libgl1 libglib2.0-0; without root: "
    ".venv/bin/python -m pip install --force-reinstall --no-deps opencv-python-headless=={version}"
)
"""opencv-python needs X's libraries for its windows, which bonecaffe does not open."""


def stock_weights() -> Path:
    """Where scripts/fetch_caffenet.py puts the ImageNet weights."""
    return cache_folder() / "bvlc_reference_caffenet.caffemodel"


class Finding(NamedTuple):
    """One thing checked. ``state``: ok, absent (some runs work without it), missing (no run works without it)."""

    what: str
    state: str
    found: str
    remedy: str = ""

    @property
    def mark(self) -> str:
        """How the table marks it: a word, so that it can be read without colour."""
        return {"ok": "ok", "absent": "--", "missing": "NO"}[self.state]


def examine() -> list[Finding]:
    """Look at everything a run needs; never raises."""
    findings = [Finding("Python", "ok", f"{platform.python_version()} at {sys.executable}")]
    findings += [_package(name) for name in environment.PACKAGES]
    return [*findings, _dicom(), *_caffe(), _weights()]


def _package(name: str) -> Finding:
    """Whether a package is installed and imports: a wheel may need a library that a bare system does not have."""
    version = environment.version_of(name)
    if version is None:
        return Finding(name, "missing", "not installed", SETUP)
    try:
        importlib.import_module(MODULES.get(name, name))
    except Exception as error:  # ImportError, or whatever else a broken package raises
        remedy = WITHOUT_X.format(version=version) if name == "opencv-python" else SETUP
        return Finding(name, "missing", f"{version}, which does not import: {error}", remedy)
    return Finding(name, "ok", version)


def _dicom() -> Finding:
    """Whether the optional part for DICOM is installed."""
    packages = ("pydicom", "pylibjpeg", "pylibjpeg-libjpeg", "pylibjpeg-openjpeg")
    versions = {name: environment.version_of(name) for name in packages}
    if absent := [name for name, version in versions.items() if version is None]:
        return Finding("DICOM", "absent", f"not installed: {', '.join(absent)}", "pip install 'bonecaffe[dicom]'")
    return Finding("DICOM", "ok", ", ".join(f"{name} {version}" for name, version in versions.items()))


def _caffe() -> list[Finding]:
    try:
        caffe = installation.find()
    except BonecaffeError as error:
        return [Finding("Caffe", "missing", str(error), SETUP)]
    findings = []
    packed = (
        f", a bundle for glibc {caffe.bundle.needs.glibc} and Python {caffe.bundle.needs.python}"
        if caffe.bundle
        else ""
    )
    where = f"{caffe.origin}, in {caffe.root or caffe.bin}{packed}"
    try:
        findings.append(Finding("Caffe", "ok", f"{caffe.version}, {where}"))
    except BonecaffeError as error:
        findings.append(Finding("Caffe", "missing", str(error), SETUP))
    for program in installation.PROGRAMS:
        installed = os.access(caffe.bin / program, os.X_OK)
        findings.append(
            Finding(
                program,
                "ok" if installed else "missing",
                str(caffe.bin / program) if installed else "not found",
                "" if installed else SETUP,
            )
        )
    findings.append(_pycaffe(caffe))
    findings.append(Finding("BLAS", "ok" if caffe.blas != "unknown" else "absent", caffe.blas))
    return [*findings, *_gpu(caffe)]


def _gpu(caffe: installation.Caffe) -> list[Finding]:
    """The build's kind, the GPUs, and for a GPU build the libraries of CUDA that are loaded and how they compute."""
    found = [
        Finding(
            f"GPU {each.index}",
            "ok",
            f"{each.name}, compute capability {each.capability / 10}, "
            f"{each.free / 1e9:.1f} of {each.memory / 1e9:.1f} GB free",
        )
        for each in gpus.visible()
    ]
    if not caffe.has_gpu:
        remedy = "make caffe GPU=1" if found else "train with --cpu; with an NVIDIA GPU: make caffe GPU=1"
        return [Finding("GPU support", "absent", "CPU build", remedy), *found]
    parts = f"cuDNN {'yes' if caffe.has_cudnn else 'no'}; NCCL {'yes' if caffe.has_nccl else 'no'}"
    support = [Finding("GPU support", "ok", f"GPU build; {parts}"), *(found or [_no_gpu()])]
    for library in gpu_libraries.resolved(caffe.libraries, os.environ.get("LD_LIBRARY_PATH", "")):
        text = f"{library.version or 'version unknown'}, {library.file}"
        if library.problem:
            remedy = "set LD_LIBRARY_PATH to the folder of the version that Caffe was built with"
            support.append(Finding(library.name, "missing", f"{text}: {library.problem}", remedy))
        else:
            support.append(Finding(library.name, "ok", text))
    try:
        support.append(Finding("GPU arithmetic", "ok", Arithmetic.read().words(caffe.is_own_build)))
    except BonecaffeError as error:
        support.append(Finding("GPU arithmetic", "missing", str(error), "unset or correct the variable"))
    return support


def _no_gpu() -> Finding:
    return Finding("GPU", "absent", "nvidia-smi lists none", "install NVIDIA's driver, or train with --cpu")


def _pycaffe(caffe: installation.Caffe) -> Finding:
    try:
        return Finding("pycaffe", "ok", installation.pycaffe_version(caffe))
    except BonecaffeError as error:
        return Finding("pycaffe", "missing", str(error), SETUP)


def _weights() -> Finding:
    path = stock_weights()
    if path.is_file():
        return Finding("ImageNet weights", "ok", str(path))
    return Finding(
        "ImageNet weights",
        "absent",
        "not downloaded; the paper's recipe needs them, demo and smoke do not",
        "scripts/fetch_caffenet.py",
    )
