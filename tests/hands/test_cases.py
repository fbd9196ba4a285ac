"""Tables of ages in, cases and a seeded split out."""

from __future__ import annotations

import pytest

from bonecaffe.errors import CasesError
from bonecaffe.hands.cases import (
    HEADERS,
    Case,
    in_months,
    looks_like_years,
    range_of,
    read_cases,
    split_cases,
    write_cases,
)


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
    """RSNA's three tables and bonecaffe's; ids keep their zeros."""
    path = tmp_path / "ages.csv"
    path.write_text(text, newline="", encoding="utf-8")
    assert read_cases(path) == expected


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("7,,True", "no age"),
        ("7,old,True", "'old', not a number"),
        ("7,nan,True", "'nan', not a number of months"),
        ("7,-3,True", "between"),
        ("7,1200,True", "between"),
        (",12,True", "no id"),
        ("7,12,maybe", "sex is 'maybe'"),
        ("1,12,True", "is already in row 2"),
        ("../7,12,True", "slash"),
    ],
)
def test_bad_row_is_named(tmp_path, row, message):
    """The error names the file, the row and the fault."""
    path = tmp_path / "ages.csv"
    path.write_text(f"id,boneage,male\n1,10,True\n{row}\n")
    with pytest.raises(CasesError, match=message) as error:
        read_cases(path)
    assert "ages.csv" in str(error.value) and "row 3" in str(error.value)


@pytest.mark.parametrize("text", ["", "id,boneage,male\n", "a,b\n1,2\n", "id,id,boneage,male\n1,1,2,True\n"])
def test_file_that_is_not_a_table_of_ages_is_refused(tmp_path, text):
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


def test_too_few_cases_are_an_error():
    """Not silently a smaller split."""
    with pytest.raises(CasesError, match="5 cases are usable, but 4 for training and 2 for test are 6"):
        split_cases([Case(str(i), 1.0) for i in range(5)], 4, 2, 1)


def test_cases_are_written_and_read_back(tmp_path):
    """A round trip, fractional ages and unknown sexes included."""
    cases = [Case("1", 126.5, None), Case("x, y", 12.0, True)]
    write_cases(tmp_path / "cases.csv", cases)
    assert read_cases(tmp_path / "cases.csv") == cases


def read(tmp_path, *rows, header="id,boneage,male"):
    path = tmp_path / "ages.csv"
    path.write_text("\n".join([header, *rows]) + "\n")
    return read_cases(path)


def test_ages_from_nothing_to_three_hundred_months(tmp_path):
    """Both ends are allowed; a hundredth outside is not."""
    assert [case.boneage_months for case in read(tmp_path, "1,0,M", "2,300,F", "3,0.5,")] == [0, 300, 0.5]
    for age in ("-0.01", "300.01"):
        with pytest.raises(CasesError, match=rf"the age is {age}, not between 0 and 300 months"):
            read(tmp_path, f"1,{age},M")


def test_each_word_for_a_sex(tmp_path):
    """RSNA's True and False, M and F, and what people write, in upper and lower case."""
    words = {
        "True": True,
        "m": True,
        "MALE": True,
        "1": True,
        "false": False,
        "F": False,
        "Female": False,
        "0": False,
        "": None,
    }
    cases = read(tmp_path, *(f"{number},12,{word}" for number, word in enumerate(words)))
    assert [case.male for case in cases] == list(words.values())


def test_rsnas_tables_have_a_sex(tmp_path):
    """Only bonecaffe's own table may leave it out."""
    for header in ("id,boneage", "Image ID,Bone Age (months)", "Case ID,Ground truth bone age (months)"):
        with pytest.raises(CasesError, match=r"unknown header .*id,boneage,male \(RSNA training\)"):
            read(tmp_path, "1,12", header=header)
    assert read(tmp_path, "1,12", header="ID,Boneage_Months") == [Case("1", 12.0, None)]
    assert len(set(HEADERS)) == 4  # values


def test_every_bad_row_is_named_at_once(tmp_path):
    """With its row number and id, whichever kind of fault comes first."""
    with pytest.raises(CasesError) as error:
        read(tmp_path, "1,12,M", "1,12,M", ",12,M", "2,old,M", "1,13,F", "3,12,M")
    named = [line.strip() for line in str(error.value).splitlines()]
    assert "4 problems" in named[0]
    assert [line.split(":")[0] for line in named[1:5]] == [
        "row 3 (id 1)",
        "row 4 (id missing)",
        "row 5 (id 2)",
        "row 6 (id 1)",
    ]


@pytest.mark.parametrize("case_id", [".7", "a\\b", "a/b", '"a\tb"', '"a\nb"'])
def test_id_that_cannot_name_an_image_is_refused(tmp_path, case_id):
    """It becomes the name of a file."""
    with pytest.raises(CasesError, match="the id cannot be the name of an image"):
        read(tmp_path, f"{case_id},12,M")


def test_all_cases_may_be_drawn():
    """Six of six, none twice."""
    cases = [Case(str(i), 1.0) for i in range(6)]
    train, test = split_cases(cases, 4, 2, 1)
    assert (len(train), len(test)) == (4, 2) and {*train, *test} == set(cases)


def test_table_is_written_into_a_new_folder(tmp_path):
    """Every digit of an age; whole ones without a point; True and False in words."""
    cases = [Case("1", 168.9325153, True), Case("2", 126.0, False), Case("3", 0.0)]
    write_cases(tmp_path / "new" / "a.csv", cases, ("id", "boneage", "male"))
    assert (tmp_path / "new" / "a.csv").read_text() == "id,boneage,male\n1,168.9325153,True\n2,126,False\n3,0,\n"


@pytest.mark.parametrize("age", ["1_2", "+12", "\uff11\uff12", "0x1A", "1.2e2", "nan", "inf", '"12,5"', "12 months"])
def test_age_that_only_looks_like_a_number_is_refused(tmp_path, age):
    """`float` accepts most of these, but 12 was not always meant."""
    with pytest.raises(CasesError, match=r"row 2 \(id 1\): the age is '.*', not a number"):
        read(tmp_path, f"1,{age},M")


def test_ages_in_years_are_converted_to_months(tmp_path):
    """Times twelve; a twelfth of a year is a whole month again. Above 25 years is above 300 months."""
    path = tmp_path / "ages.csv"
    path.write_text("id,boneage\n1,4\n2,7.083333333333333\n3,18.5\n4,25\n".replace("boneage", "boneage_months"))
    assert [case.boneage_months for case in read_cases(path, "years")] == [48, 85, 222, 300]
    path.write_text("id,boneage_months\n1,4\n2,25.1\n")
    with pytest.raises(CasesError, match=r"row 3 \(id 2\): the age is 25.1, not between 0 and 25 years"):
        read_cases(path, "years")


def test_ages_that_may_be_years():
    """No age above 20; the range is that of all ages."""
    assert looks_like_years([Case("1", 2.0), Case("2", 20.0)])
    assert not looks_like_years([Case("1", 2.0), Case("2", 20.5)])
    assert range_of([Case("1", 20.0), Case("2", 4.5), Case("3", 7.0)]) == (4.5, 20.0)


def test_ambiguous_columns_are_refused(tmp_path):
    """Otherwise one of two that differ only in case, or of two columns of ages, would be used without a message."""
    with pytest.raises(CasesError, match=r"two columns are called 'ID' \(case is ignored\)"):
        read(tmp_path, "1,2,12,M", header="id,ID,boneage,male")
    with pytest.raises(CasesError, match="more than one column of ages: boneage and boneage_months"):
        read(tmp_path, "1,12,13,M", header="id,boneage,boneage_months,male")


def test_unknown_header_is_shortened_and_escaped(tmp_path):
    """A terminal gets one line of it."""
    with pytest.raises(CasesError, match=r"unknown header '\\x1b\[2J,x+' …"):
        read(tmp_path, "1," + "2" * 5, header="\x1b[2J," + "x" * 1000)


def test_composed_and_decomposed_ids_are_the_same(tmp_path):
    """Both forms name the same hand."""
    with pytest.raises(CasesError, match="is already in row 2"):
        read(tmp_path, "M\u00fcller,12,M", "Mu\u0308ller,13,M")
    assert read(tmp_path, "Mu\u0308ller,12,M") == [Case("M\u00fcller", 12.0, True)]


def test_tiny_ages_are_written_without_an_exponent(tmp_path):
    """What is written can be read."""
    write_cases(tmp_path / "cases.csv", [Case("1", 1e-7), Case("2", 168.9325153)])
    assert [case.boneage_months for case in read_cases(tmp_path / "cases.csv")] == [1e-7, 168.9325153]


def test_years_to_nine_places():
    """Of a month: later digits come from the product."""
    assert in_months(0.1234567891, "years") == 1.481481469
    assert in_months(0.1234567891, "months") == 0.1234567891


def test_long_header_is_cut(tmp_path):
    """Two hundred characters are shown in full."""
    for length in (200, 201):
        with pytest.raises(CasesError) as error:
            read(tmp_path, "1", header="x" * length)
        assert f"unknown header {repr('x' * 200) + ' …' * (length > 200)}." in str(error.value)
