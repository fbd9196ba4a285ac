"""What a bundle has to know of a program or a library: what it needs, where it looks for it, and how to change that.

ELF of 64 bits, little-endian, read by the System V ABI and glibc's ``elf.h``. The run path is changed in its place,
as chrpath does, because patchelf moves whole sections of a file and most systems do not have it. It can be done here
without either: the run path that Caffe was linked with is an absolute path, which is longer than the relative one.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

from bonecaffe.errors import CaffeError

MAGIC = b"\x7fELF"
_64_BITS_LITTLE_ENDIAN = b"\x02\x01"
PT_LOAD, PT_DYNAMIC = 1, 2
DT_NULL, DT_NEEDED, DT_STRTAB, DT_SONAME, DT_RPATH, DT_RUNPATH = 0, 1, 5, 14, 15, 29
DT_VERNEED, DT_VERNEEDNUM = 0x6FFFFFFE, 0x6FFFFFFF
SHT_DYNSYM = 11
ENTRY = 16
"""Bytes of an entry of the dynamic section: its tag and its value."""
RELR_SINCE = "2.36"
"""The glibc since which GLIBC_ABI_DT_RELR, a version without a number, is there."""


@dataclass(frozen=True)
class Elf:
    """The dynamic section of a program or a library.

    ``entries`` are (place in the file, tag, value); ``names`` is where its table of names is in the file.
    """

    name: str
    content: bytes
    segments: tuple[tuple[int, int, int], ...]
    entries: tuple[tuple[int, int, int], ...]
    names: int

    @classmethod
    def parse(cls, name: str, content: bytes) -> Elf:
        """Read a file's content; CaffeError, naming it, where it is no such file or is cut off."""
        if not content.startswith(MAGIC + _64_BITS_LITTLE_ENDIAN):
            raise CaffeError(f"{name}: not a 64-bit little-endian program or library")
        try:
            return cls._parse(name, content)
        except (struct.error, StopIteration, IndexError):
            raise CaffeError(f"{name}: a program or library that is cut off or has no dynamic section") from None

    @classmethod
    def _parse(cls, name: str, content: bytes) -> Elf:
        (headers,) = struct.unpack_from("<Q", content, 32)
        size, count = struct.unpack_from("<HH", content, 54)
        loaded, dynamic = [], None
        for index in range(count):
            kind, _, offset, address, _, length = struct.unpack_from("<IIQQQQ", content, headers + index * size)
            if kind == PT_LOAD:
                loaded.append((address, offset, length))
            elif kind == PT_DYNAMIC:
                dynamic = offset, length
        if dynamic is None:
            raise IndexError
        entries = []
        for place in range(dynamic[0], dynamic[0] + dynamic[1], ENTRY):
            tag, value = struct.unpack_from("<QQ", content, place)
            if tag == DT_NULL:
                break
            entries.append((place, tag, value))
        table = next(value for _, tag, value in entries if tag == DT_STRTAB)
        return cls(name, content, tuple(loaded), tuple(entries), _offset(tuple(loaded), table))

    def _values(self, *tags: int) -> list[int]:
        return [value for _, tag, value in self.entries if tag in tags]

    def _text(self, value: int) -> str:
        start = self.names + value
        return self.content[start : self.content.index(b"\0", start)].decode("utf-8", "surrogateescape")

    @property
    def needed(self) -> list[str]:
        """The names of the libraries that it needs itself."""
        return [self._text(value) for value in self._values(DT_NEEDED)]

    @property
    def run_path(self) -> list[str]:
        """The folders where it looks for them; RUNPATH where it has both, as the loader does."""
        values = self._values(DT_RUNPATH) or self._values(DT_RPATH)
        return self._text(values[0]).split(":") if values else []

    @property
    def has_strong_run_path(self) -> bool:
        """Whether its run path is an RPATH alone, which LD_LIBRARY_PATH does not override."""
        return bool(self._values(DT_RPATH)) and not self._values(DT_RUNPATH)

    def versions(self) -> list[str]:
        """The versions of symbols that it needs, such as GLIBC_2.34."""
        found = []
        place = _offset(self.segments, next(iter(self._values(DT_VERNEED)), 0))
        for _ in range(next(iter(self._values(DT_VERNEEDNUM)), 0)):
            _, count, _, first, following = struct.unpack_from("<HHIII", self.content, place)
            version = place + first
            for _ in range(count):
                _, _, _, text, further = struct.unpack_from("<IHHII", self.content, version)
                found.append(self._text(text))
                version += further
            place += following
        return found

    def glibc(self) -> str | None:
        """The oldest glibc that has all its symbols; None where it needs none of glibc's."""
        numbers = [found[1] for version in self.versions() if (found := re.fullmatch(r"GLIBC_([\d.]+)", version))]
        if "GLIBC_ABI_DT_RELR" in self.versions():
            numbers.append(RELR_SINCE)
        return max(numbers, key=lambda text: [int(part) for part in text.split(".")], default=None)

    def with_run_path(self, run_path: str) -> bytes:
        """The content with another run path, as an RPATH: see `bundle.py`, "Run paths".

        CaffeError where it has none, or a shorter one, so that there is no room.
        """
        places = [(place, value) for place, tag, value in self.entries if tag in (DT_RPATH, DT_RUNPATH)]
        if not places:
            raise CaffeError(
                f"{self.name}: has no run path that could be replaced by {run_path}. Pack a Caffe that `make setup` "
                f"built: unset CAFFE_ROOT, and take this one off PATH"
            )
        value = places[-1][1]
        room = len(self._text(value).encode("utf-8", "surrogateescape"))
        new = run_path.encode()
        if len(new) > room or self._is_shared(value, room):
            raise CaffeError(f"{self.name}: its run path, {self._text(value)}, has no room for {run_path}")
        changed = bytearray(self.content)
        start = self.names + value
        changed[start : start + room] = new.ljust(room, b"\0")
        for place, _ in places:
            struct.pack_into("<QQ", changed, place, DT_RPATH, value)
        return bytes(changed)

    def _is_shared(self, value: int, room: int) -> bool:
        """Whether a symbol's name, or another name, is the end of this text: linkers store such names once."""
        others = set(self._values(DT_NEEDED, DT_SONAME))
        (sections,) = struct.unpack_from("<Q", self.content, 40)
        size, count = struct.unpack_from("<HH", self.content, 58)
        for index in range(count if sections else 0):
            _, kind = struct.unpack_from("<II", self.content, sections + index * size)
            if kind == SHT_DYNSYM:
                offset, length = struct.unpack_from("<QQ", self.content, sections + index * size + 24)
                others.update(symbol[0] for symbol in struct.iter_unpack("<I20x", self.content[offset:][:length]))
        return any(value <= other < value + room for other in others)


def _offset(segments: tuple[tuple[int, int, int], ...], address: int) -> int:
    """Where an address of the loaded file is in the file."""
    return next(
        (address - start + offset for start, offset, length in segments if start <= address < start + length), address
    )
