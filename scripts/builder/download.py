"""Downloading a large file: with progress, from where an earlier attempt stopped."""

from __future__ import annotations

import http.client
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from bonecaffe import files
from bonecaffe.errors import BonecaffeError

PIECE = 1 << 18
ATTEMPTS = 3
"""How often a connection that breaks is opened again."""
TIMEOUT_S = 60


class DownloadError(BonecaffeError):
    """Why a file could not be downloaded."""


def download(address: str, target: Path, check: Callable[[Path], str]) -> None:
    """Download a file to ``target``, whole or not at all; DownloadError when that fails.

    What has arrived is kept in ``target`` with ``.part`` added, and the next call, from any address, continues there.
    ``check`` gets the complete file and returns what is wrong with it, or "". A wrong file is deleted.
    """
    part = target.with_name(target.name + ".part")
    for attempt in range(ATTEMPTS):
        try:
            _continue(address, part)
        except urllib.error.HTTPError as error:
            raise DownloadError(f"{address}: the server answers {error.code} {error.reason}") from error
        except (OSError, ValueError, http.client.HTTPException) as error:
            if attempt + 1 < ATTEMPTS and isinstance(error, (TimeoutError, ConnectionError, http.client.HTTPException)):
                continue
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            raise DownloadError(f"{address}: {reason}") from error
        break
    if problem := check(part):
        files.remove(part)
        raise DownloadError(f"{address}: {problem}")
    files.move(part, target)


def _continue(address: str, part: Path) -> None:
    """Append to ``part`` what is missing of it."""
    existing = part.stat().st_size if part.is_file() else 0
    headers = {"Range": f"bytes={existing}-"} if existing else {}
    try:
        answer = urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if existing and error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:  # it is complete, or not this file
            return
        raise
    with answer:
        if answer.status != http.client.PARTIAL_CONTENT:  # the server does not continue: from the beginning
            files.remove(part)
            existing = 0
        length = answer.headers.get("Content-Length")
        total = existing + int(length) if length else 0
        with files.open_append(part) as file:
            for piece in _with_progress(iter(lambda: answer.read(PIECE), b""), existing, total):
                file.write(piece)
                existing += len(piece)
        if existing < total:
            raise http.client.IncompleteRead(b"", total - existing)


def _with_progress(pieces: Iterator[bytes], done: int, total: int) -> Iterator[bytes]:
    """The pieces, with what is done and left shown at a terminal."""
    began, first = time.monotonic(), done
    shown = 0.0
    for piece in pieces:
        yield piece
        done += len(piece)
        now = time.monotonic()
        if sys.stderr.isatty() and (now - shown > 0.5 or done == total):
            shown = now
            left = (total - done) * (now - began) / max(done - first, 1)
            end = f" of {total / 1e6:.0f} MB, {left:.0f} s left " if total else " MB "
            print(f"\r{done / 1e6:.0f}{end}", end="\n" if done == total else "", file=sys.stderr, flush=True)
