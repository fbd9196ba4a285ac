"""Ids, ages and images on their way into a run: odd ids work, near misses, years and duplicates are named."""

from __future__ import annotations

import json
import os
import shutil
import unicodedata

import cv2
import pandas
import pytest
from click.testing import CliRunner
from conftest import REPOSITORY, prepare_run, tiny

from bonecaffe.caffe import lmdb
from bonecaffe.cli import main
from bonecaffe.errors import BonecaffeError, CasesError, ImageError, PrepareError
from bonecaffe.evaluation.evaluate import predict_and_evaluate
from bonecaffe.prepare import prepare
from bonecaffe.prepare.duplicates import groups, refuse_leaks, remarks
from bonecaffe.recipe import Recipe
from bonecaffe.run import SPLITS, RunDir
from bonecaffe.studies import repeat
from bonecaffe.studies.repetition import Repetition
from bonecaffe.studies.verify import HOLDS, verify
from bonecaffe.training import train

ODD = [
    *(
        "hand 12 7",
        'a,b "c"',
        "100%#é",
        "-x  5",
        "7 8 9",
        "x 12",
        "Mu\u0308ller 3",
        "左手\u30001",
        "a.b.png 4",
        "'",
        "#1",
    ),
    "~",
]


def renamed(data, names):
    """Give the first hands of a data folder other ids, in tables and files."""
    tables = {
        name: pandas.read_csv(data / name, dtype=str, keep_default_na=False) for name in ("ages.csv", "points.csv")
    }
    for old, new in zip(list(tables["ages.csv"]["id"]), names, strict=False):
        for table in tables.values():
            table.loc[table["id"] == old, "id"] = new
        os.rename(data / "images" / f"{old}.png", data / "images" / f"{unicodedata.normalize('NFC', new)}.png")
    for name, table in tables.items():
        table.to_csv(data / name, index=False)


def test_odd_ids_work_to_the_end(own_hands, tmp_path):
    """Spaces, quotes, commas, a dash in front, decomposed letters: prepared, trained, evaluated, and verified."""
    renamed(own_hands, ODD)
    run = prepare_run(tmp_path / "run", own_hands)
    listed = {line.rsplit(" ", 1)[0] for split in SPLITS for line in run.list_file(split).read_text().splitlines()}
    assert listed == {f"{unicodedata.normalize('NFC', name)}.png" for name in ODD}
    assert {key[9:] for split in SPLITS for key, _, _ in lmdb.records(run.lmdb(split))} == listed
    train.train(run)
    predict_and_evaluate(run)
    links = verify(run, own_hands / "images", own_hands / "ages.csv", own_hands / "points.csv")
    assert {link.state for link in links if link.name != "every snapshot's metrics"} == {HOLDS}
    assert prepare_run(run.path, own_hands).read().train is not None  # nothing changed


# ---- near misses -----------------------------------------------------------------------------------------------------


def edit(path, change):
    table = pandas.read_csv(path, dtype=str, keep_default_na=False)
    change(table)
    table.to_csv(path, index=False)


def test_near_misses_of_ages_and_points_are_named(own_hands, tmp_path):
    """All ids changed by a spreadsheet: refused, with the ids that were meant. One of them: left out, with a remark."""
    ages = own_hands / "ages.csv"
    edit(ages, lambda table: table.__setitem__("id", table["id"] + ".0"))
    with pytest.raises(
        CasesError,
        match=r"0 are marked in .*first without points: 1001.0 \(did you mean 1001\?\)\. .*Write the ids the same way",
    ):
        prepare_run(tmp_path / "run", own_hands)
    edit(ages, lambda table: table.__setitem__("id", [*table["id"][:1], *table["id"][1:].str.removesuffix(".0")]))
    done = prepare.prepare(
        RunDir(tmp_path / "run"), own_hands / "images", ages, own_hands / "points.csv", tiny(data__train_cases=7)
    )
    assert done.record.left_out == {"without points": 1, "without an age": 1}
    assert len(done.remarks) == 1 and "1001.0 (did you mean 1001?)" in done.remarks[0]


def test_near_misses_of_images_are_named(own_hands, tmp_path):
    """The image's name has leading zeros, or another case of letters."""
    os.rename(own_hands / "images" / "1003.png", own_hands / "images" / "001003.png")
    with pytest.raises(ImageError, match=r"no image for 1 marked case: 1003 \(did you mean 001003\?\)"):
        prepare_run(tmp_path / "run", own_hands)


# ---- ages ------------------------------------------------------------------------------------------------------------


def in_years(data):
    edit(data / "ages.csv", lambda table: table.__setitem__("boneage", (table["boneage"].astype(float) / 12).map(repr)))


def prepare_by_command(run, data, *options):
    (data / "recipe.yaml").write_text(tiny().to_yaml())
    places = [f"--{name}={data / file}" for name, file in (("images", "images"), ("ages", "ages.csv"))]
    more = [f"--points={data / 'points.csv'}", f"--recipe={data / 'recipe.yaml'}"]
    return CliRunner().invoke(main, ["prepare", str(run), *places, *more, *options])


def test_ages_that_may_be_years_are_refused(own_hands, hands, tmp_path):
    """Refused with the remedy, nothing left; given as years, the run is that of the same ages in months."""
    months = prepare_by_command(tmp_path / "months", hands)
    assert months.exit_code == 0
    low, high = pandas.read_csv(hands / "ages.csv")["boneage"].agg(["min", "max"])
    assert f"ages.csv: ages {low:g} to {high:g} months\n" in months.output
    in_years(own_hands)
    refused = prepare_by_command(tmp_path / "years", own_hands)
    assert refused.exit_code == 1 and not (tmp_path / "years").exists()
    for part in ("ages.csv", "--ages-in-years", "--ages-in-months"):
        assert part in refused.output
    years = prepare_by_command(tmp_path / "years", own_hands, "--ages-in-years")
    assert years.exit_code == 0 and f"ages {low:g} to {high:g} months (the table has years)" in years.output
    run = RunDir(tmp_path / "years")
    assert run.cases_file.read_bytes() == RunDir(tmp_path / "months").cases_file.read_bytes()
    assert run.read().prepare.ages_in == "years" and RunDir(tmp_path / "months").read().prepare.ages_in is None
    assert "nothing changed" in prepare_by_command(run.path, own_hands, "--ages-in-years").output


def test_ages_of_babies_are_months_when_stated(own_hands, tmp_path):
    """No age is above 20 months, and that is meant."""
    edit(own_hands / "ages.csv", lambda table: table.__setitem__("boneage", [str(age) for age in range(9, 21)]))
    assert prepare_by_command(tmp_path / "run", own_hands).exit_code == 1
    done = prepare_by_command(tmp_path / "run", own_hands, "--ages-in-months")
    assert done.exit_code == 0 and "ages 9 to 20 months\n" in done.output
    edit(own_hands / "ages.csv", lambda table: table.__setitem__("boneage", ["21", *table["boneage"][1:]]))
    assert prepare_by_command(tmp_path / "run", own_hands).exit_code == 0


def test_make_passes_the_unit_on():
    """Both variables reach the command; 0 counts as not given."""
    import subprocess

    def called(*variables):
        command = ["make", "--dry-run", "--always-make", "--old-file=setup", "prepare", *variables]
        return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout

    assert "--ages-in-years" in called("AGES_IN_YEARS=1") and "--ages-in-months" in called("AGES_IN_MONTHS=1")
    assert "--ages-in" not in called() and "--ages-in" not in called("AGES_IN_YEARS=0")


# ---- duplicates ------------------------------------------------------------------------------------------------------


def copied(data, source, target, encoder=None):
    """Make hand ``target`` a copy of ``source``: image, with other bytes where an encoder is given, and points."""
    images = data / "images"
    if encoder is None:
        (images / f"{target}.png").write_bytes((images / f"{source}.png").read_bytes())
    else:
        encoder(images / f"{source}.png", images / f"{target}.png")

    def change(table):
        row = table.index[table["id"] == source][0]
        table.loc[table["id"] == target, table.columns[1:]] = table.loc[row, table.columns[1:]].tolist()

    edit(data / "points.csv", change)


def recompressed(source, target):
    """The same pixels in other bytes."""
    assert cv2.imwrite(str(target), cv2.imread(str(source), cv2.IMREAD_UNCHANGED), [cv2.IMWRITE_PNG_COMPRESSION, 9])
    assert target.read_bytes() != source.read_bytes()


@pytest.mark.parametrize("encoder", [None, recompressed])
def test_image_on_both_sides_of_the_split_is_refused(own_hands, prepared, tmp_path, encoder):
    """By name, and nothing is left; different points for the copy do not hide it."""
    split = prepared.read().prepare.split
    copied(own_hands, split["train"][0], split["test"][0], encoder)
    edit(
        own_hands / "points.csv", lambda table: table.loc.__setitem__((table["id"] == split["test"][0], "ulna_x"), "90")
    )
    names = rf"{split['train'][0]} \(training\) and {split['test'][0]} \(test\) are the same image"
    with pytest.raises(PrepareError, match=rf"{names}.*Keep one id of each image in .*ages\.csv"):
        prepare_run(tmp_path / "run", own_hands)
    assert not (tmp_path / "run").exists()


def test_leak_that_comes_later_leaves_the_run_as_it_was(own_hands, tmp_path):
    """A prepared run whose test image is replaced by one of its training images."""
    run = prepare_run(tmp_path / "run", own_hands)
    before = run.manifest_file.read_bytes()
    split = run.read().prepare.split
    copied(own_hands, split["train"][1], split["test"][1])
    with pytest.raises(PrepareError, match="are the same image"):
        prepare_run(run.path, own_hands)
    assert run.manifest_file.read_bytes() == before and not run.work.exists()


def test_images_twice_on_one_side_are_named(own_hands, prepared, tmp_path):
    """Still prepared, with a remark each time."""
    first, second = prepared.read().prepare.split["train"][:2]
    copied(own_hands, first, second, recompressed)
    for _ in range(2):
        done = prepare_by_command(tmp_path / "run", own_hands)
        assert done.exit_code == 0
        assert f"1 image has more than one id: {first} = {second}\n" in done.output
    record = RunDir(tmp_path / "run").read().prepare
    assert record.cases[first].image_sha256 == record.cases[second].image_sha256
    assert record.cases[first].source_sha256 != record.cases[second].source_sha256


def test_groups_of_duplicates():
    """Three ids of one image are one group; ids without a hash are in none."""
    assert groups({"a": "1", "b": "2", "c": "1", "d": "2", "e": "1", "f": "", "g": ""}) == [("a", "c", "e"), ("b", "d")]
    assert remarks({"a": "1", "b": "2"}) == []
    assert remarks({"a": "1", "b": "1", "c": "2", "d": "2"}) == ["2 images have more than one id: a = b, c = d"]


def test_leak_rule():
    """Three ids of one image, two of them in training, are one problem; several ids on one side are none."""
    refuse_leaks({"a": "1", "b": "1", "c": "2", "d": "2", "e": ""}, ["a", "b", "e"], "ages.csv")
    with pytest.raises(PrepareError) as error:
        refuse_leaks({"a": "1", "b": "1", "c": "1", "d": "2"}, ["a", "b", "d"], "ages.csv")
    assert str(error.value) == (
        "split: a (training) and b (training) and c (test) are the same image. A test on training images is not a "
        "test. Keep one id of each image in ages.csv."
    )


def test_groups_that_are_named():
    """Five, then an ellipsis."""
    hashes = {f"{letter}{copy}": letter for letter in "abcdef" for copy in (1, 2)}
    assert remarks(hashes)[0].endswith("a1 = a2, b1 = b2, c1 = c2, d1 = d2, e1 = e2, …")
    assert remarks({name: letter for name, letter in hashes.items() if letter != "f"})[0].endswith("e1 = e2")
    assert remarks({"a": "1", "b": "1"}) == ["1 image has more than one id: a = b"]


def test_repeat_knows_the_unit(own_hands, tmp_path):
    """Each seed's run is prepared from years; the unit is part of what is repeated."""
    in_years(own_hands)
    places = [own_hands / name for name in ("images", "ages.csv", "points.csv")]
    months, years = (
        Repetition(tmp_path / "out", tiny().to_yaml(), *places, cpu=True, ages_in=unit) for unit in (None, "years")
    )
    assert months.key() != years.key()
    with pytest.raises(CasesError, match="--ages-in-years"):
        repeat.one(months, 1)
    assert repeat.one(years, 1).state == "finished"
    assert RunDir(tmp_path / "out" / "seed-1").read().prepare.ages_in == "years"


# ---- phantoms and images ---------------------------------------------------------------------------------------------


def test_phantoms_are_known_by_their_list(hands, tmp_path):
    """All, some or none of the hands: by the hash of each file, not by the recipe's name or the folder's."""
    data = tmp_path / "demo-data"
    shutil.copytree(hands, data)
    assert prepare_run(tmp_path / "all", data).read().prepare.phantoms == 12
    path = data / "phantoms.json"
    listed = json.loads(path.read_text())
    path.write_text(json.dumps({**listed, "images": dict(list(listed["images"].items())[:5])}))
    assert prepare_run(tmp_path / "some", data).read().prepare.phantoms == 5
    path.unlink()
    run = prepare_run(tmp_path / "none", data)
    assert run.read().prepare.phantoms == 0
    path.write_text(json.dumps(listed))  # a list that is added later is used
    assert prepare_run(run.path, data).read().prepare.phantoms == 12


@pytest.mark.parametrize("text", ["[]", '{"images": [1]}', '{"images": {"1": 2}}', "{"])
def test_an_invalid_list_of_phantoms_is_refused(hands, tmp_path, text):
    """Named, with the remedy; nothing is prepared."""
    data = tmp_path / "data"
    shutil.copytree(hands, data)
    (data / "phantoms.json").write_text(text)
    with pytest.raises(BonecaffeError, match=r"phantoms\.json: not "):
        prepare_run(tmp_path / "run", data)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", Recipe.names())
def test_no_recipe_claims_what_the_hands_are(name):
    """A recipe may be used on anything; 0.1's demo mentioned phantoms three times, even for real hands."""
    recipe = Recipe.load(name)
    own = [departure.reason for departure in recipe.departures()] + [choice.reason for choice in recipe.choices()]
    assert not [text for text in (recipe.name, recipe.description, *own) if "phantom" in text.lower()]
