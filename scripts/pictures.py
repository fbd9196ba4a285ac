#!/usr/bin/env python3
"""Draw the README's pictures anew from phantoms: docs/pipeline.png and docs/phantoms.png."""

from pathlib import Path

from bonecaffe import Recipe
from bonecaffe.evaluation import figures
from bonecaffe.hands.phantom import dataset

DOCS = Path(__file__).resolve().parent.parent / "docs"


def main() -> None:
    """Draw both."""
    hand = dataset.make(2018, 11, (1000, 1300), age_months=118, male=False)
    figures.preparation(hand.image, hand.points, Recipe.load("paper"), DOCS / "pipeline.png")
    sheet = [dataset.make(2018, number, (700, 910), age_months=15 + 14 * number) for number in range(16)]
    dataset.write_contact_sheet(DOCS / "phantoms.png", sheet, columns=8, cell=(150, 195))


if __name__ == "__main__":
    main()
