#!/usr/bin/env python3
"""Download CaffeNet's ImageNet weights (244 MB) and check them by their sha1.

    .venv/bin/python scripts/fetch_caffenet.py [--out FILE] [--url URL ...]

Without --out they go to bonecaffe's cache, where `bonecaffe doctor` looks for them; the path is printed. The addresses
are tried in order. An interrupted download continues at the next call.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from bonecaffe.doctor import stock_weights
from bonecaffe.errors import BonecaffeError
from bonecaffe.files import cache_folder, held, open_regular
from bonecaffe.training.launch import STOCK_SHA1
from builder.download import PIECE, DownloadError, download

NAME = "dl.caffe.berkeleyvision.org/bvlc_reference_caffenet.caffemodel"
ADDRESSES = (f"http://{NAME}", f"https://{NAME}", f"https://web.archive.org/web/2020id_/http://{NAME}")
"""The authors' own server, and a copy that the Internet Archive may have of it."""


def sha1(path: Path) -> str:
    """The sha1 of a file, as 40 hexadecimal digits."""
    digest = hashlib.sha1()
    with open_regular(path) as file:
        while piece := file.read(PIECE):
            digest.update(piece)
    return digest.hexdigest()


def is_complete(path: Path) -> bool:
    """Whether the right file already exists."""
    return path.is_file() and sha1(path) == STOCK_SHA1


def problem(path: Path) -> str:
    """What is wrong with a downloaded file, or ""."""
    found = sha1(path)
    return "" if found == STOCK_SHA1 else f"the download has the sha1 {found}, not {STOCK_SHA1}; it was deleted"


def fetch(addresses: tuple[str, ...], out: Path) -> None:
    """Download from the first address that has the file; DownloadError, with each address's reason, if none has."""
    reasons = []
    for address in addresses:
        try:
            download(address, out, problem)
            return
        except DownloadError as error:
            reasons.append(f"  {error}")
    raise DownloadError(
        "the weights could not be downloaded:\n"
        + "\n".join(reasons)
        + "\nDownload the file on another machine, and give "
        "it with make train WEIGHTS=FILE (bonecaffe train --weights FILE)."
    )


def main() -> int:
    """Download, unless the right file already exists."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=stock_weights(), help="where to put the file")
    parser.add_argument("--url", action="append", help="where to download it from; may be given several times")
    arguments = parser.parse_args()
    try:
        if not is_complete(arguments.out):
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            cache_folder().mkdir(parents=True, exist_ok=True)
            with held(cache_folder() / "fetch_caffenet.lock", "download", DownloadError):
                fetch(tuple(arguments.url or ADDRESSES), arguments.out)
    except (BonecaffeError, OSError) as error:
        print(f"fetch_caffenet: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("fetch_caffenet: interrupted; the next call continues", file=sys.stderr)
        return 130
    print(arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
