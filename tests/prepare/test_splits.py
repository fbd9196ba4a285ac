"""Splits in practice: official tables in two folders, a column, groups, folds; declared, checked, rebuilt."""

from __future__ import annotations

import os

import pandas
import pytest
from click.testing import CliRunner
from conftest import prepare_run, tiny

from bonecaffe.cli import main
from bonecaffe.errors import CasesError, ImageError, RecipeError, RunError
from bonecaffe.hands.cases import read_cases
from bonecaffe.prepare import prepare
from bonecaffe.prepare.inputs import giver, with_split
from bonecaffe.recipe import Recipe, fold_of
from bonecaffe.run import SPLITS, RunDir
from bonecaffe.studies import verify


def change(path, **columns):
    """Give a table other or more columns."""
    table = pandas.read_csv(path, dtype=str, keep_default_na=False)
    for name, cells in columns.items():
        table[name] = cells
    table.to_csv(path, index=False)


def hands_of(run):
    return {split: set(run.read().prepare.split[split]) for split in SPLITS}


def reasons(recipe):
    return {departure.field: departure.reason for departure in recipe.departures()}


def command(run, data, *options, images=("images",), code=0):
    (data / "tiny.yaml").write_text(tiny().to_yaml())
    places = [f"--images={data / folder}" for folder in images]
    more = [f"--ages={data / 'ages.csv'}", f"--points={data / 'points.csv'}"]
    recipe = [] if (run / "recipe.yaml").is_file() else [f"--recipe={data / 'tiny.yaml'}"]
    done = CliRunner().invoke(main, ["prepare", str(run), *places, *more, *recipe, *map(str, options)])
    assert done.exit_code == code, done.output
    return " ".join(done.output.split())


@pytest.fixture
def official(own_hands):
    """As RSNA's: a table and a folder for training (9 hands), another table and folder for test (3)."""
    table = pandas.read_csv(own_hands / "ages.csv", dtype=str)
    test = table.iloc[2::4]
    names = {"id": "Case ID", "boneage": "Ground truth bone age (months)", "male": "Sex"}
    test.assign(male=test["male"].map({"True": "M", "False": "F"})).rename(columns=names).to_csv(
        own_hands / "test.csv", index=False
    )
    table.drop(test.index).to_csv(own_hands / "ages.csv", index=False)
    (own_hands / "test images").mkdir()
    for case_id in test["id"]:
        os.rename(own_hands / "images" / f"{case_id}.png", own_hands / "test images" / f"{case_id}.png")
    return own_hands, set(table.drop(test.index)["id"]), set(test["id"])


TWO = ("images", "test images")


# ---- two tables ------------------------------------------------------------------------------------------------------


def test_official_tables_in_two_folders(official, tmp_path):
    """Each hand on its table's side; a declared departure, printed, recorded, verified; a second call does nothing."""
    data, train, test = official
    run = RunDir(tmp_path / "run")
    option = f"--test-ages={data / 'test.csv'}"
    output = command(run.path, data, option, images=TWO)
    assert "9 hands for training, 3 for test" in output
    assert "the split is given, not drawn as in the paper (--test-ages test.csv) " in output + " "
    assert hands_of(run) == {"train": train, "test": test}
    recipe = run.recipe()
    assert (recipe.data.split, recipe.data.train_cases, recipe.data.test_cases) == ("given", 9, 3)
    assert recipe.solver.test_iter * recipe.network.test_batch == 3
    assert reasons(recipe)["data.split"] == "--test-ages test.csv" and "given" in reasons(recipe)["data.train_cases"]
    record = run.read().prepare
    assert set(record.sources) == {"ages", "test_ages", "points"} and record.images_folder == "images, test images"
    assert {case.id: case.split for case in read_cases(run.cases_file)} == {
        **dict.fromkeys(train, "train"),
        **dict.fromkeys(test, "test"),
    }
    assert "nothing changed; already prepared" in command(run.path, data, option, images=TWO)
    assert run.read().prepare == record
    folders, tables = [data / name for name in TWO], (data / "ages.csv", data / "points.csv")
    links = verify.verify(run, folders, *tables, test_ages=data / "test.csv")
    checked = {link.name: link.state for link in links if link.state != verify.UNCHECKED}
    assert {"ages", "test-ages", "points", "images", "split"} <= set(checked)
    assert set(checked.values()) == {verify.HOLDS}
    places = [f"--images={folder}" for folder in folders]
    done = CliRunner().invoke(main, ["verify", str(run.path), *places, option, "--json"])
    assert done.exit_code == 0, done.output
    change(data / "test.csv", note="edited")
    broken = verify.first_broken(verify.verify(run, folders, *tables, test_ages=data / "test.csv"))
    assert broken is not None and broken.name == "test-ages"
    assert "test.csv: changed, but not for the hands of this run" in command(run.path, data, option, images=TWO)
    assert verify.first_broken(verify.verify(run, folders, *tables, test_ages=data / "test.csv")) is None


def test_one_table_in_place_of_two(official, tmp_path):
    """The same hands on the same sides by a column: nothing is rebuilt; record and recipe name the current table."""
    data, _, test = official
    run = RunDir(tmp_path / "run")
    command(run.path, data, f"--test-ages={data / 'test.csv'}", images=TWO)
    tables = [pandas.read_csv(data / name, dtype=str) for name in ("ages.csv", "test.csv")]
    both = pandas.concat([tables[0], tables[1].set_axis(["id", "boneage", "male"], axis=1)], ignore_index=True)
    both.assign(split=["test" if case_id in test else "train" for case_id in both["id"]]).to_csv(
        data / "ages.csv", index=False
    )
    output = command(run.path, data, images=TWO)
    assert "nothing changed; already prepared" in output and "ages.csv and test.csv: changed, but not for" in output
    assert set(run.read().prepare.sources) == {"ages", "points"}
    assert reasons(run.recipe())["data.split"] == "the column split of ages.csv"


def test_verify_of_one_table_takes_no_second(prepared, hands):
    """A second table would have no effect."""
    with pytest.raises(RunError, match="was prepared without --test-ages"):
        verify.verify(prepared, test_ages=hands / "ages.csv")


def test_hands_in_both_tables_are_refused(official, tmp_path):
    """With both rows; nothing is left behind."""
    data, train, _ = official
    duplicate = sorted(train)[3]
    change(data / "test.csv", **{"Case ID": [duplicate, *pandas.read_csv(data / "test.csv", dtype=str)["Case ID"][1:]]})
    output = command(tmp_path / "run", data, f"--test-ages={data / 'test.csv'}", images=TWO, code=1)
    row = list(pandas.read_csv(data / "ages.csv", dtype=str)["id"]).index(duplicate) + 2
    assert f"id {duplicate}: row {row} of {data / 'ages.csv'} and row 2 of {data / 'test.csv'}. Take each out" in output
    assert not (tmp_path / "run").exists()


def test_id_in_two_folders_is_refused(official, tmp_path):
    """Naming both paths. The same folder twice, or one inside another, is accepted."""
    data, train, test = official
    duplicate = sorted(train)[0]
    os.link(data / "images" / f"{duplicate}.png", data / "test images" / f"{duplicate}.png")
    with pytest.raises(ImageError, match="have the same id") as refused:
        prepare_run(tmp_path / "run", data, test_ages=data / "test.csv", images=TWO)
    assert all(str(data / folder / f"{duplicate}.png") in str(refused.value) for folder in TWO)
    os.remove(data / "test images" / f"{duplicate}.png")
    os.rename(data / "test images", data / "images" / "test")
    run = prepare_run(tmp_path / "run", data, test_ages=data / "test.csv", images=("images", "images/test", "images"))
    assert hands_of(run) == {"train": train, "test": test}


def test_unit_of_each_table_is_checked(official, tmp_path):
    """Only the test ages in years: refused, naming their table."""
    data, *_ = official
    name = "Ground truth bone age (months)"
    change(data / "test.csv", **{name: ["3", "5", "11.5"]})
    assert "test.csv: the ages are 3 to 11.5" in command(
        tmp_path / "run", data, f"--test-ages={data / 'test.csv'}", images=TWO, code=1
    )


def test_workbook_as_test_table(official, tmp_path):
    """As RSNA's test table is distributed: named, with the remedy."""
    data, *_ = official
    (data / "test.xlsx").write_bytes(b"PK\x03\x04" + bytes(26) + b"xl/workbook.xml")
    output = command(tmp_path / "run", data, f"--test-ages={data / 'test.xlsx'}", images=TWO, code=1)
    assert "test.xlsx: an Excel workbook (.xlsx), not CSV" in output and "CSV UTF-8" in output


# ---- a column --------------------------------------------------------------------------------------------------------

COLUMN = ["train"] * 7 + ["Test"] * 3 + ["", "training"]


def test_column_is_followed_and_declared(own_hands, tmp_path):
    """An empty cell leaves the hand out; a model is not orphaned by another split."""
    change(own_hands / "ages.csv", Split=COLUMN)
    ids = list(pandas.read_csv(own_hands / "ages.csv", dtype=str)["id"])
    run = RunDir(tmp_path / "run")
    output = command(run.path, own_hands)
    assert "8 hands for training, 3 for test, 1 without a split" in output
    assert "the split is given, not drawn as in the paper (the column split of ages.csv); --split drawn" in output
    assert hands_of(run) == {"train": {*ids[:7], ids[11]}, "test": set(ids[7:10])}
    assert run.read().prepare.left_out == {"without a split": 1}
    assert "nothing changed" in command(run.path, own_hands)
    run.snapshots.mkdir()
    (run.snapshots / "SNAPSHOT_iter_4.caffemodel").touch()
    (run.snapshots / "SNAPSHOT_iter_4.solverstate").touch()
    change(own_hands / "ages.csv", Split=["test", *COLUMN[1:-1], "test"])
    refused = command(run.path, own_hands, code=1)
    assert "holds a trained model" in refused and "data.test_cases: 3 before, 5 now" in refused
    change(own_hands / "ages.csv", Split=["test", *COLUMN[1:7], "train", *COLUMN[8:]])
    assert "sides of the split" in command(run.path, own_hands, code=1)
    assert "data.split: given before, drawn now" in command(run.path, own_hands, "--split=drawn", code=1)


def test_column_can_be_ignored_for_good(own_hands, prepared, tmp_path):
    """--split drawn draws as without the column, stays in the run's recipe, and is no departure."""
    change(own_hands / "ages.csv", split=["1", "2", "3"] * 4)
    run = RunDir(tmp_path / "run")
    refused = command(run.path, own_hands, code=1)
    assert "the split is '1'" in refused and "--split drawn ignores the column" in refused
    command(run.path, own_hands, "--split", "drawn")
    assert hands_of(run) == hands_of(prepared) and "data.split" not in reasons(run.recipe())
    assert "nothing changed" in command(run.path, own_hands)
    assert run.read().prepare.inputs == prepared.read().prepare.inputs
    assert "split" not in run.cases_file.read_text().splitlines()[0] and run.read().prepare.groups is None


@pytest.mark.parametrize("options", [["--train", "4"], ["--test=2", "--seed=3"], ["--seed", "1"]])
def test_numbers_are_refused_where_the_split_is_given(own_hands, tmp_path, options):
    """With one error, which names the options."""
    change(own_hands / "ages.csv", split=COLUMN)
    output = command(tmp_path / "run", own_hands, *options, code=1)
    for option in (word.split("=")[0] for word in options if word.startswith("--")):
        assert option in output
    assert "the split is given (the column split of ages.csv)" in output and "--split drawn" in output
    for_repeat = ["repeat", str(own_hands / "tiny.yaml"), f"--out={tmp_path / 'out'}", "--train=4"]
    places = [f"--{name}={own_hands / file}" for name, file in (("images", "images"), ("ages", "ages.csv"))]
    done = CliRunner().invoke(main, [*for_repeat, *places, f"--points={own_hands / 'points.csv'}"])
    assert done.exit_code == 1 and "--train: not possible, because the split is given" in done.output


def test_side_without_a_marked_hand_is_refused(own_hands, tmp_path):
    """Named, with its remedy."""
    change(own_hands / "ages.csv", split=["train"] * 11 + [""])
    output = command(tmp_path / "run", own_hands, code=1)
    assert "ages.csv: the given split (the column split of ages.csv) has no marked hand for test" in output


def test_given_split_without_a_table_is_refused(own_hands, tmp_path):
    """A recipe with a given split needs a table for it; with two tables, the split cannot be drawn."""
    output = command(tmp_path / "run", own_hands, "--split=given", code=1)
    assert "ages.csv: no column split, but the recipe's data.split is given (prepare --split given)" in output
    for split in ("drawn", "fold 1 of 2"):
        output = command(
            tmp_path / "run", own_hands, f"--split={split}", f"--test-ages={own_hands / 'ages.csv'}", code=1
        )
        assert f"puts each hand on a side, but the recipe's data.split is {split}" in output
    assert "write drawn, given, or a fold such as fold 1 of 5" in command(
        tmp_path / "run", own_hands, "--split=half", code=1
    )


# ---- groups ----------------------------------------------------------------------------------------------------------

PAIRS = ["a", "a", "b", "b", "c", "c", "d", "d", "e", "e", "", ""]


def test_groups_are_drawn_whole(own_hands, tmp_path):
    """Stored in the run, printed; numbers that whole groups cannot reach are refused with the nearest possible ones."""
    change(own_hands / "ages.csv", Group=PAIRS)
    run = RunDir(tmp_path / "run")
    assert "10 hands are in 5 groups, each on one side of the split" in command(run.path, own_hands)
    assert run.read().prepare.groups == 5
    cases = {case.id: case.group for case in read_cases(run.cases_file)}
    sides = {split: {cases[case_id] for case_id in hands} - {None} for split, hands in hands_of(run).items()}
    assert sides["train"] and sides["test"] and not sides["train"] & sides["test"]
    change(own_hands / "ages.csv", Group=[*PAIRS[:10], "f", "f"])
    refused = command(tmp_path / "other", own_hands, "--train=7", "--test=4", code=1)
    assert "ages.csv: 7 for training and 4 for test cannot be drawn in whole groups" in refused
    assert "the nearest possible numbers are --train 6 --test 4" in refused or "--train 8 --test 4" in refused


def test_group_on_both_sides_is_refused(own_hands, official, tmp_path):
    """By its name, with file, row and id of its hands; a hand that is not used does not count."""
    data, *_ = official
    ids = {name: list(pandas.read_csv(data / name, dtype=str).iloc[:, 0]) for name in ("ages.csv", "test.csv")}
    change(data / "ages.csv", group=["child 7", *[""] * 8])
    change(data / "test.csv", group=["", "child 7", "x"])
    option = f"--test-ages={data / 'test.csv'}"
    refused = command(tmp_path / "run", data, option, images=TWO, code=1)
    for part in (
        "group 'child 7' is on both sides",
        f"training: row 2 of {data / 'ages.csv'} (id {ids['ages.csv'][0]})",
        f"test: row 3 of {data / 'test.csv'} (id {ids['test.csv'][1]})",
        "Put each group on one side",
    ):
        assert part in refused
    points = pandas.read_csv(data / "points.csv", dtype=str)
    points[points["id"] != ids["ages.csv"][0]].to_csv(data / "points.csv", index=False)
    assert "8 hands for training, 3 for test, 1 without points" in command(tmp_path / "run", data, option, images=TWO)


# ---- folds -----------------------------------------------------------------------------------------------------------


def test_folds_are_prepared(own_hands, tmp_path):
    """Each hand tested once over the folds, groups whole, the column split ignored; the counts are declared."""
    change(own_hands / "ages.csv", split=COLUMN, group=PAIRS)
    tested = []
    for number in (1, 2, 3, 4, 5):
        recipe = tiny(data__split=f"fold {number} of 5")
        run = prepare_run(tmp_path / str(number), own_hands, recipe)
        hands = hands_of(run)
        assert len(hands["train"]) + len(hands["test"]) == 12 and run.read().prepare.left_out == {}
        assert (run.recipe().data.train_cases, run.recipe().data.test_cases) == tuple(map(len, hands.values()))
        assert f"fold {number} of 5" in reasons(run.recipe())["data.train_cases"]
        assert run.recipe().solver.test_iter * run.recipe().network.test_batch == len(hands["test"])
        tested += sorted(hands["test"])
    assert sorted(tested) == sorted(pandas.read_csv(own_hands / "ages.csv", dtype=str)["id"])
    assert prepare_run(tmp_path / "5", own_hands, recipe).read().prepare.inputs == run.read().prepare.inputs
    with pytest.raises(CasesError, match="26 or more are needed for fold 1 of 13, two per fold"):
        prepare_run(tmp_path / "13", own_hands, tiny(data__split="fold 1 of 13"))
    change(own_hands / "ages.csv", group=["a"] * 8 + [""] * 4)
    with pytest.raises(CasesError, match=r"ages\.csv: 6 folds need 6 groups or more; 5 are usable"):
        prepare_run(tmp_path / "6", own_hands, tiny(data__split="fold 1 of 6"))


def test_fold_by_command(own_hands, tmp_path):
    """The seed decides the folds; the numbers follow from them."""
    run = RunDir(tmp_path / "run")
    output = command(run.path, own_hands, "--split", "fold 2 of 3", "--seed=5")
    assert "8 hands for training, 4 for test" in output and "the split is fold 2 of 3" in output
    assert run.recipe().data.split_seed == 5
    refused = command(run.path, own_hands, "--train=3", code=1)
    assert "--train: not possible, because the split is fold 2 of 3" in refused


@pytest.mark.parametrize(
    "split",
    [
        "fold 0 of 5",
        "fold 6 of 5",
        "fold 1 of 1",
        "fold 1 of 05",
        "Drawn",
        "fold 1/5",
        "",
        "fold 1 of 5 ",
        "fold ١ of 5",
    ],
)
def test_unknown_split_is_refused(split):
    """The error names its value and the known splits."""
    with pytest.raises(
        RecipeError, match=r"data\.split: .* is not a split; write drawn, given, or a fold such as fold 1 of 5"
    ):
        tiny(data__split=split)


def test_fold_as_text():
    """Written and read back."""
    assert fold_of("fold 2 of 10") == (2, 10) and str(fold_of("fold 2 of 10")) == "fold 2 of 10"
    assert fold_of("drawn") is None is fold_of("given")
    assert Recipe.load("paper").data.split == "drawn"


def test_recipe_that_asks_for_a_draw_is_followed(own_hands, tmp_path):
    """With a reason, as in a user's own file; the paper's recipe uses the table's split."""
    change(own_hands / "ages.csv", split=COLUMN)
    asked = tiny().with_values({"data.split": "drawn"}, "the column is another study's", meant=True)
    assert giver(own_hands / "ages.csv") == "the column split of ages.csv"
    assert with_split(asked, given_by="x").data.split == "drawn"
    assert with_split(tiny(), given_by="x").data.split == "given"
    done = prepare.prepare(
        RunDir(tmp_path / "run"), own_hands / "images", own_hands / "ages.csv", own_hands / "points.csv", asked
    )
    assert done.record.records == {"train": 8, "test": 4} and done.remarks == []
