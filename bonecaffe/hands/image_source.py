"""A file's bytes, from which a header is read, with the errors that name the file; and what every header has."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, NoReturn

from bonecaffe.errors import ImageError

PIXELS_AT_MOST = 1 << 26
"""The largest image that is decoded, in pixels (8,192 x 8,192). The finest scans of a hand film have about 5,000 x
6,000, less than half of this; 16-bit colour of this size still fits in 512 MB."""
AGAIN = "Download or copy it again, or leave it out."

ReadAt = Callable[[int, int], bytes]
"""Reads up to a number of bytes (second argument) at an offset in the file (first argument)."""


class Source(NamedTuple):
    """A file's bytes, in memory or on disk, with the name for errors."""

    name: str
    size: int
    at: ReadAt

    def cut_off(self, what: str) -> NoReturn:
        """Raise ImageError: the file ends before the image does."""
        raise ImageError(f"{self.name}: cut off: {what}; the file ends at byte {self.size:,}. {AGAIN}")

    def damaged(self, what: str) -> NoReturn:
        """Raise ImageError: the file contradicts itself."""
        raise ImageError(f"{self.name}: damaged: {what}. {AGAIN}")

    def refused(self, what: str, remedy: str) -> NoReturn:
        """Raise ImageError: the file is intact, but of a kind that is not read."""
        raise ImageError(f"{self.name}: {what}. {remedy}")


def of_bytes(content: bytes, name: str) -> Source:
    """The whole file in memory."""
    return Source(name, len(content), lambda offset, count: content[offset : offset + count])


def of_file(handle: int, name: str) -> Source:
    """An open file, of which only the requested parts are read. Its ``at`` raises OSError."""
    return Source(name, os.fstat(handle).st_size, lambda offset, count: os.pread(handle, count, offset))


@dataclass(frozen=True)
class Header:
    """What every format has. ``width`` and ``height`` are as stored; `size` is that of the upright image."""

    width: int
    height: int
    orientation: int
    """1…8 as in Exif's tag 274: how the stored pixels must be turned to be upright. 1: not at all."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the upright image."""
        return (self.height, self.width) if self.orientation >= 5 else (self.width, self.height)
