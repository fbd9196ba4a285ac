"""The CLAIM checklist: every item has its place, what it tells is on record, and what is not is left to the authors."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace

import pandas
import pytest
from click.testing import CliRunner
from conftest import prepare_run, tiny

from bonecaffe.cli import main
from bonecaffe.errors import EvaluateError, RunError
from bonecaffe.evaluation import claim, evaluate
from bonecaffe.evaluation.claim import SECTIONS, check_target, checklist, write
from bonecaffe.evaluation.claim_answers import AUTHORS, answers_of, plain
from bonecaffe.evaluation.claim_facts import facts_of
from bonecaffe.predict import Predictor, predict_run
from bonecaffe.records import GivenWeights, State
from bonecaffe.run import RunDir

ONLY_AUTHORS = {2, 3, 4, 5, 6, 11, 13, 15, 16, 18, 31, 33, 34, 41, 44}
"""Items about which no record can contain anything."""


@pytest.fixture(scope="module")
def evaluated(trained, tmp_path_factory) -> RunDir:
    """A run that is evaluated; not to be changed."""
    import shutil

    run = RunDir(shutil.copytree(trained.path, tmp_path_factory.mktemp("claim") / "run"))
    predict_run(run)
    evaluate.evaluate(run)
    return run


@pytest.fixture
def own(evaluated, tmp_path) -> RunDir:
    """The same, to be changed by one test."""
    import shutil

    return RunDir(shutil.copytree(evaluated.path, tmp_path / "own"))


def rows(text: str) -> dict[int, list[str]]:
    """The cells of each item's row."""
    found = (re.split(r"(?<!\\)\|", line)[1:-1] for line in text.splitlines() if re.match(r"\| \d+ \|", line))
    return {int(cells[0]): [cell.strip() for cell in cells[1:]] for cells in found}


def test_every_item_has_its_number_section_and_topic():
    """CLAIM 2024: 44 items; which section holds which, and a word of each topic, by the published numbers."""
    assert {section: (min(topics), max(topics)) for section, topics in SECTIONS.items()} == {
        "Title and abstract": (1, 2),
        "Introduction": (3, 4),
        "Methods: study design": (5, 6),
        "Methods: data": (7, 13),
        "Methods: reference standard": (14, 18),
        "Methods: data partitions": (19, 20),
        "Methods: testing data": (21, 21),
        "Methods: model": (22, 24),
        "Methods: training": (25, 27),
        "Methods: evaluation": (28, 34),
        "Results: data": (35, 36),
        "Results: model performance": (37, 39),
        "Discussion": (40, 41),
        "Other information": (42, 44),
    }
    topics = {number: topic for section in SECTIONS.values() for number, topic in section.items()}
    assert list(topics) == list(range(1, 45))
    words = [
        "AI",
        "abstract",
        "background",
        "aims",
        "retrospective",
        "goal",
        "come from",
        "exclusion",
        "preprocess",
        "subsets",
        "de-identif",
        "missing",
        "acquired",
        "reference standard",
        "why",
        "annotations",
        "test set",
        "readers",
        "assigned",
        "disjoint",
        "sample size",
        "model",
        "software",
        "initial",
        "trained",
        "selected",
        "ensemble",
        "performance",
        "uncertainty",
        "sensitivity",
        "explain",
        "internal",
        "external",
        "trial",
        "included",
        "demographic",
        "uncertainty",
        "diagnostic",
        "failure",
        "limitation",
        "practice",
        "protocol",
        "availability",
        "funding",
    ]
    for (number, topic), word in zip(topics.items(), words, strict=True):
        assert word.lower() in topic.lower(), number


def test_a_prepared_run_names_what_is_missing(own_run, tmp_path):
    """Before a training: what prepare recorded, the plan, and which command gives the rest."""
    found = rows(checklist(facts_of(own_run)))
    assert list(found) == list(range(1, 45)) and all(len(cells) == 3 for cells in found.values())
    for number in (24, 25, 26, 28, 29, 32, 37, 38, 39):
        assert "not yet: run `bonecaffe train`, then `bonecaffe evaluate`" in found[number][1], number
    assert found[25][1].startswith("Planned: type Adam, base_lr 0.001")
    assert "SHA-256" not in found[43][1] and "metrics.json" not in "".join(cells[2] for cells in found.values())
    with pytest.raises(RunError, match="not a prepared run"):
        facts_of(RunDir(tmp_path))


def test_a_trained_run_names_evaluate(trained, own_trained):
    """What only evaluate knows is not made up; an interrupted training is no finished one."""
    answers = answers_of(facts_of(trained))
    for number in (26, 28, 29, 32, 37, 38, 39):
        assert answers[number].missing == "not yet: run `bonecaffe evaluate`", number
    assert answers[25].status == "recorded" and "Training: finished, at iteration 12" in answers[25].text
    assert answers[24].text == "At random, by the fillers of the definition file, Caffe's seed 2018"
    record = own_trained.read().train
    own_trained.record(record.model_copy(update={"state": State.INTERRUPTED, "iteration": 5}))
    stopped = answers_of(facts_of(own_trained))[25]
    assert "Training: interrupted, at iteration 5" in stopped.text and stopped.status == "not yet"


def test_figures_are_those_of_the_records(evaluated):
    """Counts, seeds, settings, versions, hashes and metrics as the records have them, with the file."""
    text, metrics = checklist(facts_of(evaluated)), json.loads(evaluated.metrics.read_text())
    found, manifest = rows(text), evaluated.read()
    assert "not yet" not in "".join(cells[1] for number, cells in found.items() if number != 30)
    assert "`bonecaffe sensitivity`" in found[30][1]
    assert found[19][1].startswith("8 hands for training and 4 for test were drawn at random")
    assert "seed 2018" in found[19][1] and "`train.txt`" in found[19][2]
    cases = pandas.read_csv(evaluated.cases_file, dtype={"id": str}).set_index("id")
    test = cases.loc[list(manifest.prepare.split["test"])]
    boys = int(test["male"].sum())
    assert f"Test: 4 hands, {boys} boys, {4 - boys} girls; age {test.boneage_months.mean():.1f} months" in found[36][1]
    assert f"(SD {test.boneage_months.std():.1f}, {test.boneage_months.min():g} to" in found[36][1]
    assert "fc6 16 (fully connected)" in found[22][1] and "loss EuclideanLoss" in found[22][1]
    assert f"bonecaffe {manifest.train.by.bonecaffe}" in found[23][1] and "numpy " in found[23][1]
    for word in ("base_lr 0.001", "max_iter 12", "batch 4", "random_seed 2018", "mirrored at random", "on the CPU"):
        assert word in found[25][1]
    assert found[26][1] == "The last snapshot, iteration 12."
    for split in ("train", "test"):
        figures = metrics["splits"][split]
        assert f"{split.capitalize()}: MAD {figures['mad_months']:.1f} months (95 % interval" in found[37][1]
        assert f"CCC {figures['ccc']:.3f}" in found[37][1]
    assert metrics["sex"]["test"]["verdict"].rstrip(".") in found[37][1]
    assert f"n = {metrics['groups']['test'][0]['cases']}: MAD" in found[38][1] and "`metrics.json`" in found[38][2]
    assert manifest.train.outputs["snapshots/SNAPSHOT_iter_12.caffemodel"] in found[43][1]
    named = {name for cells in found.values() for name in re.findall(r"`([^`]+)`", cells[2])}
    assert all((evaluated.path / name).exists() for name in named - {"init.caffemodel"})


def test_what_no_record_holds_is_left_to_the_authors(evaluated):
    """Ethics, readers, funding, readings: no word but what is needed of them. And departures are no answer."""
    answers = answers_of(facts_of(evaluated))
    assert {number for number, answer in answers.items() if answer.status == "authors"} - {40} == ONLY_AUTHORS
    found = rows(checklist(facts_of(evaluated)))
    for number in ONLY_AUTHORS:
        assert found[number][1].startswith(f"**{AUTHORS}**: ") and found[number][2] == ""
    for number in (7, 8, 10, 14, 17, 20, 21, 36, 43):
        assert answers[number].status == "partly", number
    text = " ".join(answer.text for answer in answers.values()).lower()
    for word in ("approv", "consent", "radiologist", "funded", "atlas", "depart", "paper"):
        assert word not in text, word


def test_counts_at_the_top_are_those_of_the_table(own_run, evaluated):
    """13 answered, so many partly, …: they add up to 44."""
    for run in (own_run, evaluated):
        text = checklist(facts_of(run))
        numbers = [int(number) for number in re.findall(r"(\d+) (?:answered|for the authors|not yet)", text)][:4]
        assert sum(numbers) == 44
        answers = answers_of(facts_of(run)).values()
        assert numbers == [
            sum(answer.status == status for answer in answers)
            for status in ("recorded", "partly", "authors", "not yet")
        ]


def test_no_id_and_no_path(own_hands, tmp_path):
    """Ids are a child's, paths a machine's; names that somebody gave have no meaning to Markdown."""
    for table in ("ages.csv", "points.csv"):
        ids = pandas.read_csv(own_hands / table, dtype=str, keep_default_na=False)
        ids["id"] = "anna" + ids["id"]
        ids.to_csv(own_hands / table, index=False)
    for image in list((own_hands / "images").iterdir()):
        image.rename(image.with_name(f"anna{image.name}"))
    (own_hands / "ages.csv").rename(own_hands / "a|<b>`c.csv")
    from bonecaffe.prepare import prepare

    run = RunDir(tmp_path / "my|run")
    prepare.prepare(run, own_hands / "images", own_hands / "a|<b>`c.csv", own_hands / "points.csv", tiny())
    text = checklist(facts_of(run))
    assert "anna" not in text and str(tmp_path) not in text and os.path.expanduser("~") + "/" not in text
    assert r"ages: a\|\<b\>\`c.csv" in text and text.startswith("# CLAIM 2024: my\\|run\n")
    assert all(len(cells) == 3 for cells in rows(text).values())
    assert plain("a\nb\x1b[31m_") == r"a b \[31m\_"


def test_what_was_trained_counts(evaluated):
    """A solver edited by hand, given weights, several GPUs, another snapshot, images that were not compared."""
    facts = facts_of(evaluated)
    train = facts.trained
    edited = train.model_copy(
        update={
            "edited": {"solver.prototxt": {"base_lr": ("0.001", "0.5")}, "train_val.prototxt": {}},
            "weights": GivenWeights(name="net.caffemodel", sha256="a" * 64, imagenet=True),
            "attempts": (*train.attempts, train.attempts[0].model_copy(update={"gpus": 2, "started_at": 8})),
        }
    )
    answers = answers_of(replace(facts, trained=edited, state=State.FINISHED))
    assert "base_lr 0.5," in answers[25].text and "Edited by hand" in answers[25].text
    assert "Call 2: from iteration 8 on 2 GPUs" in answers[25].text and answers[25].authors == "the model of the GPUs"
    assert "Edited by hand" in answers[22].text and "train_val.prototxt" in answers[22].text
    assert answers[24].text.startswith("BVLC's CaffeNet weights, trained on ImageNet (net.caffemodel, SHA-256 aaa")
    unknown = edited.model_copy(update={"weights": edited.weights.model_copy(update={"imagenet": False})})
    assert answers_of(replace(facts, trained=unknown))[24].authors == "what these weights were trained on"
    early = answers_of(replace(facts, measured=replace(facts.measured, iteration=4), surveyed=True))
    assert early[26].text.startswith("The snapshot of iteration 4; the last one is of iteration 12. Every snapshot")
    assert "why this snapshot was chosen" in early[26].authors and "SNAPSHOT\\_iter\\_4.caffemodel" in early[43].text
    assert "no identical image" in answers[20].text
    cases = {key: case.model_copy(update={"image_sha256": None}) for key, case in facts.prepared.cases.items()}
    old = answers_of(replace(facts, prepared=facts.prepared.model_copy(update={"cases": cases})))
    assert "no identical image" not in old[20].text
    found = answers_of(replace(facts, recipe=facts.recipe.with_values({"data.points": "found"}, "here")))
    assert "found by a program" in found[10].text and "marked" not in found[10].text


def test_data_are_named_as_they_are_on_record(own):
    """Phantoms, some phantoms, images; a run that was prepared before phantoms were counted."""
    prepared = own.read().prepare
    assert prepared.phantoms == 12
    for count, words in (
        (12, "12 images, all of them phantoms"),
        (5, "12 images, 5 of them phantoms"),
        (0, "12 images of hands; none is listed as a phantom"),
    ):
        own.record(prepared.model_copy(update={"phantoms": count}))
        assert answers_of(facts_of(RunDir(own.path)))[7].text.startswith(words)
    tree = json.loads(own.manifest_file.read_text())
    del tree["prepare"]["phantoms"]
    own.manifest_file.write_text(json.dumps(tree))
    assert "whether they are radiographs or phantoms is not on record" in answers_of(facts_of(own))[7].text


def test_a_split_is_described_as_it_was_made(own_hands, tmp_path):
    """Given by a column with groups, by two tables, one fold: never as drawn at random from one table."""
    table = pandas.read_csv(own_hands / "ages.csv", dtype=str)
    table["split"] = ["train"] * 7 + ["test"] * 5
    table["group"] = [f"child{number // 2}" for number in range(6)] + ["", "a", "", "", "b", "b"]
    table.to_csv(own_hands / "ages.csv", index=False)
    given = answers_of(facts_of(prepare_run(tmp_path / "given", own_hands)))
    assert given[19].text.startswith("7 hands for training and 5 for test, as the tables give it")
    assert "5 groups, by the tables' column group" in given[20].text and "what the groups are" in given[20].authors
    assert given[21].text == "7 for training and 5 for test follow from the split"
    assert not any("random" in given[number].text or "child1" in given[number].text for number in given if number < 22)
    train, test = (table[table["split"] == side].drop(columns=["split", "group"]) for side in ("train", "test"))
    train.to_csv(own_hands / "ages.csv", index=False)
    test.to_csv(own_hands / "others.csv", index=False)
    two = answers_of(facts_of(prepare_run(tmp_path / "two", own_hands, test_ages=own_hands / "others.csv")))
    assert "(ages.csv and others.csv)" in two[14].text and "a separate table" in two[17].text
    assert "test ages: others.csv" in two[7].text and "as the tables give it" in two[10].text
    table.drop(columns=["split", "group"]).to_csv(own_hands / "ages.csv", index=False)
    fold = answers_of(facts_of(prepare_run(tmp_path / "fold", own_hands, tiny(data__split="fold 2 of 3"))))
    assert "8 hands for training and 4 for test: fold 2 of 3, assigned at random with seed 2018" in fold[19].text
    assert fold[20].authors.startswith("whether several images are of one child")


def test_figures_of_another_state_are_not_shown(own):
    """metrics.json edited, of another version, or of predictions that changed: not yet."""
    assert facts_of(own).measured is not None
    content = own.metrics.read_bytes()
    own.metrics.write_bytes(content.replace(b'"cases": 4', b'"cases": 5'))
    assert answers_of(facts_of(own))[37].missing
    own.metrics.write_bytes(content)
    assert facts_of(own).measured is not None
    predicted = own.read().predict
    own.record(predicted.model_copy(update={"outputs": {**predicted.outputs, "predictions_test.csv": "0" * 64}}))
    assert facts_of(own).measured is None


def test_sensitivity_is_in_the_answers_when_it_was_studied(own):
    """Its outcome; a file that is not as `sensitivity` writes it is none."""
    own.sensitivity.write_text('{"months_per_percent": 1.234}')
    assert "by 1.23 months for each percent of the palm" in answers_of(facts_of(own))[30].text
    for content in ("{", "[]", '{"months_per_percent": null}', '{"months_per_percent": "x"}'):
        own.sensitivity.write_text(content)
        assert "bonecaffe sensitivity" in answers_of(facts_of(own))[30].missing


def test_nothing_is_computed_and_the_run_is_left_alone(own, tmp_path, monkeypatch):
    """From the records alone: no net is loaded, no file of the run is touched."""
    monkeypatch.setattr(Predictor, "__init__", lambda *given, **named: pytest.fail("a net was loaded"))
    before = {path: os.stat(path).st_mtime_ns for path in own.path.rglob("*")}
    write(own, tmp_path / "claim.md")
    assert {path: os.stat(path).st_mtime_ns for path in own.path.rglob("*")} == before


def test_what_authors_wrote_is_not_lost(own, tmp_path):
    """The file is replaced as long as it is as bonecaffe wrote it, never when it was filled in."""
    path = tmp_path / "new" / "claim.md"
    write(own, path)
    first = path.read_text(encoding="utf-8")
    own.sensitivity.write_text('{"months_per_percent": 1.5}')
    write(own, path)
    assert path.read_text(encoding="utf-8") != first and "1.50 months" in path.read_text(encoding="utf-8")
    filled = path.read_text(encoding="utf-8").replace(AUTHORS, "Hospital of X", 1)
    for content in (filled, "# my own notes\n", "", filled.replace("<!--", "")):
        path.write_text(content, encoding="utf-8")
        with pytest.raises(EvaluateError, match="Give another name"):
            write(own, path)
        assert path.read_text(encoding="utf-8") == content
    link = tmp_path / "link.md"
    write(own, tmp_path / "real.md")
    link.symlink_to(tmp_path / "real.md")
    write(own, link)
    assert link.is_symlink()
    with pytest.raises(EvaluateError, match=r"ends in \.md"):
        check_target(own.path / "metrics.json")
    (tmp_path / "folder.md").mkdir()
    with pytest.raises(EvaluateError, match="a folder"):
        check_target(tmp_path / "folder.md")
    with pytest.raises(EvaluateError, match="a file, not a folder"):
        check_target(tmp_path / "real.md" / "claim.md")
    with pytest.MonkeyPatch.context() as patched:  # another program writes between the look and the write
        patched.setattr(claim, "write_if_unchanged", lambda *given: False)
        with pytest.raises(EvaluateError, match="another program"):
            write(own, tmp_path / "real.md")


def test_the_commands_write_it(own, tmp_path, monkeypatch):
    """repro and evaluate --claim; a file that cannot be written is refused before anything is computed."""
    first, second = tmp_path / "a.md", tmp_path / "b.md"
    done = CliRunner().invoke(main, ["repro", str(own), "--claim", str(first)])
    assert done.exit_code == 0 and done.output.splitlines()[-1] == str(first), done.output
    done = CliRunner().invoke(main, ["evaluate", str(own), "--claim", str(second)])
    assert done.exit_code == 0 and done.output.splitlines()[-1] == str(second), done.output
    assert first.read_bytes() == second.read_bytes() and len(rows(first.read_text(encoding="utf-8"))) == 44
    first.write_text("filled in by hand")
    monkeypatch.setattr(evaluate, "predict_and_evaluate", lambda *given: pytest.fail("predicted"))
    own.departures.unlink()
    for verb in ("repro", "evaluate"):
        done = CliRunner().invoke(main, [verb, str(own), "--claim", str(first)])
        assert done.exit_code == 1 and "somebody edited it" in done.stderr
        assert first.read_text() == "filled in by hand" and not own.departures.exists()


def test_a_run_of_images_without_sex(own_hands, tmp_path):
    """Hands of unknown sex are counted as such."""
    table = pandas.read_csv(own_hands / "ages.csv")
    table = table.rename(columns={"boneage": "boneage_months"})[["id", "boneage_months"]]
    table.to_csv(own_hands / "ages.csv", index=False)
    answers = answers_of(facts_of(prepare_run(tmp_path / "run", own_hands)))
    assert "0 boys, 0 girls, 4 of unknown sex" in answers[36].text
    assert "unknown for 12 hands" in answers[12].text and "imputed" in answers[12].text
