"""One rule for ids, from tables and from file names; the probable match of an id that is not found."""

from __future__ import annotations

import os
import re
import unicodedata

import numpy as np
import pytest

from bonecaffe.errors import ImageError
from bonecaffe.hands import ids
from bonecaffe.hands.images import encode_png, find_images
from bonecaffe.hands.provenance import count_accepted
from bonecaffe.hands.reference_points import COLUMNS, read_points_table

COMPOSED, DECOMPOSED = "Hand Müller", unicodedata.normalize("NFD", "Hand Müller")
PIXEL = encode_png(np.zeros((2, 2), np.uint8))


@pytest.mark.parametrize(
    "text",
    [
        *(
            "1377",
            "0012",
            "a.b",
            'a,b "c"',
            "100%#é",
            "-x  5",
            "hand 12 7",
            "左手\u30001",
            "دست\u200cراست",
            "~a",
            "a:b*?",
        ),
        *("Bild\u202f10", "a\xa0b", "x" * 200, "é" * 100, "1.", "💀"),
    ],
)
def test_name_of_any_language_is_an_id(text):
    """Spaces inside, quotes, commas, dots, the spaces and joiners of other scripts; up to 200 bytes."""
    assert ids.flaw(text) is None
    assert ids.shown(text) == (text if len(text) <= 60 else repr(text[:60]) + " …")


FLAWED = {
    "": "empty",
    " lead": "begins or ends with a space",
    "lead ": "begins or ends with a space",
    "\u3000lead": "begins or ends with a space",
    "lead\xa0": "begins or ends with a space",
    ".lead": "dot",
    "..": "dot",
    "a/b": "slash",
    "a\\b": "slash",
    "a\tb": r"control character, U\+0009",
    "a\0": r"control character, U\+0000",
    "\x7f": r"control character, U\+007F",
    "a\x1fb": r"control character, U\+001F",
    "a\x9bb": r"control character, U\+009B",
    "\ufeffa": r"invisible character, U\+FEFF",
    "a\u202eb": r"invisible character, U\+202E",
    "a\u200b": r"invisible character, U\+200B",
    "a\udcffb": "not UTF-8",
    "x" * 201: "longer than 200 bytes",
    "é" * 101: "longer than 200 bytes",
    DECOMPOSED: "not composed",
    **{f"a{c}b": rf"line separator, U\+{ord(c):04X}" for c in "\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"},
}


@pytest.mark.parametrize("text", FLAWED)
def test_text_that_a_list_or_table_would_change_is_no_id(text):
    """The reason is given; in print the text has no character that would break a line or a terminal."""
    assert (reason := ids.flaw(text)) and re.search(FLAWED[text], reason)
    assert ids.shown(text).isprintable() or text == DECOMPOSED


def test_every_line_separator_of_python_is_known():
    """A character at which `str.splitlines` splits cannot be in an id."""
    separators = [chr(code) for code in range(0x110000) if len(f"a{chr(code)}b".splitlines()) > 1]
    assert len(separators) == 10
    assert all("line separator" in (ids.flaw(f"a{character}b") or "") for character in separators)


def test_id_of_a_file_is_composed():
    """As macOS stores a name, and as a table has it."""
    assert ids.of_file(f"folder.d/{DECOMPOSED}.png") == ids.of_file(f"{COMPOSED}.PNG") == COMPOSED
    assert ids.of_file("a.b.jpg") == "a.b"
    assert ids.flaw(ids.of_file("a\u2028b.png")) is not None


def image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(PIXEL)
    return path


def test_litter_is_ignored(tmp_path):
    """Thumbnails, recycle folders and side files of NAS, macOS and Windows, at any depth, in upper and lower case."""
    kept = image(tmp_path / "sub" / "7.png")
    for name in (
        *("@eaDir/7.png/SYNOPHOTO_THUMB_M.jpg", "sub/@eaDir/7.png/SYNOPHOTO_THUMB_XL.jpg", "#recycle/7.png"),
        *(".@__thumb/7.png", "@Recycle/7.png", "__MACOSX/sub/._7.png", "sub/._7.png", ".Trashes/7.png", ".hidden.png"),
        *(
            "$RECYCLE.BIN/7.png",
            "System Volume Information/7.png",
            "SYSTEM VOLUME INFORMATION/8.png",
            "lost+found/7.png",
        ),
    ):
        image(tmp_path / name)
    (tmp_path / "Thumbs.db").touch()
    (tmp_path / ".DS_Store").touch()
    assert find_images(tmp_path) == {"7": kept}


def test_images_with_names_that_cannot_be_ids_are_all_named(tmp_path):
    """At the start, by name; bytes that are not text, line separators and outer spaces are escaped."""
    image(tmp_path / "1.png")
    for name in (b" lead.png", b"a\xe2\x80\xa8b.png", b"M\xfcller.png", b"tail .jpg"):
        with open(os.fsencode(tmp_path) + b"/" + name, "wb") as file:
            file.write(PIXEL)
    with pytest.raises(ImageError) as error:
        find_images(tmp_path)
    text = str(error.value)
    assert text.isprintable() or text.replace("\n", "").isprintable()
    for part in ("4 problems", "' lead.png'", r"'a\u2028b.png'", r"'M\udcfcller.png'", "tail .jpg", "Rename"):
        assert part in text


def test_one_name_in_two_forms_is_two_images_of_one_id(tmp_path):
    """Composed and decomposed look the same; a single one is found under the composed id."""
    path = image(tmp_path / f"{DECOMPOSED}.png")
    assert find_images(tmp_path) == {COMPOSED: path}
    image(tmp_path / f"{COMPOSED}.png")
    with pytest.raises(ImageError, match="two images have the id"):
        find_images(tmp_path)


def test_folder_that_cannot_be_read_is_an_error(tmp_path, monkeypatch):
    """Its images are not left out silently."""
    image(tmp_path / "1.png")

    def walk(top, followlinks, onerror):
        onerror(PermissionError(13, "Permission denied", f"{top}/locked"))
        return iter(())

    monkeypatch.setattr(os, "walk", walk)
    with pytest.raises(ImageError, match=r"locked: this folder cannot be read \(Permission denied\)"):
        find_images(tmp_path)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("1001.0", "1001"),
        ("1001.00", "1001"),
        ("1001.png", "1001"),
        ("1001.PNG", "1001"),
        ("01001", "1001"),
        ("１００１", "1001"),
        ("hand 7", "Hand7"),
        ("HAND7", "Hand7"),
        (DECOMPOSED, COMPOSED),
        ("0", "000"),
        ("1001.5", None),
        ("1002", None),
        ("twice", None),
        ("1001", None),
    ],
)
def test_near_miss_is_named(given, meant):
    """What spreadsheets, keyboards and file systems turn an id into; not where two could be meant."""
    known = ["1001", "Hand7", "Twice", "tWice", COMPOSED, "000"]
    assert ids.nearest([given], known) == ({given: meant} if meant else {})


def test_ids_that_are_not_found_are_listed():
    """Those with a near miss first; five at most."""
    assert ids.listed(["a", "b", "1.0"], ["1"]) == "1.0 (did you mean 1?), a, b"
    assert ids.listed("abcde", []) == "a, b, c, d, e"
    assert ids.listed("abcdef", []) == "a, b, c, d, e …"


def test_check_raises_a_message():
    """For an error that names the row."""
    ids.check("7")
    with pytest.raises(ValueError, match="^no id$"):
        ids.check("")
    with pytest.raises(ValueError, match="^the id cannot be the name of an image: it begins with a dot$"):
        ids.check(".7")


def test_long_id_is_cut_in_print():
    """Sixty characters are shown in full."""
    assert ids.shown("x" * 60) == "x" * 60
    assert ids.shown("x" * 61) == repr("x" * 60) + " …"


def test_ids_of_a_table_are_composed_and_nothing_else(tmp_path):
    """A reason for skipping a hand, or another program's column, must not be changed."""
    path = tmp_path / "notes.csv"
    path.write_text(f"note,id,more\n{DECOMPOSED},{DECOMPOSED},\U0002f800\n,1,\n", encoding="utf-8")
    table = ids.read_table(path, ImageError)
    assert table.cells == [(DECOMPOSED, COMPOSED, "\U0002f800"), ("", "1", "")]
    path.write_text(f"note\n{DECOMPOSED}\n", encoding="utf-8")
    assert ids.read_table(path, ImageError).cells == [(DECOMPOSED,)]


def test_points_and_notes_of_decomposed_ids_are_found(tmp_path):
    """Accepted suggestions are counted, in whichever form a program wrote the id."""
    row = ",40,50" + ",10" * 14
    (tmp_path / "points.csv").write_text(f"{','.join(COLUMNS)}\n{DECOMPOSED}{row}\n", encoding="utf-8")
    (tmp_path / "points.notes.csv").write_text(f"id,suggested\n{COMPOSED},yes\n", encoding="utf-8")
    assert next(read_points_table(tmp_path / "points.csv").rows())[1]["id"] == COMPOSED
    assert count_accepted(tmp_path / "points.csv") == 1
