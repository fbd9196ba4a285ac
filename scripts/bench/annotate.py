"""annotate: a 16-bit image of 3000 pixels in the browser, from the key to the picture, opened cold and loaded ahead."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from selenium import webdriver

from bonecaffe.hands.phantom import dataset

from .workbench import Row, Workbench

HANDS = 4
MARKING_S = 3.0
"""Time that a person spends on marking one hand, while the next one is loaded."""

SHOWN = (
    "return !document.getElementById('stage').classList.contains('loading')"
    " && document.getElementById('hand').textContent == arguments[0]"
)


def measure(bench: Workbench) -> list[Row]:
    """Seconds until the first hand is shown, with the page, and the most that a later one takes."""
    images = bench.folder / "deep"
    images.mkdir(exist_ok=True)
    for number in range(HANDS):
        picture = dataset.make(1, number, (2400, 3000)).image.astype(np.uint16) * 257
        cv2.imwrite(str(images / f"{number}.png"), picture)
    with _served(images, bench.folder / "deep.csv") as address, _browser() as browser:
        first, *later = _times(browser, address)
    figure = f"first {first:.2f} s with the page, the next {max(later):.2f} s at most, loaded ahead"
    return [Row("annotate", f"2400 x 3000, 16 bits: {figure}")]


@contextlib.contextmanager
def _served(images: Path, table: Path) -> Iterator[str]:
    """The address of the page, served by `bonecaffe annotate`."""
    command = [sys.executable, "-m", "bonecaffe", "annotate", str(images), "--points", str(table), "--no-open"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            addresses = (word for line in process.stdout for word in line.split() if word.startswith("http://"))
            address = next(addresses, None)
            if address is None:
                raise SystemExit("bench: bonecaffe annotate printed no address")
            yield address
        finally:
            process.terminate()


@contextlib.contextmanager
def _browser() -> Iterator[webdriver.Chrome]:
    """Debian's chromium, headless."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,860"):
        options.add_argument(argument)
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        yield browser
    finally:
        browser.quit()


def _times(browser: webdriver.Chrome, address: str) -> list[float]:
    """Seconds until each hand is shown, one after the other."""
    times = []
    for number in range(HANDS):
        began = time.monotonic()
        if number == 0:
            browser.get(address)
        else:
            browser.execute_script("document.querySelector('#buttons button').click()")
        while not browser.execute_script(SHOWN, str(number)):
            time.sleep(0.005)
        times.append(time.monotonic() - began)
        time.sleep(MARKING_S)
    return times
