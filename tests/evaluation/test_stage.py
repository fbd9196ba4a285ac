"""evaluate: from predictions to metrics.json, figures and one self-contained report."""

from __future__ import annotations

import html.parser
import json
import re

import numpy
import pandas
import pytest
from conftest import with_recipe

from bonecaffe.errors import EvaluateError
from bonecaffe.evaluation import by_snapshot, evaluate, metrics, plots, report
from bonecaffe.predict import predict_run


class Page(html.parser.HTMLParser):
    """Collects what a browser would load for a report, its images and its texts."""

    def __init__(self):
        super().__init__()
        self.loaded, self.images, self.text = [], [], []

    def handle_starttag(self, tag, attributes):
        loading = ["src", "srcset", "data", "poster", "background"] + ["href"] * (tag != "a")  # a link loads nothing
        values = dict(attributes)
        self.loaded += [values[name] for name in loading if not (values.get(name) or "#").startswith(("data:", "#"))]
        self.loaded += [tag] * (tag in ("script", "iframe", "object", "embed"))
        self.loaded += re.findall(r"url\((?!#)[^)]*\)", values.get("style") or "")
        if tag == "img":
            self.images.append(values)

    def handle_data(self, data):
        if self.lasttag == "style":
            self.loaded += re.findall(r"@import|url\((?!#)", data)
        self.text.append(data)


@pytest.mark.parametrize(
    ("markup", "number"),
    [
        ('<a href="https://a.b/c">the paper</a><img src="data:,"><use href="#x"/>', 0),
        ('<img src="a.png">', 1),
        ('<link rel="stylesheet" href="https://a.b/c.css">', 1),
        ("<style>@import 'a.css'; p { background: url(b.png) }</style>", 2),
        ('<p style="background: url(b.png)"></p>', 1),
        ("<script>fetch('/')</script>", 1),
    ],
)
def test_what_is_loaded_is_found(markup, number):
    """A plain link is allowed in the report; everything that a browser loads by itself is found."""
    page = Page()
    page.feed(markup)
    assert len(page.loaded) == number


@pytest.fixture
def evaluated(own_trained):
    predict_run(own_trained)
    return own_trained, evaluate.evaluate(own_trained)


def test_metrics_are_those_of_the_predictions(evaluated):
    """metrics.json holds what can be computed from predictions_*.csv."""
    run, _ = evaluated
    facts = json.loads(run.metrics.read_text())
    for split, cases in (("train", 8), ("test", 4)):
        table = pandas.read_csv(run.predictions(split))
        assert facts["splits"][split]["cases"] == cases
        assert facts["splits"][split]["mad_months"] == pytest.approx(
            metrics.mad(table.boneage_months, table.predicted_months)
        )
        assert facts["splits"][split]["ccc"] == pytest.approx(metrics.ccc(table.boneage_months, table.predicted_months))
    assert facts["paper"]["test"] == {"mad_months": 18.9, "ccc": 0.78, "max_error_months": 69.2}


def test_groups_and_sexes_are_in_what_evaluate_writes(evaluated):
    """metrics.json has their intervals and the comparison of boys with girls; the report too; no number is NaN."""
    run, few = evaluated
    facts = json.loads(run.metrics.read_text())
    assert facts["sex"]["test"]["bias"] is None and "too few to compare" in facts["sex"]["test"]["verdict"]
    assert facts["groups"]["test"][0]["bias_interval_95"] is None
    assert few.sex["test"].verdict in " ".join(run.report.read_text(encoding="utf-8").split())
    # forty hands, half of them boys, whose predictions are 9 months higher
    ages = numpy.linspace(20, 200, 40)
    months = ages + numpy.random.default_rng(1).normal(0, 8, 40) + [9, 0] * 20
    table = pandas.DataFrame({"boneage_months": ages, "predicted_months": months, "male": ["True", "False"] * 20})
    many = evaluate.measure_tables(run, {"train": table, "test": table.assign(male=None)}, 12)
    assert many.sex["train"].bias.excludes_zero() and (many.sex["test"].boys, many.sex["test"].unknown) == (0, 40)
    tables = {split: pandas.read_csv(run.predictions(split), dtype={"id": str}) for split in ("train", "test")}
    text = " ".join(report.render(run, many, tables, plots.draw_all(run, tables), []).split())
    for group in many.groups["train"]:
        low, high = group.bias_interval_95 if group.cases >= 10 else (0, 0)
        assert (f"<small>{low:+.1f} to {high:+.1f}</small>".replace("-", "−") in text) == (group.cases >= 10)
    sex = many.sex["train"]
    assert f"{sex.verdict.replace('<', '&lt;')} Difference in MAD: {sex.mad}." in text


def test_report_is_self_contained(evaluated):
    """No other file, no other host; every image has a text; departures, verdict and the warning are in it."""
    run, evaluation = evaluated
    page, text = Page(), run.report.read_text(encoding="utf-8")
    page.feed(text)
    assert page.loaded == []
    assert len(page.images) == 1 + 3 + 2 * (
        4 + 4
    )  # a hand, its steps, the worst and random test hands, each also enlarged
    assert all(len(image["alt"]) > 20 for image in page.images)
    assert text.count('role="img" aria-label=') == 8
    words = " ".join("".join(page.text).split())
    assert evaluation.verdict.sentence in words and all(remark in words for remark in evaluation.verdict.remarks)
    assert "not a medical device" in words and "Healthcare Informatics Research 2018;24(1):86–92" in words
    for row in (*run.recipe().departures(), *run.recipe().choices()):
        assert row.field in text and row.reason in words
    assert (
        set(re.findall(r'href="#([a-z]+)"', text)) == set(re.findall(r'<h2 id="([a-z]+)"', text)) >= {"paper", "hands"}
    )
    assert text.count('<table class="muted">') == 2 and "The paper’s column is muted" in words  # phantoms
    assert re.search(r"Evaluated on \d{4}-\d\d-\d\d\.", words)
    assert run.report.stat().st_size < 3e6
    assert sorted(path.name for path in run.figures.iterdir()) == [
        "ages.png",
        "bland_altman_test.png",
        "bland_altman_train.png",
        "error_against_iteration_linear.png",
        "error_against_iteration_log.png",
        "error_by_age.png",
        "predicted_against_true_test.png",
        "predicted_against_true_train.png",
    ]


def test_numbers_have_one_minus_and_stay_with_their_unit(evaluated):
    """The minus is U+2212, zero has no minus, and a line never ends between a number and its unit."""
    run, _ = evaluated
    table = pandas.read_csv(run.predictions("test"), dtype={"id": str})
    ages = table["boneage_months"]
    tables = {
        "train": table.assign(predicted_months=ages.mean() - (ages - ages.mean()) - 200),  # all figures negative
        "test": table.assign(predicted_months=ages.add([-0.04, 0.04, -0.04, 0.03])),
    }
    worse = evaluate.measure_tables(run, tables, 12)
    assert worse.splits["train"].ccc < -0.1 and -0.05 < worse.splits["test"].bias_months < 0
    rows = [
        {"iteration": i, "split": split, "cases": 4, "mad_months": 1.0, "ccc": ccc, "max_error_months": 2.0}
        for i, ccc in ((4, -0.3), (8, -0.0001))
        for split in ("train", "test")
    ]
    text = report.render(run, worse, tables, plots.draw_all(run, tables), rows)
    page = Page()
    page.feed(re.sub(r"(?s)<(style|code|title)\b.*?</\1>|<header>.*?</header>", "", text))
    printed = [*page.text, *(image["alt"] for image in page.images)]
    hyphens = re.compile(r"(?<![\w.:+-])-\d")
    assert [each for each in printed if hyphens.search(each)] == []
    assert [each for each in printed if re.search(r"−0\.0+(?!\d)", each)] == []
    broken = re.compile(r"\d (%|months|hands|years|s\b)|\b[np] [=<−] |[=<−] \d")
    page_text = Page()
    page_text.feed(re.sub(r"(?s)<(style|code|title|svg)\b.*?</\1>", "", text))  # the text of an SVG has no lines
    assert [each for each in page_text.text if broken.search(each)] == []
    words = " ".join("".join(page.text).split())
    assert f"{worse.splits['train'].ccc:.3f}".replace("-", "−") in words and "−0.300" in words and "+0.0" in words
    assert "95\xa0% intervals" in text


def test_every_snapshot_is_measured_once(evaluated, monkeypatch):
    """--all: one row for each snapshot and split, the last as in evaluate; the figures of a model are computed once."""
    run, evaluation = evaluated
    rows = by_snapshot.evaluate_all(run, lambda done, total: None)
    assert [(row["iteration"], row["split"]) for row in rows] == [(i, s) for i in (4, 8, 12) for s in ("test", "train")]
    best, last = by_snapshot.best_and_last(rows)
    assert last["iteration"] == 12 and best["mad_months"] == min(r["mad_months"] for r in rows if r["split"] == "test")
    assert last["mad_months"] == pytest.approx(evaluation.splits["test"].mad_months, abs=1e-3)
    assert len({row["mad_months"] for row in rows}) > 3  # the weights were really changed
    monkeypatch.setattr(by_snapshot, "predict_snapshots", lambda *a: pytest.fail("computed again"))
    assert by_snapshot.evaluate_all(run, lambda done, total: None) == rows
    evaluate.evaluate(run)
    text = run.report.read_text()
    assert "Every snapshot" in text and "Do not choose a snapshot" in text


def test_interrupted_pass_over_snapshots_continues(evaluated, monkeypatch):
    """What was measured before Ctrl-C is kept, and the rest follows."""
    run, _ = evaluated
    real = by_snapshot.predict_snapshots

    def twice(*arguments):
        for number, found in enumerate(real(*arguments)):
            if number == 2:
                raise KeyboardInterrupt
            yield found

    monkeypatch.setattr(by_snapshot, "predict_snapshots", twice)
    with pytest.raises(KeyboardInterrupt):
        by_snapshot.evaluate_all(run, lambda done, total: None)
    assert len(by_snapshot.read(run)) == 4
    asked = []
    monkeypatch.setattr(by_snapshot, "predict_snapshots", lambda *a: asked.append(a[1]) or real(*a))
    assert len(by_snapshot.evaluate_all(run, lambda done, total: None)) == 6
    assert [model.iteration for model in asked[0]] == [12]


def test_ids_cannot_inject_markup(evaluated):
    """The recipe's words are escaped."""
    run, _ = evaluated
    with_recipe(run, run.recipe().with_values({"data.split_seed": 5}, "<script>alert(1)</script>"))
    evaluate.evaluate(run)
    assert "<script>" not in run.report.read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("predicted_months", "months"), "header"),
        (lambda text: re.sub(r"(?m)^(\d+,\d+),[-\d.]+", r"\1,nan", text, count=1), "row 2 .*not a finite number"),
        (lambda text: text + text.splitlines()[1] + "\n", "rows 2 and 6 both have the id \\d+"),
        (lambda text: text.splitlines()[0] + "\n", "4 ids .*no prediction"),
        (lambda text: "\n".join(text.splitlines()[:2]) + "\n", "3 ids .*no prediction"),
        (lambda text: re.sub(r"(?m)^\d+,(\d+),", r"x,\1,", text, count=1), "1 id .x.: not a case of this split"),
        (lambda text: re.sub(r"(?m)^(\d+),\d+,", r"\1,299,", text, count=1), "row 2 .*cases.csv has"),
    ],
)
def test_bad_predictions_are_named(evaluated, change, message):
    """A nan, a duplicate, another header, none, one: an error, never a number."""
    run, _ = evaluated
    path = run.predictions("test")
    path.write_text(change(path.read_text()))
    with pytest.raises(EvaluateError, match=f"(?s){message}"):
        evaluate.evaluate(run)
