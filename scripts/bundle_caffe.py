#!/usr/bin/env python3
"""Packs the Caffe that bonecaffe uses, with its libraries, into one archive for machines without root.

    PYTHON scripts/bundle_caffe.py [--out FOLDER]    writes FOLDER/caffe-bundle-KEY.tar.xz

It holds caffe, convert_imageset, compute_image_mean, pycaffe, the shared libraries that they need, and a bundle.json:
how Caffe was built, the glibc and the Python that it needs, every library with its package, version and licence.
Unpacked anywhere on a machine with the same or a newer glibc and the same version of Python, CAFFE_ROOT=FOLDER works.
glibc and the GPU's driver are the machine's own. The same Caffe on the same system gives the same bytes.

It needs no program but ldd. Licences are found where dpkg is.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from types import FrameType

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bonecaffe import files, progress
from bonecaffe.caffe import installation
from bonecaffe.errors import BonecaffeError
from builder import bundle
from builder.steps import say

INTERRUPTED = 130


def main() -> int:
    """Do what the command line asks for; print an error as its sentence."""
    options = _parser().parse_args()
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        pack(options.out, options.preset)
    except BonecaffeError as error:
        say(str(error))
        return 1
    except OSError as error:
        say(f"{error.filename}: {error.strerror}" if error.filename else str(error))
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def _parser() -> argparse.ArgumentParser:
    description, _, rest = str(__doc__).partition("\n\n")
    parser = argparse.ArgumentParser(
        description=description, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path(), metavar="FOLDER", help="where to (default: here)")
    parser.add_argument(
        "--preset", type=int, default=6, choices=range(10), metavar="0-9", help="how hard xz tries (default: 6)"
    )
    return parser


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def pack(folder: Path, preset: int) -> None:
    """Pack this environment's Caffe, and report what is in the archive and what it needs."""
    caffe = installation.find()
    say(f"packing {caffe.origin} ({caffe.root or caffe.bin})")
    contents = bundle.gather(caffe)
    libraries = contents.record["libraries"]
    assert isinstance(libraries, list)
    say(f"{len(libraries)} libraries, {len(contents.members)} files, {contents.size / 1e6:.0f} MB; compressing")
    path = bundle.write_archive(contents, folder, preset, progress.lines("MB compressed", say))
    without = [str(library["file"]) for library in libraries if not library["licence"]]
    if without:
        say(f"no licence file was found for {', '.join(without)}: see their makers' terms before you pass this on")
    needs = f"glibc {contents.record['glibc']} or newer and Python {contents.record['python']}"
    say(f"{path}: {path.stat().st_size / 1e6:.0f} MB; needs {needs}")
    print(f"{files.sha256_file(path)}  {path}")


if __name__ == "__main__":
    sys.exit(main())
