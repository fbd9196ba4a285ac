"""report.html in a real browser: on a phone, a desktop and paper, light and dark; it loads and hides nothing."""

from __future__ import annotations

import itertools
import json

import pytest
from conftest import tiny

from bonecaffe.evaluation import evaluate, plots
from bonecaffe.evaluation.groups import by_sex, groups
from bonecaffe.network import outline
from bonecaffe.predict import predict_run
from bonecaffe.recipe import Recipe
from bonecaffe.run import RunDir

AGES = range(10, 210, 5)
FORTY = (AGES, [100 - 1.5 * age + 37 * i % 11 for i, age in enumerate(AGES)], [True, False] * 20)
"""Ages, predictions that are very wrong, sexes."""


@pytest.fixture(scope="module")
def report(trained, tmp_path_factory):
    """A run's report, with the groups and sexes of more hands than it has, so that their intervals are in it."""
    import shutil

    run = RunDir(shutil.copytree(trained.path, tmp_path_factory.mktemp("report") / "run"))
    predict_run(run)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(evaluate, "groups", lambda *given: groups(*FORTY))
        patched.setattr(evaluate, "by_sex", lambda *given: by_sex(*FORTY))
        evaluate.evaluate(run)
    assert (
        run.report.read_text(encoding="utf-8").count("<small>−239.6 to −101.1</small>") == 2
    )  # the widest of the small print
    return run.report


def show(browser, report, width: int, dark: bool = False):
    """Open the report in a window of a width, with its details open; return its console and its requests."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    browser.get("about:blank")
    browser.get_log("browser"), browser.get_log("performance")
    browser.get(report.as_uri())
    browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    return browser.get_log("browser"), [url for url in asked if not url.startswith("data:")]


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_nothing_overflows_nothing_is_asked_for(browser, report, width):
    """No sideways scrolling even with all details open, no console message, no request except for the file itself."""
    console, asked = show(browser, report, width)
    assert console == []
    assert asked == [report.as_uri()]
    wide = (
        "return [...document.querySelectorAll('main *')]"
        ".filter(e => !e.closest('svg') && e.getBoundingClientRect().right > innerWidth + 1)"
        ".map(e => e.outerHTML.slice(0, 80))"
    )
    assert browser.execute_script(wide) == []
    assert browser.execute_script("return document.documentElement.scrollWidth") == width


def test_every_picture_is_there(browser, report):
    """Images decoded, plots of a readable size with their marks in them, texts for those who do not see them."""
    show(browser, report, 360)
    images = browser.execute_script(
        "return [...document.images].filter(i => !i.closest('[popover]'))"
        ".map(i => [i.naturalWidth, i.getBoundingClientRect().width, i.alt])"
    )
    assert len(images) == 12 and all(real > 50 and shown > 100 and len(alt) > 20 for real, shown, alt in images)
    drawn = browser.execute_script(
        "return [...document.querySelectorAll('[role=img] svg')].map(s => [s.getBoundingClientRect().width,"
        " [...s.querySelectorAll('text')].map(t => t.getBoundingClientRect().height)])"
    )
    assert len(drawn) == 8
    assert all(width > 300 and min(texts) >= 8 for width, texts in drawn)  # pixels, on a phone
    broken = (
        "return [...document.querySelectorAll('svg use')]"
        ".filter(u => !document.querySelector(u.getAttribute('href'))).length"
    )
    assert browser.execute_script(broken) == 0
    marks = 'return document.querySelectorAll(\'[aria-label^="Bland and Altman, test"] svg [style*="--test"]\').length'
    assert browser.execute_script(marks) >= 4


def test_a_hand_is_enlarged_by_click_and_by_key(browser, report):
    """The enlarged image fits the window; Escape and Close close it, and the focus returns to the hand."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    def opened():
        return browser.execute_script(
            "return [...document.querySelectorAll(':popover-open')].map(p => p.getBoundingClientRect())"
            ".map(r => [r.left, r.top, innerWidth - r.right, innerHeight - r.bottom, r.width])"
        )

    for width in (360, 1280):
        show(browser, report, width)
        buttons = browser.find_elements(By.CSS_SELECTOR, ".hands figure > button")
        small = buttons[0].size["width"]
        assert len(buttons) == 8 and opened() == []
        browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", buttons[0])
        buttons[0].click()
        (place,) = opened()
        assert min(place[:4]) >= 0 and place[4] > 1.8 * small
        browser.switch_to.active_element.send_keys(Keys.ESCAPE)
        assert opened() == [] and browser.switch_to.active_element == buttons[0]
        buttons[0].send_keys(Keys.ENTER)
        assert len(opened()) == 1 and browser.switch_to.active_element.text == "Close"
        browser.switch_to.active_element.send_keys(Keys.ENTER)
        assert opened() == []


def test_print_pairs_figures_and_shows_departures(browser, report):
    """On paper: two plots side by side, no contents list, no enlarged images, the table of departures."""
    show(browser, report, 700)
    browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = false)")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        top = "return [...document.querySelectorAll('.plots > figure')].map(f => f.getBoundingClientRect().top)"
        tops = browser.execute_script(top)
        assert len(tops) == 8 and tops[::2] == tops[1::2]
        shown = "return [...document.querySelectorAll(arguments[0])].filter(e => e.checkVisibility()).length"
        assert browser.execute_script(shown, "nav, .enlarged, .screen") == 0
        assert browser.execute_script(shown, "details.printed td") > 0
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_labels_of_limits_are_outside_the_dots():
    """Bias and limits of agreement are right of the axes, one below the other, even when an outlier sets the scale."""
    import pandas

    for errors in ([3, -2, 1, -1] * 10, [0.1, -0.1] * 20 + [300]):
        ages = [10.0 + 5 * i for i in range(len(errors))]
        table = pandas.DataFrame(
            {"boneage_months": ages, "predicted_months": [a + e for a, e in zip(ages, errors, strict=True)]}
        )
        figure = plots._bland_altman(table, "test")
        figure.draw_without_rendering()
        (axes,) = figure.axes
        boxes = [text.get_window_extent() for text in axes.texts]
        assert len(boxes) == 3 and all(box.x0 > axes.bbox.x1 and box.x1 <= figure.bbox.x1 for box in boxes)
        assert all(lower.y1 < upper.y0 for lower, upper in itertools.pairwise(boxes))


def test_counts_have_whole_ticks():
    """Iterations and hands are counted in whole numbers, however few there are."""
    import pandas

    rows = [(i, phase, 9.0 - i) for i in (0, 1, 2) for phase in ("train", "test")]
    curve = pandas.DataFrame(rows, columns=["iteration", "phase", "rmse_months"])
    table = pandas.DataFrame({"boneage_months": [20.0, 40.0]})
    for axis in (
        plots._curve(curve, "linear").axes[0].xaxis,
        plots._curve(curve, "log").axes[0].xaxis,
        plots._ages({"train": table, "test": table}).axes[0].yaxis,
    ):
        assert all(float(tick).is_integer() for tick in axis.get_majorticklocs())


def luminance(colour: str) -> float:
    parts = [float(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("dark", [False, True])
def test_light_and_dark_can_be_read(browser, report, dark):
    """Text and plots have the contrast with the page that WCAG requires (4.5; 3 for marks)."""
    show(browser, report, 1280, dark)
    page = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (luminance(page) < 0.1) == dark

    def contrast(colour):
        low, high = sorted((luminance(colour), luminance(page)))
        return (high + 0.05) / (low + 0.05)

    texts = (
        "return [...new Set([...document.querySelectorAll('p, td, th, figcaption, h1, h2, h3, small')]"
        ".map(e => getComputedStyle(e).color))]"
    )
    assert min(map(contrast, browser.execute_script(texts))) >= 4.5
    marks = "return [...document.querySelectorAll('[role=img] svg text')].map(e => getComputedStyle(e).fill)"
    assert min(map(contrast, set(browser.execute_script(marks)))) >= 4.5
    lines = (
        "return [...document.querySelectorAll('[role=img] svg use')]"
        ".map(e => getComputedStyle(e).stroke).filter(c => c.startsWith('rgb'))"
    )
    assert min(map(contrast, set(browser.execute_script(lines)))) >= 3


def test_structure_for_those_who_listen(browser, report):
    """One h1, headings in order, a language, tables with headers."""
    show(browser, report, 1280)
    levels = browser.execute_script("return [...document.querySelectorAll('h1, h2, h3')].map(h => +h.tagName[1])")
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert browser.execute_script("return document.documentElement.lang") == "en"
    assert browser.execute_script(
        "return [...document.querySelectorAll('table')].every(t => t.querySelector('th[scope]'))"
    )


def test_outline_is_the_network_that_caffe_builds(own_run):
    """Figure 4's sizes are those that flow through the deploy file."""
    from google.protobuf import text_format

    from bonecaffe.caffe import programs, shapes
    from bonecaffe.network import prototxt

    for recipe in (Recipe.load("paper"), Recipe.load("demo"), tiny()):
        net = text_format.Parse(prototxt.deploy(recipe), programs.caffe_pb2().NetParameter())
        flow = shapes.follow(net, 1, {})
        for step in outline.steps(recipe):
            shape = flow.blobs[step.name][1:]
            assert (step.channels, step.height, step.width) == (*shape, 1, 1)[:3]


def test_many_marks_stay_small(tmp_path, report):
    """Twelve thousand hands make a plot of pixels, not of twelve thousand elements."""
    import matplotlib
    import numpy as np
    import pandas

    rng = np.random.default_rng(0)
    ages = rng.uniform(10, 220, 12000)
    table = pandas.DataFrame(
        {"boneage_months": ages, "predicted_months": ages + rng.normal(0, 15, 12000), "male": "True"}
    )
    with matplotlib.rc_context(plots.STYLE):
        assert len(plots.svg(plots._predicted(table, "train"), "x")) < 200_000
    assert report.stat().st_size < 3e6
