"""Ids of hands: the one rule for what can be an id, whether it comes from a table or from a file's name.

An id is the name of an image without its suffix. It becomes the name of a file again (``images/ID.png``), a line of a
list that Caffe reads, a key of an LMDB and a cell of a table. So it must be one line of visible text that all of these
keep unchanged. Accented letters are stored composed (Unicode's NFC): macOS stores file names decomposed, while a table
typed elsewhere has them composed.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable

from bonecaffe import files
from bonecaffe.errors import BonecaffeError
from bonecaffe.files import Table, quoted

BYTES_AT_MOST = 200
"""Of an id in UTF-8. A file name may have 255; suffixes and the names of temporary files need some of them."""

LITTER = frozenset(
    {
        "__macosx",  # macOS: appears when its archives are unpacked elsewhere
        "thumbs.db",  # Windows
        "desktop.ini",
        "$recycle.bin",
        "recycler",
        "recycled",
        "system volume information",
        "@eadir",  # Synology: thumbnails, named like the images
        "@sharebin",
        "#recycle",
        "#snapshot",
        "@recycle",  # QNAP
        "@recently-snapshot",
        "lost+found",  # Linux
        "dicomdir",  # DICOM media: an index of the files there
    }
)
"""Names, in lower case, of files and folders that operating systems, network storage and DICOM media add."""

_JOINERS = "\u200c\u200d"  # part of the spelling in Persian and Indic scripts
_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".dcm", ".dicom", ".gif")
_SHOWN = 60  # characters of a text that an error quotes


def composed(text: str) -> str:
    """A text in Unicode's composed form (NFC), in which ids are compared."""
    return unicodedata.normalize("NFC", text)


def read_table(path: str | os.PathLike[str], error: type[BonecaffeError]) -> Table:
    """`bonecaffe.files.read_table` for tables with a column ``id``: ids composed, all other text unchanged."""
    table = files.read_table(path, error)
    if "id" not in table.columns:
        return table
    at = table.columns.index("id")
    return Table(table.columns, [(*row[:at], composed(row[at]), *row[at + 1 :]) for row in table.cells])


def of_file(name: str | os.PathLike[str]) -> str:
    """The id in the name or path of an image: without folder and suffix, composed. It may have a `flaw`.

    A number after the last dot is no suffix: archives name DICOM files by a UID.

    >>> of_file("hands/1377.png"), of_file("a.b.JPG"), of_file("1.2.840.113")
    ('1377', 'a.b', '1.2.840.113')
    """
    name = os.path.basename(os.fspath(name))
    return composed(os.path.splitext(name)[0] if has_suffix(name) else name)


def has_suffix(name: str) -> bool:
    """Whether a file's name has a suffix. A number is none.

    >>> has_suffix("1377.dcm"), has_suffix("IM0001"), has_suffix("1.2.840.113")
    (True, False, False)
    """
    suffix = os.path.splitext(name)[1][1:]
    return bool(suffix) and not suffix.isdecimal()


def flaw(text: str) -> str | None:
    """Why a text cannot be an id, as a clause for an error message; None when it can.

    >>> flaw("hand 12 7"), flaw(" lead"), flaw("")
    (None, 'it begins or ends with a space', 'it is empty')
    """
    if not text:
        return "it is empty"
    for character in text:
        if (reason := _forbidden(character)) is not None:
            return reason
    if text != text.strip():
        return "it begins or ends with a space"
    if text.startswith("."):
        return "it begins with a dot"
    if len(text.encode("utf-8")) > BYTES_AT_MOST:
        return f"it is longer than {BYTES_AT_MOST} bytes"
    if text != composed(text):
        return "its accented letters are not composed (Unicode's NFC)"
    return None


def _forbidden(character: str) -> str | None:
    if character in "/\\":
        return "it contains a slash; an id is the name without folder and suffix"
    category = unicodedata.category(character)
    if category == "Cs":
        return "it contains bytes that are not UTF-8"
    if category in ("Zl", "Zp") or character in "\n\r\x0b\x0c\x1c\x1d\x1e\x85":
        return f"it contains a line separator, U+{ord(character):04X}"
    if category == "Cc":
        return f"it contains a control character, U+{ord(character):04X}"
    if category == "Cf" and character not in _JOINERS:
        return f"it contains an invisible character, U+{ord(character):04X}"
    return None


def check(text: str) -> None:
    """Raise ValueError when a text cannot be an id, with a message for an error that names the row."""
    if not text:
        raise ValueError("no id")
    if (reason := flaw(text)) is not None:
        raise ValueError(f"the id cannot be the name of an image: {reason}")


def shown(text: str) -> str:
    """A text for an error message: unchanged when it can be an id; otherwise quoted, escaped and shortened.

    >>> shown("hand 12 7"), shown("a\\tb"), shown("")
    ('hand 12 7', "'a\\\\tb'", 'missing')
    """
    if not text:
        return "missing"
    return text if flaw(text) is None and len(text) <= _SHOWN else quoted(text, _SHOWN)


def is_litter(name: str) -> bool:
    """Whether a file or folder is hidden, or was made by macOS, Windows, a NAS or DICOM media; it has no radiographs.

    >>> is_litter("@eaDir"), is_litter("._1377.png"), is_litter("1377.png")
    (True, True, False)
    """
    return name.startswith(".") or name.lower() in LITTER


# ---- near misses -------------------------------------------------------------------------------------------------


def nearest(texts: Iterable[str], known: Iterable[str]) -> dict[str, str]:
    """For each of ``texts`` that was probably meant to be one of ``known``: that one.

    Texts match when they differ only in case, spaces, leading zeros, the Unicode form of characters, an image suffix,
    or in what a spreadsheet makes of a number (``1001.0``). Where several match, none is named.

    >>> nearest(["1001.0", "7", "B 2"], ["1001", "0007", "b2", "9"])
    {'1001.0': '1001', '7': '0007', 'B 2': 'b2'}
    """
    by_key: dict[str, list[str]] = {}
    for text in dict.fromkeys(known):
        by_key.setdefault(_key(text), []).append(text)
    found = {}
    for text in texts:
        alike = [other for other in by_key.get(_key(text), ()) if other != text]
        if len(alike) == 1:
            (found[text],) = alike
    return found


def _key(text: str) -> str:
    """The part in which matching texts agree."""
    key = "".join(unicodedata.normalize("NFKC", text).casefold().split())
    for suffix in _IMAGE_SUFFIXES:
        key = key.removesuffix(suffix)
    whole, dot, rest = key.partition(".")
    if dot and whole.isdecimal() and not rest.strip("0"):
        key = whole
    return key.lstrip("0") or "0" if key.isdecimal() else key


def listed(texts: Iterable[str], known: Iterable[str] = (), at_most: int = 5) -> str:
    """The first few ids, for a sentence; one that nearly matches an id in ``known`` is followed by that id.

    >>> listed(["1001.0", "1002.0", "x"], ["1001", "1002"], at_most=2)
    '1001.0 (did you mean 1001?), 1002.0 (did you mean 1002?) …'
    """
    ids = list(texts)
    meant = nearest(ids, known)
    first = sorted(ids, key=lambda text: text not in meant)[:at_most]  # the most informative ones first
    named = [f"{text} (did you mean {meant[text]}?)" if text in meant else text for text in first]
    return ", ".join(named) + " …" * (len(ids) > at_most)
