"""Image files in practice: turned, damaged, padded, too large, or of another format. The right pixels, or an error."""

from __future__ import annotations

import io
import struct
import zlib

import cv2
import numpy as np
import PIL.Image
import pytest

from bonecaffe.errors import ImageError
from bonecaffe.hands import image_headers
from bonecaffe.hands.image_source import of_bytes
from bonecaffe.hands.images import SUFFIXES, decode, encode_png, find_images, image_size, read_image

GREY = (np.add.outer(np.arange(60) * 3, np.arange(40)) + 10).astype(np.uint8)
DEEP = GREY.astype(np.uint16) * 200 + 900
STRETCHED = np.floor((DEEP - DEEP.min()) * (255 / (DEEP.max() - DEEP.min())) + 0.5).astype(np.uint8)
DAMAGED_FILES = 2000
"""How many files of each format are damaged below."""

# ---- files made here ------------------------------------------------------------------------------------------------


def chunk(kind, content):
    """A chunk of a PNG file."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width, height, bits, colour, rows, *more, interlaced=0, after=()):
    """A PNG file of these packed rows, each with its filter's byte."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlaced)
    parts = [chunk(b"IHDR", header), *more, chunk(b"IDAT", zlib.compress(rows)), *after, chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def grey_png(*more, after=(), image=GREY):
    """An 8-bit grey PNG with these chunks before and after its pixels."""
    rows = b"".join(b"\0" + row.tobytes() for row in image)
    return png(image.shape[1], image.shape[0], 8, 0, rows, *more, after=after)


def exif(orientation, order="<", kind=3):
    """An Exif block with an orientation."""
    mark = b"II*\0" if order == "<" else b"MM\0*"
    value = struct.pack(order + {3: "HH", 4: "I"}[kind], *((orientation, 0) if kind == 3 else (orientation,)))
    return mark + struct.pack(order + "IHHHI", 8, 1, 274, kind, 1) + value + bytes(4)


def jpeg(image=GREY, *options):
    """A JPEG file by OpenCV."""
    return cv2.imencode(".jpg", image, list(options))[1].tobytes()


def with_segment(content, marker, body):
    """A JPEG file with one more segment at its beginning."""
    return content[:2] + struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body + content[2:]


def tiff(rows, width, height, order="<", **tags):
    """A TIFF file of one strip, uncompressed; tags by number as t262=0."""
    entries = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: len(rows)}
    entries |= {int(name[1:]): value for name, value in tags.items()}
    mark = b"II*\0" if order == "<" else b"MM\0*"
    directory = struct.pack(order + "H", len(entries))
    for tag, value in sorted(entries.items()):
        directory += struct.pack(order + "HHII", tag, 4, 1, value)
    return mark + struct.pack(order + "I", 8 + len(rows)) + rows + directory + bytes(4)


def saved(image, kind, **options):
    """A file by Pillow."""
    buffer = io.BytesIO()
    (image if isinstance(image, PIL.Image.Image) else PIL.Image.fromarray(image)).save(buffer, kind, **options)
    return buffer.getvalue()


def refusal(content, tmp_path, name="hand.png"):
    """The error for a refused file, which names the file."""
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ImageError) as error:
        read_image(path)
    assert str(path) in str(error.value) and "Traceback" not in str(error.value)
    return str(error.value)


# ---- orientation -----------------------------------------------------------------------------------------------

STORED = {  # how an upright image is stored under each orientation
    1: lambda image: image,
    2: np.fliplr,
    3: lambda image: np.rot90(image, 2),
    4: np.flipud,
    5: np.transpose,
    6: lambda image: np.rot90(image, 1),
    7: lambda image: np.rot90(image, 2).T,
    8: lambda image: np.rot90(image, -1),
}


@pytest.mark.parametrize("orientation", STORED)
def test_orientation_is_applied_in_every_format(tmp_path, orientation):
    """The same upright pixels and the same size, however a camera or scanner stored them."""
    stored = np.ascontiguousarray(STORED[orientation](GREY))
    height, width = stored.shape
    block = b"Exif\0\0" + exif(orientation, ">")
    files = {
        "before.png": grey_png(chunk(b"eXIf", exif(orientation)), image=stored),
        "after.png": grey_png(after=[chunk(b"eXIf", exif(orientation, ">", 4))], image=stored),
        "deep.png": saved(stored.astype(np.uint16) * 257, "PNG", exif=exif(orientation)),
        "a.jpg": with_segment(jpeg(stored, cv2.IMWRITE_JPEG_QUALITY, 100), 0xE1, block),
        "little.tif": tiff(stored.tobytes(), width, height, t274=orientation),
        "big.tiff": tiff(stored.tobytes(), width, height, ">", t274=orientation),
        "packed.tif": saved(stored, "TIFF", compression="tiff_lzw", tiffinfo={274: orientation}),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        image = read_image(tmp_path / name)
        assert image_size(tmp_path / name) == (40, 60) == image.shape[::-1], name
        expected = np.floor((GREY - GREY.min()) * (255 / np.ptp(GREY)) + 0.5) if name == "deep.png" else GREY
        assert np.abs(image.astype(int) - expected).max() <= (2 if name == "a.jpg" else 0), name
        assert image.flags.c_contiguous


def test_orientation_is_as_pillow_applies_it():
    """An independent reader of the same tag."""
    from PIL import ImageOps

    for orientation in range(1, 9):
        content = with_segment(jpeg(), 0xE1, b"Exif\0\0" + exif(orientation))
        expected = np.asarray(ImageOps.exif_transpose(PIL.Image.open(io.BytesIO(content))))
        assert np.array_equal(decode(content, "a"), expected)


@pytest.mark.parametrize(
    "block",
    [b"", b"II", b"II*\0", exif(6)[:9], exif(0), exif(9), exif(65535), exif(6)[:4] + b"\xff" * 20, b"junk" * 20],
    ids=["none", "2 bytes", "no place", "no tags", "0", "9", "65535", "far", "junk"],
)
def test_image_with_broken_exif_is_read(block):
    """It is taken as upright."""
    plain = jpeg()
    assert np.array_equal(decode(with_segment(plain, 0xE1, b"Exif\0\0" + block), "a"), decode(plain, "a"))
    assert np.array_equal(decode(grey_png(chunk(b"eXIf", block)), "a"), GREY)


def test_exif_without_its_last_bytes_still_has_the_orientation():
    """The pointer to the next directory is often left out."""
    content = grey_png(chunk(b"eXIf", exif(6)[:-4]))
    assert np.array_equal(decode(content, "a"), np.rot90(GREY, -1))


def test_thumbnail_in_exif_is_not_the_image():
    """Its own orientation, frame and end mark are ignored."""
    block = b"Exif\0\0" + exif(1) + jpeg(GREY[:8, :8])
    content = with_segment(jpeg(), 0xE1, block)
    assert np.array_equal(decode(content, "a"), decode(jpeg(), "a"))
    with pytest.raises(ImageError, match="cut off"):
        decode(content[: len(block) + 200], "a")


# ---- damage and padding ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("padding", [b"\0" * 8192, b"\xff" * 5000, b"hello", b"\xff\xd9", jpeg(GREY[:8, :8])])
def test_bytes_after_the_end_are_ignored(tmp_path, padding):
    """Padding, a second image, another end mark: the image is read."""
    for name, content in (("a.png", encode_png(GREY)), ("b.png", encode_png(DEEP)), ("a.jpg", jpeg())):
        (tmp_path / name).write_bytes(content + padding)
        assert np.array_equal(read_image(tmp_path / name), decode(content, name))
        assert image_size(tmp_path / name) == (40, 60)


def test_padding_before_a_marker_is_not_damage():
    """As in T.81, B.1.1.2."""
    content = jpeg()
    for marker in (b"\xff\xdb", b"\xff\xda"):
        assert np.array_equal(decode(content.replace(marker, b"\xff" * 5 + marker, 1), "a"), decode(content, "a"))
    assert np.array_equal(decode(content[:-2] + b"\xff" * 4 + content[-2:], "a"), decode(content, "a"))


KINDS = {
    f"{'colour' if colour else 'grey'}{' progressive' * progressive}{' restarts' * (restarts > 0)}": (
        [cv2.IMWRITE_JPEG_PROGRESSIVE, progressive, cv2.IMWRITE_JPEG_RST_INTERVAL, restarts],
        colour,
    )
    for colour in (False, True)
    for progressive in (0, 1)
    for restarts in (0, 2)
}


def noisy(shape=(60, 40), seed=0):
    """Pixels that compress badly."""
    return np.clip(np.random.default_rng(seed).normal(120, 40, shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("kind", KINDS)
def test_jpeg_with_half_its_pixels_is_refused(tmp_path, kind):
    """Cut off, with an end mark added, as by a failed copy: OpenCV fills the rest with grey."""
    options, colour = KINDS[kind]
    image = noisy()
    content = jpeg(np.dstack([image] * 3) if colour else image, *options)
    scan = content.index(b"\xff\xda")
    for keep in np.linspace(scan + 20, len(content) - 40, 12).astype(int):
        assert "damaged" in (text := refusal(content[:keep] + b"\xff\xd9", tmp_path, "a.jpg")) or "cut off" in text
        assert "cut off" in refusal(content[:keep], tmp_path, "a.jpg")


def test_progressive_jpeg_without_its_last_scans_is_refused(tmp_path):
    """It decodes without a warning, blurred."""
    content = jpeg(noisy(), cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    scans = [place for place in range(len(content)) if content[place : place + 2] == b"\xff\xda"]
    tables = content.rindex(b"\xff\xc4", 0, scans[-1])
    blurred = content[: min(tables, scans[-1])] + b"\xff\xd9"
    assert cv2.imdecode(np.frombuffer(blurred, np.uint8), 0) is not None
    message = refusal(blurred, tmp_path, "a.jpg")
    assert "missing scans" in message


@pytest.mark.parametrize("kind", KINDS)
def test_jpeg_pixels_are_as_opencv_decodes_them(kind):
    """Grey and colour of every sampling: the reader was changed, the pixels were not."""
    options, colour = KINDS[kind]
    image = noisy((61, 43))
    for quality in (20, 75, 100):
        for sampling in (0x111111, 0x211111, 0x221111, 0x411111) if colour else (0,):
            more = [cv2.IMWRITE_JPEG_QUALITY, quality]
            if colour:
                more += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling]
            content = jpeg(np.dstack([image] * 3) if colour else image, *options, *more)
            expected = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
            assert np.array_equal(decode(content, "a"), expected[..., 1] if colour else expected)


def spoiled(content, random):
    """A file with one fault: a bit flipped, a piece missing, zeroed or duplicated, or the end missing."""
    place = int(random.integers(2, len(content) - 2))
    length = int(random.integers(1, 64))
    what = random.integers(6)
    if what == 0:
        return content[:place] + bytes([content[place] ^ (1 << int(random.integers(8)))]) + content[place + 1 :]
    if what == 1:
        return content[:place] + content[place + length :]
    if what == 2:
        zeroed = min(length, len(content) - place)
        return content[:place] + bytes(zeroed) + content[place + zeroed :]
    if what == 3:
        return content[: place + length] + content[place:]
    return content[:place] + (b"" if what == 4 else content[-2:])


def test_damaged_jpeg_that_the_decoder_warns_of_is_refused(capfd):
    """Only pixels that libjpeg gives without a warning are accepted, and they are libjpeg's own; seeded.

    OpenCV prints libjpeg's warnings; this hears them.
    """
    random = np.random.default_rng(13)
    images = [noisy((90, 70)), np.dstack([noisy((90, 70))] * 3)]
    files = [jpeg(images[colour], *options) for options, colour in KINDS.values()]
    taken = same = 0
    for number in range(DAMAGED_FILES):
        content = spoiled(files[number % len(files)], random)
        try:
            image = decode(content, "a")
        except ImageError:
            continue
        capfd.readouterr()
        expected = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
        assert capfd.readouterr().err == ""
        assert np.array_equal(image, expected if expected.ndim == 2 else expected[..., 1])
        taken += 1
        same += np.array_equal(image, decode(files[number % len(files)], "a"))
    print(f"{DAMAGED_FILES} damaged JPEGs: {taken} taken, {same} of them with the pixels of the whole file")
    assert taken < DAMAGED_FILES / 2


def test_damaged_png_is_never_read_with_other_pixels():
    """Grey of 8, 16, 4 bits, colour, palette, interlaced; seeded."""
    random = np.random.default_rng(14)
    image = noisy((50, 40))
    palette = PIL.Image.fromarray(image)
    palette.putpalette([level for level in range(256) for _ in "rgb"])
    files = [
        encode_png(image),
        encode_png(image.astype(np.uint16) * 250),
        encode_png(np.dstack([image] * 3)),
        saved(palette, "PNG"),
        grey_png(chunk(b"tEXt", b"Comment\0a hand"), chunk(b"eXIf", exif(6)), image=image),
        png(40, 50, 4, 0, b"".join(b"\0" + row.tobytes() for row in image[:, :20])),
        png(40, 50, 8, 0, adam7(image), interlaced=1),
    ]
    taken = 0
    for number in range(DAMAGED_FILES):
        whole = files[number % len(files)]
        try:
            pixels = decode(spoiled(whole, random), "a")
        except ImageError:
            continue
        assert np.array_equal(pixels, decode(whole, "a"))
        taken += 1
    print(f"{DAMAGED_FILES} damaged PNGs: {taken} taken")
    assert taken < DAMAGED_FILES / 10


def test_damaged_tiff_and_bmp_give_an_error(tmp_path):
    """They have no checksums, so a changed pixel goes unnoticed, but the size is always the declared one."""
    random = np.random.default_rng(15)
    image = PIL.Image.fromarray(noisy((50, 40)))
    files = [saved(image, "TIFF", compression=packing) for packing in ("raw", "tiff_lzw", "tiff_adobe_deflate", "jpeg")]
    files += [saved(image, "BMP"), saved(image.convert("RGB"), "BMP"), grey_png(chunk(b"eXIf", exif(6)))]
    path = tmp_path / "a"
    read = 0
    for number in range(DAMAGED_FILES // 4):
        path.write_bytes(spoiled(files[number % len(files)], random))
        try:
            pixels = read_image(path)
        except ImageError:
            continue
        assert image_size(path) == pixels.shape[::-1]
        read += 1
    assert 0 < read < DAMAGED_FILES / 8


def adam7(image):
    """The rows of an interlaced PNG."""
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    parts = [image[y::high, x::wide] for x, y, wide, high in passes]
    return b"".join(b"\0" + row.tobytes() for part in parts for row in part if part.size)


def test_error_names_where_a_file_is_cut_off(tmp_path):
    """The byte at which they end."""
    content = encode_png(GREY)
    message = refusal(content[:100], tmp_path)
    assert "cut off" in message and "ends at byte 100" in message and "IDAT" in message
    assert "IEND" in refusal(content[:-12], tmp_path)
    message = refusal(jpeg()[:-2], tmp_path, "a.jpg")
    assert "no end mark" in message and f"{len(jpeg()) - 2:,}" in message
    assert "as text" in refusal(content.replace(b"\r\n", b"\n"), tmp_path)


# ---- too large -------------------------------------------------------------------------------------------------


def test_one_limit_on_pixels_for_every_format(tmp_path):
    """Checked in the header: nothing is decoded, and the size is not returned either."""
    wide = high = 10_000
    assert wide * high > image_headers.PIXELS_AT_MOST
    frame = jpeg()
    at = frame.index(b"\xff\xc0") + 5
    bitmap = saved(GREY, "BMP")
    files = {
        "a.png": png(wide, high, 8, 0, b""),
        "a.jpg": frame[:at] + struct.pack(">HH", high, wide) + frame[at + 4 :],
        "a.tif": tiff(b"", wide, high),
        "a.bmp": bitmap[:18] + struct.pack("<ii", wide, -high) + bitmap[26:],
    }
    for name, content in files.items():
        message = refusal(content, tmp_path, name)
        assert "10000 x 10000 pixels; the limit is 67,108,864" in message
        with pytest.raises(ImageError, match="10000 x 10000"):
            image_size(tmp_path / name)


@pytest.mark.parametrize("bits", [1, 4, 8, 16])
def test_png_that_unpacks_to_more_than_it_declares(bits):
    """A thousand times its size is never unpacked."""
    row = bytes(1 + 40 * bits // 8)
    content = png(40, 60, bits, 0, row * 60 + bytes(30 << 20))
    try:
        assert not decode(content, "a").any()  # the quick decoder stops at the declared size
    except ImageError as error:
        assert "unpack to more than" in str(error)
        assert bits < 8
    else:
        assert bits >= 8


def test_png_that_unpacks_to_less_than_it_declares(tmp_path):
    """Its checksums may still be right."""
    for bits in (2, 16):
        assert "its pixels unpack to 82 bytes" in refusal(png(40, 60, bits, 0, bytes(82)), tmp_path)
    content = bytearray(zlib.compress(bytes(60 * (1 + 10))))
    content[-1] ^= 1
    whole = png(40, 60, 2, 0, b"")
    for data, reason in ((bytes(content), "cannot be unpacked"), (bytes(content[:-4]), "its pixels unpack to 660")):
        assert reason in refusal(whole.replace(chunk(b"IDAT", zlib.compress(b"")), chunk(b"IDAT", data)), tmp_path)


def test_packed_texts_and_profiles_are_not_unpacked():
    """They do not affect the pixels."""
    bomb = b"k\0\0" + zlib.compress(bytes(64 << 20), 9)
    more = [chunk(b"zTXt", bomb), chunk(b"iCCP", bomb), chunk(b"iTXt", b"k\0\1\0\0\0" + bomb[3:])]
    header = image_headers.read_header(of_bytes(content := grey_png(*more), "a"))
    assert header.pixels_alone(content) == grey_png()
    assert np.array_equal(decode(content, "a"), GREY)


def test_jpeg_of_a_thousand_scans_is_refused():
    """Each would cost a pass over the image."""
    content = jpeg(GREY, cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    first = content.index(b"\xff\xda")
    second = content.index(b"\xff", first + 12)
    while content[second + 1] == 0:
        second = content.index(b"\xff", second + 1)
    with pytest.raises(ImageError, match="more than 64 scans"):
        decode(content[:second] + content[first:second] * 1000 + content[second:], "a")


# ---- TIFF, BMP and the rarer PNG -------------------------------------------------------------------------------

TIFFS = {
    "8": (tiff(GREY.tobytes(), 40, 60), GREY),
    "8 white is zero": (tiff((255 - GREY).tobytes(), 40, 60, t262=0), GREY),
    "16": (tiff(DEEP.astype("<u2").tobytes(), 40, 60, t258=16), STRETCHED),
    "16 big-endian": (tiff(DEEP.astype(">u2").tobytes(), 40, 60, ">", t258=16), STRETCHED),
    "16 white is zero": (tiff((65535 - DEEP).astype("<u2").tobytes(), 40, 60, t258=16, t262=0), STRETCHED),
    "16 white is zero big-endian": (
        tiff((65535 - DEEP).astype(">u2").tobytes(), 40, 60, ">", t258=16, t262=0),
        STRETCHED,
    ),
    "LZW": (saved(GREY, "TIFF", compression="tiff_lzw"), GREY),
    "deflate": (saved(GREY, "TIFF", compression="tiff_adobe_deflate"), GREY),
    "packbits": (saved(GREY, "TIFF", compression="packbits"), GREY),
    "LZW 16": (saved(DEEP, "TIFF", compression="tiff_lzw"), STRETCHED),
    "RGB": (saved(np.dstack([GREY] * 3), "TIFF"), GREY),
    "RGBA": (saved(np.dstack([GREY] * 3 + [np.full_like(GREY, 255)]), "TIFF"), GREY),
    "RGB 16": (cv2.imencode(".tiff", np.dstack([DEEP] * 3))[1].tobytes(), STRETCHED),
    "palette": (saved(PIL.Image.fromarray(GREY).convert("P"), "TIFF"), GREY),
    "thumbnail": (saved(GREY, "TIFF", save_all=True, append_images=[]), GREY),
}


@pytest.mark.parametrize("kind", TIFFS)
def test_tiff_is_read(tmp_path, kind):
    """Upright and with black as zero; 16 bits are stretched like a PNG's."""
    content, expected = TIFFS[kind]
    (tmp_path / "a.tif").write_bytes(content)
    assert np.array_equal(read_image(tmp_path / "a.tif"), expected)
    assert image_size(tmp_path / "a.tif") == (40, 60)


def test_bilevel_tiff_of_a_fax(tmp_path):
    """White is zero here too."""
    picture = PIL.Image.fromarray(GREY).convert("1")
    for compression in ("group4", "tiff_ccitt", "raw"):
        assert np.array_equal(decode(saved(picture, "TIFF", compression=compression), "a"), picture.convert("L"))


def test_compressed_white_is_zero():
    """Decoders differ in whether they invert it; here it is inverted once, in every compression."""
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        content = saved(GREY, "TIFF", compression=compression, tiffinfo={262: 0})
        assert PIL.Image.open(io.BytesIO(content)).tag_v2[262] == 0
        assert np.abs(decode(content, "a").astype(int) - GREY).max() <= (12 if compression == "jpeg" else 0)


REFUSED_TIFFS = {
    "pages": (saved(GREY, "TIFF", save_all=True, append_images=[PIL.Image.fromarray(GREY)] * 2), "of 3 pages"),
    "float": (saved(GREY.astype(np.float32), "TIFF"), "floating-point numbers of 32 bits"),
    "signed": (tiff(DEEP.tobytes(), 40, 60, t258=16, t339=2), "signed whole numbers of 16 bits"),
    "32 bits": (tiff(DEEP.astype(np.uint32).tobytes(), 40, 60, t258=32), "whole numbers of 32 bits"),
    "12 bits": (tiff(bytes(40 * 60 * 3 // 2), 40, 60, t258=12), "whole numbers of 12 bits"),
    "CMYK": (saved(PIL.Image.fromarray(np.dstack([GREY] * 3)).convert("CMYK"), "TIFF"), "of CMYK"),
    "colour": (saved(np.dstack([GREY, GREY, 255 - GREY]), "TIFF"), "a colour image"),
    "cut": (tiff(GREY.tobytes(), 40, 60)[:-30], "cut off: the directory of page 1"),
    "thumbnail alone": (tiff(GREY.tobytes(), 40, 60, t254=1), "only thumbnails"),
    "pixels beyond the end": (tiff(GREY.tobytes(), 40, 60, t273=2000), "cut off: the TIFF decoder reports"),
    "deflate": (saved(noisy(), "TIFF", compression="tiff_adobe_deflate").replace(b"\x78", b"\x79", 1), "damaged"),
    "no size": (tiff(b"", 0, 60), "declares 0 x 60"),
    "BigTIFF": (b"II+\0\x08\0\0\0" + bytes(20), "BigTIFF"),
    "loop": (tiff(GREY.tobytes(), 40, 60)[:-4] + struct.pack("<I", 8 + GREY.size), ""),
}


@pytest.mark.parametrize("kind", REFUSED_TIFFS)
def test_tiff_that_is_no_radiograph_is_refused(tmp_path, kind):
    """The error names what it is."""
    content, expected = REFUSED_TIFFS[kind]
    if kind == "loop":  # its only page names itself as the next
        assert np.array_equal(decode(content, "a"), GREY)
    else:
        assert expected in refusal(content, tmp_path, "a.tif")


def test_second_page_that_is_a_smaller_copy_is_ignored():
    """Scanners add one."""
    first = tiff(GREY.tobytes(), 40, 60)
    entry = struct.pack("<HHHII", 1, 254, 4, 1, 1) + bytes(4)
    assert np.array_equal(decode(first[:-4] + struct.pack("<I", len(first)) + entry, "a"), GREY)


def test_bmp_is_read(tmp_path):
    """Palette grey, RGB, 32 bits whose fourth byte is empty, rows from the top; a cut one is not."""
    grey = saved(GREY, "BMP")
    rows_from_top = grey[:22] + struct.pack("<i", -60) + grey[26:]
    rgb = saved(np.dstack([GREY] * 3), "BMP")
    four = np.ascontiguousarray(np.dstack([GREY] * 3 + [np.zeros_like(GREY)])[::-1]).tobytes()
    filled = b"BM" + struct.pack("<IIIIiiHHIIiiII", 54 + len(four), 0, 54, 40, 40, 60, 1, 32, 0, 0, 0, 0, 0, 0) + four
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000) + bytes(52)
    clear = b"BM" + struct.pack("<IIIIiiHHIIiiII", 122 + len(four), 0, 122, 108, 40, 60, 1, 32, 3, 0, 0, 0, 0, 0)
    files = ((grey, GREY), (rows_from_top, GREY[::-1]), (rgb, GREY), (filled, GREY), (clear + masks + four, GREY))
    for content, expected in files:
        (tmp_path / "a.bmp").write_bytes(content)
        assert np.array_equal(read_image(tmp_path / "a.bmp"), expected)
        assert image_size(tmp_path / "a.bmp") == (40, 60)
        assert "cut off: the BMP decoder reports" in refusal(content[:-200], tmp_path, "b.bmp")
    assert "cut off" in refusal(grey[:20], tmp_path, "b.bmp")


def test_rarer_png(tmp_path):
    """1, 2 and 4 bits of grey are spread to 0…255; interlaced; a palette; grey with an opaque alpha."""
    levels = np.arange(16, dtype=np.uint8).reshape(2, 8)
    for bits in (1, 2, 4):
        values = levels % (1 << bits)
        packed = np.packbits(np.unpackbits(values[..., None], axis=2)[..., -bits:].reshape(2, -1), axis=1)
        content = png(8, 2, bits, 0, b"".join(b"\0" + row.tobytes() for row in packed))
        assert np.array_equal(decode(content, "a"), values * (255 // ((1 << bits) - 1)))
    assert np.array_equal(decode(png(40, 60, 8, 0, adam7(GREY), interlaced=1), "a"), GREY)
    deep = DEEP.astype(">u2")
    assert np.array_equal(decode(png(40, 60, 16, 0, adam7(deep), interlaced=1), "a"), STRETCHED)
    opaque = np.dstack([GREY, np.full_like(GREY, 255)])
    assert np.array_equal(decode(saved(PIL.Image.fromarray(opaque), "PNG"), "a"), GREY)
    opaque[3, 3, 1] = 254
    assert "transparent" in refusal(saved(PIL.Image.fromarray(opaque), "PNG"), tmp_path)


# ---- other formats ---------------------------------------------------------------------------------------------

OTHERS = {
    "GIF": (saved(GREY, "GIF"), "a GIF file", "Convert it"),
    "WebP": (saved(GREY, "WEBP"), "a WebP file", "Convert it"),
    "HEIC": (b"\0\0\0\x18ftypheic" + bytes(40), "a HEIC file", "Convert it"),
    "JPEG 2000": (cv2.imencode(".jp2", GREY)[1].tobytes(), "a JPEG 2000 file", "Convert it"),
    "PDF": (b"%PDF-1.7\n", "a PDF file", "Export"),
    "web page": (b"\n<!DOCTYPE html><html><body>Not found", "a web page", "login"),
    "ZIP": (b"PK\x03\x04\x14\0\0\0photo.png", "a ZIP archive", "Unpack"),
    "Excel": (b"PK\x03\x04\x14\0\0\0xl/workbook.xml", "an Excel file", "Save"),
    "empty": (b"", "an empty file", "Download"),
    "zeros": (bytes(9000), "all zero", "Download"),
    "text": ("BM für 1377".encode(), "a text file", "Download"),
    "LFS": (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS", "git lfs pull"),
    "bytes": (b"\x01\x02\x03\x04" * 9, "begins with the bytes 01 02 03 04", "PNG, JPEG, TIFF, BMP and DICOM"),
    "lossless JPEG": (jpeg().replace(b"\xff\xc0", b"\xff\xc3"), "a lossless JPEG file", "Save it as PNG"),
    "12-bit JPEG": (jpeg().replace(b"\xff\xc0\0\x0b\x08", b"\xff\xc1\0\x0b\x0c"), "of 12 bits", "16-bit PNG"),
    "CMYK JPEG": (saved(PIL.Image.fromarray(GREY).convert("CMYK"), "JPEG"), "4 colour channels", "grey"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_another_format_is_named(tmp_path, kind):
    """With the remedy; not "cut off"."""
    content, named, remedy = OTHERS[kind]
    message = refusal(content, tmp_path)
    assert named in message and remedy in message and "cut off" not in message
    with pytest.raises(ImageError, match="hand.png"):
        image_size(tmp_path / "hand.png")


def test_suffix_does_not_matter(tmp_path):
    """A PNG that is called .jpg is read; files of every suffix are found."""
    contents = [encode_png(GREY), jpeg(), saved(GREY, "TIFF"), saved(GREY, "BMP")]
    for number, suffix in enumerate(SUFFIXES):
        (tmp_path / f"{number}{suffix}").write_bytes(contents[number % 4])
    found = find_images(tmp_path)
    assert len(found) == len(SUFFIXES) == 8
    for path in found.values():
        assert np.abs(read_image(path).astype(int) - GREY).max() < 12
