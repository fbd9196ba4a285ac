"""What is installed here, and the command that fixes what is missing."""

from __future__ import annotations

import importlib
import os
import platform
import sys
from pathlib import Path
from typing import NamedTuple

from bonecaffe.caffe import environment, installation
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
    return [*findings, *_caffe(), _weights()]


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
    kind = "GPU build" if caffe.has_gpu else "CPU build"
    detail = (
        f"; cuDNN {'yes' if caffe.has_cudnn else 'no'}; NCCL {'yes' if caffe.has_nccl else 'no'}"
        if caffe.has_gpu
        else ""
    )
    findings.append(
        Finding(
            "GPU support",
            "ok" if caffe.has_gpu else "absent",
            kind + detail,
            "" if caffe.has_gpu else "train with --cpu, or set CAFFE_ROOT to a CUDA build",
        )
    )
    return findings


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
