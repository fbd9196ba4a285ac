"""What the documents promise is there: links, files, targets."""

from __future__ import annotations

import re

import pytest
from conftest import REPOSITORY

DOCUMENTS = [
    REPOSITORY / "README.md",
    REPOSITORY / "CHANGELOG.md",
    REPOSITORY / "data" / "README.md",
    *sorted((REPOSITORY / "docs").glob("*.md")),
]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    """Every relative link and picture exists; every picture has a text."""
    text = document.read_text(encoding="utf-8")
    for label, target in re.findall(r"\[([^\]]*)\]\(([^)]+)\)", text):
        if "://" not in target:
            assert (document.parent / target.split("#")[0]).exists(), f"{document.name}: {target}"
        assert label


def test_make_help_lists_every_target():
    """`make help` is read from the Makefile; every target has its line."""
    makefile = (REPOSITORY / "Makefile").read_text()
    for target in re.findall(r"(?m)^([a-z-]+):", makefile):
        assert re.search(rf"(?m)^{target}: .*## \S", makefile), target


def test_nothing_real_is_in_the_repository():
    """No real radiograph, by its bytes, among the images that are tracked."""
    import hashlib

    real = REPOSITORY.parent / "shared" / "real_hands" / "images"
    known = {hashlib.sha256(path.read_bytes()).hexdigest() for path in real.glob("*.png")} if real.is_dir() else set()
    images = [*(REPOSITORY / "data").rglob("*.png"), *(REPOSITORY / "docs").glob("*.png")]
    assert len(images) >= 14
    for path in images:
        assert hashlib.sha256(path.read_bytes()).hexdigest() not in known
