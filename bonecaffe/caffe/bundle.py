"""A Caffe that was packed with its libraries, to be unpacked anywhere: its record, and whether it fits this machine.

`make caffe-bundle` (scripts/bundle_caffe.py) makes the archive. Its folder has the layout of an installed Caffe and a
``bundle.json``. All libraries are in it but the C library's (glibc) and the GPU driver's, which belong to the machine.
So it works where glibc is the same or newer, and with the Python version that its pycaffe was built for. Standard
library only.
"""

from __future__ import annotations

import json
import os
import platform
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from bonecaffe import files
from bonecaffe.errors import CaffeError, FilesError

RECORD = "bundle.json"
"""The file in an unpacked bundle that lists what it holds and needs."""
FORMAT = 1
"""The version of `RECORD`."""
UNPACK_AGAIN = "Unpack the archive again, into an empty folder"


@dataclass(frozen=True)
class Machine:
    """What a bundle asks of a machine: processor, glibc (None where the C library is another), Python."""

    processor: str
    glibc: str | None
    python: str

    @classmethod
    def this(cls) -> Machine:
        """The machine and the Python that run this."""
        return cls(platform.machine(), _glibc(), f"{sys.version_info.major}.{sys.version_info.minor}")


def _glibc() -> str | None:
    try:
        name = os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (OSError, ValueError):  # another C library
        return None
    found = re.fullmatch(r"glibc (\d+(?:\.\d+)+)", name)
    return found[1] if found else None


def number(version: str) -> tuple[int, ...]:
    """A version that can be compared.

    >>> number("2.4") < number("2.36"), number("2.36") == number("2.36")
    (True, True)
    """
    return tuple(int(part) for part in version.split("."))


@dataclass(frozen=True)
class Bundle:
    """An unpacked bundle: its folder, what it needs of a machine, and the size in bytes of each of its files."""

    root: Path
    needs: Machine
    sizes: dict[str, int]

    def problem(self, machine: Machine | None = None) -> str:
        """Why it does not work on this machine, with what to do; else empty."""
        return self.damage() or self.misfit(machine or Machine.this())

    def damage(self) -> str:
        """Which files are not there or have another size; else empty."""
        bad = [name for name, size in self.sizes.items() if _size(self.root / name) != size]
        if not bad:
            return ""
        first = bad[0]
        found = _size(self.root / first)
        state = "not there" if found is None else f"{found} bytes instead of {self.sizes[first]}"
        return (
            f"{len(bad)} of the bundle's {len(self.sizes)} files are missing or damaged; the first: {first}: {state}. "
            f"{UNPACK_AGAIN}"
        )

    def misfit(self, machine: Machine) -> str:
        """What of the machine does not fit: processor, glibc, Python; else empty."""
        needs = self.needs
        if machine.processor != needs.processor:
            return (
                f"the bundle is for {needs.processor}, and this machine is {machine.processor}. Make one with "
                f"`make caffe-bundle` on a machine of this kind"
            )
        if machine.glibc is None:
            return f"the bundle needs glibc {needs.glibc} or newer, and this machine has another C library"
        if number(machine.glibc) < number(str(needs.glibc)):
            return (
                f"the bundle needs glibc {needs.glibc} or newer, and this machine has {machine.glibc}. Make one with "
                f"`make caffe-bundle` on a system whose glibc is no newer than {machine.glibc}"
            )
        if machine.python != needs.python:
            return (
                f"the bundle's pycaffe is for Python {needs.python}, and this is Python {machine.python} "
                f"({sys.executable}). Use a virtual environment of Python {needs.python}, or make a bundle with "
                f"`make caffe-bundle` on a system with Python {machine.python}"
            )
        return ""


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def read(root: Path) -> Bundle | None:
    """The bundle in a folder; None where there is no record of one. CaffeError for a record that is not whole."""
    path = root / RECORD
    try:
        record = json.loads(files.read_text(path, "settings"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError, FilesError) as error:
        raise CaffeError(f"{path}: cannot be read ({error}). {UNPACK_AGAIN}") from None
    try:
        return _parsed(root, record)
    except (KeyError, TypeError, ValueError, AttributeError):
        version = record.get("bundle") if isinstance(record, dict) else None
        if isinstance(version, int) and version > FORMAT:
            raise CaffeError(
                f"{path}: made by a newer bonecaffe (format {version}; this one reads {FORMAT}). Update bonecaffe"
            ) from None
        raise CaffeError(f"{path}: not a bundle's record. {UNPACK_AGAIN}") from None


def _parsed(root: Path, record: dict[str, object]) -> Bundle:
    """The record as it was read from JSON; KeyError, TypeError, ValueError or AttributeError for another shape."""
    sizes = record["files"]
    machine, glibc, python = (str(record[name]) for name in ("machine", "glibc", "python"))
    if record["bundle"] != FORMAT or not isinstance(sizes, dict) or not sizes:
        raise ValueError
    if not all(isinstance(size, int) for size in sizes.values()):
        raise ValueError
    number(glibc)  # ValueError where it is none
    return Bundle(root, Machine(machine, glibc, python), dict(sizes))
