#!/usr/bin/env python3
"""Download CaffeNet's ImageNet weights (244 MB) and check them by their sha1.

    .venv/bin/python scripts/fetch_caffenet.py [--out FILE] [--url URL]

Without --out they go to bonecaffe's cache, where `bonecaffe doctor` looks for them; the path is printed.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from bonecaffe.doctor import stock_weights
from bonecaffe.errors import BonecaffeError
from bonecaffe.files import open_regular, write_pieces
from bonecaffe.training.launch import STOCK_SHA1

URL = "http://dl.caffe.berkeleyvision.org/bvlc_reference_caffenet.caffemodel"
PIECE = 1 << 20


class FetchError(Exception):
    """Why the weights were not downloaded, and what to do."""


def is_complete(path: Path) -> bool:
    """Whether the right file already exists."""
    if not path.is_file():
        return False
    digest = hashlib.sha1()
    with open_regular(path) as file:
        while piece := file.read(PIECE):
            digest.update(piece)
    return digest.hexdigest() == STOCK_SHA1


def download(url: str) -> Iterator[bytes]:
    """The file in pieces. FetchError when it cannot be downloaded, and at the end when its sha1 is wrong."""
    digest, done = hashlib.sha1(), 0
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            total = int(answer.headers.get("Content-Length") or 0)
            while piece := answer.read(PIECE):
                digest.update(piece)
                done += len(piece)
                if sys.stderr.isatty() and total:
                    print(f"\r{done / 1e6:.0f} of {total / 1e6:.0f} MB", end="", file=sys.stderr)
                yield piece
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise FetchError(
            f"{url} could not be downloaded: {error}. Download it on another machine and give it with --weights."
        ) from error
    if digest.hexdigest() != STOCK_SHA1:
        raise FetchError(f"{url}: the download has the sha1 {digest.hexdigest()}, not {STOCK_SHA1}; not kept.")


def main() -> int:
    """Download, unless the right file already exists."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=stock_weights(), help="where to put the file")
    parser.add_argument("--url", default=URL, help="where to download it from")
    arguments = parser.parse_args()
    try:
        if not is_complete(arguments.out):
            write_pieces(arguments.out, download(arguments.url), parents=True)
    except (FetchError, BonecaffeError, OSError) as error:
        print(f"fetch_caffenet: {error}", file=sys.stderr)
        return 1
    print(arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
