"""Cut the rectangle of the reference points out of an image (paper II.1, figure 2)."""

from __future__ import annotations

from bonecaffe.hands.images import Image
from bonecaffe.hands.reference_points import Rectangle


def crop(image: Image, rectangle: Rectangle) -> Image:
    """The part of ``image`` (height, width) inside ``rectangle``, ends included, as a view.

    Raises ValueError when the rectangle reaches outside the image.

    >>> import numpy as np
    >>> crop(np.arange(12).reshape(3, 4), Rectangle(left=1, top=0, right=2, bottom=1)).tolist()
    [[1, 2], [5, 6]]
    """
    height, width = image.shape
    if rectangle.left < 0 or rectangle.top < 0 or rectangle.right >= width or rectangle.bottom >= height:
        raise ValueError(f"{rectangle} reaches outside an image of {width} x {height}")
    return image[rectangle.top : rectangle.bottom + 1, rectangle.left : rectangle.right + 1]
