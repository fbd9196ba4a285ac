"""The container of a model file: a zip archive with one possible form for its members.

Members are stored, not deflated, with a fixed time and fixed attributes, one behind the other. So the same content
gives the same bytes with any version of Python, and a reader can compare every byte outside the members with what it
must be. That leaves no room for what makes archives dangerous: duplicate or hidden members, paths, links, sizes that
are not true, compressed bombs. Any program that reads zip files can unpack it. Pure; PKWARE's APPNOTE 6.3.10, 4.3.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import NamedTuple

MOST_MEMBERS = 16
LARGEST = (1 << 32) - (1 << 20)
"""Bytes of an archive without the extension Zip64, less some for its directory."""
_LOCAL, _ENTRY, _END = struct.Struct("<4s5H3L2H"), struct.Struct("<4s6H3L5H2L"), struct.Struct("<4s4H2LH")
_VERSION, _MADE_BY, _FLAGS, _STORED, _TIME, _DATE = 10, 3 << 8 | 20, 0, 0, 0, 1 << 5 | 1  # 1 January 1980
_ATTRIBUTES = 0o100644 << 16
LONGEST_TAIL = _END.size + MOST_MEMBERS * (_ENTRY.size + 64)
"""The most bytes that the directory behind the members takes."""


class Member(NamedTuple):
    """A member of the archive: an ASCII name without a folder, its size in bytes, its CRC-32."""

    name: str
    size: int
    crc: int


class Layout(NamedTuple):
    """Where everything is: a header before each member, the offset of each member's content, the bytes behind all."""

    headers: tuple[bytes, ...]
    offsets: tuple[int, ...]
    tail: bytes

    @property
    def size(self) -> int:
        """Of the archive's members with their headers; the tail follows."""
        return self.end + len(self.tail)

    @property
    def end(self) -> int:
        """The offset of the tail."""
        return int(_END.unpack(self.tail[-_END.size :])[6])


def layout(members: Sequence[Member]) -> Layout:
    """The layout of an archive of these members, in their order; ValueError when they are too many or too large."""
    if len(members) > MOST_MEMBERS:
        raise ValueError(f"{len(members)} members")
    headers, offsets, entries, at = [], [], [], 0
    for name, size, crc in members:
        encoded = name.encode("ascii")
        facts = (_FLAGS, _STORED, _TIME, _DATE, crc, size, size, len(encoded), 0)
        headers.append(_LOCAL.pack(b"PK\3\4", _VERSION, *facts) + encoded)
        entries.append(_ENTRY.pack(b"PK\1\2", _MADE_BY, _VERSION, *facts, 0, 0, 0, _ATTRIBUTES, at) + encoded)
        offsets.append(at + len(headers[-1]))
        at = offsets[-1] + size
        if at > LARGEST:
            raise ValueError("larger than 4 GB")
    directory = b"".join(entries)
    end = _END.pack(b"PK\5\6", 0, 0, len(entries), len(entries), len(directory), at, 0)
    return Layout(tuple(headers), tuple(offsets), directory + end)


def members_of(tail: bytes) -> list[Member]:
    """The members that the directory of an archive lists; ``tail`` are its last bytes, at most `LONGEST_TAIL`.

    ValueError with the reason for anything but what `layout` makes. The headers must still be compared.
    """
    if len(tail) < _END.size or tail[-_END.size :][:4] != b"PK\5\6":
        raise ValueError("it does not end as a zip archive without a comment ends")
    _, _, _, count, _, length, _, _ = _END.unpack(tail[-_END.size :])
    if not 0 < count <= MOST_MEMBERS or length > len(tail) - _END.size:
        raise ValueError("its directory has an impossible size")
    directory = tail[-_END.size - length : -_END.size]
    members, at = [], 0
    for _ in range(count):
        if at + _ENTRY.size > length:
            raise ValueError("its directory is cut off")
        fields = _ENTRY.unpack_from(directory, at)
        name = directory[at + _ENTRY.size : at + _ENTRY.size + fields[10]]
        if not name.isascii():
            raise ValueError("a member's name is not ASCII")
        members.append(Member(name.decode("ascii"), fields[9], fields[7]))
        at += _ENTRY.size + fields[10]
    if layout(members).tail != tail[-_END.size - length :]:
        raise ValueError("its directory is not as bonecaffe writes it")
    return members
