"""From a hand to the image the network sees: crop, equalize, resize (paper II.1, figure 3).

`prepare` and `Predictor` use this one function. Before the crop, a hand that is not upright is turned by quarter turns,
and an image with dark bones is inverted; both are reported.
"""

from __future__ import annotations

import numpy as np

from bonecaffe.hands.images import Image
from bonecaffe.hands.reference_points import ReferencePoints
from bonecaffe.hands.standard_view import StandardView, standard_view
from bonecaffe.prepare.crop import crop
from bonecaffe.prepare.histeq import histeq
from bonecaffe.recipe import Preparation


def normalize(image: Image, points: ReferencePoints, preparation: Preparation) -> Image:
    """Crop to the rectangle of the points, equalize, resize to the recipe's height x width; uint8.

    The resize is OpenCV's bilinear one with its defaults, as in ``convert_imageset -resize_height -resize_width``,
    which then has nothing left to resize. Raises ValueError as `viewed` does.
    """
    return normalize_viewed(viewed(image, points), preparation)


def normalize_viewed(view: StandardView, preparation: Preparation) -> Image:
    """`normalize` for a hand that is already upright with bright bones, or is used as it is."""
    return resize(equalized_crop(view.image, view.points, preparation), preparation)


def viewed(image: Image, points: ReferencePoints) -> StandardView:
    """The hand upright, with bright bones.

    Raises ValueError when the image is not of the size that the points were marked in, or its polarity is doubtful.
    """
    _check_size(image, points)
    return standard_view(image, points)


def equalized_crop(image: Image, points: ReferencePoints, preparation: Preparation) -> Image:
    """The full-size equalized crop of an image as it is, which the paper hands to convert_imageset."""
    _check_size(image, points)
    return histeq(crop(image, points.rectangle(preparation.margin)), preparation.histeq_levels)


def _check_size(image: Image, points: ReferencePoints) -> None:
    if image.shape != (points.height, points.width):
        raise ValueError(
            f"the image is {image.shape[1]} x {image.shape[0]}, "
            f"but its points were marked in {points.width} x {points.height}"
        )


def resize(image: Image, preparation: Preparation) -> Image:
    """OpenCV's bilinear resize to the recipe's size, as convert_imageset does it."""
    import cv2

    return np.asarray(cv2.resize(image, (preparation.width, preparation.height)), np.uint8)
