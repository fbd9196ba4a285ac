"""The rule of MATLAB's ``histeq(I)`` for uint8 images (paper II.1).

docs/explanation/HISTEQ.md names the source of each part. It is neither ``cv2.equalizeHist``, which leaves out the first
occupied bin and uses 256 levels, nor ``skimage.exposure.equalize_hist``, which maps through the plain cumulative
histogram to floats.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bonecaffe.files import table_text
from bonecaffe.hands.images import Image

Counts = NDArray[np.int64]
"""Pixels at each of the 256 grey levels, shape (256,)."""
_PIXELS_AT_ONCE = 4_000_000  # OpenCV counts in float32, exact to 2**24


def histogram(image: Image) -> Counts:
    """Counts of the 256 grey levels of a uint8 image of one column at least, int64, shape (256,)."""
    import cv2

    counts = np.zeros(256, np.int64)
    step = max(1, _PIXELS_AT_ONCE // image.shape[1])
    for top in range(0, image.shape[0], step):
        part = np.ascontiguousarray(image[top : top + step])
        counts += cv2.calcHist([part], [0], None, [256], [0, 256]).ravel().astype(np.int64)
    return counts


def transform(counts: Counts, levels: int = 64) -> NDArray[np.uint8]:
    """The grey-level table T that equalizes a histogram, uint8, shape (256,).

    With h(j) pixels at level j, c(j) its cumulative sum, N pixels and n levels, level j goes to the smallest k in
    1…n with ``k N / n >= c(j) - t(j)``, where t(j) is h(j)/2, but 0 at both ends of the scale; the output is
    ``round(255 (k - 1) / (n - 1))``, halves up. Sources: MathWorks' page on histeq (64 levels by default, a flat
    target histogram, the monotonic transform that comes nearest to it) and MIMT's histeqFB (t, and a tolerance of
    N sqrt(eps)). Not compared with MATLAB's own output.

    Raises ValueError for an empty histogram or a number of levels outside 2…256.

    >>> counts = np.zeros(256, int); counts[[50, 51, 52]] = 100
    >>> transform(counts)[[50, 51, 52]].tolist()
    [40, 125, 215]
    """
    counts = np.asarray(counts, np.int64)
    total = int(counts.sum())
    if counts.shape != (256,) or total <= 0:
        raise ValueError("a histogram of 256 counts, not all zero, is needed")
    if not 2 <= levels <= 256:
        raise ValueError(f"{levels} levels; 2 to 256 are possible")
    half = counts / 2.0
    half[[0, 255]] = 0.0
    needed = np.cumsum(counts) - half
    offered = np.arange(1, levels + 1) * (total / levels) + total * np.sqrt(np.finfo(float).eps)
    k = np.searchsorted(offered, needed, side="left")  # zero-based; the last step is above all that is needed
    return np.floor(255.0 * k / (levels - 1) + 0.5).astype(np.uint8)


def histeq(image: Image, levels: int = 64) -> Image:
    """Equalize a uint8 image (height, width) by the rule of MATLAB's ``histeq(I, levels)``; same shape and type.

    >>> histeq(np.full((4, 4), 100, np.uint8))[0, 0].item()
    125
    """
    import cv2

    if image.dtype != np.uint8 or image.ndim != 2 or image.size == 0:
        raise ValueError(f"a two-dimensional uint8 image is needed, not {image.dtype} of shape {image.shape}")
    return np.asarray(cv2.LUT(image, transform(histogram(image), levels)), np.uint8)


def transform_text(counts: Counts, levels: int = 64) -> str:
    """The histogram and its table T as CSV: ``level,pixels,output``, 256 rows; for comparison with MATLAB's own T.

    MATLAB's second output of histeq is this table over 255.
    """
    return table_text(("level", "pixels", "output"), zip(range(256), counts, transform(counts, levels), strict=True))
