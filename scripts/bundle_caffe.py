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

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bonecaffe import files, progress
from bonecaffe.caffe import installation
from builder import boundary, bundle
from builder.steps import say


def main() -> int:
    """Pack, as the command line asks."""
    parser = boundary.parser(str(__doc__))
    parser.add_argument("--out", type=Path, default=Path(), metavar="FOLDER", help="where to (default: here)")
    parser.add_argument(
        "--preset", type=int, default=6, choices=range(10), metavar="0-9", help="how hard xz tries (default: 6)"
    )
    options = parser.parse_args()
    return boundary.run(lambda: pack(options.out, options.preset))


def pack(folder: Path, preset: int) -> int:
    """Pack this environment's Caffe, and report what is in the archive and what it needs; the exit status."""
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
    return 0


if __name__ == "__main__":
    sys.exit(main())
