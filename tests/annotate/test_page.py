"""The page for marking, in a real browser: mouse, keyboard, touch, crashes, two tabs."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pandas
import pytest
from annotate_serving import Serving

from bonecaffe.hands.provenance import unmarked
from bonecaffe.hands.reference_points import POINT_NAMES, read_points, write_points


@pytest.fixture
def serve(hands, tmp_path):
    """Start the page for the twelve phantoms. All servers are stopped after the test."""
    running = []

    def start(*options: str, images: Path | None = None, table: Path | None = None) -> Serving:
        running.append(Serving(images or hands / "images", table or tmp_path / "points.csv", *options))
        return running[-1]

    yield start
    for serving in running:
        if serving.process.poll() is None:
            serving.kill()


class Page:
    """A tab that shows the page, with methods to use it."""

    def __init__(self, browser, address: str, size=(1280, 860), touch=False) -> None:
        self.browser = browser
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": touch},
        )
        browser.get_log("browser"), browser.get_log("performance")
        browser.get(address)
        self.ready()

    def js(self, code, *arguments):
        return self.browser.execute_script(code, *arguments)

    def wait(self, true, what="the page"):
        patience = time.monotonic() + 60
        while not (answer := true()):
            assert time.monotonic() < patience, (
                f"waited for {what} without a result; the page shows {self.text('status')!r} {self.text('banner')!r}"
            )
            time.sleep(0.01)
        return answer

    def text(self, name):
        return self.js("return document.getElementById(arguments[0])?.textContent", name)

    def saved(self) -> bool:
        """Whether all clicks are saved and answered, so that the page can be closed without a question."""
        asked = "const event = new Event('beforeunload', { cancelable: true }); window.dispatchEvent(event); "
        return self.js(asked + "return !event.defaultPrevented")

    def ready(self, hand: str | None = None):
        loaded = (
            "return !document.getElementById('stage').classList.contains('loading') "
            "&& document.getElementById('picture').naturalWidth > 0"
        )
        self.wait(lambda: self.js(loaded) and hand in (None, self.text("hand")), f"hand {hand}")

    def where(self, x, y):
        """Pixels of the image -> of the window."""
        box = self.js(
            "const p = document.getElementById('picture'), b = p.getBoundingClientRect(); "
            "return [b.left, b.top, b.width / p.naturalWidth]"
        )
        return box[0] + (x + 0.5) * box[2], box[1] + (y + 0.5) * box[2]

    def mouse(self, kind, x, y, button="left"):
        buttons = 0 if kind == "mouseReleased" else 1
        self.browser.execute_cdp_cmd(
            "Input.dispatchMouseEvent",
            {"type": kind, "x": x, "y": y, "button": button, "buttons": buttons, "clickCount": 1},
        )

    def click(self, x, y):
        at = self.where(x, y)
        self.mouse("mousePressed", *at)
        self.mouse("mouseReleased", *at)

    def drag(self, start, end):
        a, b = self.where(*start), self.where(*end)
        self.mouse("mousePressed", *a)
        self.mouse("mouseMoved", (a[0] + b[0]) / 2, (a[1] + b[1]) / 2)
        self.mouse("mouseMoved", *b)
        self.mouse("mouseReleased", *b)

    def key(self, *keys):
        from selenium.webdriver import ActionChains

        ActionChains(self.browser, duration=0).send_keys(*keys).perform()

    def button(self, name):
        self.js(
            "[...document.querySelectorAll('#buttons button')]"
            ".find(b => b.firstChild.textContent === arguments[0]).click()",
            name,
        )

    def console(self):
        """Errors and warnings in the browser's console."""
        return [
            entry["message"] for entry in self.browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")
        ]


def places(table: Path, case_id: str) -> list[tuple[float, float] | None]:
    """The points of a hand that are on disk now."""
    if not table.exists():
        return [None] * 7
    rows = pandas.read_csv(table, dtype=str, keep_default_na=False).set_index("id")
    if case_id not in rows.index:
        return [None] * 7
    row = rows.loc[case_id]
    return [(float(row[f"{n}_x"]), float(row[f"{n}_y"])) if row[f"{n}_x"] else None for n in POINT_NAMES]


def count(table: Path, case_id: str) -> int:
    return sum(place is not None for place in places(table, case_id))


@pytest.fixture
def truth(hands):
    return read_points(hands / "points.csv")


@pytest.fixture
def table(tmp_path):
    return tmp_path / "points.csv"


def test_ten_hands_at_a_click_a_point(browser, serve, truth, table, capsys):
    """Ten hands are marked with seventy clicks and nothing else. After each click, the table on disk contains it."""
    page = Page(browser, serve().address)
    began = time.monotonic()
    for case_id in list(truth)[:10]:
        page.ready(case_id)
        for number, place in enumerate(truth[case_id].points, start=1):
            page.click(*place)
            page.wait(lambda n=number, i=case_id: count(table, i) == n, f"click {number} of {case_id} on disk")
    took = time.monotonic() - began
    page.ready(list(truth)[10])
    marked = read_points(table)
    assert list(marked) == list(truth)[:10]
    for case_id, hand in marked.items():
        assert (hand.width, hand.height) == (truth[case_id].width, truth[case_id].height)
        apart = np.abs(np.array(hand.points) - np.array(truth[case_id].points)).max()
        assert apart < 1.0  # whole pixels of the screen
    assert page.text("progress").startswith("10 done, 0 skipped, 0 flagged, 2 left of 12")
    assert page.console() == []
    asked = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    addresses = {m["params"]["request"]["url"] for m in asked if m["method"] == "Network.requestWillBeSent"}
    assert len(addresses) > 20
    assert all(url.startswith((page.js("return location.origin"), "data:")) for url in addresses)
    with capsys.disabled():
        print(f"\n  ten hands, seventy clicks through the browser: {took:.1f} s, {took / 10:.2f} s a hand")


def test_the_thumbnail_is_what_the_network_sees(browser, serve, hands, truth, table):
    """Once all seven are set, the picture shown is `normalize`'s, byte for byte."""
    from bonecaffe.hands.images import read_image
    from bonecaffe.prepare.normalize import normalize
    from bonecaffe.recipe import Recipe

    case_id = next(iter(truth))
    write_points(table, [truth[case_id]])
    page = Page(browser, serve().address)
    page.key("p")
    page.wait(lambda: page.text("hand") != list(truth)[1])
    while page.text("hand") != case_id:
        here = page.text("hand")
        page.key("p")
        page.wait(lambda h=here: page.text("hand") != h)
    page.ready(case_id)
    page.wait(
        lambda: page.js("const t = document.getElementById('thumbnail'); return t.complete && t.naturalWidth == 224")
    )
    shown = page.js(
        "const t = document.getElementById('thumbnail'), c = document.createElement('canvas');"
        "c.width = c.height = 224;"
        "const g = c.getContext('2d'); g.drawImage(t, 0, 0); "
        "return [...g.getImageData(0, 0, 224, 224).data].filter((v, i) => i % 4 == 0)"
    )
    expected = normalize(
        read_image(hands / "images" / f"{case_id}.png"), truth[case_id], Recipe.load("paper").preparation
    )
    assert np.array_equal(np.array(shown, np.uint8).reshape(224, 224), expected)
    rectangle = truth[case_id].rectangle()
    assert f"rectangle {rectangle.width} × {rectangle.height} of" in page.text("rectangle")


def test_undo_redo_reload(browser, serve, truth, table):
    """Undo goes back to the previous hand and redo returns. A reload opens the first hand that is not complete."""
    first, second = list(truth)[:2]
    page = Page(browser, serve().address)
    for place in truth[first].points:
        page.click(*place)
    page.ready(second)
    page.click(*truth[second].points[0])
    page.wait(lambda: count(table, second) == 1)
    page.key("z")
    page.wait(lambda: count(table, second) == 0)
    page.key("z")
    page.ready(first)
    page.wait(lambda: count(table, first) == 6)
    page.key("y", "y")
    page.wait(lambda: count(table, first) == 7 and count(table, second) == 1)
    page.browser.refresh()
    page.ready(second)
    assert "radius" in page.text("status")
    page.key("z")
    page.wait(lambda: "Nothing to undo" in page.text("status"))
    assert count(table, second) == 1


def test_kill_between_two_clicks(browser, serve, truth, table):
    """After kill -9 between two clicks, the page reports it and keeps the second, which the next server saves."""
    first, second = list(truth)[:2]
    serving = serve()
    page = Page(browser, serving.address)
    page.click(*truth[first].points[0])
    page.wait(lambda: count(table, first) == 1)
    page.wait(page.saved)  # it is on disk, but may not be answered yet
    serving.kill()
    page.click(*truth[first].points[1])
    page.wait(lambda: "Not saved yet" in page.text("banner") and "start it again" in page.text("banner"))
    assert count(table, first) == 1
    page.click(*truth[first].points[2])
    again = serve()
    assert again.address == serving.address
    page.wait(lambda: count(table, first) == 3)
    page.wait(lambda: page.text("banner") == "")
    for place in truth[first].points[3:]:
        page.click(*place)
    page.ready(second)
    page.wait(lambda: count(table, first) == 7)
    again.kill()
    browser.get("about:blank")
    page = Page(browser, serve().address)  # a tab that was closed meanwhile
    page.ready(second)
    assert count(table, first) == 7


def test_a_lost_answer_is_no_conflict(browser, serve, truth, table):
    """The server ends after it has written and before it has answered.

    The page asks no question, and sends the newer state.
    """
    first = next(iter(truth))
    page = Page(browser, serve().address)
    page.js(
        "const f = window.fetch; let dropped = false; window.fetch = async (path, options) => {"
        " const answer = await f(path, options);"
        " if (options?.method === 'PUT' && !dropped) { dropped = true; throw new TypeError('no answer'); }"
        " return answer; }"
    )
    page.click(*truth[first].points[0])
    page.wait(lambda: "Not saved yet" in page.text("banner"))
    assert count(table, first) == 1
    page.click(*truth[first].points[1])
    page.wait(lambda: count(table, first) == 2 and page.text("banner") == "")
    assert not page.js("return document.getElementById('conflict').open")


def test_a_token_is_for_its_owner_and_ends_with_the_server(serve, tmp_path):
    """Only its owner can read the stored address. After Ctrl-C it is not used again."""
    serving = serve()
    remembered = tmp_path / ".points.csv.page"
    assert remembered.stat().st_mode & 0o077 == 0 and json.loads(remembered.read_text())["token"] in serving.address
    serving.kill(signal.SIGINT)
    assert not remembered.exists() and serve().address != serving.address


def test_a_stopped_server_that_comes_back(browser, serve, truth, table):
    """A server that does not answer for a while (stopped, a sleeping laptop) loses no click."""
    first = next(iter(truth))
    serving = serve()
    page = Page(browser, serving.address)
    serving.process.send_signal(signal.SIGSTOP)
    for place in truth[first].points[:3]:
        page.click(*place)
    assert count(table, first) == 0
    serving.process.send_signal(signal.SIGCONT)
    page.wait(lambda: count(table, first) == 3)


def slow(page, milliseconds):
    """Delay the server's answers from now on, as a slow disk would."""
    page.js(
        "const f = window.realFetch ??= window.fetch; window.fetch = async (...a) => "
        f"{{ await new Promise((w) => setTimeout(w, {milliseconds})); return f(...a); }}"
    )


def test_undo_overwrites_no_change_by_others(browser, serve, truth, table):
    """Undo does not restore a hand that another tab has changed since. It reports this and changes nothing."""
    first, second = list(truth)[:2]
    serving = serve()
    page = Page(browser, serving.address)
    for place in truth[first].points:
        page.click(*place)
    page.ready(second)
    page.wait(lambda: count(table, first) == 7)
    page.wait(page.saved)  # it is on disk, but may not be answered yet
    moved = replace(read_points(table)[first], points=((3.0, 4.0), *read_points(table)[first].points[1:]))
    write_points(table, [moved])  # by another program, or another tab
    page.key("z")
    page.wait(lambda: "changed elsewhere" in page.text("status"))
    assert page.text("hand") == first and read_points(table)[first].points == moved.points
    page.key("z")
    page.wait(lambda: "Nothing to undo" in page.text("status"))
    assert read_points(table)[first].points == moved.points


def test_no_hand_gets_anothers_points(browser, serve, truth, table):
    """Keys pressed while the next hand is loading write nothing of the previous hand into it."""
    first, second, third = list(truth)[:3]
    page = Page(browser, serve().address)
    for place in truth[first].points[:6]:
        page.click(*place)
    page.wait(lambda: count(table, first) == 6)
    page.click(*truth[first].points[6])
    page.wait(lambda: count(table, first) == 7)
    slow(page, 250)
    page.key("n")  # at once; the finished crop would be shown for a moment
    x, y = truth[first].points[6]
    page.drag((x, y), (x + 20, y))
    page.key("x", "f", "1", "1")
    page.drag(truth[first].points[2], truth[first].points[3])
    page.ready(second)
    page.wait(lambda: count(table, first) == 7)
    page.key("z", "n")  # back to the first, and on to the next before it has loaded
    page.wait(lambda: page.js("return !document.getElementById('stage').classList.contains('loading')"))
    time.sleep(1.0)
    assert count(table, second) == 0 and count(table, third) == 0
    assert count(table, first) in (6, 7)  # undone or not, but its own
    for place, true in zip(places(table, first), truth[first].points, strict=True):
        assert place is None or np.allclose(place, true, atol=1.0)


def test_a_table_that_cannot_be_read_for_a_while(browser, serve, truth, table):
    """Another program has half-saved it. Clicks are kept, reported as not saved, and saved when the table is fixed."""
    first = next(iter(truth))
    page = Page(browser, serve().address)
    page.click(*truth[first].points[0])
    page.wait(lambda: count(table, first) == 1)
    good = table.read_text()
    table.write_text(good[:40])
    page.click(*truth[first].points[1])
    page.wait(lambda: "Not saved yet" in page.text("banner") and "points.csv" in page.text("banner"))
    page.click(*truth[first].points[2])
    table.write_text(good)
    page.wait(lambda: count(table, first) == 3 and page.text("banner") == "")


def test_a_held_key_accepts_one_hand(browser, serve, truth, table, tmp_path):
    """Enter held down accepts the suggestion on screen, not those of hands that have not been shown."""
    offered = tmp_path / "found.csv"
    write_points(offered, truth.values())
    page = Page(browser, serve("--suggest", str(offered)).address)
    for number in range(12):
        press = {
            "type": "rawKeyDown",
            "key": "Enter",
            "code": "Enter",
            "windowsVirtualKeyCode": 13,
            "autoRepeat": number > 0,
        }
        browser.execute_cdp_cmd("Input.dispatchKeyEvent", press)
        time.sleep(0.05)
    browser.execute_cdp_cmd(
        "Input.dispatchKeyEvent", {"type": "keyUp", "key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13}
    )
    page.ready(list(truth)[1])
    page.wait(lambda: count(table, next(iter(truth))) == 7)
    assert len(read_points(table)) == 1


@pytest.mark.parametrize("keep", ["theirs", "mine"])
def test_two_tabs(browser, serve, truth, table, keep):
    """Two tabs show one hand. The second one to change it asks first and overwrites nothing."""
    first = next(iter(truth))
    serving = serve()
    page = Page(browser, serving.address)
    one = browser.current_window_handle
    browser.switch_to.new_window("tab")
    two = browser.current_window_handle
    try:
        other = Page(browser, serving.address)
        other.click(*truth[first].points[0])
        other.wait(lambda: count(table, first) == 1)
        saved = places(table, first)
        browser.switch_to.window(one)
        page.click(*truth[first].points[3])
        page.wait(lambda: page.js("return document.getElementById('conflict').open"))
        assert places(table, first) == saved
        page.js("document.querySelector(`#conflict button[value=${arguments[0]}]`).click()", keep)
        if keep == "theirs":
            page.wait(lambda: "radius" in page.text("status"))
            page.click(*truth[first].points[1])
            page.wait(lambda: count(table, first) == 2)
            assert places(table, first)[0] == saved[0]
        else:
            page.wait(lambda: places(table, first) != saved)
            assert np.allclose(places(table, first)[0], truth[first].points[3], atol=1)
    finally:
        browser.switch_to.window(two)
        browser.close()
        browser.switch_to.window(one)


def test_keyboard_alone(browser, serve, truth, table):
    """Set, move and delete points, skip a hand with a reason, flag it and filter, all without a mouse."""
    from selenium.webdriver.common.keys import Keys

    ids = list(truth)
    page = Page(browser, serve().address)
    for number in range(1, 4):
        page.key("c")
        page.wait(lambda n=number: count(table, ids[0]) == n)
        page.key(Keys.ARROW_RIGHT, Keys.ARROW_DOWN, Keys.ARROW_DOWN)
    middle = np.array([(truth[ids[0]].width - 1) / 2, (truth[ids[0]].height - 1) / 2])
    page.wait(
        lambda: (
            places(table, ids[0])[2] is not None
            and np.allclose(places(table, ids[0])[2], np.add(middle, (1, 2)), atol=0.6)
        )
    )
    page.key("1", Keys.ARROW_LEFT)
    page.wait(lambda: np.allclose(places(table, ids[0])[0], np.add(middle, (0, 2)), atol=0.6))
    page.key(Keys.DELETE)
    page.wait(lambda: places(table, ids[0])[0] is None and count(table, ids[0]) == 2)
    assert "ulna" in page.text("status")
    page.key("f")
    page.wait(lambda: "flagged" in page.text("state"))
    page.key("n")
    page.ready(ids[1])
    page.key("s")
    page.wait(lambda: page.js("return document.getElementById('skip').open"))
    page.key("cast, over the wrist", Keys.ENTER)
    page.ready(ids[2])
    notes = table.with_name("points.notes.csv")
    page.wait(lambda: "cast" in notes.read_text())
    rows = pandas.read_csv(notes, dtype=str, keep_default_na=False).set_index("id")
    assert rows.loc[ids[1], "skipped"] == "cast, over the wrist" and rows.loc[ids[0], "flagged"] == "yes"
    page.key("?")
    page.wait(lambda: page.js("return document.getElementById('help').open"))
    assert len(page.js("return [...document.querySelectorAll('#keys dt')].map(e => e.textContent)")) > 15
    page.key(Keys.ESCAPE)
    page.js("const f = document.getElementById('filter'); f.value = 'skipped'; f.dispatchEvent(new Event('change'))")
    page.ready(ids[1])
    page.key("s")
    page.wait(lambda: page.text("state") == "not marked")
    page.key("i", "b", "]", ".")
    assert "invert" in page.js("return document.getElementById('picture').style.filter")
    page.key("r")
    assert page.js("return document.getElementById('picture').style.filter") == ""
    assert page.console() == []


def test_suggestions(browser, serve, truth, table, tmp_path):
    """Suggested points are shown but not saved. Enter accepts them. Dragging one moves it and accepts the others."""
    from selenium.webdriver.common.keys import Keys

    ids = list(truth)
    offered = tmp_path / "found.csv"
    write_points(offered, [truth[ids[0]], truth[ids[1]]])
    page = Page(browser, serve("--suggest", str(offered)).address)
    assert page.js("return document.querySelectorAll('#overlay .suggested').length") == 7
    assert page.text("status") == "Suggested: Enter accepts, drag corrects" and not table.exists()
    page.key(Keys.ENTER)
    page.ready(ids[1])
    page.wait(lambda: count(table, ids[0]) == 7)
    assert read_points(table)[ids[0]].points == truth[ids[0]].points
    x, y = truth[ids[1]].points[2]
    page.drag((x, y), (x - 40, y + 25))
    page.wait(lambda: count(table, ids[1]) == 7)
    assert page.text("hand") == ids[1]
    assert np.allclose(places(table, ids[1])[2], (x - 40, y + 25), atol=1.5)
    assert places(table, ids[1])[3] == truth[ids[1]].points[3]
    page.key("x")
    page.wait(lambda: places(table, ids[1])[0] == truth[ids[1]].points[1])
    assert places(table, ids[1])[6] == pytest.approx((x - 40, y + 25), abs=1.5)


def crossed(hand):
    """The points of a hand with two fingers exchanged."""
    ulna, radius, thumb, index, *rest = hand.points
    return [ulna, radius, index, thumb, *rest]


def remarks(page) -> list[str]:
    """The visible remarks about the hand shown."""
    return page.js(
        "return document.getElementById('remarks').checkVisibility()"
        " ? [...document.querySelectorAll('#remarks li')].map(e => e.textContent) : []"
    )


def test_the_finished_crop_is_seen(browser, serve, truth, table):
    """After the seventh click, the hand stays with its complete crop for some tenths of a second."""
    from selenium.webdriver.common.keys import Keys

    first, second = list(truth)[:2]
    page = Page(browser, serve().address)
    for place in truth[first].points:
        page.click(*place)
    page.wait(lambda: count(table, first) == 7)
    page.wait(
        lambda: page.js(
            "const t = document.getElementById('thumbnail');"
            "return t.complete && t.src.split('%2C').length == 8"  # seven pairs
        )
    )
    began = time.monotonic()
    assert page.text("hand") == first and "network will see" in page.text("status")
    page.ready(second)
    assert 0.4 < time.monotonic() - began < 5
    for place in truth[second].points:
        page.click(*place)
    x, y = truth[second].points[6]
    page.drag((x, y), (x + 6, y))  # after a correction the page stays
    page.wait(lambda: count(table, second) == 7)
    page.wait(page.saved)
    time.sleep(1.2)
    assert page.text("hand") == second and page.text("status") == "All seven points are set. N opens the next hand."
    page.key("n")
    page.ready(list(truth)[2])
    third = list(truth)[2]
    for place in truth[third].points:
        page.click(*place)
    page.key("s")  # a reason is typed for longer than the hold
    page.wait(lambda: page.js("return document.getElementById('skip').open"))
    time.sleep(1.2)
    page.key("cast", Keys.ENTER)
    page.wait(lambda: count(table, third) == 0)
    assert "cast" in table.with_name("points.notes.csv").read_text()
    assert page.console() == []


def test_an_implausible_hand_is_held_until_confirmed(browser, serve, truth, table):
    """After the seventh click the page shows the remarks of `points check`, and stays until they are confirmed."""
    first, second, third, fourth = list(truth)[:4]
    serving = serve()
    page = Page(browser, serving.address)
    for place in crossed(truth[first]):
        page.click(*place)
    page.wait(lambda: any("not in order from thumb to little finger" in remark for remark in remarks(page)))
    time.sleep(1.2)
    assert page.text("hand") == first and "in doubt" in page.text("state") and count(table, first) == 7
    assert page.text("progress").startswith("1 done (1 in doubt), ")
    page.key("a")
    page.ready(second)
    assert remarks(page) == []
    for place in crossed(truth[second]):
        page.click(*place)
    page.wait(lambda: remarks(page))
    page.js("document.getElementById('confirm').click()")
    page.ready(third)
    for place in crossed(truth[third]):
        page.click(*place)
    page.wait(lambda: remarks(page))
    page.key("n")  # left without confirming
    page.ready(fourth)
    page.wait(lambda: page.text("progress").startswith("3 done (1 in doubt), "))
    page.key("p")
    page.ready(third)
    page.wait(lambda: remarks(page))
    page.drag(crossed(truth[third])[2], (5, 5))
    page.wait(lambda: remarks(page))
    page.key("z")
    page.wait(page.saved)
    serving.kill()
    page = Page(browser, serve().address)  # after a restart, the page asks again for that hand only
    page.ready(fourth)
    assert page.text("progress").startswith("3 done (1 in doubt), ")
    page.js("const f = document.getElementById('filter'); f.value = 'doubtful'; f.dispatchEvent(new Event('change'))")
    page.ready(third)
    page.wait(lambda: remarks(page))
    page.key("a")
    page.wait(lambda: page.text("progress").startswith("3 done, "))
    assert page.console() == []


def test_an_implausible_suggestion_is_held_too(browser, serve, truth, table, tmp_path):
    """Its remarks are shown before Enter, and Enter alone does not pass them. After one drag, six stay untouched."""
    from selenium.webdriver.common.keys import Keys

    first, second, third = list(truth)[:3]
    offered = tmp_path / "found.csv"
    write_points(offered, [replace(truth[first], points=tuple(crossed(truth[first]))), truth[second]])
    page = Page(browser, serve("--suggest", str(offered)).address)
    assert "not in order" in remarks(page)[0] and "suggested" in page.text("remarks-title")
    page.key(Keys.ENTER)
    page.wait(lambda: count(table, first) == 7)
    page.wait(lambda: "in doubt, 7 points as suggested" in page.text("state"))
    page.key(Keys.ENTER)
    time.sleep(0.5)
    assert page.text("hand") == first and remarks(page)
    page.key("a")
    page.ready(second)
    assert remarks(page) == []
    x, y = truth[second].points[2]
    page.drag((x, y), (x - 10, y + 6))
    page.wait(lambda: "6 points as suggested" in page.text("state"))
    assert page.js("return document.querySelectorAll('#overlay .untouched').length") == 6
    assert unmarked(table)[second] == tuple(name for name in POINT_NAMES if name != "phalanx1")
    page.key("n")
    page.ready(third)
    assert page.console() == []


def test_touch_on_a_phone(browser, serve, truth, table):
    """Tap sets, two fingers zoom without setting anything, a drag moves; the page fits a phone."""
    first = next(iter(truth))
    page = Page(browser, serve().address, size=(390, 800), touch=True)
    browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True, "maxTouchPoints": 2})
    try:

        def touch(kind, *fingers):
            points = [{"x": x, "y": y, "id": number} for number, (x, y) in enumerate(fingers)]
            browser.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

        assert page.js("return document.documentElement.scrollWidth") <= 390
        at = page.where(*truth[first].points[0])
        touch("touchStart", at)
        touch("touchEnd")
        page.wait(lambda: count(table, first) == 1)
        wide = page.js("return document.getElementById('picture').getBoundingClientRect().width")
        touch("touchStart", (100, 300), (200, 300))
        touch("touchMove", (60, 300), (260, 300))
        touch("touchEnd")
        zoomed = page.js("return document.getElementById('picture').getBoundingClientRect().width")
        assert zoomed == pytest.approx(2 * wide, rel=0.05) and count(table, first) == 1
        page.button("Fit")
        touch("touchStart", at)
        touch("touchMove", (at[0] + 30, at[1] - 20))
        touch("touchEnd")
        page.wait(lambda: not np.allclose(places(table, first)[0], truth[first].points[0], atol=5))
        assert count(table, first) == 1
    finally:
        browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})


def test_remarks_and_the_crop_are_seen_on_a_phone(browser, serve, truth, table):
    """A hand with remarks shows both, and the button to confirm, without scrolling. Taps pass through the crop."""
    first, second = list(truth)[:2]
    page = Page(browser, serve().address, size=(390, 800), touch=True)
    seen = (
        "const b = document.getElementById(arguments[0]).getBoundingClientRect();"
        "return b.width > 50 && b.left >= 0 && b.right <= innerWidth && b.top >= 0 && b.bottom <= innerHeight"
    )
    for place in crossed(truth[first]):
        page.click(*place)
    page.wait(lambda: remarks(page))
    page.wait(lambda: page.js("return document.getElementById('thumbnail').naturalWidth == 224"))
    for name in ("thumbnail", "remarks", "confirm"):
        assert page.js(seen, name), name
    box = page.js("const b = document.getElementById('thumbnail').getBoundingClientRect(); return [b.left, b.top]")
    assert page.js("return document.elementFromPoint(...arguments[0]).id", [box[0] + 20, box[1] + 20]) in (
        "stage",
        "picture",
    )
    page.js("document.getElementById('confirm').click()")
    page.ready(second)


def test_zoom_and_pan_keep_places(browser, serve, truth, table):
    """After zoom by wheel and pan by the right button, a click still sets the pixel that it points at."""
    first = next(iter(truth))
    page = Page(browser, serve().address)
    at = np.round(page.where(*truth[first].points[4])).tolist()
    zero, one = page.where(0, 0), page.where(1, 1)
    x, y = ((at[i] - zero[i]) / (one[i] - zero[i]) for i in (0, 1))
    browser.execute_cdp_cmd(
        "Input.dispatchMouseEvent", {"type": "mouseWheel", "x": at[0], "y": at[1], "deltaX": 0, "deltaY": -900}
    )
    page.wait(lambda: page.js("return document.getElementById('picture').style.imageRendering") != "")
    larger = (
        "const p = document.getElementById('picture'); return p.getBoundingClientRect().width > 1.5 * p.naturalWidth"
    )
    page.wait(lambda: not np.allclose(page.where(0, 0), (0, 0)) and page.js(larger))
    assert np.allclose(page.where(x, y), at, atol=1)
    for kind, place in (
        ("mousePressed", at),
        ("mouseMoved", (at[0] + 55, at[1] + 30)),
        ("mouseReleased", (at[0] + 55, at[1] + 30)),
    ):
        browser.execute_cdp_cmd(
            "Input.dispatchMouseEvent",
            {
                "type": kind,
                "x": place[0],
                "y": place[1],
                "button": "right",
                "buttons": 0 if kind == "mouseReleased" else 2,
                "clickCount": 1,
            },
        )
    assert np.allclose(page.where(x, y), (at[0] + 55, at[1] + 30), atol=1)
    page.click(x, y)
    page.wait(lambda: count(table, first) == 1)
    assert np.allclose(places(table, first)[0], (x, y), atol=0.3)  # zoomed in, finer than a pixel


# ---- how the page looks -------------------------------------------------------------------------------------------


def offered(serve, tmp_path, truth, *options: str) -> Serving:
    """The page with suggestions for every hand."""
    table = tmp_path / "found.csv"
    write_points(table, truth.values())
    return serve("--suggest", str(table), *options)


def test_suggested_points_are_solid_and_bright(browser, serve, truth, tmp_path):
    """A full line on a dark edge, at least as bright as 7 : 1 against that edge: visible on bone and on background."""
    page = Page(browser, offered(serve, tmp_path, truth).address)
    ring, halo = page.js(
        "return ['ring', 'halo'].map(name => { const style = getComputedStyle("
        "document.querySelector(`#overlay .suggested .${name}`)); return { dash: style.strokeDasharray, "
        "width: parseFloat(style.strokeWidth), opacity: style.opacity * style.strokeOpacity, "
        "color: style.stroke.match(/[\\d.]+/g).map(Number) } })"
    )
    assert ring["dash"] == "none" and ring["opacity"] == 1 and ring["width"] >= 2 and halo["width"] > ring["width"]
    linear = [(value / 255 + 0.055) ** 2.4 / 1.055**2.4 for value in ring["color"]]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    assert (luminance + 0.05) / 0.05 > 7 and sum(halo["color"]) == 0


def test_a_digit_and_the_arrow_keys_correct_a_suggestion(browser, serve, truth, table, tmp_path):
    """The chosen point moves and the other six are accepted. Without a choice, an arrow key changes nothing."""
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.keys import Keys

    first = next(iter(truth))
    page = Page(browser, offered(serve, tmp_path, truth).address)
    page.key(Keys.ARROW_RIGHT)
    page.wait(lambda: "Choose a point first" in page.text("status"))
    page.key("3")
    assert page.text("status") == "Suggested: Enter accepts, drag corrects" and not table.exists()
    assert page.js("return document.querySelector('#overlay .suggested.chosen text').textContent") == "1 thumb"
    page.key(Keys.ARROW_RIGHT)
    ActionChains(browser, duration=0).key_down(Keys.SHIFT).send_keys(Keys.ARROW_DOWN).key_up(Keys.SHIFT).perform()
    x, y = truth[first].points[2]
    page.wait(lambda: count(table, first) == 7 and places(table, first)[2] == pytest.approx((x + 1, y + 10), abs=0.11))
    assert [place for i, place in enumerate(places(table, first)) if i != 2] == [
        place for i, place in enumerate(truth[first].points) if i != 2
    ]
    page.wait(lambda: page.text("state") == "done, 6 points as suggested")
    assert page.text("hand") == first
    page.key("z", "z")
    page.wait(lambda: page.text("status") == "Suggested: Enter accepts, drag corrects")
    page.wait(lambda: count(table, first) == 0)
    page.key(Keys.ARROW_LEFT)  # nothing is chosen after undo either
    page.wait(lambda: "Choose a point first" in page.text("status"))
    assert count(table, first) == 0


def test_the_status_line_is_right_after_undo_and_redo(browser, serve, truth, table):
    """It names the next point as it is now; no message about an earlier state stays."""
    first = next(iter(truth))
    page = Page(browser, serve().address)
    for place in crossed(truth[first]):
        page.click(*place)
    page.wait(lambda: page.text("status") == "Please check this hand")
    page.click(5, 5)
    page.wait(lambda: page.text("status").startswith("All seven points are set. Drag"))
    page.key("z")
    page.wait(lambda: page.text("status") == "Next: little finger: base of its proximal phalanx")
    assert page.text("state") == "6 of 7 points" and page.text("last") == f"Undone in {first}. Redo (Y) does it again."
    page.key("y")
    page.wait(lambda: page.text("status") == "Please check this hand")
    assert page.text("last") == f"Redone in {first}."
    page.key("y")
    page.wait(lambda: page.text("status") == "Nothing to redo.")
    page.js(
        "const b = [...document.querySelectorAll('#buttons button')]; b.find(e => /^Undo/.test(e.textContent)).click()"
    )
    page.wait(lambda: page.text("status") == "Next: little finger: base of its proximal phalanx")


POSITIONS = (
    "const p = document.getElementById('picture').style.transform; return JSON.stringify([p, ...[...document."
    "querySelectorAll('#stage, #status, #crop, #buttons, #buttons button')].map(e => { "
    "const b = e.getBoundingClientRect(); return [e.id || e.textContent, b.left, b.top, b.width, b.height] })])"
)


@pytest.mark.parametrize("size", [(1280, 800), (1024, 768), (390, 844)])
def test_the_layout_stays_still(browser, serve, truth, table, size):
    """Messages, remarks and a failure to save move nothing: neither the picture nor the panel nor a button."""
    serving = serve()
    page = Page(browser, serving.address, size=size)
    page.click(*truth[page.text("hand")].points[0])
    page.wait(lambda: count(table, page.text("hand")) == 1)
    before = page.js(POSITIONS)
    page.key("y")
    page.wait(lambda: page.text("status") == "Nothing to redo.")
    assert page.js(POSITIONS) == before
    page.js("document.getElementById('status').textContent = 'a long message '.repeat(30)")
    assert page.js(POSITIONS) == before
    for place in crossed(truth[page.text("hand")])[1:]:
        page.click(*place)
    page.wait(lambda: remarks(page))
    assert page.js(POSITIONS) == before
    page.wait(page.saved)
    serving.kill()
    page.key("f")
    page.wait(lambda: "Not saved yet" in page.text("banner"))
    assert page.js(POSITIONS) == before
    assert "sent again" in page.text("banner")
    page.js("window.onbeforeunload = null")


@pytest.mark.parametrize("size", [(1280, 800), (1920, 1080), (1024, 768)])
def test_nothing_falls_off_the_panel(browser, serve, truth, table, size):
    """Every control is visible without scrolling, with remarks and without."""
    page = Page(browser, serve().address, size=size)
    hidden = (
        "const a = document.querySelector('aside'), box = a.getBoundingClientRect(); "
        "return [...a.querySelectorAll('button, input, img, #status, #file, #rectangle')]"
        ".filter(e => e.checkVisibility())"
        ".filter(e => { const b = e.getBoundingClientRect(); return b.left < box.left || b.top < box.top "
        "|| b.right > Math.min(box.right, innerWidth) || b.bottom > Math.min(box.bottom, innerHeight) "
        "|| e.scrollWidth > e.clientWidth + 1 && e.tagName === 'BUTTON' }).map(e => e.id || e.textContent)"
    )
    scrolls = (
        "const a = document.querySelector('aside'); "
        "return [a.scrollHeight > a.clientHeight, a.scrollWidth > a.clientWidth]"
    )
    assert page.js(hidden) == [] and page.js(scrolls) == [False, False]
    for place in crossed(truth[next(iter(truth))]):
        page.click(*place)
    page.wait(lambda: remarks(page))
    page.wait(lambda: page.js("return document.getElementById('thumbnail').naturalWidth == 224"))
    assert page.js(hidden) == [] and page.js(scrolls) == [False, False]


def test_buttons_are_in_three_groups_with_their_keys(browser, serve, truth, table):
    """Previous is before Next. A button that can do nothing now is disabled."""
    page = Page(browser, serve().address)
    groups = page.js(
        "return [...document.querySelectorAll('#buttons [role=group]')].map(g => [g.getAttribute('aria-label'), "
        "[...g.querySelectorAll('button')].map(b => [b.firstChild.textContent, b.querySelector('kbd').textContent])])"
    )
    assert dict(groups) == {
        "Hand": [["Previous", "P"], ["Next", "N"], ["Accept", "Enter"], ["Skip", "S"], ["Flag", "F"]],
        "Points": [["Undo", "Z"], ["Redo", "Y"], ["Delete", "Del"], ["Swap", "X"]],
        "View": [["Zoom in", "+"], ["Zoom out", "−"], ["Fit", "0"], ["Invert", "I"], ["Mirror", "M"], ["Reset", "R"]],
    }

    def disabled():
        return page.js(
            "return [...document.querySelectorAll('#buttons button:disabled')].map(b => b.firstChild.textContent)"
        )

    assert disabled() == ["Accept", "Undo", "Redo", "Delete", "Swap"]
    page.click(*truth[page.text("hand")].points[0])
    page.wait(lambda: disabled() == ["Accept", "Redo"])
    page.button("Undo")
    page.wait(lambda: disabled() == ["Accept", "Undo", "Delete", "Swap"])
    page.button("Redo")
    page.wait(lambda: disabled() == ["Accept", "Redo"])


def test_partly_marked_hands_are_named_and_filtered(browser, serve, truth, table):
    """In the page's words: not marked, 3 of 7 points; the filter and the terminal name them too."""
    first, second = list(truth)[:2]
    serving = serve()
    assert "0 of 12 hands done, 0 partly marked, 12 not marked, 0 skipped" in serving.printed
    page = Page(browser, serving.address)
    assert page.text("state") == "not marked"
    for place in truth[first].points[:3]:
        page.click(*place)
    page.wait(lambda: count(table, first) == 3 and page.text("state") == "3 of 7 points")
    options = page.js("return [...document.querySelectorAll('#filter option')].map(o => o.textContent)")
    assert {"not marked", "partly marked"} <= set(options) and not {"open", "begun"} & set(options)
    choose = "const f = document.getElementById('filter'); f.value = arguments[0]; f.dispatchEvent(new Event('change'))"
    page.js(choose, "unmarked")
    page.ready(second)
    page.js(choose, "partial")
    page.ready(first)
    page.js(choose, "doubtful")
    page.key("g")  # the filter for suggestions is not offered without any
    assert page.js("return document.getElementById('filter').value") == "all"
    serving.kill()
    assert "0 of 12 hands done, 1 partly marked, 11 not marked, 0 skipped" in serve().printed


@pytest.mark.parametrize(
    "where",
    {
        "near": [(150 + 4 * (i % 3), 200 + 5 * (i // 3)) for i in range(7)],
        "in a row": [(60 + 6 * i, 180) for i in range(7)],
        "in a corner": [(2 + 3 * i, 387 - i) for i in range(7)],
        "at one place": [(100, 100)] * 7,
    }.items(),
    ids=lambda item: item[0],
)
def test_labels_do_not_overlap(browser, serve, truth, table, where):
    """However near the points are, labels keep clear of each other and of all dots, each on a line to its own dot."""
    first = next(iter(truth))
    write_points(table, [replace(truth[first], points=tuple(map(lambda p: (float(p[0]), float(p[1])), where[1])))])
    page = Page(browser, serve().address, size=(1280, 800))
    page.js("const f = document.getElementById('filter'); f.value = 'done'; f.dispatchEvent(new Event('change'))")
    page.ready(first)
    drawn = page.js(
        "return [...document.querySelectorAll('#overlay g')].map(g => { "
        "const b = g.querySelector('text').getBoundingClientRect(); "
        "const r = g.querySelector('.ring').getBoundingClientRect(); "
        "const s = document.getElementById('stage').getBoundingClientRect(), l = g.querySelector('.leader'); "
        "const ends = ['x1', 'y1', 'x2', 'y2'].map(n => +l.getAttribute(n)); "
        "return { text: g.querySelector('text').textContent, box: [b.left, b.top, b.right, b.bottom], "
        "ring: [(r.left + r.right) / 2, (r.top + r.bottom) / 2, r.width / 2], "
        "stage: [s.left, s.top, s.right, s.bottom], "
        "width: parseFloat(getComputedStyle(l).strokeWidth), "
        "line: [ends[0] + s.left, ends[1] + s.top, ends[2] + s.left, ends[3] + s.top] } })"
    )
    assert [each["text"][0] for each in drawn[2:]] == list("12345") and [d["text"] for d in drawn[:2]] == ["U", "R"]
    for number, one in enumerate(drawn):
        left, top, right, bottom = one["box"]
        assert left >= one["stage"][0] and top >= one["stage"][1]
        assert right <= one["stage"][2] and bottom <= one["stage"][3]
        for other in drawn[number + 1 :]:
            apart = right <= other["box"][0] or other["box"][2] <= left or bottom <= other["box"][1]
            assert apart or other["box"][3] <= top, (one["text"], other["text"])
        for other in drawn:
            x, y, radius = other["ring"]
            nearest = np.hypot(max(left - x, 0, x - right), max(top - y, 0, y - bottom))
            assert nearest >= radius, (one["text"], other["text"])
        start, end = one["line"][:2], one["line"][2:]
        assert np.hypot(start[0] - one["ring"][0], start[1] - one["ring"][1]) < one["ring"][2] + 2 and one["width"] <= 1
        assert left - 4 <= end[0] <= right + 4 and top - 4 <= end[1] <= bottom + 4
        assert np.hypot(end[0] - start[0], end[1] - start[1]) > 2


def test_sixteen_bits_and_a_damaged_file(browser, serve, tmp_path):
    """A 3000-pixel 16-bit image is shown. An image that cannot be read is named and can be skipped."""
    from selenium.webdriver.common.keys import Keys

    images = tmp_path / "images"
    images.mkdir()
    deep = (np.add.outer(np.arange(3000), np.arange(2400)) * 8).astype(np.uint16)
    cv2.imwrite(str(images / "1.png"), deep)
    (images / "2.png").write_bytes((images / "1.png").read_bytes()[:5000])
    cv2.imwrite(str(images / "3.png"), np.full((40, 30), 90, np.uint8))
    (images / "4.png").write_text("<html>not found</html>")
    cv2.imwrite(str(images / "5 ü#%41.png"), np.full((40, 30), 90, np.uint8))
    page = Page(browser, serve(images=images).address)
    size = "const p = document.getElementById('picture'); return [p.naturalWidth, p.naturalHeight]"
    assert page.js(size) == [2400, 3000]
    page.key("n")
    page.wait(lambda: "2.png" in page.text("status") and "cut off" in page.text("status"))
    page.mouse("mousePressed", 400, 400)
    page.mouse("mouseReleased", 400, 400)
    page.key("s")
    page.wait(lambda: page.js("return document.getElementById('skip').open"))
    page.key("damaged", Keys.ENTER)
    page.ready("3")
    page.key("n")
    page.wait(lambda: "4.png" in page.text("status") and page.text("hand") == "4")
    page.key("s")
    page.wait(lambda: page.js("return document.getElementById('skip').open"))
    page.key("a web page", Keys.ENTER)
    page.ready("5 ü#%41")
    assert not (tmp_path / "points.csv").exists()
    page.click(10, 10)
    page.wait(lambda: count(tmp_path / "points.csv", "5 ü#%41") == 1)


def test_ctrl_c_and_a_second_server(serve, tmp_path, hands):
    """A second program on the same table is refused and the error names the first. Ctrl-C frees the table."""
    serving = serve()
    command = [
        sys.executable,
        "-m",
        "bonecaffe",
        "annotate",
        str(hands / "images"),
        "--points",
        str(tmp_path / "points.csv"),
        "--no-open",
    ]
    second = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert second.returncode == 1 and f"process {serving.process.pid}" in second.stderr
    serving.kill(signal.SIGINT)
    assert serving.process.returncode in (0, 130)
    assert serve().address != serving.address
    assert {path.name for path in tmp_path.iterdir()} <= {".points.csv.lock", ".points.csv.page"}, list(
        tmp_path.iterdir()
    )
    assert "Traceback" not in serving.printed + (serving.process.stdout.read() or "")
