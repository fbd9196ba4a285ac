"""Read a DICOM file's header, and refuse what is not one grey radiograph of a hand. Needs pydicom, an extra.

Nothing about the patient is read. Only the elements in `_HEADER` are parsed, and no message of pydicom is passed on,
because it can quote an element's value. Age and sex are never used as labels.

Sources: DICOM PS3.10 7.1 (file header), PS3.3 C.7.6.3 (pixels), PS3.5 annex A (transfer syntaxes), PS3.16 annex L
(body parts).
"""

from __future__ import annotations

import io
import re
import struct
import warnings
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from bonecaffe.hands.image_source import PIXELS_AT_MOST, Header, Source, of_bytes

if TYPE_CHECKING:
    from pydicom.dataset import Dataset, FileDataset

MARK_AT, MARK = 128, b"DICM"
INSTALL = "Install it: pip install 'bonecaffe[dicom]'."
PNG = "Export it as 8- or 16-bit grey PNG."

EXPLICIT, DEFLATED, RLE = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.5"
NATIVE = {
    "1.2.840.10008.1.2": "implicit little endian",
    EXPLICIT: "explicit little endian",
    "1.2.840.10008.1.2.2": "explicit big endian",
    DEFLATED: "deflated",
}
COMPRESSED = {
    RLE: "RLE",
    "1.2.840.10008.1.2.4.50": "JPEG",
    "1.2.840.10008.1.2.4.51": "JPEG, 12 bits",
    "1.2.840.10008.1.2.4.57": "lossless JPEG",
    "1.2.840.10008.1.2.4.70": "lossless JPEG",
    "1.2.840.10008.1.2.4.80": "JPEG-LS",
    "1.2.840.10008.1.2.4.81": "JPEG-LS",
    "1.2.840.10008.1.2.4.90": "JPEG 2000",
    "1.2.840.10008.1.2.4.91": "JPEG 2000",
    "1.2.840.10008.1.2.4.201": "high-throughput JPEG 2000",
    "1.2.840.10008.1.2.4.202": "high-throughput JPEG 2000",
    "1.2.840.10008.1.2.4.203": "high-throughput JPEG 2000",
}
"""Transfer syntaxes whose pixels are compressed, for a sentence."""

_TOPICS = "BodyPartExamined", "StudyDescription", "SeriesDescription"
_HEADER = (
    *("SOPInstanceUID", "Modality", *_TOPICS),
    *("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PlanarConfiguration"),
)
PIXELS = (
    *("PixelData", "PixelPaddingValue", "PixelPaddingRangeLimit"),
    *("ModalityLUTSequence", "RescaleSlope", "RescaleIntercept"),
    *("VOILUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction"),
)
"""The further elements that the pixels need."""

_OTHER_MODALITIES = {
    "CT": "a CT image",
    "MR": "an MR image",
    "US": "an ultrasound image",
    "PT": "a PET image",
    "NM": "a nuclear medicine image",
    "MG": "a mammogram",
    "PX": "a panoramic X-ray of teeth",
    "IO": "an X-ray of teeth",
    "ES": "an endoscopic image",
    "SM": "a microscopic image",
    "OP": "a photograph of an eye",
    "XC": "a photograph",
    "BMD": "a bone density scan",
}
_OTHER_PARTS = frozenset(
    (
        *("ABDOMEN", "ANKLE", "BREAST", "CALCANEUS", "CERVICAL", "CHEST", "CLAVICLE", "COCCYX", "CSPINE"),
        *("CTSPINE", "ELBOW", "FEMUR", "FOOT", "FOREARM", "HEAD", "HEART", "HIP", "HUMERUS", "JAW", "KNEE"),
        *("LEG", "LIVER", "LSPINE", "LUMBAR", "LUNG", "MANDIBLE", "MAXILLA", "NECK", "ORBIT", "PELVIS", "RIB"),
        *("RIBS", "SACRUM", "SCAPULA", "SHOULDER", "SKULL", "SPINE", "SSPINE", "STERNUM", "TEETH", "THIGH"),
        *("THORAX", "TIBIA", "TOE", "TSPINE"),
    )
)
"""Parts of the body that are not a hand. A name that is not here is accepted, such as EXTREMITY or a local one."""
_HAND = ("HAND", "WRIST", "CARP", "METACARP", "FINGER", "THUMB", "PHALAN", "BONEAGE")
"""How words begin that name the hand. "Bone age" names it too."""
_META_AT_MOST = 1 << 20
_INFLATED_AT_MOST = 2 * PIXELS_AT_MOST + (1 << 24)
_LONG = (b"OB", b"OW", b"OF", b"OD", b"OL", b"OV", b"SQ", b"UC", b"UR", b"UT", b"UN", b"SV", b"UV")
_DICOMDIR = "1.2.840.10008.1.3.10"


@dataclass(frozen=True)
class DicomHeader(Header):
    """The pixels' description. ``bits`` are those in use, of the 8 or 16 ``allocated`` for a pixel."""

    syntax: str
    bits: int
    allocated: int
    signed: bool
    white_is_low: bool
    """MONOCHROME1: the lowest value is shown white."""


def is_dicom(start: bytes) -> bool:
    """Whether these first bytes, at least 132, are those of a DICOM file (PS3.10)."""
    return start.startswith(MARK, MARK_AT)


def read_header(source: Source) -> DicomHeader:
    """The header of a DICOM file. ImageError for one that is not a single grey radiograph, or shows another part."""
    return header_of(source, dataset(source))


def instance_uid(source: Source) -> str:
    """The SOP instance UID, which identifies the image and not the patient. ImageError where it is missing."""
    uid = text(dataset(source), "SOPInstanceUID")
    if re.fullmatch(r"[0-9.]{1,64}", uid) is None:
        source.damaged("its SOP instance UID is missing or invalid")
    return uid


def dataset(source: Source, more: tuple[str, ...] = ()) -> FileDataset:
    """The elements of `_HEADER`, and those in ``more``. Raises ImageError.

    Elements that nobody asked for are skipped without being interpreted.
    """
    try:
        import pydicom
    except ImportError:
        source.refused("a DICOM file; reading it needs pydicom, which is not installed", INSTALL)
    meta = _meta(source)
    if meta.syntax not in NATIVE and meta.syntax not in COMPRESSED:
        source.refused(f"a DICOM file of transfer syntax {meta.syntax[:64]!r}, which is not read", PNG)
    file: Any = io.BufferedReader(_Reader(_plain(source, meta)))
    flaw: Exception | None = None
    found = None
    try:
        with warnings.catch_warnings(action="ignore"):
            found = pydicom.dcmread(
                file, stop_before_pixels="PixelData" not in more, specific_tags=[*_HEADER, *more], force=False
            )
    except (MemoryError, OSError) as error:
        if isinstance(error, MemoryError) or error.errno is not None:
            raise
        flaw = error
    except Exception as error:  # it raises all kinds of errors for a damaged file
        flaw = error
    if found is None:  # outside the handler: an error must not refer to one that quotes the file
        if isinstance(flaw, EOFError):
            source.cut_off("a DICOM file without its end")
        source.damaged("its DICOM elements cannot be read")
    return found


def header_of(source: Source, found: FileDataset) -> DicomHeader:
    """The header in a `dataset`."""
    meta = _meta(source)
    if meta.stored_class == _DICOMDIR:
        source.refused("an index of DICOM files (DICOMDIR), not an image", "Give the files that it lists.")
    frames = _whole(source, found, "NumberOfFrames", 1)
    width, height = (_whole(source, found, keyword, 0) for keyword in ("Columns", "Rows"))
    if frames > 1:
        source.refused(f"a DICOM file of {frames} frames", "Save the frame that shows the hand as an image of its own.")
    if not (width and height):
        source.refused("a DICOM file without an image", "Give the radiograph itself.")
    _check_subject(source, found)
    samples, colours = _whole(source, found, "SamplesPerPixel", 1), text(found, "PhotometricInterpretation")
    if samples != 1 or colours not in ("MONOCHROME1", "MONOCHROME2"):
        kind = colours if colours.replace("_", "").replace(" ", "").isalnum() and len(colours) <= 16 else "unknown"
        source.refused(f"a colour DICOM image ({kind}, {samples} values per pixel), not a radiograph", PNG)
    allocated = _whole(source, found, "BitsAllocated", 0)
    bits = _whole(source, found, "BitsStored", allocated)
    if allocated not in (8, 16) or not 1 <= bits <= allocated:
        source.refused(f"a DICOM image of {bits} bits in {allocated}; up to 16 bits in 8 or 16 are read", PNG)
    if (high := _whole(source, found, "HighBit", bits - 1)) != bits - 1:
        source.refused(f"a DICOM image whose {bits} bits end at bit {high}, not at bit {bits - 1}", PNG)
    return DicomHeader(
        width,
        height,
        1,
        meta.syntax,
        bits,
        allocated,
        _whole(source, found, "PixelRepresentation", 0) == 1,
        colours == "MONOCHROME1",
    )


def _check_subject(source: Source, found: FileDataset) -> None:
    """Refuse an image that its tags clearly call something else. Free text is compared, never quoted."""
    if (kind := _OTHER_MODALITIES.get(text(found, "Modality").upper())) is not None:
        source.refused(f"{kind} by its tag Modality, not a radiograph", "Leave it out.")
    topics = {keyword: re.findall("[A-Z]+", text(found, keyword).upper()) for keyword in _TOPICS}
    if any({"BONE", "AGE"} <= set(words) or any(word.startswith(_HAND) for word in words) for words in topics.values()):
        return
    for keyword, words in topics.items():
        other = next((word for word in words if word in _OTHER_PARTS), None)
        if other is not None:
            source.refused(
                f"shows another part of the body: {other}, by its tag {keyword}",
                "Leave it out. If it does show a hand, correct the tag, or export the image as PNG.",
            )


def text(found: Dataset, keyword: str) -> str:
    """A tag's text; empty where it is missing or unreadable."""
    try:
        with warnings.catch_warnings(action="ignore"):
            value = found.get(keyword)
            return "" if value is None else str(value).strip().strip("\0")
    except Exception:
        return ""


def _whole(source: Source, found: FileDataset, keyword: str, otherwise: int) -> int:
    """A tag's whole number, or another one where it is missing or empty."""
    value = None
    try:
        with warnings.catch_warnings(action="ignore"):
            element = found.get(keyword)
            value = otherwise if element in (None, "") else int(element)
    except Exception:
        value = None
    if value is None or value < 0:
        source.damaged(f"its tag {keyword} is not a whole number")
    return value


# ---- the file ------------------------------------------------------------------------------------------------------


class _Reader(io.RawIOBase):
    """A source as a file; only the requested parts are read."""

    name = ""  # pydicom asks for it

    def __init__(self, source: Source) -> None:
        self._source, self._at = source, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._source.size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        content = self._source.at(self._at, len(buffer))
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)


class _Meta(NamedTuple):
    syntax: str
    """The transfer syntax."""
    stored_class: str
    """The SOP class."""
    end: int
    """Where the data set begins, in bytes."""


def _meta(source: Source) -> _Meta:
    """The file header, whose elements are always explicit little endian."""
    values, offset = {}, MARK_AT + len(MARK)
    while (start := source.at(offset, 12))[:2] == b"\2\0" and len(start) >= 8:
        if start[4:6] in _LONG:
            length, begin = int.from_bytes(start[8:12], "little"), offset + 12
        else:
            length, begin = int.from_bytes(start[6:8], "little"), offset + 8
        values[start[2:4]] = source.at(begin, min(length, 64)).rstrip(b"\0 ").decode("ascii", "replace")
        offset = begin + length
        if offset > _META_AT_MOST:
            source.damaged("its DICOM file header is longer than the file or 1 MB")
    syntax = values.get(b"\x10\0", "")
    if not syntax:
        if source.size <= offset:
            source.cut_off("a DICOM file without its file header")
        source.damaged("its DICOM file header does not name the transfer syntax")
    return _Meta(syntax, values.get(b"\2\0", ""), offset)


def _plain(source: Source, meta: _Meta) -> Source:
    """The same data set, inflated, after a file header that contains only the transfer syntax.

    So pydicom cannot find another syntax in a damaged header than was found here, and inflate the file without a limit.
    """
    syntax, end = meta.syntax, meta.end
    body = Source(source.name, source.size - end, lambda offset, count: source.at(end + offset, count))
    if syntax == DEFLATED:
        syntax, body = EXPLICIT, of_bytes(_inflated(source, end), source.name)
    value = syntax.encode() + bytes(len(syntax) % 2)
    head = bytes(MARK_AT) + MARK + b"\2\0\x10\0UI" + struct.pack("<H", len(value)) + value

    def at(offset: int, count: int) -> bytes:
        start = head[offset : offset + count]
        return start + body.at(max(0, offset - len(head)), count - len(start))

    return Source(source.name, len(head) + body.size, at)


def _inflated(source: Source, offset: int) -> bytes:
    """A deflated data set as it was before. A file may inflate to a thousand times its size."""
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    flaw = content = None
    try:
        content = stream.decompress(source.at(offset, source.size - offset), _INFLATED_AT_MOST)
    except zlib.error as error:
        flaw = error
    if content is None:
        source.damaged(f"it cannot be unpacked ({flaw})")
    if stream.unconsumed_tail:
        source.refused(f"a DICOM file that unpacks to more than {_INFLATED_AT_MOST:,} bytes", "Save it smaller.")
    if not stream.eof:
        source.cut_off("a deflated DICOM file without its end")
    return content


def stream_size(frame: bytes) -> tuple[int, int, int] | None:
    """Width, height and channels that a JPEG, JPEG-LS or JPEG 2000 stream declares; None where it declares nothing.

    A decoder allocates what the stream declares, not what the DICOM header does.
    """
    try:
        if frame[:4] == b"\xff\x4f\xff\x51":  # JPEG 2000, ITU-T T.800 A.5.1
            right, bottom, left, top = struct.unpack_from(">4I", frame, 8)
            return right - left, bottom - top, struct.unpack_from(">H", frame, 40)[0]
        offset = 2
        while frame[:2] == b"\xff\xd8" and frame[offset] == 0xFF:
            marker = frame[offset + 1]
            if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):  # a frame header
                height, width, channels = struct.unpack_from(">HHB", frame, offset + 5)
                return width, height, channels
            if marker == 0xFF:  # padding
                offset += 1
            else:
                offset += 2 + max(2, struct.unpack_from(">H", frame, offset + 2)[0])
    except (struct.error, IndexError):
        pass
    return None
