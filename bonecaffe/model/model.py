"""A trained model, and the one file that it can be handed over in (``bonecaffe export RUN model.zip``).

A `Model` is all that a prediction needs. A run has one for each snapshot (`bonecaffe.predict`), a model file has one.
A model file may come from a stranger. It is read whole and checked before any of it is used: its form
(`container`), names, sizes and hashes, then the recipe, the net, the mean and the weights against each other. Nothing
is unpacked under a name: what Caffe must open as a file is in files without a name, which vanish with the process.
"""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256 as hash_of
from pathlib import Path
from typing import Annotated, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from bonecaffe import __version__
from bonecaffe.caffe import deploy as deploys
from bonecaffe.caffe.caffemodel import Caffemodel
from bonecaffe.errors import ModelError, RecipeError, WeightsError
from bonecaffe.files import MEGABYTE, open_regular, scratch_file
from bonecaffe.model import container
from bonecaffe.model.container import Member
from bonecaffe.network import mean as means
from bonecaffe.recipe import Recipe
from bonecaffe.records import Count, Frozen, Sha256
from bonecaffe.trees import parse_json

FORMAT: Literal["bonecaffe model"] = "bonecaffe model"
VERSION: Literal[1] = 1
MANIFEST, RECIPE, DEPLOY, WEIGHTS = "manifest.json", "recipe.yaml", "deploy.prototxt", "weights.caffemodel"
MEAN, ONNX, TRAINING = "mean.binaryproto", "model.onnx", "training.json"
METRICS, RESIDUALS, MODEL_CARD = "metrics.json", "residuals.json", "MODEL_CARD.md"
LARGEST: Mapping[str, int] = {
    MANIFEST: MEGABYTE // 16,
    MODEL_CARD: MEGABYTE,
    RECIPE: MEGABYTE // 4,
    TRAINING: MEGABYTE,
    METRICS: MEGABYTE,
    RESIDUALS: 16 * MEGABYTE,
    DEPLOY: MEGABYTE,
    MEAN: 64 * MEGABYTE,
    ONNX: 1024 * MEGABYTE,
    WEIGHTS: 2048 * MEGABYTE,
}
"""The members of a model file in their order, and the most bytes of each."""
OPTIONAL = frozenset({MEAN, METRICS, RESIDUALS})
"""Members that a model file may lack: a mean that is numbers; figures of a run that was not evaluated."""
_IN_FILES = frozenset({WEIGHTS, ONNX})
_PIECE = 4 * MEGABYTE


@dataclass(frozen=True)
class Model:
    """What predicts: net, weights, mean (float32, as `mean.array`), and the recipe, whose preparation an image needs.

    ``name`` is what errors call it. ``held`` are open files that ``deploy`` and ``caffemodel`` are the contents of.
    """

    name: str
    iteration: int
    recipe: Recipe
    mean: NDArray[np.float32] = field(repr=False, compare=False)
    deploy: Path
    caffemodel: Path
    held: tuple[BinaryIO, ...] = field(default=(), repr=False, compare=False)


class Stored(Frozen):
    """The size in bytes and the hash of a member."""

    size: Count
    sha256: Sha256


class Contents(Frozen):
    """The manifest of a model file."""

    format: Literal["bonecaffe model"] = FORMAT
    version: Literal[1] = VERSION
    bonecaffe: str = __version__
    """The version that wrote it."""
    iteration: Count
    licence: Annotated[str, Field(max_length=200)] | None = None
    """The licence of the model, as its authors state it; None: not stated."""
    members: dict[str, Stored]


@dataclass(frozen=True)
class ModelFile:
    """A model file that was read: its manifest, its model, and the bytes of the members that are not the net's."""

    contents: Contents
    model: Model
    texts: Mapping[str, bytes] = field(repr=False)


# ---- writing -----------------------------------------------------------------------------------------------------


def write(file: BinaryIO, members: Mapping[str, bytes | Path], iteration: int, licence: str | None = None) -> Contents:
    """Write a model file: its members' contents by name, or the files that hold them; returns its manifest.

    The same members give the same bytes. Raises ModelError for a member that is larger than a model file may hold, or
    a file that changes meanwhile.
    """
    found = {name: _facts(name, members[name]) for name in LARGEST if name in members}
    contents = Contents(
        iteration=iteration,
        licence=licence,
        members={name: Stored(size=size, sha256=digest) for name, (size, _, digest) in found.items()},
    )
    manifest = (contents.model_dump_json(indent=2) + "\n").encode()
    found = {MANIFEST: _facts(MANIFEST, manifest), **found}
    try:
        layout = container.layout([Member(name, size, crc) for name, (size, crc, _) in found.items()])
    except ValueError as error:
        raise ModelError(f"the model does not fit into one file: {error}.") from None
    for (name, facts), header in zip(found.items(), layout.headers, strict=True):
        file.write(header)
        source = manifest if name == MANIFEST else members[name]
        if _facts(name, source, file.write) != facts:
            raise ModelError(
                f"{source if isinstance(source, Path) else name}: changed while it was exported. Try again."
            )
    file.write(layout.tail)
    return contents


def _facts(name: str, source: bytes | Path, use: Callable[[bytes], object] | None = None) -> tuple[int, int, str]:
    """Size, CRC-32 and SHA-256 of a member's content; ``use`` gets it in pieces."""
    size, crc, digest = 0, 0, hash_of()
    for piece in [source] if isinstance(source, bytes) else _pieces(source):
        size, crc = size + len(piece), zlib.crc32(piece, crc)
        digest.update(piece)
        if size > LARGEST[name]:
            raise ModelError(f"{name}: more than {LARGEST[name] / 1e6:.0f} MB; a model file does not hold that.")
        if use is not None:
            use(piece)
    return size, crc, digest.hexdigest()


def _pieces(path: Path) -> Iterator[bytes]:
    with open_regular(path, ModelError) as file:
        while piece := file.read(_PIECE):
            yield piece


def is_one(path: Path) -> bool:
    """Whether a file begins like a model file: it may be replaced by another one."""
    with open_regular(path, ModelError) as file:
        head = file.read(64)
    return head.startswith(b"PK\3\4") and head[30:].startswith(MANIFEST.encode())


# ---- reading -----------------------------------------------------------------------------------------------------


def read(path: str | os.PathLike[str]) -> ModelFile:
    """Read and check a model file; ModelError in one sentence for anything but what `write` makes.

    Raises OSError where it cannot be opened.
    """
    name = os.fspath(path)
    with open_regular(path, ModelError) as file:
        try:
            members, layout = _layout(file)
            contents = _contents(file, members, layout, name)
            texts, held = _checked(file, members, layout, contents)
        except ValueError as error:
            raise ModelError(f"{name}: {error}. {_remedy(name)}") from None
    return ModelFile(contents, _model(name, contents, texts, held), texts)


def _remedy(name: str) -> str:
    return f"It is not a model file, or it is damaged: copy it again, or export it with: bonecaffe export RUN {name}"


def _layout(file: BinaryIO) -> tuple[list[Member], container.Layout]:
    """The members and the layout of an archive; ValueError unless all bytes outside the members are as they must be."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - container.LONGEST_TAIL))
    members = container.members_of(file.read())
    layout = container.layout(members)
    if layout.size != size:
        raise ValueError(f"it has {size} bytes, and its directory describes {layout.size}")
    for member, header, offset in zip(members, layout.headers, layout.offsets, strict=True):
        file.seek(offset - len(header))
        if file.read(len(header)) != header:
            raise ValueError(f"the header of {_shown(member.name)} is not as bonecaffe writes it")
    return members, layout


def _contents(file: BinaryIO, members: Sequence[Member], layout: container.Layout, name: str) -> Contents:
    """The manifest; ValueError unless it lists the members as they are."""
    names = [member.name for member in members]
    if names != [known for known in LARGEST if known in names] or names[:1] != [MANIFEST]:
        raise ValueError(f"it holds {', '.join(map(_shown, names[:12]))}: not the members of a model file")
    for member in members:
        if member.size > LARGEST[member.name]:
            raise ValueError(
                f"{member.name} has {member.size / 1e6:.0f} MB; more than {LARGEST[member.name] / 1e6:.0f}"
            )
    file.seek(layout.offsets[0])
    content = file.read(members[0].size)
    if zlib.crc32(content) != members[0].crc:
        raise ValueError(f"{MANIFEST} is damaged")
    tree = parse_json(content, f"{name}: {MANIFEST}", ModelError)
    if isinstance(tree, dict) and tree.get("format") == FORMAT and tree.get("version") != VERSION:
        raise ModelError(
            f"{name}: a model file of version {_shown(str(tree.get('version')))}; this bonecaffe reads version "
            f"{VERSION}. Install the version of bonecaffe that wrote it."
        )
    try:
        contents = Contents.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise ValueError(f"{MANIFEST} is not one of a model file ({_shown(where)}: {first['msg']})") from None
    sizes = {member.name: member.size for member in members[1:]}
    if sizes != {each: stored.size for each, stored in contents.members.items()}:
        raise ValueError(f"its members and their sizes are not those of {MANIFEST}")
    if missing := LARGEST.keys() - OPTIONAL - set(names):
        raise ValueError(f"{', '.join(sorted(missing))} missing")
    return contents


def _checked(
    file: BinaryIO, members: Sequence[Member], layout: container.Layout, contents: Contents
) -> tuple[dict[str, bytes], BinaryIO]:
    """The members that fit into memory, and the weights in a file without a name; ValueError for another hash."""
    texts: dict[str, bytes] = {}
    weights = scratch_file()
    try:
        for member, offset in zip(members[1:], layout.offsets[1:], strict=True):
            file.seek(offset)
            digest, parts, left = hash_of(), [], member.size
            while left and (piece := file.read(min(left, _PIECE))):
                digest.update(piece)
                left -= len(piece)
                if member.name == WEIGHTS:
                    weights.write(piece)
                elif member.name not in _IN_FILES:
                    parts.append(piece)
            if left or digest.hexdigest() != contents.members[member.name].sha256:
                raise ValueError(f"{member.name} is not what {MANIFEST} lists: its hash is another")
            if member.name not in _IN_FILES:
                texts[member.name] = b"".join(parts)
        weights.flush()
    except BaseException:
        weights.close()
        raise
    return texts, weights


def _model(name: str, contents: Contents, texts: Mapping[str, bytes], weights: BinaryIO) -> Model:
    """The model of checked members; ModelError unless they fit together: the hashes may be a stranger's own.

    The engines get the weights written again, with nothing else in the file: Caffe ends the process at a caffemodel
    that it cannot parse, and reads parts of it that bonecaffe does not.
    """
    stored_at = str(_path(weights))
    try:
        recipe = Recipe.parse(_text(texts[RECIPE], f"{name}: {RECIPE}"), f"{name}: {RECIPE}")
        net = deploys.parse(_text(texts[DEPLOY], f"{name}: {DEPLOY}"), f"{name}: {DEPLOY}")
        _check_image(name, recipe, net)
        mean = _mean(name, recipe, texts.get(MEAN))
        clean = scratch_file()
        with Caffemodel(stored_at) as model:
            net.check_weights(model)
            model.write_weights(net.weights, clean)
    except (ModelError, WeightsError, RecipeError) as error:
        raise ModelError(str(error).replace(stored_at, f"{name}: {WEIGHTS}")) from None
    finally:
        weights.close()
    deploy = scratch_file()
    deploy.write(texts[DEPLOY])
    for file in (deploy, clean):
        file.flush()
    return Model(name, contents.iteration, recipe, mean, _path(deploy), _path(clean), (deploy, clean))


def _check_image(name: str, recipe: Recipe, net: deploys.Deploy) -> None:
    """ModelError unless the net takes the images that the recipe prepares, and gives the recipe's outputs."""
    preparation, outputs = recipe.preparation, recipe.network.fc8_outputs
    expected = (3, preparation.height, preparation.width)
    if net.input != expected:
        taken, made = (" x ".join(map(str, shape)) for shape in (net.input, expected))
        raise ModelError(f"{name}: {DEPLOY} takes images of {taken}, but {RECIPE} prepares {made}.")
    if (given := math.prod(net.blobs[net.output][1:])) != outputs:
        raise ModelError(f"{name}: {DEPLOY} gives {given} numbers for an image, but {RECIPE} states {outputs}.")


def _mean(name: str, recipe: Recipe, content: bytes | None) -> NDArray[np.float32]:
    if means.needs_file(recipe) != (content is not None):
        raise ModelError(f"{name}: {MEAN} {'missing' if content is None else 'present'}, but {RECIPE} differs.")
    if content is None:
        return means.values(recipe)
    image = means.parse(content, Path(f"{name}: {MEAN}"))
    size = (3, recipe.preparation.height, recipe.preparation.width)
    if image.shape != size or not np.isfinite(image).all():
        raise ModelError(f"{name}: {MEAN} is not a mean image of {' x '.join(map(str, size))}.")
    return image


def _text(content: bytes, where: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ModelError(f"{where}: not text in UTF-8 ({error.reason} at byte {error.start}).") from None


def _path(file: BinaryIO) -> Path:
    """A path to an open file without a name, in this process."""
    return Path(f"/proc/self/fd/{file.fileno()}")


def _shown(text: str) -> str:
    """A text of an archive, short and printable."""
    return text[:60].encode("unicode_escape").decode("ascii")
