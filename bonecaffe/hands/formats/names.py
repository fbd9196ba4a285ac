"""Find the image that a tool's file refers to: from a name or an address to an id.

Tools write names with folders, with and without suffix, percent-encoded, or after a prefix that they add. Where the
folder of images is known, the reading of a name that matches an image is used.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from bonecaffe.hands.ids import composed, of_file

SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".dcm", ".dicom")
"""Of image files. Nothing else after a dot is removed from a name: ``1.2.840.113`` is a whole name."""

_UPLOAD_PREFIX = re.compile(r"^[0-9a-f]{8}-(?=.)", re.DOTALL)


class ImageNames:
    """The images of a folder, found by the names that tools use."""

    def __init__(self, images: Mapping[str, Path]) -> None:
        self._images = images
        by_name: dict[str, str | None] = {}  # differs from the id where that is a DICOM UID
        for image_id, path in images.items():
            by_name[of_file(path)] = None if of_file(path) in by_name else image_id
        self._by_id = {name: image_id for name, image_id in by_name.items() if image_id is not None}
        self._by_id |= {composed(image_id): image_id for image_id in images}

    def find(self, address: str, upload: bool = False) -> str | None:
        """The id of the image that an address means; None when the folder does not have it.

        The unchanged name is tried first, then the name without the prefix of an upload. Eight digits are taken for a
        date, not for a prefix, unless the address or ``upload`` shows that there is one.
        """
        whole, shorter = _file_names(address)
        names = [whole]
        if upload or _is_upload(address) or not whole[:8].isdigit():
            names.append(shorter)
        for name in names:
            for key in (without_suffix(name), name):
                if key in self._by_id:
                    return self._by_id[key]
        return None

    def with_id(self, image_id: str) -> str | None:
        """The id as in the folder; None when there is no such image."""
        return self._by_id.get(composed(image_id))

    def path(self, image_id: str) -> Path:
        """The file of an image that `find` found."""
        return self._images[image_id]


def guess(address: str, upload: bool = False) -> str:
    """The id of the image that an address means, where no folder of images is given.

    The prefix of an upload is removed only in Label Studio's folder of uploads, or with ``upload``.

    >>> guess("/data/upload/1/0a1b2c3d-1001.png"), guess("/data/local-files/?d=hands/20180101-1.png")
    ('1001', '20180101-1')
    >>> guess("C:\\\\films\\\\1.2.840.113"), guess("https://host/a%20b.png?token=x.y")
    ('1.2.840.113', 'a b')
    """
    whole, shorter = _file_names(address)
    return without_suffix(shorter if upload or _is_upload(address) else whole)


def without_suffix(name: str) -> str:
    """A file's name without the suffix of an image.

    >>> without_suffix("a.b.JPG"), without_suffix("1.2.840"), without_suffix(".png")
    ('a.b', '1.2.840', '.png')
    """
    stem, dot, suffix = name.rpartition(".")
    return stem if stem and f"{dot}{suffix}".lower() in SUFFIXES else name


def _path(address: str) -> str:
    """The path in an address, which may be a file's name, a path of any system, or a URL."""
    if not _is_local(address) and "://" not in address and not address.startswith("/data/"):
        return address
    try:
        parts = urlsplit(address)
    except ValueError:
        return address
    if _is_local(address) and (folder_and_name := parse_qs(parts.query).get("d")):
        return folder_and_name[0]
    return unquote(parts.path)


def _is_local(address: str) -> bool:
    """Whether an address is of Label Studio's local storage, ``/data/local-files/?d=folder/1001.png``."""
    return "/data/local-files" in address


def _is_upload(address: str) -> bool:
    """Whether an address is in Label Studio's folder of uploads, ``/data/upload/PROJECT/PREFIX-NAME``."""
    return re.search(r"(^|[/\\])upload[/\\]\d+[/\\][^/\\]+$", _path(address)) is not None


def _file_names(address: str) -> tuple[str, str]:
    """The name of a file that an address means, unchanged and without an upload's prefix."""
    name = composed(re.split(r"[/\\]", _path(address))[-1])
    before, mark, _ = name.partition("?")
    if mark and without_suffix(before) != before and without_suffix(name) == name:  # 1001.png?v=2, but not a?b.png
        name = before
    return name, name if _is_local(address) else _UPLOAD_PREFIX.sub("", name, count=1)
