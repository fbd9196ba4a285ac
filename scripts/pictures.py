#!/usr/bin/env python3
"""Draw the pictures of README and docs anew from phantoms: pipeline, phantoms, histeq, annotate; print HISTEQ.md's table."""

import shutil
import tempfile
import threading
from pathlib import Path

import cv2
import numpy as np
from selenium.webdriver.support.ui import WebDriverWait
from skimage.exposure import equalize_hist

from bonecaffe import Recipe
from bonecaffe.evaluation import figures
from bonecaffe.hands.images import encode_png
from bonecaffe.hands.phantom import dataset
from bonecaffe.prepare.crop import crop
from bonecaffe.prepare.histeq import histeq

DOCS = Path(__file__).resolve().parent.parent / "docs"


def equalizations(image: np.ndarray) -> dict[str, np.ndarray]:
    """One crop, equalized by three rules; uint8."""
    return {
        "MATLAB histeq, 64 levels": histeq(image),
        "MATLAB histeq, 256 levels": histeq(image, 256),
        "cv2.equalizeHist": cv2.equalizeHist(image),
        "skimage equalize_hist": np.floor(equalize_hist(image) * 255 + 0.5).astype(np.uint8),
    }


def comparison(image: np.ndarray) -> list[str]:
    """The table of docs/HISTEQ.md, a line each."""
    results = equalizations(image)
    first = next(iter(results.values())).astype(int)
    lines = []
    for name, result in results.items():
        difference = np.abs(result - first)
        lines.append(
            f"| {name} | {len(np.unique(result))} | {result.min()} | {result.mean():.1f} | {difference.mean():.2f} | {difference.max()} |"
        )
    return lines


def the_hand() -> dataset.Phantom:
    """The phantom of the pictures: a girl of 118 months."""
    return dataset.make(2018, 11, (1000, 1300), age_months=118, male=False)


def the_crop() -> np.ndarray:
    """Its crop, not equalized."""
    hand = the_hand()
    return crop(hand.image, hand.points.rectangle())


def the_page(path: Path) -> None:
    """The page of annotate in Debian's chromium, five points set on the hand of the pictures."""
    from selenium import webdriver

    from bonecaffe.annotate.marking import Marks, opened
    from bonecaffe.annotate.server import Server

    hand = the_hand()
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1180,860"):
        options.add_argument(argument)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / f"{hand.case.id}.png").write_bytes(encode_png(hand.image))
        with opened(Path(folder), Path(folder) / "points.csv") as marking:
            marking.change(hand.case.id, Marks((*hand.points.points[:5], None, None)))
            server = Server(marking, Recipe.load("paper").preparation)
            threading.Thread(target=server.run, daemon=True).start()
            browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
            browser.get(server.address)
            seen = (
                "const t = document.getElementById('thumbnail'); return !t.hidden && t.complete && t.naturalWidth > 0"
            )
            WebDriverWait(browser, 20).until(lambda window: window.execute_script(seen))
            browser.save_screenshot(str(path))
            browser.quit()
            server.close()


def main() -> None:
    """Draw all."""
    results = equalizations(the_crop())
    figures.side_by_side({"crop": the_crop(), **results}, DOCS / "histeq.png")
    print("\n".join(comparison(the_crop())))
    hand = the_hand()
    figures.preparation(hand.image, hand.points, Recipe.load("paper"), DOCS / "pipeline.png")
    sheet = [dataset.make(2018, number, (700, 910), age_months=15 + 14 * number) for number in range(16)]
    dataset.write_contact_sheet(DOCS / "phantoms.png", sheet, columns=8, cell=(150, 195))
    the_page(DOCS / "annotate.png")


if __name__ == "__main__":
    main()
