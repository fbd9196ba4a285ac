"""The rectangle cut out."""

from __future__ import annotations

import numpy as np
import pytest

from bonecaffe.hands.reference_points import Rectangle
from bonecaffe.prepare.crop import crop


def test_ends_are_included():
    """A rectangle from 2 to 4 has three columns."""
    image = np.arange(30).reshape(5, 6)
    assert crop(image, Rectangle(2, 1, 4, 1)).tolist() == [[8, 9, 10]]
    assert crop(image, Rectangle(0, 0, 5, 4)).shape == (5, 6)


@pytest.mark.parametrize("sides", [(-1, 0, 3, 3), (0, -1, 3, 3), (0, 0, 6, 3), (0, 0, 3, 5)])
def test_outside_is_refused(sides):
    """Never silently a smaller crop, as a slice would give."""
    with pytest.raises(ValueError, match="outside"):
        crop(np.zeros((5, 6), np.uint8), Rectangle(*sides))
