"""What is subtracted from the pixels: one module for the prototxts, the Predictor and the manifest.

The paper does not state it. ``imagenet_values`` are the stock network's three numbers; ``dataset`` is the mean image of
the training LMDB, by Caffe's compute_image_mean; ``file:…`` is the user's own mean image; ``none`` subtracts nothing.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bonecaffe.caffe import caffemodel, programs
from bonecaffe.errors import PrepareError, RecipeError
from bonecaffe.files import fill, read_bytes
from bonecaffe.recipe import Recipe
from bonecaffe.run import RunDir

FILE = "mean.binaryproto"
"""The mean image of a run, in the same folder as its prototxts."""


def fields(recipe: Recipe) -> list[tuple[str, float | str]]:
    """The mean's fields of a ``transform_param``."""
    kind = recipe.network.mean
    if kind == "none":
        return []
    if kind == "imagenet_values":
        return [("mean_value", value) for value in recipe.network.mean_value]
    return [("mean_file", FILE)]


def words(recipe: Recipe) -> str:
    """The mean as text, for the heading of each prototxt and the report."""
    kind = recipe.network.mean
    if kind == "imagenet_values":
        return "{:g}, {:g}, {:g} (blue, green, red)".format(*recipe.network.mean_value)
    return {"none": "none", "dataset": f"{FILE}, the mean of the training images"}.get(kind, f"{FILE}, given as a file")


def needs_file(recipe: Recipe) -> bool:
    """Whether the recipe subtracts a mean image."""
    return recipe.network.mean not in ("imagenet_values", "none")


def given_file(recipe: Recipe) -> Path | None:
    """The file that ``file:…`` names; None for other means."""
    kind = recipe.network.mean
    return Path(os.path.expanduser(kind.removeprefix("file:"))) if kind.startswith("file:") else None


def write(run: RunDir, recipe: Recipe, target: Path) -> None:
    """Write the recipe's mean image to ``target``; does nothing where the mean is numbers or none.

    Raises RecipeError for a file that is not a mean image of the recipe's size.
    """
    kind = recipe.network.mean
    if kind == "dataset":
        programs.call("compute_image_mean", [str(run.lmdb("train").absolute()), str(target.absolute())])
    elif given := given_file(recipe):
        size = (3, recipe.preparation.height, recipe.preparation.width)
        image = read(given)
        if image.shape != size:
            shown = " x ".join(map(str, image.shape))
            raise RecipeError(
                f"{given}: a mean image of {shown}, but the network's input is {' x '.join(map(str, size))}. "
                "Caffe would stop. Use mean: dataset, or a mean image of that size."
            )
        # written with four dimensions: Caffe would misread three (`shape_for_caffe`)
        fill(target, [caffemodel.write_blob(image)])


def read(path: Path) -> NDArray[np.float32]:
    """A mean image, float32 (channel, row, column); RecipeError naming the file when it is not one.

    Its dimensions are the last three; leading dimensions of 1 are ignored.
    """
    return parse(_read(path), path)


def shape_for_caffe(path: Path) -> tuple[int, int, int]:
    """Channels, height and width of a mean file as Caffe reads them; RecipeError when Caffe would abort on it.

    Blob::LegacyShape counts dimensions from the front: a file of 3 x 224 x 224 is one of 224 channels, 224 x 1.
    """
    shape, _ = _parse(_read(path), path)
    if len(shape) > 4:
        raise RecipeError(f"{path}: a mean image of {len(shape)} dimensions; Caffe reads at most four.")
    _, channels, height, width = shape + (1,) * (4 - len(shape))
    return channels, height, width


def _read(path: Path) -> bytes:
    try:
        return read_bytes(path, "image", RecipeError)
    except OSError as error:
        raise RecipeError(f"{path}: {error.strerror}. The recipe's mean needs it.") from error


def _parse(content: bytes, path: Path) -> tuple[tuple[int, ...], NDArray[np.float32]]:
    """The dimensions as they are in a mean file, and the image."""
    try:
        shape, values = caffemodel.read_blob(content)
    except ValueError as error:
        raise RecipeError(f"{path}: not a mean image (binaryproto): {error}.") from error
    if len(shape) < 3 or not math.prod(shape) == math.prod(shape[-3:]) == values.size > 0:
        raise RecipeError(f"{path}: not a mean image (binaryproto): {values.size} numbers for the shape {shape}.")
    return shape, values.reshape(shape[-3:])


def array(run: RunDir, recipe: Recipe) -> NDArray[np.float32]:
    """What the Data layer subtracts, float32, (3, 1, 1) or (3, height, width)."""
    if not needs_file(recipe):
        return values(recipe)
    try:
        return read(run.mean_file)
    except RecipeError as error:
        raise PrepareError(f"{error} Write it with: bonecaffe prototxt {run}") from error


def values(recipe: Recipe) -> NDArray[np.float32]:
    """The mean of a recipe that needs no file, float32, (3, 1, 1)."""
    kind = recipe.network.mean
    numbers = recipe.network.mean_value if kind == "imagenet_values" else (0, 0, 0)
    return np.asarray(numbers, np.float32).reshape(3, 1, 1)


def parse(content: bytes, where: Path) -> NDArray[np.float32]:
    """The mean image in a file's content, as `read` gives it; ``where`` is for errors."""
    return _parse(content, where)[1]
