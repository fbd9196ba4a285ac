"""Fractional ages: refused, rounded, or kept exactly, and always evaluated exactly."""

from __future__ import annotations

import pandas
import pytest
from conftest import edit_table, losses_of_test, prepare_run, tiny

from bonecaffe.caffe import lmdb
from bonecaffe.errors import PrepareError
from bonecaffe.predict import predict_run
from bonecaffe.prepare import imageset
from bonecaffe.prepare.inputs import with_split
from bonecaffe.training import train


@pytest.fixture
def fractional(own_hands):
    """Twelve hands whose ages all end in .7."""
    ages = pandas.read_csv(own_hands / "ages.csv")
    ages["boneage"] = ages["boneage"] + 0.7
    ages.to_csv(own_hands / "ages.csv", index=False)
    return own_hands


def test_convert_imageset_cuts_silently(own_run):
    """Why fractions are refused: 126.7 becomes 126, `abc` becomes 0, exit status 0."""
    names = [line.rsplit(" ", 1)[0] for line in own_run.list_file("train").read_text().splitlines()[:2]]
    (own_run.path / "cut.txt").write_text(f"{names[0]} 126.7\n{names[1]} abc\n")
    imageset.convert(own_run.images, own_run.path / "cut.txt", own_run.path / "cut", tiny().preparation)
    assert [label for _, label, _ in lmdb.records(own_run.path / "cut")] == [126, 0]


def test_fractional_ages_are_refused_with_the_remedies(fractional, tmp_path):
    """The count, three rows, two remedies."""
    with pytest.raises(PrepareError, match=r"12 of 12 .*1001.*1002.*1003.*--labels round.*--labels exact") as error:
        prepare_run(tmp_path / "run", fractional)
    assert "1004" not in str(error.value)
    edit_table(fractional / "ages.csv", boneage="100")
    with pytest.raises(PrepareError, match="11 of 12"):
        prepare_run(tmp_path / "run", fractional)


def test_rounded_ages_are_packed_and_declared(fractional, tmp_path):
    """The database contains round(age); the recipe declares it; evaluation uses the exact age."""
    recipe = with_split(tiny(), None, None, None, "round")
    run = prepare_run(tmp_path / "run", fractional, recipe)
    ages = pandas.read_csv(run.cases_file, dtype={"id": str}).set_index("id").boneage_months
    for key, label, _ in lmdb.records(run.lmdb("train")):
        exact = ages[key.split("_", 1)[1].removesuffix(".png")]
        assert label == int(exact + 0.5) and exact % 1 == pytest.approx(0.7)
    assert ("data.labels", "prepare --labels round") in [(d.field, d.reason) for d in run.recipe().departures()]


def test_exact_ages_reach_the_loss(fractional, tmp_path):
    """Through a second Data layer; `caffe test` reports the loss that the exact ages give."""
    run = prepare_run(tmp_path / "run", fractional, tiny(data__labels="exact"))
    ages = pandas.read_csv(run.cases_file, dtype={"id": str})
    assert lmdb.read_labels(run.labels_lmdb("train")) == pytest.approx(ages.boneage_months[:8].tolist())
    assert train.train(run).state == "finished"
    predict_run(run)
    table = pandas.read_csv(run.predictions("test"))
    assert (table.boneage_months % 1).to_list() == pytest.approx([0.7] * 4)
    exact, reported = losses_of_test(run)
    assert reported == pytest.approx(exact, rel=5e-5)
    rounded = float(((table.predicted_months - (table.boneage_months + 0.3)) ** 2).mean() / 2)
    assert abs(rounded - exact) > 2e-4 * exact  # so that the comparison could have failed


def test_going_back_removes_the_label_database(fractional, tmp_path):
    """From exact to rounded: no unused database is left."""
    run = prepare_run(tmp_path / "run", fractional, tiny(data__labels="exact"))
    prepare_run(run.path, fractional, tiny(data__labels="round"))
    assert not run.labels_lmdb("train").exists()
