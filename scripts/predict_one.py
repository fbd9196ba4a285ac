#!/usr/bin/env python3
"""The bone age of one hand, in months: pycaffe inference from a script.

    .venv/bin/python scripts/predict_one.py runs/demo hand.png points.csv

points.csv holds a row whose id is the image's name without its suffix.
"""

import sys
from pathlib import Path

from bonecaffe import BonecaffeError, Predictor
from bonecaffe.hands.reference_points import read_points
from bonecaffe.predict import points_for


def main() -> int:
    """Predict and print; on an error, print a message and exit 1."""
    if len(sys.argv) != 4:
        print(__doc__, file=sys.stderr)
        return 2
    run, image, points = map(Path, sys.argv[1:])
    try:
        hand = points_for(image, read_points(points))
        print(f"{Predictor(run).predict(image, hand):.1f}")
    except BonecaffeError as error:
        print(f"predict_one: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
