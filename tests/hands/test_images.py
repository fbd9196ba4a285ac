"""Reading images: a radiograph is read, anything else is refused by name."""

from __future__ import annotations

import struct
import zlib

import cv2
import numpy as np
import PIL.Image
import pytest

from bonecaffe.errors import ImageError
from bonecaffe.hands.images import encode_png, find_images, image_size, read_image

GREY = (np.add.outer(np.arange(60), np.arange(40)) * 2).astype(np.uint8)


def write(path, image, *options):
    assert cv2.imwrite(str(path), image, list(options))
    return path


def test_8_bit_grey(tmp_path):
    """Unchanged."""
    path = write(tmp_path / "a.png", GREY)
    assert np.array_equal(read_image(path), GREY)
    assert image_size(path) == (40, 60)


def test_16_bit_grey_is_stretched(tmp_path):
    """From its own smallest and largest value to 0…255: a 12-bit image does not go black."""
    image = read_image(write(tmp_path / "a.png", GREY.astype(np.uint16) * 10 + 700))
    assert image.dtype == np.uint8 and (image.min(), image.max()) == (0, 255)
    assert (np.diff(image.astype(int), axis=0) > 0).all()


def test_colour_that_is_grey(tmp_path):
    """RGB and RGBA files whose channels are equal, and JPEG."""
    rgb = np.dstack([GREY] * 3)
    assert np.array_equal(read_image(write(tmp_path / "rgb.png", rgb)), GREY)
    assert np.array_equal(read_image(write(tmp_path / "rgba.png", np.dstack([rgb, np.full_like(GREY, 255)]))), GREY)
    for image in (GREY, rgb):
        read = read_image(write(tmp_path / "a.jpg", image, cv2.IMWRITE_JPEG_QUALITY, 95))
        assert np.abs(read.astype(int) - GREY).max() < 12


def test_file_that_is_not_a_radiograph_is_refused(tmp_path):
    """Colour, transparency, text, nothing: the file is named."""
    colour = np.dstack([GREY, GREY, 255 - GREY])
    clear = np.dstack([GREY] * 3 + [np.full_like(GREY, 100)])
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "empty.png").touch()
    write(tmp_path / "colour.png", colour)
    write(tmp_path / "clear.png", clear)
    for name, message in (
        ("text", "a text file, not an image"),
        ("empty", "an empty file"),
        ("colour", "colour"),
        ("clear", "transparent"),
        ("none", "No such file"),
    ):
        with pytest.raises(ImageError, match=message) as error:
            read_image(tmp_path / f"{name}.png")
        assert f"{name}.png" in str(error.value)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_every_cut_off_file_is_refused(tmp_path, suffix):
    """OpenCV decodes half a file without a message; bonecaffe does not."""
    noise = np.random.default_rng(0).integers(0, 255, (80, 60), np.uint8)
    content = write(tmp_path / f"a{suffix}", noise).read_bytes()
    for keep in np.linspace(0, len(content) - 2, 40).astype(int):
        (tmp_path / f"b{suffix}").write_bytes(content[:keep])
        with pytest.raises(ImageError):
            read_image(tmp_path / f"b{suffix}")


def test_damaged_png_is_refused(tmp_path):
    """Bytes flipped within the pixels: PNG's checksums are compared."""
    content = bytearray(
        write(tmp_path / "a.png", np.random.default_rng(0).integers(0, 255, (80, 60), np.uint8)).read_bytes()
    )
    content[len(content) // 2] ^= 0x55
    (tmp_path / "b.png").write_bytes(content)
    with pytest.raises(ImageError, match=r"b\.png"):
        read_image(tmp_path / "b.png")


@pytest.mark.parametrize("width", [1, 7, 40, 131])
def test_every_kind_of_png_is_as_opencv_reads_it(tmp_path, width):
    """Every filter and strategy of PNG, a palette, two levels, a transparent grey: not a pixel differs."""
    image = np.random.default_rng(width).integers(0, 256, (31, width), np.uint8).cumsum(axis=1).astype(np.uint8)
    filters = [cv2.IMWRITE_PNG_FILTER_NONE, cv2.IMWRITE_PNG_FILTER_SUB, cv2.IMWRITE_PNG_FILTER_UP]
    filters += [cv2.IMWRITE_PNG_FILTER_AVG, cv2.IMWRITE_PNG_FILTER_PAETH, cv2.IMWRITE_PNG_ALL_FILTERS]
    for number in filters:
        for level in (0, 1, 9):
            path = write(tmp_path / "a.png", image, cv2.IMWRITE_PNG_FILTER, number, cv2.IMWRITE_PNG_COMPRESSION, level)
            assert np.array_equal(read_image(path), image)
    grey = PIL.Image.fromarray(image)
    palette = PIL.Image.fromarray(image)
    palette.putpalette([level for level in range(256) for _ in "rgb"])
    for picture, options in ((grey, {"transparency": 9}), (grey.convert("1"), {}), (palette, {})):
        picture.save(tmp_path / "b.png", **options)
        expected = cv2.imread(str(tmp_path / "b.png"), cv2.IMREAD_GRAYSCALE)
        assert np.array_equal(read_image(tmp_path / "b.png"), expected)


def test_no_flipped_byte_changes_a_pixel(tmp_path):
    """Whichever byte is damaged, the file is refused or its pixels are the true ones."""
    path = write(tmp_path / "a.png", GREY)
    content, refused = path.read_bytes(), 0
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :])
        try:
            assert np.array_equal(read_image(path), GREY)
        except ImageError:
            refused += 1
    assert refused > 0.9 * len(content)


def png_that_declares(width, height):
    """A PNG with a valid header that declares this size, and little after it."""
    content = bytearray(encode_png(GREY))
    content[16:24] = struct.pack(">II", width, height)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return bytes(content)


def test_size_is_read_from_the_header(tmp_path):
    """Of PNG and JPEG; a header that is damaged, or declares more than fits into memory, is refused."""
    for suffix in (".png", ".jpg"):
        assert image_size(write(tmp_path / f"a{suffix}", GREY)) == (40, 60)
    (tmp_path / "b.png").write_bytes(png_that_declares(80, 60))
    assert image_size(tmp_path / "b.png") == (80, 60)
    (tmp_path / "huge.png").write_bytes(png_that_declares(1 << 30, 1 << 30))
    (tmp_path / "damaged.png").write_bytes(encode_png(GREY).replace(b"IHDR\0\0\0", b"IHDR\0\0\1"))
    for name in ("huge", "damaged"):
        for read in (image_size, read_image):
            with pytest.raises(ImageError, match=name):
                read(tmp_path / f"{name}.png")


def test_images_are_found_two_folders_deep(tmp_path):
    """As RSNA's archive unpacks; two images of one id are refused."""
    deep = tmp_path / "set" / "set"
    deep.mkdir(parents=True)
    write(deep / "1377.png", GREY)
    (deep / "notes.txt").touch()
    assert find_images(tmp_path) == {"1377": deep / "1377.png"}
    write(tmp_path / "1377.jpg", GREY)
    with pytest.raises(ImageError, match="two images have the id 1377"):
        find_images(tmp_path)


def test_folder_without_images_is_an_error(tmp_path):
    """An empty folder, and a missing one."""
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ImageError, match="no images|no such folder"):
            find_images(folder)
