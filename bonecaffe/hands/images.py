"""The only reader and writer of pixels. A radiograph is a two-dimensional uint8 array, ``[row, column]``."""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bonecaffe.errors import ImageError, Problems
from bonecaffe.files import open_regular, quoted, read_bytes
from bonecaffe.hands import dicom, dicom_pixels, ids, image_headers
from bonecaffe.hands.dicom import DicomHeader
from bonecaffe.hands.image_headers import JpegHeader, PngHeader, TiffHeader
from bonecaffe.hands.image_source import Source, of_bytes, of_file

Image = NDArray[np.uint8]
"""Pixels of a radiograph, ``[row, column]``, 0 black."""
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".dcm", ".dicom")
"""Of files that are images by their name. A file without a suffix is one if it begins as a DICOM file."""
GREY_TOLERANCE = 8
"""Largest difference between channels, in grey levels, that still counts as grey (JPEG's colour rounding)."""


def find_images(folder: str | Path, refused: dict[Path, str] | None = None) -> dict[str, Path]:
    """The images below a folder by id, the file's name without its suffix; RSNA's archives unpack two folders deep.

    A file without a suffix is an image if it is a DICOM file; `dicom_ids` gives DICOM files another id. Files that
    macOS, Windows and network storage add are ignored (`bonecaffe.hands.ids.is_litter`). Raises ImageError when the
    folder does not exist or cannot be read, or when it has no image, two images of one id, or an image whose name
    cannot be an id; the error names all of these. With ``refused``, an image whose name cannot be used is only left
    out: its path is added to ``refused``, with a sentence that gives the reason.
    """
    folder = Path(folder)
    if not folder.is_dir():
        reason = "a file, not a folder of images" if folder.exists() else "no such folder of images"
        raise ImageError(f"{folder}: {reason}.")
    found: dict[str, Path] = {}
    unusable: dict[Path, str] = {}
    for path in filter(_is_image, _files(folder)):
        try:
            case_id = id_of(path)
        except ImageError as error:
            unusable[path] = f"the image {_shown(path, folder)} has no id: {str(error).rstrip('.')}"
            continue
        if (flaw := ids.flaw(case_id)) is not None:
            unusable[path] = f"the image {_shown(path, folder)} has a name that cannot be an id: {flaw}"
        elif case_id in found:
            both = f"{_shown(found[case_id], folder)} and {_shown(path, folder)}"
            unusable[path] = f"two images have the id {case_id}: {both}"
            if refused is not None:  # it is unclear which of them is meant
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
        other_files = f" Found instead: {others}." if (others := passed_over(folder)) else ""
        raise ImageError(f"{folder}: no images here ({', '.join(SUFFIXES)}).{other_files}")
    return found


# ---- the id of an image ------------------------------------------------------------------------------------------

DicomId = Literal["name", "uid"]
"""What identifies a DICOM image: the name of its file, or its SOP instance UID."""
_dicom_id: ContextVar[DicomId] = ContextVar("dicom_id", default="name")


def dicom_id() -> DicomId:
    """What identifies DICOM images now."""
    return _dicom_id.get()


@contextlib.contextmanager
def dicom_ids(kind: DicomId) -> Iterator[None]:
    """While this is open, `find_images` and `id_of` identify DICOM images in this way.

    It holds for one thread and ends with the block. Other formats always have the name of their file.
    """
    token = _dicom_id.set(kind)
    try:
        yield
    finally:
        _dicom_id.reset(token)


def id_of(path: str | os.PathLike[str]) -> str:
    """The id of an image, from the name of its file, or as `dicom_ids` demands. It may have a flaw (`ids.flaw`).

    Raises ImageError for a DICOM file without the UID that is needed. A patient's id is never used.
    """
    if dicom_id() == "uid":
        with contextlib.suppress(OSError), open_regular(path, ImageError) as file:
            source = of_file(file.fileno(), os.fspath(path))
            if dicom.is_dicom(source.at(0, dicom.MARK_AT + len(dicom.MARK))):
                return dicom.instance_uid(source)
    return ids.of_file(path)


# ---- folders -----------------------------------------------------------------------------------------------------

Folders = str | Path | Sequence[str | Path]
"""Where the images are: in one folder, or in several."""


def folders_of(folders: Folders) -> list[Path]:
    """One folder or several as a list."""
    return [Path(folders)] if isinstance(folders, str | Path) else [Path(folder) for folder in folders]


def find_in_all(folders: Folders) -> dict[str, Path]:
    """The images below one folder or several by id, as `find_images` finds them in one.

    Raises ImageError, naming both paths, when an id is in two folders. A folder may be inside another, or be given
    twice.
    """
    found: dict[str, Path] = {}
    problems = Problems()
    for folder in folders_of(folders):
        for case_id, path in find_images(folder).items():
            first = found.setdefault(case_id, path)
            if first is not path and os.path.realpath(first) != os.path.realpath(path):
                problems.add(f"{_in_print(first)} and {_in_print(path)} have the same id")
    problems.raise_if_any(ImageError, "--images", "Rename or remove one of each pair, or give fewer folders.")
    return found


def listed_folders(folders: Folders) -> str:
    """Folders of images, for a sentence."""
    return " and ".join(map(str, folders_of(folders)))


def passed_over(folder: str | Path) -> str:
    """The files below a folder that `find_images` ignores because of their suffix, counted; empty when there are none.

    For a sentence, as in ``12 .nii, 1 .csv``.
    """
    counts = Counter(
        path.suffix.lower() if ids.has_suffix(path.name) else "without suffix"
        for path in _files(Path(folder))
        if not _is_image(path)
    )
    return ", ".join(
        f"{count} {suffix if suffix.isprintable() else quoted(suffix)}" for suffix, count in counts.most_common()
    )


def _is_image(path: Path) -> bool:
    if ids.has_suffix(path.name):
        return path.suffix.lower() in SUFFIXES
    try:
        with open_regular(path, ImageError) as file:
            return dicom.is_dicom(os.pread(file.fileno(), dicom.MARK_AT + len(dicom.MARK), 0))
    except (OSError, ImageError):
        return False


def _files(folder: Path) -> Iterator[Path]:
    """The files below a folder, without litter, in order; links are followed, each folder once."""

    def unreadable(error: OSError) -> None:
        raise ImageError(f"{error.filename}: this folder cannot be read ({error.strerror}). Correct its permissions.")

    walked: set[str] = set()
    for parent, folders, files in os.walk(folder, followlinks=True, onerror=unreadable):
        if os.path.realpath(parent) in walked:  # reached again through a link
            folders.clear()
            continue
        walked.add(os.path.realpath(parent))
        folders[:] = sorted(name for name in folders if not ids.is_litter(name))
        for name in sorted(files):
            if not ids.is_litter(name):
                yield Path(parent) / name


def _shown(path: Path, folder: Path) -> str:
    """An image's path in its folder, for print: quoted and escaped where its name is not one line of visible text."""
    name = path.relative_to(folder).as_posix()
    return name if name.isprintable() and ids.flaw(ids.of_file(path)) is None else quoted(name, 255)


def _in_print(path: Path) -> str:
    return str(path) if str(path).isprintable() else quoted(str(path), 255)


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Width and height in pixels of the upright image, as `read_image` gives it, from a file's header alone.

    Raises ImageError for a file that `read_image` would refuse by its header.
    """
    try:
        with open_regular(path, ImageError) as file:
            return image_headers.read_header(of_file(file.fileno(), os.fspath(path))).size
    except FileNotFoundError:
        raise ImageError(f"{path}: no such image.") from None
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror or error}.") from error


def read_image(path: str | os.PathLike[str]) -> Image:
    """Read a radiograph from a PNG, JPEG, TIFF, BMP or DICOM file as uint8, shape (height, width), upright.

    Accepted are 8-bit grey, colour files that are really grey, and 16-bit grey, which is stretched from its own
    smallest and largest value to 0…255 (the paper's images are 8-bit; see docs/guide/images.md). The orientation stored
    by a camera or scanner is applied, and a TIFF file that stores white as zero is inverted. For DICOM, see
    `bonecaffe.hands.dicom_pixels.decode`. Raises ImageError naming the file for one that is missing, a named pipe or a
    device, too large (`image_headers.PIXELS_AT_MOST`), cut off, damaged, of another format, in colour, or transparent.
    """
    try:
        content = read_bytes(path, "image", ImageError)
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror or error}.") from error
    return decode(content, str(path))


def decode(content: bytes, name: str) -> Image:
    """`read_image` for the bytes of a file; ``name`` is for errors."""
    source = of_bytes(content, name)
    header = image_headers.read_header(source)
    if isinstance(header, PngHeader):
        decoded = _decode_png(source, header, content)
    elif isinstance(header, JpegHeader):
        decoded = _decode_jpeg(source, header, content)
    elif isinstance(header, TiffHeader):
        decoded = _decode_tiff(source, header, content)
    elif isinstance(header, DicomHeader):
        decoded = dicom_pixels.decode(source, header)
    else:
        decoded = _decode_by_pillow(source, content, "BMP")
    if decoded.shape[:2] != (header.height, header.width):
        height, width = decoded.shape[:2]
        source.damaged(f"its header declares {header.width} x {header.height} pixels, but it has {width} x {height}")
    image: NDArray[Any] = decoded if decoded.ndim == 2 else _grey(decoded, name)
    if image.dtype == np.uint16:
        low, high = int(image.min()), int(image.max())
        scale = 255.0 / max(1, high - low)
        image = np.floor((image - low) * scale + 0.5).astype(np.uint8)
    if image.dtype != np.uint8:
        raise ImageError(f"{name}: pixels of type {image.dtype}; 8- or 16-bit grey is needed.")
    return image if header.orientation == 1 else upright(image, header.orientation)


def upright(image: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Stored pixels, ``[row, column]``, turned upright; ``orientation`` is 1…8 as in Exif's tag 274.

    >>> upright(np.array([[1, 2], [3, 4]]), 6)  # the stored first row is the right edge: a quarter turn clockwise
    array([[3, 1],
           [4, 2]])
    """
    if orientation >= 5:  # the stored rows are columns
        image = image.T
    flips = {1: (1, 1), 2: (1, -1), 3: (-1, -1), 4: (-1, 1), 5: (1, 1), 6: (1, -1), 7: (-1, -1), 8: (-1, 1)}
    rows, columns = flips[orientation]
    return np.ascontiguousarray(image[::rows, ::columns])


# ---- one decoder for each format ---------------------------------------------------------------------------------


def _decode_png(source: Source, header: PngHeader, content: bytes) -> NDArray[Any]:
    for chunk in header.chunks:
        if chunk.kind != b"IDAT":  # the pixels' own checksums take time: see the two decoders
            image_headers.check_chunk(source, chunk)
    pixels = header.pixels_alone(content)
    quickly = _decode_grey_png(header, pixels)
    if quickly is not None:
        return quickly
    image_headers.check_pixels(source, header)
    return _decode_by_opencv(source, pixels)


def _decode_grey_png(header: PngHeader, content: bytes) -> NDArray[Any] | None:
    """An 8- or 16-bit grey PNG, as RSNA's are, in half of OpenCV's time; None for another kind or a damaged file.

    The decoder compares the checksum of each chunk, so damage in transfer is detected. It stops when it has the pixels
    that the header declares, even if the file unpacks to more.
    """
    import kornia_rs

    if header.colour_type != 0 or header.bit_depth < 8:
        return None
    decoder = kornia_rs.io.decode_image_png_u8 if header.bit_depth == 8 else kornia_rs.io.decode_image_png_u16
    try:
        image = decoder(content, (header.height, header.width), "mono")
    except Exception:  # its errors have no class of their own
        return None
    return np.asarray(image).reshape(header.height, header.width)


def _decode_jpeg(source: Source, header: JpegHeader, content: bytes) -> NDArray[Any]:
    """Decode with libjpeg-turbo, to the same pixels as OpenCV, but treat its warnings as errors.

    For a damaged file, libjpeg only warns, and fills the missing part with grey.
    """
    import simplejpeg

    image_headers.check_jpeg(source, header, content)
    try:
        image: NDArray[Any] = simplejpeg.decode_jpeg(content, "GRAY" if header.channels == 1 else "BGR", strict=True)
    except ValueError as error:
        source.damaged(f"the JPEG decoder reports: {error}")
    return image[..., 0] if header.channels == 1 else image


def _decode_tiff(source: Source, header: TiffHeader, content: bytes) -> NDArray[Any]:
    content = header.made_plain(content)
    if header.bits == 16 and header.samples > 1:  # Pillow would keep 8 of the 16 bits
        image = _decode_by_opencv(source, content)
    else:
        image = _decode_by_pillow(source, content, "TIFF")
    return np.iinfo(image.dtype).max - image if header.white_is_zero else image


def _decode_by_opencv(source: Source, content: bytes) -> NDArray[Any]:
    import cv2

    try:
        decoded = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        source.damaged(f"it cannot be decoded ({error.err})")
    if decoded is None:
        source.damaged("it cannot be decoded")
    return decoded


def _decode_by_pillow(source: Source, content: bytes, kind: str) -> NDArray[Any]:
    import PIL.Image

    try:
        with warnings.catch_warnings(action="ignore"), PIL.Image.open(io.BytesIO(content), formats=(kind,)) as image:
            if image.mode in ("1", "P", "RGBX", "YCbCr"):
                return np.asarray(image.convert("L" if image.mode == "1" else "RGB"))
            pixels = np.asarray(image)
    except PIL.UnidentifiedImageError:
        source.refused(f"a {kind} file of a kind that is not read", "Save it as 8- or 16-bit grey PNG.")
    except MemoryError:  # not caused by the file
        raise
    except Exception as error:  # its decoders raise all kinds of errors for a damaged file
        if "truncated" in str(error):
            source.cut_off(f"the {kind} decoder reports: {error}")
        source.damaged(f"the {kind} decoder reports: {error}")
    if kind == "BMP" and pixels.ndim == 3:  # its fourth byte is padding, whatever the header declares
        return pixels[..., :3]
    return pixels.astype(np.uint16) if pixels.dtype.itemsize == 2 and pixels.dtype.kind == "u" else pixels


def _grey(image: NDArray[Any], name: str) -> NDArray[Any]:
    if image.shape[2] in (2, 4):
        if image[..., -1].min() < np.iinfo(image.dtype).max:
            raise ImageError(f"{name}: partly transparent, unlike a radiograph. Save it without an alpha channel.")
        image = image[..., :-1]
    tolerance = GREY_TOLERANCE * (257 if image.dtype == np.uint16 else 1)
    if int((image.max(axis=2).astype(np.int32) - image.min(axis=2)).max()) > tolerance:
        raise ImageError(f"{name}: a colour image, not a radiograph. Export the radiograph in grey.")
    return np.ascontiguousarray(image[..., image.shape[2] // 2])


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
