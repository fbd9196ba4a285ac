"""Tables of ages in, cases and a seeded split out."""

from __future__ import annotations

import pytest

from bonecaffe.errors import CasesError
from bonecaffe.hands.cases import Case, read_cases, split_cases, write_cases


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("id,boneage,male\n1377,180,False\n0012,12,True\n", [Case("1377", 180, False), Case("0012", 12, True)]),
        ("Image ID,male,Bone Age (months)\n1386,TRUE,30\n", [Case("1386", 30, True)]),
        (
            "Case ID,Sex,Ground truth bone age (months)\n4360,M,168.9\n4361,F,9\n",
            [Case("4360", 168.9, True), Case("4361", 9, False)],
        ),
        ("id,boneage_months\na b,7\n", [Case("a b", 7, None)]),
        ("\ufeffid,boneage,male\r\n1,10,\r\n\r\n", [Case("1", 10, None)]),
    ],
)
def test_each_known_header_is_read(tmp_path, text, expected):
    """RSNA's three tables and our own; ids keep their zeros."""
    path = tmp_path / "ages.csv"
    path.write_text(text, newline="", encoding="utf-8")
    assert read_cases(path) == expected


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("7,,True", "no age"),
        ("7,old,True", "'old', not a number"),
        ("7,nan,True", "between"),
        ("7,-3,True", "between"),
        ("7,1200,True", "between"),
        (",12,True", "no id"),
        ("7,12,maybe", "sex is 'maybe'"),
        ("1,12,True", "stands in row 2 already"),
        ("../7,12,True", "slash"),
    ],
)
def test_bad_row_is_named(tmp_path, row, said):
    """File, row and what is wrong stand in the error."""
    path = tmp_path / "ages.csv"
    path.write_text(f"id,boneage,male\n1,10,True\n{row}\n")
    with pytest.raises(CasesError, match=said) as error:
        read_cases(path)
    assert "ages.csv" in str(error.value) and "row 3" in str(error.value)


@pytest.mark.parametrize("text", ["", "id,boneage,male\n", "a,b\n1,2\n", "id,id,boneage,male\n1,1,2,True\n"])
def test_table_that_is_none_is_refused(tmp_path, text):
    """No header, no rows, an unknown header, a column twice."""
    path = tmp_path / "ages.csv"
    path.write_text(text)
    with pytest.raises(CasesError, match=r"ages\.csv"):
        read_cases(path)


def test_split_is_seeded_disjoint_and_independent_of_order():
    """The same seed draws the same hands in the same order, however the table was sorted."""
    cases = [Case(str(i), float(i)) for i in range(700)]
    train, test = split_cases(cases, 400, 200, 2018)
    assert (len(train), len(test)) == (400, 200)
    assert not {case.id for case in train} & {case.id for case in test}
    assert split_cases(cases[::-1], 400, 200, 2018) == (train, test)
    assert split_cases(cases, 400, 200, 2019) != (train, test)
    ages = [case.boneage_months for case in train]
    assert ages != sorted(ages)  # Caffe reads in the order of the list


def test_too_few_cases_say_so():
    """Not a smaller split in silence."""
    with pytest.raises(CasesError, match="5 cases are usable, but 4 for training and 2 for test are 6"):
        split_cases([Case(str(i), 1.0) for i in range(5)], 4, 2, 1)


def test_cases_are_written_and_read_back(tmp_path):
    """A round trip, fractional ages and unknown sexes included."""
    cases = [Case("1", 126.5, None), Case("x, y", 12.0, True)]
    write_cases(tmp_path / "cases.csv", cases)
    assert read_cases(tmp_path / "cases.csv") == cases
