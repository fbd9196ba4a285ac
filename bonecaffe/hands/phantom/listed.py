"""The list by which a data set's phantoms are recognized: ``phantoms.json`` next to its ages.csv."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from bonecaffe.errors import BonecaffeError
from bonecaffe.files import write_text
from bonecaffe.trees import read_json

NAME = "phantoms.json"


def write(folder: Path, seed: int, images: Mapping[str, str]) -> None:
    """Write the list of a data set's images: the SHA-256 of each file by id."""
    write_text(folder / NAME, json.dumps({"seed": seed, "images": dict(images)}, indent=1) + "\n")


def known(*folders: Path) -> frozenset[str]:
    """The hashes of the image files that lists in these folders name; BonecaffeError for an invalid list.

    >>> known(Path("/nowhere"))
    frozenset()
    """
    hashes: set[str] = set()
    for path in dict.fromkeys(folder / NAME for folder in folders):
        try:
            content = read_json(path, "record", BonecaffeError)
        except (FileNotFoundError, NotADirectoryError):
            continue
        images = content.get("images") if isinstance(content, dict) else None
        if not isinstance(images, dict) or not all(isinstance(value, str) for value in images.values()):
            raise BonecaffeError(f"{path}: not a list of phantoms as bonecaffe writes it. Remove it.")
        hashes |= set(images.values())
    return frozenset(hashes)
