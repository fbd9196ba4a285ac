"""A DICOM radiograph as a viewer shows it: stored values, modality LUT, VOI LUT or window, MONOCHROME1, 8 bits.

Every step is a function of one stored value of at most 16 bits, so all of them together are one table.

Source: DICOM PS3.3 C.11.1 (modality LUT), C.11.2 (VOI LUT and window), C.7.6.3.1.2 (MONOCHROME1), C.7.5.1.1.2
(padding).
"""

from __future__ import annotations

import logging
import math
import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bonecaffe.hands import dicom
from bonecaffe.hands.dicom import DicomHeader
from bonecaffe.hands.image_source import Source

if TYPE_CHECKING:
    from pydicom.dataset import Dataset, FileDataset

Values = NDArray[np.float64]


class _Lut(NamedTuple):
    first: int
    entries: Values
    highest: float
    """The largest output that its bits allow; entries may be lower."""

    def __call__(self, values: Values) -> Values:
        return self.entries[np.clip(np.floor(values) - self.first, 0, len(self.entries) - 1).astype(np.intp)]


def decode(source: Source, header: DicomHeader) -> NDArray[np.uint8]:
    """The pixels of a DICOM file, (height, width), 0 black.

    Up to 8 bits without a window are kept: the lowest possible value is black, the highest white. More bits are
    stretched from the image's own smallest to its largest value, as those of a 16-bit PNG are. A window or VOI LUT
    decides by itself what is black and white; the first one is used. Raises ImageError.
    """
    found = dicom.dataset(source, dicom.PIXELS)
    stored = _stored(source, header, found)
    return _shown(source, header, found, stored)[stored]


# ---- stored values -------------------------------------------------------------------------------------------------


def _stored(source: Source, header: DicomHeader, found: FileDataset) -> NDArray[np.uint16]:
    """The bits in use of each pixel, (height, width), as they are: -1 in 12 bits is 4095. Overlays are cut off."""
    from pydicom.pixels import get_decoder

    logging.getLogger("openjpeg").addHandler(logging.NullHandler())  # it would print its own messages on stderr
    content = _bytes(found)
    if content is None:
        source.cut_off("a DICOM file without its pixels")
    compressed = dicom.COMPRESSED.get(header.syntax)
    if compressed is None:
        expected = header.width * header.height * header.allocated // 8
        if len(content) < expected:
            source.cut_off(f"its pixels have {len(content):,} bytes instead of {expected:,}")
    elif header.syntax != dicom.RLE:
        _check_stream(source, header, content, compressed)
    decoder = get_decoder(found.file_meta.TransferSyntaxUID)  # of a deflated file, once it is inflated
    if not decoder.is_available:
        source.refused(f"a DICOM file compressed by {compressed}, whose decoder is not installed", dicom.INSTALL)
    plugin = "" if compressed is None else "pydicom" if header.syntax == dicom.RLE else "pylibjpeg"
    pixels: NDArray[Any] | None = None
    try:
        with warnings.catch_warnings(action="ignore"):
            pixels = decoder.as_array(found, raw=True, decoding_plugin=plugin)[0]
    except MemoryError:  # not caused by the file
        raise
    except Exception:  # its decoders raise all kinds of errors for a damaged file
        pass
    if pixels is None or pixels.shape != (header.height, header.width) or pixels.dtype.kind not in "iu":
        source.damaged(f"its pixels ({compressed or 'not compressed'}) cannot be decoded")
    return pixels.astype(np.uint16) & np.uint16((1 << header.bits) - 1)


def _bytes(found: FileDataset) -> bytes | None:
    """The pixels' bytes; None where they are missing or unreadable."""
    try:
        with warnings.catch_warnings(action="ignore"):
            content = found.PixelData
    except Exception:
        return None
    return content if isinstance(content, bytes) else None


def _check_stream(source: Source, header: DicomHeader, content: bytes, kind: str) -> None:
    """Compare a compressed stream with the header, before a decoder allocates memory for it."""
    from pydicom.encaps import generate_frames

    frame = b""
    try:
        with warnings.catch_warnings(action="ignore"):
            frame = b"".join(generate_frames(content, number_of_frames=1))
    except Exception:
        frame = b""
    declared = dicom.stream_size(frame)
    if declared is None:
        source.damaged(f"its pixels are not {kind}, as its transfer syntax declares")
    if declared != (header.width, header.height, 1):
        width, height, channels = declared
        source.damaged(
            f"its header declares {header.width} x {header.height} pixels of 1 channel, but the {kind} in it "
            f"{width} x {height} of {channels}"
        )
    if not frame.rstrip(b"\0\xff").endswith(b"\xff\xd9"):  # padding follows
        source.cut_off(f"the {kind} in it has no end mark")


# ---- as they are shown ---------------------------------------------------------------------------------------------


def _shown(source: Source, header: DicomHeader, found: FileDataset, stored: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """The grey level, 0 to 255, of each possible stored value."""
    bits = np.arange(1 << header.bits)
    numbers = np.where(header.signed & (bits >> (header.bits - 1) == 1), bits - len(bits), bits)
    padding = _padding(source, header, found, numbers)
    values = _modality(source, header, found, numbers.astype(np.float64))
    windowed = _windowed(source, found, values)
    if windowed is not None:
        values, low, high = windowed
    elif header.bits <= 8:
        low, high = values.min(), values.max()
    else:
        used = (np.bincount(stored.ravel(), minlength=len(bits)) > 0) & ~padding
        low, high = (values[used].min(), values[used].max()) if used.any() else (0.0, 0.0)
    if high > low:
        kept = np.clip(values, low, high)
        shown = (high - kept if header.white_is_low else kept - low) * (255.0 / (high - low))
    else:  # a window of one value is a threshold; an image of one value is black
        shown = np.where((values > low) != (header.white_is_low and windowed is not None), 255.0, 0.0)
    shown[padding] = 0
    return np.floor(shown + 0.5).astype(np.uint8)


def _padding(source: Source, header: DicomHeader, found: FileDataset, numbers: NDArray[Any]) -> NDArray[np.bool_]:
    """Which stored numbers mark places without an image, such as those beyond the shutter; they are shown black."""
    first = _number(source, found, "PixelPaddingValue")
    if first is None:
        return np.zeros(len(numbers), np.bool_)
    last = _number(source, found, "PixelPaddingRangeLimit")
    ends = [first, first if last is None else last]
    if header.signed:  # old files store a negative number as unsigned
        ends = [end - 65536 if end >= 32768 else end for end in ends]
    return np.asarray((numbers >= min(ends)) & (numbers <= max(ends)))


def _modality(source: Source, header: DicomHeader, found: FileDataset, numbers: Values) -> Values:
    """Stored numbers in the unit of the modality. A table has precedence over slope and intercept."""
    if (lut := _lut(source, found, "ModalityLUTSequence", header.signed)) is not None:
        return lut(numbers)
    slope, intercept = _number(source, found, "RescaleSlope"), _number(source, found, "RescaleIntercept")
    if slope == 0:
        source.damaged("its tag RescaleSlope is 0")
    return numbers * (1.0 if slope is None else slope) + (intercept or 0.0)


def _windowed(source: Source, found: FileDataset, values: Values) -> tuple[Values, float, float] | None:
    """Values, and those that are shown black and white; None without a VOI LUT and without a window."""
    if (lut := _lut(source, found, "VOILUTSequence", bool(values.min() < 0))) is not None:
        return lut(values), 0.0, lut.highest
    center, width = _number(source, found, "WindowCenter"), _number(source, found, "WindowWidth")
    if center is None or width is None:
        return None
    function = dicom.text(found, "VOILUTFunction").upper() or "LINEAR"
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        source.damaged("its tag VOILUTFunction names no function of DICOM")
    if width < 1 if function == "LINEAR" else width <= 0:
        source.damaged(f"its tag WindowWidth is {width:g}")
    if function == "SIGMOID":
        return 1 / (1 + np.exp(np.clip(-4 * (values - center) / width, -700, 700))), 0.0, 1.0
    if function == "LINEAR":  # of whole numbers: the window's first value is black, its last one white
        center, width = center - 0.5, width - 1
    return values, center - width / 2, center + width / 2


def _lut(source: Source, found: FileDataset, keyword: str, signed: bool) -> _Lut | None:
    """The first table of a sequence. ``signed``: whether its inputs can be negative."""
    lut: _Lut | None = None
    try:
        with warnings.catch_warnings(action="ignore"):
            if not (sequence := found.get(keyword)):
                return None
            lut = _read_lut(sequence[0], signed, found.original_encoding[1] is not False)
    except Exception:
        lut = None
    if lut is None:
        source.damaged(f"the table in its tag {keyword} contradicts itself")
    return lut


def _read_lut(item: Dataset, signed: bool, little_endian: bool) -> _Lut | None:
    count, first, bits = (int(value) for value in item.LUTDescriptor)
    count = count % 65536 or 65536
    first %= 65536
    if signed and first >= 32768:
        first -= 65536
    data, entries = item.LUTData, np.empty(0)
    if isinstance(data, bytes):
        if len(data) in (count, count + 1):
            entries = np.frombuffer(data, np.uint8, count).astype(float)
        else:
            entries = np.frombuffer(data, "<u2" if little_endian else ">u2", count).astype(float)
    else:
        entries = (np.array([data] if isinstance(data, int) else list(data))[:count] & 0xFFFF).astype(float)
    highest = (1 << bits) - 1
    if not 8 <= bits <= 16 or len(entries) != count or entries.max() > highest:
        return None
    return _Lut(first, entries, highest)


def _number(source: Source, found: FileDataset, keyword: str) -> float | None:
    """A tag's number, the first of several; None where it is missing or empty."""
    number: float | None = math.nan
    try:
        with warnings.catch_warnings(action="ignore"):
            value: Any = found.get(keyword)
            if isinstance(value, bytes):  # its kind depends on the pixels, and pydicom could not tell
                value = int.from_bytes(value[:2], "little")
            elif not isinstance(value, str | int | float) and hasattr(value, "__getitem__"):
                value = value[0] if len(value) else None
            number = None if value in (None, "") else float(value)
    except Exception:
        number = math.nan
    if number is not None and not math.isfinite(number):
        source.damaged(f"its tag {keyword} is not a number")
    return number
