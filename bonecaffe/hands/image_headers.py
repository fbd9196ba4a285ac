"""Read an image file's structure before a pixel is decoded: format, size, orientation, and where the image ends.

PNG, JPEG, TIFF and BMP are read here, DICOM in `dicom`; for a file of another format, the error names that format. The
size is compared with `PIXELS_AT_MOST` here, so that no decoder allocates more memory than a radiograph needs. Damage is
distinguished from harmless padding: PNG chunks are followed to IEND and JPEG markers to EOI, and what comes after is
ignored.

Sources: PNG, third edition (W3C 2025); JPEG, ITU-T T.81 annex B; TIFF 6.0 (Adobe 1992); Exif 2.32, tag 274.
"""

from __future__ import annotations

import codecs
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, NoReturn

from bonecaffe.hands import dicom
from bonecaffe.hands.image_source import AGAIN, PIXELS_AT_MOST, Header, ReadAt, Source

SCANS_AT_MOST = 64
"""The most scans of a JPEG that are decoded. Encoders write about ten; each costs a pass over the whole image."""
PAGES_COUNTED = 1000
READ = "PNG, JPEG, TIFF, BMP and DICOM are read"


def read_header(source: Source) -> Header:
    """The header of a PNG, JPEG, TIFF, BMP or DICOM file, whatever its suffix.

    Raises ImageError for a file of another format, one that is cut off or damaged, and one with more pixels than
    `PIXELS_AT_MOST`.
    """
    start = source.at(0, _SNIFFED)
    header = _reader(source, start)(source)
    if not (header.width and header.height):
        source.damaged(f"its header declares {header.width} x {header.height} pixels")
    if header.width * header.height > PIXELS_AT_MOST:
        source.refused(
            f"its header declares {header.width} x {header.height} pixels; the limit is {PIXELS_AT_MOST:,}",
            "Is it a radiograph? If so, save it smaller.",
        )
    return header


def _reader(source: Source, start: bytes) -> Callable[[Source], Header]:
    """The reader of the format that a file with these first bytes has; ImageError for another format."""
    if dicom.is_dicom(start):  # first: any bytes can precede its mark
        return dicom.read_header
    for begins, reader in _READERS.items():
        if start.startswith(begins):
            return reader
    _refuse_other_format(source, start)


# ---- PNG ---------------------------------------------------------------------------------------------------------

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # samples of a pixel by colour type
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_NEEDED = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")  # for the pixels; text, profiles and animation are not
_ANCILLARY = 0x20  # the bit of a chunk's first letter that marks it as optional


class Chunk(NamedTuple):
    """A chunk of a PNG file, or consecutive IDAT chunks: where it begins and ends, checksum included, in bytes."""

    kind: bytes
    offset: int
    end: int


@dataclass(frozen=True)
class PngHeader(Header):
    """A PNG file's IHDR, and its chunks up to IEND."""

    bit_depth: int
    colour_type: int
    interlaced: bool
    chunks: tuple[Chunk, ...]

    def pixels_alone(self, content: bytes) -> bytes:
        """The file without the chunks that do not affect its pixels, so that no decoder unpacks a text or a profile."""
        kept = [chunk for chunk in self.chunks if chunk.kind in _NEEDED or not chunk.kind[0] & _ANCILLARY]
        if len(kept) == len(self.chunks) and self.chunks[-1].end == len(content):
            return content
        return _PNG + b"".join(content[chunk.offset : chunk.end] for chunk in kept)

    def packed_bytes(self) -> int:
        """The size of the unpacked pixel data, in bytes: each row has one byte more than its pixels, for its filter."""
        bits = self.bit_depth * _PNG_SAMPLES[self.colour_type]
        total = 0
        for x, y, wide, high in _ADAM7 if self.interlaced else ((0, 0, 1, 1),):
            columns, rows = -(-(self.width - x) // wide), -(-(self.height - y) // high)
            if columns > 0 and rows > 0:
                total += rows * (1 + (columns * bits + 7) // 8)
        return total


def _png(source: Source) -> PngHeader:
    if source.size < len(_PNG):
        source.cut_off("a PNG file without a header")
    if source.at(0, len(_PNG)) != _PNG:
        source.damaged("PNG's signature was changed, as when a file is transferred as text")
    chunks: list[Chunk] = []
    orientation = 1
    end = len(_PNG)
    while not chunks or chunks[-1].kind != b"IEND":
        chunk = _chunk(source, end)
        end = chunk.end
        if not chunks and (chunk.kind, chunk.end - chunk.offset) != (b"IHDR", 25):
            source.damaged("a PNG file that does not begin with its header (IHDR)")
        if chunk.kind == b"IHDR":
            check_chunk(source, chunk)
        elif chunk.kind == b"eXIf" and chunk.end - chunk.offset <= _EXIF_AT_MOST:
            check_chunk(source, chunk)
            orientation = _exif_orientation(source.at(chunk.offset + 8, chunk.end - chunk.offset - 12))
        elif chunk.kind == b"CgBI":
            source.refused("Apple's own variant of PNG (chunk CgBI)", "Save it as ordinary PNG.")
        chunks.append(chunk)
    fields = struct.unpack(">IIBBBBB", source.at(16, 13))
    width, height, bit_depth, colour_type, _, _, interlaced = fields
    if colour_type not in _PNG_SAMPLES or bit_depth not in (1, 2, 4, 8, 16):
        source.damaged(f"a PNG file of colour type {colour_type} with {bit_depth} bits")
    return PngHeader(width, height, orientation, bit_depth, colour_type, bool(interlaced), tuple(chunks))


def _chunk(source: Source, offset: int) -> Chunk:
    """The chunk at ``offset``; consecutive IDAT chunks are one. There may be hundreds, of 8 KB each."""
    end = offset
    while True:
        start = source.at(end, 8)
        if start[4:] != b"IDAT":
            break
        end += 12 + int.from_bytes(start[:4])
    if end > source.size:
        source.cut_off(f"the pixels of a PNG file (its chunk IDAT) need {end:,} bytes")
    if end > offset:
        return Chunk(b"IDAT", offset, end)
    if len(start) < 8:
        source.cut_off("a PNG file without its end (IEND)")
    end += 12 + int.from_bytes(start[:4])
    if not start[4:].isalpha():
        source.damaged(f"no PNG chunk at byte {offset:,}")
    if end > source.size:
        source.cut_off(f"its PNG chunk {_word(start[4:])} needs {end:,} bytes")
    return Chunk(start[4:], offset, end)


def check_chunk(source: Source, chunk: Chunk) -> None:
    """Raise ImageError when a chunk's checksum is wrong."""
    content = source.at(chunk.offset + 4, chunk.end - chunk.offset - 4)
    if zlib.crc32(content[:-4]) != int.from_bytes(content[-4:]):
        source.damaged(f"the checksum of its PNG chunk {_word(chunk.kind)} at byte {chunk.offset:,} is wrong")


def check_pixels(source: Source, header: PngHeader) -> None:
    """Raise ImageError unless the pixel data have correct checksums and unpack to the size that the header declares.

    A decoder would accept a file that unpacks to a thousand times that size.
    """
    expected = header.packed_bytes()
    stream = zlib.decompressobj()
    unpacked = 0
    try:
        for piece in _pixel_data(source, header):
            unpacked += len(stream.decompress(piece, expected - unpacked + 1))
            if unpacked > expected:
                source.damaged(f"its pixels unpack to more than the {expected:,} bytes that its header declares")
    except zlib.error as error:
        source.damaged(f"its pixels cannot be unpacked ({error})")
    if not stream.eof or unpacked < expected:
        source.damaged(f"its pixels unpack to {unpacked:,} bytes; its header declares {expected:,}")


def _pixel_data(source: Source, header: PngHeader) -> Iterator[bytes]:
    """The data of the IDAT chunks, in pieces."""
    for row in header.chunks:
        offset = row.offset
        while row.kind == b"IDAT" and offset < row.end:
            chunk = Chunk(b"IDAT", offset, offset + 12 + int.from_bytes(source.at(offset, 4)))
            check_chunk(source, chunk)
            for place in range(chunk.offset + 8, chunk.end - 4, _PIECE):
                yield source.at(place, min(_PIECE, chunk.end - 4 - place))
            offset = chunk.end


_PIECE = 1 << 16


# ---- JPEG --------------------------------------------------------------------------------------------------------

_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # the others are tables
_DECODED_FRAMES = {0xC0, 0xC1, 0xC2, 0xC9, 0xCA}
_ALONE = {0x01, *range(0xD0, 0xD9)}  # markers without a segment
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # in a scan, FF 00 is data, FF D0…D7 a restart, FF FF padding


@dataclass(frozen=True)
class JpegHeader(Header):
    """A JPEG file's frame header; ``scans`` is where its first scan begins, in bytes."""

    channels: int
    first_channel: int
    scans: int


class _Segment(NamedTuple):
    marker: int
    offset: int
    """Where its data begin, after marker and length."""
    length: int


def _segment(source: Source, offset: int) -> _Segment:
    """The marker at ``offset`` and the segment it opens. Length 0 for a marker that has none."""
    start = source.at(offset, 4)
    while start.startswith(b"\xff\xff"):  # padding before a marker
        offset += 1
        start = source.at(offset, 4)
    if len(start) < 2:
        source.cut_off("a JPEG file without its end mark")
    if start[0] != 0xFF or start[1] == 0:
        source.damaged(f"no JPEG marker at byte {offset:,}")
    if start[1] in _ALONE or start[1] == _END_OF_IMAGE:
        return _Segment(start[1], offset + 2, 0)
    length = int.from_bytes(start[2:]) - 2
    if len(start) == 4 and length < 0:
        source.damaged(f"a JPEG segment of impossible length at byte {offset:,}")
    if len(start) < 4 or offset + 4 + length > source.size:
        source.cut_off(f"its JPEG segment FF{start[1]:02X} needs {offset + 4 + max(0, length):,} bytes")
    return _Segment(start[1], offset + 4, length)


def _jpeg(source: Source) -> JpegHeader:
    orientation = 0
    frame = None
    offset = 2
    while True:
        segment = _segment(source, offset)
        if segment.marker == 0xE1 and not orientation:
            block = source.at(segment.offset, segment.length)
            if block.startswith(b"Exif\0\0"):
                orientation = _exif_orientation(block)
        elif segment.marker in _FRAMES:
            if frame is not None:
                source.damaged("a JPEG file with two frame headers")
            frame = segment
        elif segment.marker == 0xF7:
            source.refused("a JPEG-LS file", "Save it as PNG.")
        elif segment.marker == _START_OF_SCAN:
            break
        elif segment.marker == _END_OF_IMAGE:
            source.damaged("a JPEG file without pixels")
        offset = segment.offset + segment.length
    if frame is None or frame.length < 9:
        source.damaged("a JPEG file without a frame header")
    fields = source.at(frame.offset, 7)
    precision, height, width, channels = struct.unpack(">BHHB", fields[:6])
    if frame.marker not in _DECODED_FRAMES:
        kind = "lossless" if frame.marker in (0xC3, 0xC7, 0xCB, 0xCF) else "hierarchical"
        source.refused(f"a {kind} JPEG file (SOF{frame.marker - 0xC0})", "Save it as PNG.")
    if precision != 8:
        source.refused(f"a JPEG file of {precision} bits; 8 are read", "Save it as 16-bit PNG.")
    if channels not in (1, 3):
        source.refused(f"a JPEG file of {channels} colour channels, as printers use", "Save it as grey.")
    return JpegHeader(width, height, orientation or 1, channels, fields[6], offset)


def check_jpeg(source: Source, header: JpegHeader, content: bytes) -> None:
    """Raise ImageError unless the file has its end mark, and every bit of its grey channel.

    A progressive file that lost its last scans but has an end mark decodes to a blurred image, without an error.
    """
    offset, scans = header.scans, 0
    missing = dict.fromkeys(range(64), 14)  # bits of each coefficient of the first channel that no scan has given yet
    while (segment := _segment(source, offset)).marker != _END_OF_IMAGE:
        offset = segment.offset + segment.length
        if segment.marker != _START_OF_SCAN:
            continue
        scans += 1
        if scans > SCANS_AT_MOST:
            source.refused(f"a JPEG file of more than {SCANS_AT_MOST} scans", "Save it again.")
        body = content[segment.offset : offset]
        if body and len(body) == 4 + 2 * body[0]:
            if header.first_channel in body[1 : 1 + 2 * body[0] : 2]:
                missing.update(dict.fromkeys(range(body[-3], min(64, body[-2] + 1)), body[-1] & 15))
        else:
            source.damaged(f"a JPEG scan with an impossible header at byte {segment.offset:,}")
        marker = _MARKER.search(content, offset)
        if marker is None:
            source.cut_off("a JPEG file whose pixels have no end mark")
        offset = marker.start()
    if any(missing.values()):
        source.damaged(f"a progressive JPEG file with missing scans; it has only {scans}")


# ---- TIFF, and Exif, which has the same structure -----------------------------------------------------------------

_EXIF_AT_MOST = 1 << 20
_SUBFILE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 254, 256, 257, 258, 259, 262
_ORIENTATION, _SAMPLES, _SAMPLE_FORMAT = 274, 277, 339
_TAGS = {_SUBFILE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _ORIENTATION, _SAMPLES, _SAMPLE_FORMAT}
_TYPES = {1: "B", 3: "H", 4: "I"}  # byte, short, long
WHITE_IS_ZERO = 0
_PHOTOMETRICS = {WHITE_IS_ZERO: "grey", 1: "grey", 2: "RGB", 3: "palette", 6: "YCbCr"}


class _Tag(NamedTuple):
    values: tuple[int, ...]
    offset: int
    """Where the first value is stored, in bytes."""
    code: str


class _Directory(NamedTuple):
    tags: dict[int, _Tag]
    next: int

    def value(self, tag: int, otherwise: int) -> int:
        found = self.tags.get(tag)
        return found.values[0] if found and found.values else otherwise


@dataclass(frozen=True)
class TiffHeader(Header):
    """A TIFF file's only page."""

    bits: int
    samples: int
    white_is_zero: bool
    plain: tuple[tuple[int, bytes], ...]
    """(offset, bytes) that make it an upright image with black as zero. Decoders differ in how they treat both."""

    def made_plain(self, content: bytes) -> bytes:
        """The file with those bytes, so that every decoder gives the pixels as they are stored."""
        changed = bytearray(content)
        for offset, value in self.plain:
            changed[offset : offset + len(value)] = value
        return bytes(changed)


def _directory(at: ReadAt, order: str, offset: int) -> _Directory:
    """A directory: only the tags in `_TAGS`, each with at most 8 values. struct.error if the file is cut off."""
    (count,) = struct.unpack(order + "H", at(offset, 2))
    entries = at(offset + 2, 12 * count + 4)
    tags: dict[int, _Tag] = {}
    for place in range(0, 12 * count, 12):
        tag, kind, number = struct.unpack_from(order + "HHI", entries, place)
        if tag not in _TAGS or kind not in _TYPES or tag in tags:
            continue
        code = order + _TYPES[kind]
        size = struct.calcsize(code)
        stored = offset + 2 + place + 8
        if number * size > 4:
            (stored,) = struct.unpack_from(order + "I", entries, place + 8)
        content = at(stored, size * min(number, 8))
        tags[tag] = _Tag(tuple(value for (value,) in struct.iter_unpack(code, content)), stored, code)
    (following,) = struct.unpack_from(order + "I", entries, 12 * count)
    return _Directory(tags, following)


def _exif_orientation(block: bytes) -> int:
    """The orientation in an Exif block; 1 where the block is damaged, or the orientation missing or invalid."""

    def at(offset: int, count: int) -> bytes:  # a block that was cut off is filled up with zeros
        return block[offset : offset + count].ljust(count, b"\0")

    block = block.removeprefix(b"Exif\0\0")
    try:
        order = {b"II*\0": "<", b"MM\0*": ">"}[block[:4]]
        (offset,) = struct.unpack(order + "I", block[4:8])
        orientation = _directory(at, order, offset).value(_ORIENTATION, 1)
    except (KeyError, struct.error):
        return 1
    return orientation if 1 <= orientation <= 8 else 1


def _tiff(source: Source) -> TiffHeader:
    order = "<" if source.at(0, 1) == b"I" else ">"
    pages = list(_pages(source, order))
    if len(pages) > 1:
        number = f"{PAGES_COUNTED} pages or more" if len(pages) >= PAGES_COUNTED else f"{len(pages)} pages"
        source.refused(f"a TIFF file of {number}", "Save each page as an image of its own.")
    if not pages:
        source.refused("a TIFF file that contains only thumbnails", "Export the image again.")
    (page,) = pages
    bits, samples = page.value(_BITS, 1), page.value(_SAMPLES, 1)
    photometric, sample_format = page.value(_PHOTOMETRIC, -1), page.value(_SAMPLE_FORMAT, 1)
    if sample_format not in (1, 4) or bits not in (1, 2, 4, 8, 16):  # 4: undefined, which is read as whole numbers
        kind = {2: "signed whole numbers", 3: "floating-point numbers"}.get(sample_format, "whole numbers")
        source.refused(f"a TIFF file whose pixels are {kind} of {bits} bits", "Save it as 8- or 16-bit grey.")
    if photometric not in _PHOTOMETRICS or not 1 <= samples <= 4:
        kind = {-1: "an unstated colour space", 5: "CMYK", 8: "L*a*b*"}.get(photometric, f"photometric {photometric}")
        source.refused(f"a TIFF file of {kind} with {samples} values per pixel", "Save it as 8- or 16-bit grey.")
    orientation = page.value(_ORIENTATION, 1)
    plain = []
    for tag, neutral in ((_ORIENTATION, 1), (_PHOTOMETRIC, 1)):
        if tag in page.tags and (tag == _ORIENTATION or photometric == WHITE_IS_ZERO):
            plain.append((page.tags[tag].offset, struct.pack(page.tags[tag].code, neutral)))
    return TiffHeader(
        page.value(_WIDTH, 0),
        page.value(_HEIGHT, 0),
        orientation if 1 <= orientation <= 8 else 1,
        bits,
        samples,
        photometric == WHITE_IS_ZERO,
        tuple(plain),
    )


def _pages(source: Source, order: str) -> Iterator[_Directory]:
    """The directories of the pages, without those that are marked as a smaller copy of another page."""
    start = source.at(4, 4)
    if len(start) < 4:
        source.cut_off("a TIFF file without a header")
    (offset,) = struct.unpack(order + "I", start)
    seen: set[int] = set()
    while offset and offset not in seen and len(seen) < PAGES_COUNTED:
        seen.add(offset)
        try:
            page = _directory(source.at, order, offset)
        except struct.error:
            source.cut_off(f"the directory of page {len(seen)} of a TIFF file should be at byte {offset:,}")
        if not page.value(_SUBFILE, 0) & 1:
            yield page
        offset = page.next


# ---- BMP ---------------------------------------------------------------------------------------------------------


_BMP_HEADERS = (12, 16, 40, 52, 56, 64, 108, 124)  # the length identifies the version


def _bmp(source: Source) -> Header:
    start = source.at(0, 26)
    length = int.from_bytes(start[14:18], "little")
    if length not in _BMP_HEADERS:  # a text may begin with "BM" too
        _refuse_other_format(source, source.at(0, _SNIFFED))
    if len(start) < 26:
        source.cut_off("a BMP file without a header")
    width, height = struct.unpack_from("<HH" if length == 12 else "<ii", start, 18)
    if width < 0:
        source.damaged(f"its header declares {width} x {height} pixels")
    return Header(width, abs(height), 1)  # a negative height: rows are stored from the top


# ---- other formats -----------------------------------------------------------------------------------------------

_READERS: dict[bytes, Callable[[Source], Header]] = {
    b"\x89PNG": _png,
    b"\xff\xd8": _jpeg,
    b"II*\0": _tiff,
    b"MM\0*": _tiff,
    b"BM": _bmp,
}
_SNIFFED = 4096
_CONVERT = f"Convert it; {READ}."
_FORMATS = (
    (0, b"GIF8", "a GIF file", _CONVERT),
    (8, b"WEBP", "a WebP file", _CONVERT),
    (4, b"ftypavif", "an AVIF file", _CONVERT),
    (4, b"ftyphei", "a HEIC file", _CONVERT),
    (4, b"ftyphev", "a HEIC file", _CONVERT),
    (4, b"ftypmif1", "a HEIC file", _CONVERT),
    (4, b"ftyp", "a video", _CONVERT),
    (0, b"\0\0\0\x0cjP  ", "a JPEG 2000 file", _CONVERT),
    (0, b"\xff\x4f\xff\x51", "a JPEG 2000 file", _CONVERT),
    (0, b"\0\0\0\x0cJXL ", "a JPEG XL file", _CONVERT),
    (0, b"\xff\x0a", "a JPEG XL file", _CONVERT),
    (0, b"8BPS", "a Photoshop file", _CONVERT),
    (0, b"II+\0", "a BigTIFF file", "Save it as ordinary TIFF or as PNG."),
    (0, b"MM\0+", "a BigTIFF file", "Save it as ordinary TIFF or as PNG."),
    (0, b"%PDF", "a PDF file", "Export the image in it as PNG."),
    (0, b"\xd0\xcf\x11\xe0", "an old Office file", _CONVERT),
    (0, b"\x1f\x8b", "a gzip archive", "Unpack it."),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", "Unpack it."),
    (0, b"Rar!", "a RAR archive", "Unpack it."),
)
_OFFICE = {b"xl/": "an Excel file", b"word/": "a Word file", b"ppt/": "a PowerPoint file"}


def _refuse_other_format(source: Source, start: bytes) -> NoReturn:
    """Raise ImageError that names the format of a file with these first bytes."""
    if not start:
        source.refused("an empty file", AGAIN)
    for offset, magic, kind, remedy in _FORMATS:
        if start.startswith(magic, offset):
            source.refused(f"{kind}, which is not read", remedy)
    if start.startswith(b"PK\x03\x04"):
        for part, kind in _OFFICE.items():
            if part in start:
                source.refused(f"{kind}, not an image", "Save the image in it as PNG.")
        source.refused("a ZIP archive, not an image", "Unpack it.")
    if source.name.lower().endswith((".dcm", ".dicom")):
        source.refused(
            f"named as a DICOM file, but DICOM's mark DICM is not at byte {dicom.MARK_AT}",
            "Export it again as a DICOM file (PS3.10), or as PNG.",
        )
    if not start.strip(b"\0"):
        source.damaged("its first bytes are all zero, as after an interrupted copy")
    words = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if words.startswith((b"<!doctype html", b"<html", b"<head")):
        source.refused(
            "a web page, not an image: a download went wrong, or needs a login", "Open it in a browser to see why."
        )
    if words.startswith(b"version https://git-lfs"):
        source.refused("a pointer of Git LFS, not the image itself", "Fetch the image by git lfs pull.")
    if words.startswith(b"<svg") or (words.startswith(b"<?xml") and b"<svg" in words):
        source.refused("an SVG file, which is not read", _CONVERT)
    if _is_text(start):
        first = start.decode("utf-8", "replace").split("\n", 1)[0].strip()[:40]
        source.refused(f"a text file, not an image (it begins with {first!r})", AGAIN)
    source.refused(f"not an image that bonecaffe knows (it begins with the bytes {start[:8].hex(' ')}); {READ}", AGAIN)


def _is_text(start: bytes) -> bool:
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(start)
    except UnicodeDecodeError:
        return False
    return all(letter.isprintable() or letter in "\t\r\n\f\ufeff" for letter in text)


def _word(kind: bytes) -> str:
    return kind.decode("ascii", "backslashreplace")
