#!/usr/bin/env python3
"""Download CaffeNet's ImageNet weights (244 MB) and check them by their sha1.

    .venv/bin/python scripts/fetch_caffenet.py [--out FILE] [--url URL]

Without --out they go to bonecaffe's cache, where `bonecaffe doctor` looks for them; the path is printed.
"""

import argparse
import hashlib
import sys
import urllib.error
import urllib.request
from pathlib import Path

from bonecaffe.doctor import stock_weights
from bonecaffe.files import replacing
from bonecaffe.training.launch import STOCK_SHA1

URL = "http://dl.caffe.berkeleyvision.org/bvlc_reference_caffenet.caffemodel"


def sha1(path: Path) -> str:
    """The SHA-1 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha1").hexdigest()


def fetch(url: str, out: Path) -> None:
    """Download into ``out``, whole and with the right sha1, or not at all; RuntimeError says why not."""
    digest = hashlib.sha1()
    with replacing(out) as temporary:
        try:
            with urllib.request.urlopen(url, timeout=60) as answer, open(temporary, "wb") as file:
                total, done = int(answer.headers.get("Content-Length") or 0), 0
                while piece := answer.read(1 << 20):
                    file.write(piece)
                    digest.update(piece)
                    done += len(piece)
                    if sys.stderr.isatty() and total:
                        print(f"\r{done / 1e6:.0f} of {total / 1e6:.0f} MB", end="", file=sys.stderr)
        except (urllib.error.URLError, OSError, ValueError) as error:
            raise RuntimeError(
                f"{url} could not be fetched: {error}. Fetch it on another machine and give it with --weights."
            ) from error
        if digest.hexdigest() != STOCK_SHA1:
            raise RuntimeError(f"{url}: what came has the sha1 {digest.hexdigest()}, not {STOCK_SHA1}; not kept.")


def main() -> int:
    """Fetch unless the right file is there already."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=stock_weights(), help="where to put the file")
    parser.add_argument("--url", default=URL, help="where to get it from")
    arguments = parser.parse_args()
    try:
        if not (arguments.out.is_file() and sha1(arguments.out) == STOCK_SHA1):
            fetch(arguments.url, arguments.out)
    except (RuntimeError, OSError) as error:
        print(f"fetch_caffenet: {error}", file=sys.stderr)
        return 1
    print(arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
