"""The three kinds of split: drawn as in the paper, given by a table, in folds; a group is never on both sides."""

from __future__ import annotations

import random

import numpy as np
import pytest

from bonecaffe.errors import CasesError
from bonecaffe.hands.cases import (
    Case,
    fold_split,
    folds,
    given_split,
    groups_on_both_sides,
    has_split_column,
    read_ages,
    read_cases,
    split_cases,
    write_cases,
)


def grouped(sizes):
    """Hands 00.. in groups of these sizes; a group of one is a hand without a group."""
    groups = [None if size == 1 else f"child {n}" for n, size in enumerate(sizes) for _ in range(size)]
    return [Case(f"{n:03}", 100.0, group=group) for n, group in enumerate(groups)]


def ids_of(cases):
    return [case.id for case in cases]


def groups_of(cases):
    return {case.group for case in cases} - {None}


# ---- drawn -------------------------------------------------------------------------------------------------------


def test_draw_without_groups_is_the_permutation_of_the_ids():
    """As before groups were introduced: older run folders are drawn the same again."""
    cases = [Case(str(n), 1.0) for n in range(700)]
    ordered = sorted(ids_of(cases))
    expected = [ordered[i] for i in np.random.default_rng(2018).permutation(700)]
    train, test = split_cases(cases, 400, 200, 2018)
    assert ids_of(train) == expected[:400] and ids_of(test) == expected[400:600]


def test_whole_groups_are_drawn():
    """The requested numbers, each group on one side or left out; depends only on the set of hands and the seed."""
    cases = grouped([1, 2, 3, 1, 2] * 40)
    train, test = split_cases(cases, 200, 100, 7)
    assert (len(train), len(test)) == (200, 100) and not set(train) & set(test)
    left = set(cases) - set(train) - set(test)
    for one, other in ((train, test), (train, left), (test, left)):
        assert not groups_of(one) & groups_of(other)
    assert split_cases(random.Random(1).sample(cases, len(cases)), 200, 100, 7) == (train, test)
    assert split_cases(cases, 200, 100, 8) != (train, test)


@pytest.mark.parametrize("seed", range(30))
def test_possible_numbers_of_whole_groups_are_found(seed):
    """Against every way to deal small groups: drawn when there is one, otherwise the nearest numbers are named."""
    rng = random.Random(seed)
    sizes = [rng.choice([1, 2, 3, 4, 5]) for _ in range(rng.randint(2, 6))]
    cases = grouped(sizes)
    train, test = rng.randint(1, 6), rng.randint(1, 6)
    if train + test > len(cases):
        train, test = 1, 1
    reachable = {(0, 0)}
    for size in sizes:
        reachable |= {(a + size, b) for a, b in reachable} | {(a, b + size) for a, b in reachable}
    for draw in range(5):
        if (train, test) in reachable:
            trained, tested = split_cases(cases, train, test, draw)
            assert (len(trained), len(tested)) == (train, test)
            assert not groups_of(trained) & groups_of(tested) and not set(trained) & set(tested)
        else:
            with pytest.raises(CasesError, match="cannot be drawn in whole groups") as refused:
                split_cases(cases, train, test, draw)
            distance = {abs(a - train) + abs(b - test): (a, b) for a, b in reachable if a and b}
            named = str(refused.value).partition("nearest possible numbers are --train ")[2]
            a, b = (int(word.strip(".,")) for word in named.replace("--test ", "").split()[:2])
            assert (a, b) in reachable and abs(a - train) + abs(b - test) == min(distance)


def test_first_choice_that_leaves_no_groups_for_the_test_is_given_up():
    """One pair and two single hands: 2 and 1 are possible, but not with the single hands in training."""
    cases = grouped([2, 1, 1])
    for seed in range(10):
        train, test = split_cases(cases, 2, 1, seed)
        assert ids_of(train) == ["000", "001"] and len(test) == 1


def test_pairs_make_no_odd_number():
    """The error names the groups' number and size, possible numbers, and that the column may mean something else."""
    with pytest.raises(
        CasesError, match=r"5 for training and 4 .*12 hands into 6 groups of up to 2; .*--train 4 --test 4.*rename"
    ):
        split_cases(grouped([2] * 6), 5, 4, 1)


def test_many_groups_are_drawn_in_time():
    """RSNA's number of hands, all of them in groups."""
    train, test = split_cases(grouped([2, 3] * 2500), 10_001, 2_000, 1)
    assert (len(train), len(test)) == (10_001, 2_000)


# ---- folds -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sizes", "spread"), [([1] * 23, 1), ([2] * 9 + [1] * 5, 1), ([5, 4, 1, 1, 1, 3, 2], 3)])
@pytest.mark.parametrize("count", [2, 3, 5])
def test_folds_partition_the_hands(sizes, spread, count):
    """Every hand is tested once, trained on in all other folds; sizes nearly equal; no group in two folds."""
    cases = grouped(sizes)
    tests = []
    for number in range(1, count + 1):
        train, test = fold_split(cases, number, count, 2018)
        assert sorted(ids_of([*train, *test])) == ids_of(cases)
        assert not groups_of(train) & groups_of(test)
        tests.append(test)
    assert sorted(case.id for test in tests for case in test) == ids_of(cases)
    sizes_of = [len(test) for test in tests]
    assert min(sizes_of) >= 1 and max(sizes_of) - min(sizes_of) <= spread
    assert [set(test) for test in tests] == [set(fold) for fold in folds(cases[::-1], count, 2018)]
    if spread == 1:
        assert [set(test) for test in tests] != [set(fold) for fold in folds(cases, count, 2019)]


def test_more_folds_than_hands_are_refused():
    """Or than groups; as many folds as hands test one hand each."""
    assert sorted(map(len, folds(grouped([1] * 4), 4, 1))) == [1, 1, 1, 1]
    with pytest.raises(CasesError, match="5 folds need 5 hands or more; 4 are usable"):
        folds(grouped([1] * 4), 5, 1)
    with pytest.raises(CasesError, match="3 folds need 3 groups or more; 2 are usable"):
        folds(grouped([2, 2]), 3, 1)


# ---- given -------------------------------------------------------------------------------------------------------


def test_given_split_is_followed_in_a_seeded_order():
    """Not in the order of the table, which may be that of the ages: Caffe reads as listed."""
    cases = [Case(f"{n:02}", n, split="train" if n < 20 else "test" if n < 30 else None) for n in range(40)]
    train, test = given_split(cases, 2018)
    assert set(ids_of(train)) == {f"{n:02}" for n in range(20)} and set(ids_of(test)) == {f"{n}" for n in range(20, 30)}
    assert ids_of(train) != sorted(ids_of(train))
    assert given_split(cases[::-1], 2018) == (train, test) != given_split(cases, 7)


def test_group_on_both_sides_is_found():
    """Of hands that have a side; one without is not used."""
    both = [Case("1", 9, group="a", split="train"), Case("2", 9, group="a", split="test"), Case("3", 9, group="b")]
    assert groups_on_both_sides([*both, Case("4", 9, group="b", split="test")]) == ["a"]
    with pytest.raises(CasesError, match="groups on both sides of the split: 'a'"):
        given_split(both, 1)


# ---- the columns -------------------------------------------------------------------------------------------------


def table(tmp_path, text):
    path = tmp_path / "ages.csv"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    "header",
    [
        "id,boneage,male",
        "Image ID,Bone Age (months),male",
        "Case ID,Ground truth bone age (months),Sex",
        "id,boneage_months",
    ],
)
def test_every_header_may_have_the_two_columns(tmp_path, header):
    """In upper or lower case, at any place; empty means none."""
    sex = ",M" if "male" in header or "Sex" in header else ""
    rows = [
        ("1", "Training", " child 7 "),
        ("2", "TEST", ""),
        ("3", "", "x"),
        ("4", "train", ""),
        ("5", "testing", "x"),
    ]
    text = f"Split,{header},GROUP\n" + "".join(f"{split},{id},12{sex},{group}\n" for id, split, group in rows)
    cases = read_cases(table(tmp_path, text))
    assert [case.split for case in cases] == ["train", "test", None, "train", "test"]
    assert [case.group for case in cases] == ["child 7", None, "x", None, "x"]
    assert has_split_column(tmp_path / "ages.csv")
    assert not has_split_column(table(tmp_path, f"{header}\n1,12{sex}\n"))


def test_split_that_is_neither_side_is_named_by_row(tmp_path):
    """With the valid values; a caller that ignores the column can still read the table."""
    path = table(tmp_path, "id,boneage,male,split\n1,12,M,train\n2,12,M,validation\n3,12,M,fold 1\n")
    with pytest.raises(CasesError) as refused:
        read_cases(path)
    for part in ("ages.csv: 2 problems", "row 3 (id 2): the split is 'validation'", "row 4 (id 3)", "--split drawn"):
        assert part in str(refused.value)
    assert [case.split for case in read_ages(path, sides=False).cases] == [None] * 3
    with pytest.raises(CasesError, match=r"row 2 \(id 1\): no age\. Fix or delete these rows\.$"):
        read_cases(table(tmp_path, "id,boneage,male,split\n1,,M,train\n"))


def test_empty_split_column_is_refused(tmp_path):
    """It would mean that no hand is used."""
    path = table(tmp_path, "id,boneage,male,Split\n1,12,M,\n2,12,M,\n")
    with pytest.raises(CasesError, match=r"ages\.csv: the column Split is empty in all 2 rows\. Write train or test"):
        read_cases(path)
    assert len(read_ages(path, sides=False).cases) == 2


def test_the_columns_are_written_and_read_back(tmp_path):
    """Each column where a case has it; otherwise the table is as before."""
    plain = [Case("1", 126.5), Case("2", 12.0, True)]
    several = {
        "id,boneage_months,male\n1,126.5,\n2,12,True\n": plain,
        'id,boneage_months,male,group\n1,126.5,,"a, b"\n2,12,True,\n': [Case("1", 126.5, group="a, b"), plain[1]],
        "id,boneage_months,male,split\n1,126.5,,test\n2,12,True,\n": [Case("1", 126.5, split="test"), plain[1]],
        "id,boneage_months,male,group,split\n1,126.5,,g,\n2,12,True,,train\n": [
            Case("1", 126.5, group="g"),
            Case("2", 12.0, True, split="train"),
        ],
    }
    for text, cases in several.items():
        write_cases(tmp_path / "cases.csv", iter(cases))
        assert (tmp_path / "cases.csv").read_text() == text and read_cases(tmp_path / "cases.csv") == cases
