#!/usr/bin/env python3
"""Find a working Caffe, or build one into a cache for this user, for the Python that runs this script.

    PYTHON scripts/build_caffe.py            find or build; stdout is root=FOLDER (or PATH) and origin=WORDS
    PYTHON scripts/build_caffe.py --given    find only; no output when neither CAFFE_ROOT nor PATH has one
    PYTHON scripts/build_caffe.py --note     and make it this environment's Caffe (share/bonecaffe/caffe.json)
    PYTHON scripts/build_caffe.py --check    build and run Caffe's own C++ tests against the cached build

PYTHON is the distribution's, because Boost.Python is built for it, or that of a virtual environment made from it. It
must have numpy. The script uses the first of these that works:

1. CAFFE_ROOT     an existing install, or a source folder built in place
2. PATH           caffe, convert_imageset, compute_image_mean, with a pycaffe that imports
3. CAFFE_SOURCE   a folder or tarball of Caffe's source
4. upstream's source at commit 99bd99795: from the cache, from the package in Debian bullseye's or Ubuntu focal's
   archive (its address is read from this machine's own apt sources), as upstream's tarball, or by git; the same tree

BONECAFFE_FAST=0 builds Caffe's own loops; otherwise its CPU part uses all cores (caffe_parallel.hpp).
BONECAFFE_GPU=1 builds for NVIDIA GPUs, 0 for the CPU only. By default it is 1 if nvcc and a driver are present.
CUDA is searched for in CUDA_HOME, or next to nvcc; cuDNN and NCCL in CUDNN_ROOT and NCCL_ROOT, in CUDA's folder and in
the system's (CUDNN=0 and NCCL=0 leave them out). Architectures are those of the installed GPUs, or CUDA_ARCH="86 89".

Built Caffes are in ${BONECAFFE_CACHE:-${XDG_CACHE_HOME:-~/.cache}/bonecaffe}/caffe/KEY, where KEY hashes the source,
bonecaffe's edits, the flags, the compiler, the libraries and Python. The script and its imports use only the standard
library.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bonecaffe.caffe import installation
from bonecaffe.errors import CaffeError
from bonecaffe.files import cache_folder
from builder import boundary, gpu, inputs
from builder.build import Build
from builder.settings import Settings
from builder.source import find_source
from builder.steps import say


def main() -> int:
    """Run the command line."""
    parser = boundary.parser(str(__doc__))
    parser.add_argument("--given", action="store_true", help="find only, never build")
    parser.add_argument("--note", action="store_true", help="make it this environment's Caffe")
    parser.add_argument("--check", action="store_true", help="build and run Caffe's own C++ tests")
    options = parser.parse_args()
    return boundary.run(lambda: find_or_build(options))


def find_or_build(options: argparse.Namespace) -> int:
    """Do what the options ask for; the exit status."""
    if options.check:
        return needed_build().check()
    caffe = given()
    if caffe is None and not options.given:
        caffe = needed_build().ensure()
    if caffe is not None:
        report(caffe, options.note)
    return 0


def report(caffe: installation.Caffe, note: bool) -> None:
    """Print what was found or built; with ``note`` make it this environment's Caffe."""
    root = str(caffe.root or installation.ON_PATH)
    if note:
        installation.write_note(caffe)
        say(f"{caffe.origin} ({root})")
    print(f"root={root}\norigin={caffe.origin}")


def given() -> installation.Caffe | None:
    """The user's own Caffe. One in CAFFE_ROOT must work. One on PATH that does not work is ignored."""
    caffe = installation.given()
    if caffe is None:
        program = shutil.which("caffe")
        if program:
            say(f"{program} is on PATH, but not all of Caffe, or no pycaffe for {sys.executable}; looking further")
        return None
    problem = installation.problem(caffe)
    if not problem:
        return caffe
    if caffe.root:
        raise CaffeError(f"CAFFE_ROOT={caffe.root} does not work: {problem}. {installation.OTHER_ROOT}")
    say(f"a Caffe is on PATH, but {problem}; looking further")
    return None


def needed_build() -> Build:
    """The cached Caffe for this machine and these settings, with all its inputs."""
    settings = Settings.read(os.environ)
    cache = cache_folder().absolute() / "caffe"
    source_cache = cache / "source"
    source_cache.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".work-", dir=cache))
    try:
        source = find_source(settings, source_cache, work)
        return Build(source, inputs.gather(source, settings.parallel, gpu.examine(settings, work)), cache)
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
