#!/usr/bin/env python3
"""Draw the pictures of README and docs from phantoms; print the table of HISTEQ.md.

The pictures: pipeline, phantoms, histeq, annotate and report. The report takes most of the time: it is that of
``make demo``, trained here by the real Caffe on the CPU.
"""

from __future__ import annotations

import base64
import contextlib
import io
import shutil
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from selenium import webdriver
from selenium.webdriver.support.ui import WebDriverWait
from skimage.exposure import equalize_hist

from bonecaffe import Recipe, histeq
from bonecaffe.annotate.marking import Marks, opened
from bonecaffe.annotate.server import Server
from bonecaffe.evaluation.evaluate import predict_and_evaluate
from bonecaffe.files import write_bytes
from bonecaffe.hands.images import encode_png
from bonecaffe.hands.phantom import dataset
from bonecaffe.hands.reference_points import POINT_NAMES, ReferencePoints
from bonecaffe.prepare import prepare
from bonecaffe.prepare.crop import crop
from bonecaffe.prepare.normalize import equalized_crop, normalize
from bonecaffe.run import RunDir
from bonecaffe.training.train import train

DOCS = Path(__file__).resolve().parent.parent / "docs"
BLUE = "#2f6db3"
GROUND = 60
SHOWN = "const t = document.getElementById('thumbnail'); return !t.hidden && t.complete && t.naturalWidth > 0"


def main() -> None:
    """Draw all."""
    hand = the_hand()
    plain = crop(hand.image, hand.points.rectangle())
    equalized = equalizations(plain)
    side_by_side({"crop": plain, **equalized}, DOCS / "histeq.png")
    print("\n".join(comparison(equalized)))
    preparation(hand.image, hand.points, DOCS / "pipeline.png")
    sheet = [dataset.make(2018, number, (700, 910), age_months=15 + 14 * number).image for number in range(16)]
    contact_sheet(sheet, DOCS / "phantoms.png", columns=8, cell=(150, 195))
    the_page(hand, DOCS / "annotate.png")
    the_report(DOCS / "report.png")


def the_hand() -> dataset.Phantom:
    """The phantom of the pictures: a girl of 118 months."""
    return dataset.make(2018, 11, (1000, 1300), age_months=118, male=False)


# ---- histogram equalization ----------------------------------------------------------------------------------------


def equalizations(image: np.ndarray) -> dict[str, np.ndarray]:
    """One crop, equalized by three rules; uint8."""
    return {
        "MATLAB histeq, 64 levels": histeq(image),
        "MATLAB histeq, 256 levels": histeq(image, 256),
        "cv2.equalizeHist": cv2.equalizeHist(image),
        "skimage equalize_hist": np.floor(equalize_hist(image) * 255 + 0.5).astype(np.uint8),
    }


def comparison(equalized: Mapping[str, np.ndarray]) -> list[str]:
    """The table of docs/explanation/HISTEQ.md, a line each: levels, least, mean, mean and largest difference."""
    first = next(iter(equalized.values())).astype(int)
    lines = []
    for name, result in equalized.items():
        difference = np.abs(result - first)
        values = f"{len(np.unique(result))} | {result.min()} | {result.mean():.1f}"
        lines.append(f"| {name} | {values} | {difference.mean():.2f} | {difference.max()} |")
    return lines


def side_by_side(pictures: Mapping[str, np.ndarray], path: Path) -> None:
    """Grey images under their titles, each with its histogram below; ``pictures`` maps titles to uint8 arrays."""
    figure = _figure(2.5 * len(pictures), 3.8)
    above, below = figure.subplots(2, len(pictures), height_ratios=(3, 1))
    for (title, picture), image_axes, axes in zip(pictures.items(), above, below, strict=True):
        _show(image_axes, title, picture)
        axes.hist(picture.ravel(), bins=256, range=(0, 256), color=BLUE)
        axes.set_yticks([])
        axes.set_xticks([0, 255])
        axes.spines[["top", "right", "left"]].set_visible(False)
    _save(figure, path)


# ---- the pipeline --------------------------------------------------------------------------------------------------


def preparation(image: np.ndarray, points: ReferencePoints, path: Path) -> None:
    """The paper's figures 2 and 3: image, points and rectangle, crop, equalized, as the network sees it."""
    settings = Recipe.load("paper").preparation
    rectangle = points.rectangle(settings.margin)
    steps = {
        f"radiograph, {points.width} × {points.height}": image,
        "seven reference points": image,
        f"crop, {rectangle.width} × {rectangle.height}": crop(image, rectangle),
        f"histeq, {settings.histeq_levels} levels": equalized_crop(image, points, settings),
        f"resized, {settings.width} × {settings.height}": normalize(image, points, settings),
    }
    figure = _figure(12, 3.4)
    grid = figure.subplots(1, len(steps))
    for axes, (title, picture) in zip(grid, steps.items(), strict=True):
        _show(axes, title, picture)
    _mark(grid[1], points)
    left, right, top, bottom = rectangle.left, rectangle.right, rectangle.top, rectangle.bottom
    outline = ([left, right, right, left, left], [top, top, bottom, bottom, top])
    grid[1].plot(*outline, color="#5fb0ff", linewidth=1.2)
    _save(figure, path)


def _mark(axes: Axes, points: ReferencePoints) -> None:
    """Dots with the names of the points; the ulna's name to the left, where there is room."""
    for name, (x, y) in zip(POINT_NAMES, points.points, strict=True):
        axes.plot(x, y, "o", color="#ff9a3c", markersize=4, markeredgecolor="black", markeredgewidth=0.5)
        axes.annotate(
            name.replace("phalanx", ""),
            (x, y),
            (-6, 0) if name == "ulna" else (6, 0),
            textcoords="offset points",
            color="#ffb870",
            fontsize=7,
            ha="right" if name == "ulna" else "left",
            va="center",
        )


# ---- phantoms ------------------------------------------------------------------------------------------------------


def contact_sheet(images: list[np.ndarray], path: Path, columns: int, cell: tuple[int, int]) -> None:
    """Write grey images side by side as one PNG, each in a cell of (width, height) pixels."""
    cells = []
    for image in images:
        height, width = image.shape
        scale = min(cell[0] / width, cell[1] / height)
        small = cv2.resize(image, (int(width * scale), int(height * scale)), interpolation=cv2.INTER_AREA)
        padded = np.full((cell[1], cell[0]), GROUND, np.uint8)
        padded[: small.shape[0], : small.shape[1]] = small
        cells.append(padded)
    cells += [np.full((cell[1], cell[0]), GROUND, np.uint8)] * (-len(cells) % columns)
    rows = [np.hstack(cells[i : i + columns]) for i in range(0, len(cells), columns)]
    write_bytes(path, encode_png(np.vstack(rows), 6))


# ---- the page of annotate ------------------------------------------------------------------------------------------


def the_page(hand: dataset.Phantom, path: Path) -> None:
    """The page of annotate in Debian's chromium at 1280 × 800, with five points set on the hand of the pictures."""
    path = path.resolve()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):  # the page shows the path of its table
        images = Path("data/images")
        images.mkdir(parents=True)
        write_bytes(images / f"{hand.case.id}.png", encode_png(hand.image))
        with opened(images, Path("data/points.csv")) as marking:
            marking.change(hand.case.id, Marks((*hand.points.points[:5], None, None)))
            server = Server(marking, Recipe.load("paper").preparation)
            threading.Thread(target=server.run, daemon=True).start()
            with _browser() as browser:
                screen = {"width": 1280, "height": 800, "deviceScaleFactor": 1, "mobile": False}
                browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
                browser.get(server.address)
                WebDriverWait(browser, 20).until(lambda window: window.execute_script(SHOWN))
                write_bytes(path, browser.get_screenshot_as_png())
            server.close()


# ---- the report ----------------------------------------------------------------------------------------------------

REPORT_WIDTH = 1040
WITHIN = "return document.querySelector('#paper ~ .two tbody tr:nth-child(5)').getBoundingClientRect().bottom"


def the_report(path: Path) -> None:
    """The top of the report of `make demo`, which is trained here."""
    with tempfile.TemporaryDirectory() as folder:
        data, run = Path(folder) / "data", RunDir(Path(folder) / "demo")
        dataset.write(data, 500, seed=2018, size=(700, 910))  # as `make demo` does
        prepare.prepare(run, [data / "images"], data / "ages.csv", data / "points.csv", Recipe.load("demo"))
        outcome = train(run, cpu=True)
        if outcome is None or outcome.state != "finished":
            raise SystemExit(f"{path}: not drawn, because the demo's training did not finish: {outcome}")
        predict_and_evaluate(run)
        top_of(run.report, path)


def top_of(report: Path, path: Path) -> None:
    """A report in Debian's chromium, from its title to the figures that the paper has, too."""
    with _browser() as browser:
        size = {"width": REPORT_WIDTH, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        browser.get(report.as_uri())
        clip = {"x": 0, "y": 0, "width": REPORT_WIDTH, "height": round(browser.execute_script(WITHIN)), "scale": 1}
        asked = {"captureBeyondViewport": True, "clip": clip}
        picture = browser.execute_cdp_cmd("Page.captureScreenshot", asked)
        write_bytes(path, base64.b64decode(picture["data"]))


@contextlib.contextmanager
def _browser() -> Iterator[webdriver.Chrome]:
    """Debian's chromium, headless."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1180,860"):
        options.add_argument(argument)
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        yield browser
    finally:
        browser.quit()


# ---- figures -------------------------------------------------------------------------------------------------------


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _show(axes: Axes, title: str, picture: np.ndarray) -> None:
    axes.imshow(picture, cmap="gray", vmin=0, vmax=255)
    axes.set_title(title, fontsize=9)
    axes.axis("off")


def _save(figure: Figure, path: Path) -> None:
    png = io.BytesIO()
    figure.savefig(png, dpi=130, format="png", metadata={"Software": None})
    write_bytes(path, png.getvalue())


if __name__ == "__main__":
    main()
