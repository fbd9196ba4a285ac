"""The only reader and writer of pixels. A radiograph is a two-dimensional uint8 array, ``[row, column]``."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bonecaffe.errors import ImageError, Problems
from bonecaffe.files import open_regular, quoted, read_bytes
from bonecaffe.hands import ids

Image = NDArray[np.uint8]
"""Pixels of a radiograph, ``[row, column]``, 0 black."""
SUFFIXES = (".png", ".jpg", ".jpeg")
GREY_TOLERANCE = 8
"""Largest difference between channels, in grey levels, that still counts as grey (JPEG's colour rounding)."""


def find_images(folder: str | Path, refused: dict[Path, str] | None = None) -> dict[str, Path]:
    """The images below a folder by id, the file's name without its suffix; RSNA's come unpacked twice deep.

    What macOS, Windows and network storage leave among them is passed over (`bonecaffe.hands.ids.is_litter`). Raises
    ImageError when the folder is not there or cannot be read, holds no image, two images of one id, or an image whose
    name cannot be an id; all of these are named. With ``refused``, an image whose name cannot be used costs that image
    alone: it is left out and put there, by path, as a sentence.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ImageError(f"{folder}: no such folder of images.")
    found: dict[str, Path] = {}
    unusable: dict[Path, str] = {}
    for path in _image_files(folder):
        case_id = ids.of_file(path)
        if (flaw := ids.flaw(case_id)) is not None:
            unusable[path] = f"the image {_shown(path, folder)} has a name that cannot be an id: {flaw}"
        elif case_id in found:
            both = f"{_shown(found[case_id], folder)} and {_shown(path, folder)}"
            unusable[path] = f"two images have the id {case_id}: {both}"
            if refused is not None:  # neither is more right than the other
                unusable[found[case_id]] = unusable[path]
        else:
            found[case_id] = path
    remedy = "Rename these images, or remove them from the folder."
    if refused is None:
        problems = Problems()
        for problem in unusable.values():
            problems.add(problem)
        problems.raise_if_any(ImageError, str(folder), remedy)
    else:
        refused |= {path: f"{folder}: {problem}. Rename it, or remove it." for path, problem in unusable.items()}
        found = {case_id: path for case_id, path in found.items() if path not in refused}
    if not found and not unusable:
        raise ImageError(f"{folder}: no images here ({', '.join(SUFFIXES)}).")
    return found


def _image_files(folder: Path) -> Iterator[Path]:
    """The files below a folder that are images by their names, in order; links are followed, each folder once."""

    def unreadable(error: OSError) -> None:
        raise ImageError(f"{error.filename}: this folder cannot be read ({error.strerror}). Correct its permissions.")

    walked: set[str] = set()
    for parent, folders, files in os.walk(folder, followlinks=True, onerror=unreadable):
        if os.path.realpath(parent) in walked:  # a link that leads back
            folders.clear()
            continue
        walked.add(os.path.realpath(parent))
        folders[:] = sorted(name for name in folders if not ids.is_litter(name))
        for name in sorted(files):
            if os.path.splitext(name)[1].lower() in SUFFIXES and not ids.is_litter(name):
                yield Path(parent) / name


def _shown(path: Path, folder: Path) -> str:
    """An image's place in its folder, in print: escaped where its name holds what a line of text does not show."""
    name = path.relative_to(folder).as_posix()
    return name if name.isprintable() and ids.flaw(ids.of_file(path)) is None else quoted(name, 255)


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Width and height in pixels from a file's header, without decoding it; ImageError when it is no image."""
    try:
        file = open_regular(path, ImageError)
    except FileNotFoundError:
        raise ImageError(f"{path}: no such image.") from None
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror or error}.") from error
    with file:
        try:
            if header := _png_header(file.read(_PNG_HEADER)):
                return header.width, header.height
            file.seek(0)
        except OSError as error:
            raise ImageError(f"{path}: {error.strerror or error}.") from error
        import PIL.Image

        try:
            with PIL.Image.open(file, formats=("PNG", "JPEG")) as image:
                return image.size
        except PIL.UnidentifiedImageError:
            raise ImageError(f"{path}: neither a PNG nor a JPEG file.") from None
        except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError) as error:
            raise ImageError(f"{path}: not a readable image: {error}.") from error


class _PngHeader(NamedTuple):
    width: int
    height: int
    bit_depth: int
    colour_type: int


_PNG_HEADER = 33  # bytes: signature, then the chunk IHDR with its checksum
_PIXELS_AT_MOST = 1 << 26  # a header may promise more than memory holds; beyond this Pillow and OpenCV judge


def _png_header(content: bytes) -> _PngHeader | None:
    """What a PNG file says of itself at its beginning; None when that is not sound, or of an enormous image."""
    if not content.startswith(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR") or len(content) < _PNG_HEADER:
        return None
    if zlib.crc32(content[12:29]) != int.from_bytes(content[29:_PNG_HEADER]):
        return None
    header = _PngHeader(*struct.unpack_from(">IIBB", content, 16))
    return header if 0 < header.width * header.height <= _PIXELS_AT_MOST else None


def read_image(path: str | os.PathLike[str]) -> Image:
    """Read a radiograph as uint8, shape (height, width).

    Taken are 8-bit grey, colour files that are really grey, and 16-bit grey, which is stretched from its own
    smallest and largest value to 0…255 (the paper's images are 8-bit; see README). Raises ImageError naming the
    file for one that is missing, a named pipe or a device, too large, cut off, damaged, in colour, or transparent.
    """
    try:
        content = read_bytes(path, "image", ImageError)
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror or error}.") from error
    return decode(content, str(path))


def decode(content: bytes, name: str) -> Image:
    """`read_image` for the bytes of a file; ``name`` is for errors."""
    import cv2

    if not _complete(content):
        raise ImageError(f"{name}: the file is cut off or not an image. Fetch it again, or take it out of the tables.")
    quickly = _decode_grey_png(content)
    if quickly is not None:
        return quickly
    try:
        decoded = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise ImageError(f"{name}: cannot be decoded: {error.err}.") from error
    if decoded is None:
        raise ImageError(
            f"{name}: cannot be decoded; the file is damaged. Fetch it again, or take it out of the tables."
        )
    image: NDArray[Any] = decoded if decoded.ndim == 2 else _grey(decoded, name)
    if image.dtype == np.uint16:
        low, high = int(image.min()), int(image.max())
        scale = 255.0 / max(1, high - low)
        image = np.floor((image - low) * scale + 0.5).astype(np.uint8)
    if image.dtype != np.uint8:
        raise ImageError(f"{name}: pixels of type {image.dtype}; 8- or 16-bit grey is needed.")
    return image


def _decode_grey_png(content: bytes) -> Image | None:
    """An 8-bit grey PNG, as RSNA's are, in half of OpenCV's time; None for another or a damaged one: OpenCV judges it.

    It believes the checksum of each chunk, so a file that was damaged on its way is seen.
    """
    import kornia_rs

    header = _png_header(content[:_PNG_HEADER])
    if header is None or (header.bit_depth, header.colour_type) != (8, 0):
        return None
    try:
        image = kornia_rs.io.decode_image_png_u8(content, (header.height, header.width), "mono")
    except Exception:  # its errors have no class of their own
        return None
    return np.asarray(image).reshape(header.height, header.width)


def _complete(content: bytes) -> bool:
    """Whether a PNG or JPEG file has its end; OpenCV decodes half a file without a word."""
    if content.startswith(b"\x89PNG"):
        return b"IEND\xaeB`\x82" in content[-4096:]
    if content.startswith(b"\xff\xd8"):
        return b"\xff\xd9" in content[-4096:]
    return False


def _grey(image: NDArray[Any], name: str) -> NDArray[Any]:
    if image.shape[2] == 4:
        if image[..., 3].min() < np.iinfo(image.dtype).max:
            raise ImageError(f"{name}: partly transparent; a radiograph is not. Save it without an alpha channel.")
        image = image[..., :3]
    if image.shape[2] == 2:
        raise ImageError(f"{name}: grey with an alpha channel; save it without.")
    tolerance = GREY_TOLERANCE * (257 if image.dtype == np.uint16 else 1)
    if int((image.max(axis=2).astype(np.int32) - image.min(axis=2)).max()) > tolerance:
        raise ImageError(f"{name}: a colour image, not a radiograph.")
    return np.ascontiguousarray(image[..., 1])


def encode_png(image: Image, level: int = 1) -> bytes:
    """A uint8 image as the bytes of a PNG file; level 0 is not compressed and quickest."""
    import cv2

    options = [cv2.IMWRITE_PNG_COMPRESSION, level, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE]
    if level == 0:  # filters would only cost time
        options += [cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE]
    done, content = cv2.imencode(".png", image, options)
    if not done:
        raise ImageError("an image could not be encoded as PNG.")
    return content.tobytes()


def missing(case_ids: Iterable[str], images: dict[str, Path]) -> list[str]:
    """The ids without an image, in order."""
    return [case_id for case_id in case_ids if case_id not in images]
