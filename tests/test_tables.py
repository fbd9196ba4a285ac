"""Untrusted tables and texts: paths that stay inside, sizes, encodings, CSV."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bonecaffe import files
from bonecaffe.errors import CasesError, FilesError, PointsError
from bonecaffe.files import (
    Table,
    is_inside,
    number,
    number_text,
    quoted,
    read_bytes,
    read_table,
    read_text,
    sha256,
    table_text,
)


@pytest.mark.parametrize("path", ["a", "a/b", "snapshots/a.caffemodel", "...", "..a", "a..", ".hidden", "a b/ü"])
def test_path_inside(path):
    """Relative, and every part a name."""
    assert is_inside(path)


@pytest.mark.parametrize(
    "path", ["", "/", "/etc/passwd", "..", "../a", "a/..", "a/../b", ".", "./a", "a/.", "a//b", "a/", "a\0b"]
)
def test_path_not_inside(path):
    """Absolute, upwards, empty parts, a NUL that ends a name in C."""
    assert not is_inside(path)


def test_sha256_of_the_standard():
    """FIPS 180-2, appendix B.1: the message "abc"; the empty message (NIST's vectors); a text is hashed as UTF-8."""
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256(b"abc") == sha256("abc") == abc
    assert sha256(b"") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert sha256("ü") == sha256(b"\xc3\xbc")


def sparse(path, size):
    path.touch()
    os.truncate(path, size)
    return path


@pytest.mark.parametrize(
    ("limit", "size", "message"),
    [
        (300_499_999, 600_500_001, "a: 601 MB; a record file of more than 300 MB is not read"),
        (300_500_001, 600_499_999, "a: 600 MB; a record file of more than 301 MB is not read"),
    ],
)
def test_file_too_large_for_its_kind(tmp_path, monkeypatch, limit, size, message):
    """Both sizes in MB of a million bytes, rounded."""
    monkeypatch.setitem(files.LARGEST, "record", limit)
    with pytest.raises(PointsError, match=message):
        read_bytes(sparse(tmp_path / "a", size), "record", PointsError)


def test_file_of_the_largest_size_is_read(tmp_path, monkeypatch):
    """A file of exactly the limit is read; one byte more is refused. The default error is FilesError."""
    monkeypatch.setitem(files.LARGEST, "table", 1000)
    assert read_bytes(sparse(tmp_path / "a", 1000), "table") == bytes(1000)
    with pytest.raises(FilesError, match="Is it the right file"):
        read_bytes(sparse(tmp_path / "b", 1001), "table")


def test_text_that_is_not_utf8(tmp_path):
    """The byte is named: counted from 0, the fourth."""
    (tmp_path / "a").write_bytes(b"abc\xff")
    with pytest.raises(CasesError, match=r"a: not text in UTF-8 \(invalid start byte at byte 3\)"):
        read_text(tmp_path / "a", "settings", CasesError)
    (tmp_path / "b").write_bytes("Müller".encode())
    assert read_text(tmp_path / "b", "settings") == "Müller"


def test_rows_are_numbered_as_in_the_file():
    """The header is row 1; an empty row is skipped, but counted."""
    table = Table(("id", "age"), [("1", "10"), ("", ""), ("", "12")])
    assert list(table.rows()) == [(2, {"id": "1", "age": "10"}), (4, {"id": "", "age": "12"})]
    with pytest.raises(ValueError, match="shorter"):
        list(Table(("id", "age"), [("1",)]).rows())
    assert len({Table(("id",), ()), Table(("id",), ())}) == 1  # a value: never changed in place


def test_table_text_quotes_what_needs_it():
    """RFC 4180: commas, quotation marks and line breaks are quoted, and quotation marks repeated."""
    assert (
        table_text(("a", "b"), [[1, "x,y"], ['say "hi"', "two\nlines"]]) == 'a,b\n1,"x,y"\n"say ""hi""","two\nlines"\n'
    )


def read(tmp_path, content):
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    return read_table(path, CasesError)


def test_table_is_read_as_text(tmp_path):
    """No cell becomes a number or a missing value; blanks are stripped; short rows are padded; no BOM in a name."""
    table = read(tmp_path, b"\xef\xbb\xbfid, age ,note\r\n007, 1e3 ,NA\r\n\r\n1,,nan\r\n2,5\r\n")
    assert table.columns == ("id", "age", "note")
    assert table.cells == [("007", "1e3", "NA"), ("", "", ""), ("1", "", "nan"), ("2", "5", "")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (b"a,b\n1,2,3\n", "not readable as CSV"),
        (b"a,b\n1,\xff\xfe\n", r"not text in UTF-8 \(byte 0xff in line 2\)"),
        (b"a,b\n1,M\xfcller\n", r'byte 0xfc in line 2\). Save it as "CSV UTF-8'),
        ("a,b\n1,2\n".encode("utf-16"), "text in UTF-16, not UTF-8"),
        ("a,b\n1,2\n".encode("utf-16-le"), "text in UTF-16, not UTF-8"),
        ("a,b\n1,2\n".encode("utf-16-be"), "text in UTF-16, not UTF-8"),
        (b"\n\n\xff\n", "byte 0xff in line 3"),
        (b"\n\n\0\n", "a NUL byte in line 3"),
        (b"\0\0\n", "a NUL byte in line 1"),
        (b"a,b\n1,2\n3,\x004\n", "a NUL byte in line 3"),
        (b"a;b\n1;2,5\n", "separated by semicolons, not by commas.*decimal points"),
        (b"a\tb\n1\t2\n", "separated by tabs"),
        (b"a|b\n1|2\n", "separated by vertical bars"),
        (b"sep=,\na,b\n1,2\n", "'sep=', is only for Excel. Remove it"),
        (b"a,b\n1,2,\n1,2,5\n", "row 3 has 3 cells, the header 2.*decimal points"),
        (b'a,b\n1,"2\n', "row 2: a quotation mark is not closed"),
        (b'a,b\n1,"2"3\n', "row 2: ',' expected after"),
        (b"a,b\n1," + b"x" * 200_000 + b"\n", "field larger"),
        (b"a,b,c\n1,2,3\n4,5", "ends within row 3, which has 2 cells of 3"),
        (b"a,b,c\n\n4,5", "ends within row 3, which has 2 cells of 3"),
        (b"a,b,c\n1\n4,5", "ends within row 3"),
        (b"\n,,\n1,2\n", "the first row is empty"),
        (b"PK\x03\x04" + bytes(26) + b"xl/workbook.xml", r"an Excel workbook \(.xlsx\), not CSV.*CSV UTF-8"),
        (b"PK\x03\x04" + bytes(26) + b"mimetypeapplication/vnd.oasis.opendocument.spreadsheet", r"\(.ods\), not CSV"),
        (b"PK\x03\x04" + bytes(26) + b"ages.csv", "an archive"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(100), r"an Excel workbook \(.xls\), not CSV"),
        (b"\x1f\x8b\x08" + bytes(20), "compressed"),
        (b"\xef\xbb\xbf <html><table>", "markup"),
        (b"a,b,b,a,a\n1,2,3\n", "the column 'b' appears twice in the header"),
        (b"a,b,a\n1,2,3\n", "the column 'a' appears twice in the header"),
    ],
)
def test_what_is_no_table_is_refused_by_name(tmp_path, content, message):
    """With the error class of the stage that reads it."""
    with pytest.raises(CasesError, match=rf"t\.csv: .*{message}"):
        read(tmp_path, content)
    with pytest.raises(CasesError, match=r"gone\.csv: no such file"):
        read_table(tmp_path / "gone.csv", CasesError)
    with pytest.raises(CasesError, match=r"x\.csv: not readable: Not a directory\.$"):
        read_table(tmp_path / "t.csv" / "x.csv", CasesError)


def test_unnamed_empty_columns_are_dropped(tmp_path):
    """As spreadsheets leave them: in the header, in the rows, in both; a column with content is kept."""
    assert read(tmp_path, b"id,age,,\n1,2,,\n").columns == ("id", "age")
    assert read(tmp_path, b"id,,age,,\n1,,2\n").cells == [("1", "2")]
    assert read(tmp_path, b"id,age\n1,2,,,\n3,4,\n").cells == [("1", "2"), ("3", "4")]
    assert read(tmp_path, b",id,age,\n0,1,2,\n").columns == ("", "id", "age")
    assert read(tmp_path, b"id,age,,\n1,2").cells == [("1", "2")]  # complete, though it ends without a line break


def test_cells_keep_what_is_not_a_blank(tmp_path):
    """Blanks of any script are stripped; line separators are kept, so that the cell is refused when it is used."""
    table = read(tmp_path, '\xa0id ,"a\x85"\r\n\u30001\t, "x, y"\r2,\x1c3\n'.encode())
    assert table.columns == ("id", "a\x85")
    assert table.cells == [("1", "x, y"), ("2", "\x1c3")]


def test_text_is_not_composed(tmp_path):
    """A cell may hold a person's text: it stays unchanged, in any form of Unicode."""
    assert read(tmp_path, "note\nMu\u0308ller \U0002f800\n".encode()).cells == [("Mu\u0308ller \U0002f800",)]


@pytest.mark.parametrize(
    ("text", "value"),
    [("0", 0), ("12", 12), ("-3", -3), ("168.9325153", 168.9325153), ("007", 7), ("5.", 5), (".5", 0.5), ("-0", 0)],
)
def test_plain_number(text, value):
    """Digits, one point, a sign in front."""
    assert number(text) == value
    assert not str(number(text)).startswith("-0")


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "1_2", "+12", "1e2", "1E2", "0x10", "nan", "NaN", "inf", "-inf", "Infinity", "1,5", "1 2", "1\n"),
        *("\uff11\uff12", "\u0661", "\xb2", "--1", "1-", "-", ".", "-.", "1.2.3", "12 months", "9" * 400, "None"),
    ],
)
def test_what_is_no_plain_number(text):
    """`float` would take many of these."""
    with pytest.raises(ValueError, match="not a number"):
        number(text)


def test_decimal_comma_is_named():
    """What a spreadsheet writes in many countries."""
    with pytest.raises(ValueError, match="^'168,9', not a number; write a decimal point, not a comma$"):
        number("168,9")


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_number_is_written_and_read_back(value):
    """Equal, of any size, without an exponent."""
    assert number(number_text(value)) == value


def test_workbook_by_its_name(tmp_path):
    """An archive that is called a workbook is one."""
    (tmp_path / "ages.xlsx").write_bytes(b"PK\x03\x04" + bytes(40))
    with pytest.raises(CasesError, match=r"ages\.xlsx: an Excel workbook"):
        read_table(tmp_path / "ages.xlsx", CasesError)


def test_columns_with_semicolons_in_their_names(tmp_path):
    """They are still separated by commas."""
    assert read(tmp_path, b"a;b,c\n1,2\n").columns == ("a;b", "c")


def test_last_row_that_is_whole(tmp_path):
    """With a line break at its end it may be short; empty ones, and one that has every named column, need none."""
    for content in (b"a,b\n1,2\n3\n", b"a,b\n1,2\n3\r", b"a,b\n1,2\n3,4", b"a,b\n1,2\n ", b"a,b,\n1,2,x\n3,4"):
        assert read(tmp_path, content).columns[:2] == ("a", "b")


def test_no_negative_zero():
    """It would be read back, but looks like a mistake."""
    assert number_text(-0.0) == "0"


def test_long_text_is_cut():
    """Sixty characters are quoted whole."""
    assert quoted("x" * 60) == repr("x" * 60)
    assert quoted("x" * 61) == repr("x" * 60) + " …"
    assert quoted("\x1b[2J\n") == r"'\x1b[2J\n'"
