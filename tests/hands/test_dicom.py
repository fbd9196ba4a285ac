"""DICOM in: every transfer syntax, depth and polarity gives the pixels of the same PNG; everything else an error."""

from __future__ import annotations

import base64
import importlib.util
import io
import struct
import sys
import warnings
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest
from dicoms import (
    BIG,
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
    JPEG,
    JPEG_2000,
    JPEG_LS,
    LOSSLESS,
    LOSSLESS_1,
    RLE,
    dataset,
    dicom,
    padded,
    written,
)
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels import apply_modality_lut, apply_voi_lut

from bonecaffe.errors import ImageError
from bonecaffe.hands import dicom as headers
from bonecaffe.hands.image_headers import PIXELS_AT_MOST
from bonecaffe.hands.images import decode, dicom_ids, find_images, id_of, image_size, read_image

EXACT = (IMPLICIT, EXPLICIT, BIG, DEFLATED, RLE, LOSSLESS, LOSSLESS_1, JPEG_2000, JPEG_LS)
MUTATIONS = 300
FILES = Path(pydicom.__file__).parent / "data" / "test_files"


def radiograph(bits: int):
    """A grey picture, odd-sized, of all depths: smooth, with noise, from 0 to the largest value."""
    top = (1 << bits) - 1
    image = np.add.outer(np.arange(61) * 3, np.arange(43)) % 256 * top // 255
    image[5] = np.random.default_rng(bits).integers(0, top + 1, 43)
    image[0, 0], image[-1, -1] = 0, top
    return image


def as_png(image, bits: int):
    """The same picture as bonecaffe reads it from an 8- or 16-bit PNG."""
    content = cv2.imencode(".png", image.astype(np.uint8 if bits == 8 else np.uint16))[1].tobytes()
    return decode(content, "a.png")


def refusal(content: bytes) -> str:
    """The error for a file, which names it and is one sentence with a remedy."""
    with pytest.raises(ImageError) as caught:
        decode(content, "a.dcm")
    message = str(caught.value)
    assert message.startswith("a.dcm: ") and message.endswith(".") and "\n" not in message
    assert caught.value.__cause__ is None and caught.value.__context__ is None  # which could quote the file
    return message


# ---- the same pixels as PNG ------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
@pytest.mark.parametrize("syntax", EXACT)
def test_pixels_are_those_of_the_png(syntax, bits):
    """In every lossless syntax and depth, signed or not, in both polarities: not one pixel differs."""
    if syntax == JPEG_LS and importlib.util.find_spec("jpeg_ls") is None:
        pytest.skip("pyjpegls, which writes JPEG-LS, is not installed")
    image = radiograph(bits)
    expected = as_png(image, bits)
    for polarity, shown in (("MONOCHROME2", image), ("MONOCHROME1", (1 << bits) - 1 - image)):
        for signed in (False, True):
            stored = shown - (1 << bits - 1) if signed else shown
            content = dicom(stored, bits, syntax, signed, PhotometricInterpretation=polarity)
            assert np.array_equal(decode(content, "a"), expected), (polarity, signed)


HIGH_THROUGHPUT = (
    "/0//UQApQAAAAAAQAAAADAAAAAAAAAAAAAAAEAAAAAwAAAAAAAAAAAABDwEB/1AACAACAAAACv9SAAwAAgABAAUEBEAB/1wAEyCI"
    "kJCQkJCQkJCQkJCQiIiI/2QAFwABT3BlbkpQSCBWZXIgMC4yNi4zLv+QAAoAAAAAAIEAAf+TwAAm2/QFB3QAAMAAE0AAEwDa/gIH"
    "dAAQ9AOHdADAABNAABMAbGwBgnQAp6cAQjQAwAAVMAAFYDKZ7KBCMQJ2AEQlKlGJ+sBSgb62AMAAKyAAFqCO4ziO8+eKenCCdwBW"
    "WrFixYoVK1b++hCAe/ZCAey6AP/Z"
)
"""(300 row + 40 column) mod 4096 of 12 x 16 pixels, lossless, by imagecodecs 2026.3.6 (OpenJPH 0.26.3)."""


@pytest.mark.parametrize("syntax", [f"1.2.840.10008.1.2.4.{end}" for end in (201, 202, 203)])
def test_high_throughput_jpeg_2000(syntax):
    """None of the packages that the tests install writes it, so its stream is stored here."""
    image = np.add.outer(np.arange(12) * 300, np.arange(16) * 40) % 4096
    made = dataset(image, 12)
    made.PixelData = encapsulate([base64.b64decode(HIGH_THROUGHPUT)])
    made["PixelData"].VR, made["PixelData"].is_undefined_length = "OB", True
    made.file_meta.TransferSyntaxUID = syntax
    assert np.array_equal(decode(written(made), "a"), as_png(image, 16))


def test_lossy_jpeg_is_that_of_the_jpeg():
    """As libjpeg decodes the same stream, to one level: its decoders round differently."""
    smooth = np.add.outer(np.arange(64) * 2, np.arange(48)).astype(np.uint8)
    for polarity, expected in (("MONOCHROME2", smooth), ("MONOCHROME1", 255 - smooth)):
        decoded = decode(dicom(smooth, 8, JPEG, PhotometricInterpretation=polarity), "a")
        assert np.abs(decoded.astype(int) - expected).max() <= 3


def test_more_than_8_bits_are_stretched_as_in_png():
    """Values that use a part of the range: the smallest is black, the largest is white, as for a 16-bit PNG."""
    image = radiograph(12) // 3 + 700
    expected = as_png(image, 16)
    assert expected.min() == 0 and expected.max() == 255
    assert np.array_equal(decode(dicom(image, 12), "a"), expected)
    inverted = dicom(4095 - image, 12, PhotometricInterpretation="MONOCHROME1")
    assert np.array_equal(decode(inverted, "a"), expected)
    dull = radiograph(8) // 3 + 40
    assert np.array_equal(decode(dicom(dull, 8), "a"), dull)  # 8 bits are kept, as the paper's are
    assert not decode(dicom(np.full((4, 4), 900), 12), "a").any()


def test_12_bits_differ_from_8_by_rounding_only():
    """A hand of 8 bits, stored in 12 or 16 bits, comes back within half a level; exactly if it uses the whole range."""
    image = radiograph(8)
    for bits in (10, 12, 16):
        top = (1 << bits) - 1
        stored = np.round(image * (top / 255)).astype(int)
        assert np.array_equal(decode(dicom(stored, bits), "a"), image)


def test_overlays_in_unused_bits_are_cut_off():
    """Old files keep an overlay in the bits above the pixels."""
    image = radiograph(12)
    made = dataset(image, 12)
    made.PixelData = padded((image | 0x3000).astype("<u2"))
    assert np.array_equal(decode(written(made), "a"), as_png(image, 16))


# ---- what a viewer shows ---------------------------------------------------------------------------------------


def lut(entries, first=0, bits=8, packed=False):
    """An item of a sequence of look-up tables."""
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(entries) % 65536, first % 65536, bits])
    if packed:
        item.add_new("LUTData", "OW", np.asarray(entries, "<u2").tobytes())
    else:
        item.add_new("LUTData", "US", [int(entry) for entry in entries])
    return item


def test_windows():
    """Of the two linear functions and the sigmoid, after slope and intercept; then MONOCHROME1 is inverted."""
    image = radiograph(12)
    values = image * 0.5 - 100
    rescale = {"RescaleSlope": "0.5", "RescaleIntercept": "-100", "WindowCenter": ["600", "1"]}
    expected = {
        "LINEAR": np.clip((values - 599.5) / 799 + 0.5, 0, 1) * 255,
        "LINEAR_EXACT": np.clip((values - 600) / 800 + 0.5, 0, 1) * 255,
        "SIGMOID": 255 / (1 + np.exp(-4 * (values - 600) / 800)),
    }
    for function, levels in expected.items():
        tags = rescale | {"WindowWidth": ["800", "1"], "VOILUTFunction": function}
        content = dicom(image, 12, **tags)
        assert np.abs(decode(content, "a") - levels).max() <= 0.5 + 1e-6, function
        inverted = decode(dicom(image, 12, PhotometricInterpretation="MONOCHROME1", **tags), "a")
        assert np.abs(inverted - (255 - levels)).max() <= 0.5 + 1e-6, function
    image_alone = {key: rescale[key] for key in ("RescaleSlope", "RescaleIntercept")}
    assert np.array_equal(decode(dicom(image, 12, **image_alone), "a"), as_png(image, 16))
    threshold = decode(dicom(image, 12, WindowCenter="2000", WindowWidth="1"), "a")
    assert np.array_equal(threshold, np.where(image > 1999.5, 255, 0))


def test_the_usual_window_of_8_bits_changes_nothing():
    """Most exporters write one that covers all values."""
    image = radiograph(8)
    assert np.array_equal(decode(dicom(image, WindowCenter="128", WindowWidth="256"), "a"), image)


def test_look_up_tables():
    """A modality LUT, then a VOI LUT, which has precedence over a window; as numbers and as bytes; values beyond."""
    image = radiograph(10)
    squares = (np.arange(1024) ** 2 // 16).astype(int)  # 16 bits
    steps = np.arange(4096) // 16  # 8 bits
    for packed in (False, True):
        modality = lut(squares, 0, 16, packed)
        voi = lut(steps, 500, 8, packed)
        tags = {"ModalityLUTSequence": [modality], "VOILUTSequence": [voi], "WindowCenter": "1", "WindowWidth": "9"}
        content = dicom(image, 10, **tags)
        expected = steps[np.clip(squares[image] - 500, 0, 4095)]
        assert np.array_equal(decode(content, "a"), expected)
    signed = dicom(image - 512, 10, signed=True, VOILUTSequence=[lut(np.arange(1024), -512, 10)])
    assert np.array_equal(decode(signed, "a"), as_png(image, 16))
    inverse = dicom(image, 10, VOILUTSequence=[lut(np.arange(1024), 0, 10)], PhotometricInterpretation="MONOCHROME1")
    assert np.array_equal(decode(inverse, "a"), 255 - as_png(image, 16))
    for bad in (lut([1, 2, 3], 0, 40), lut([1, 2, 900], 0, 8), Dataset()):
        assert "VOILUTSequence" in refusal(dicom(image, 10, VOILUTSequence=[bad]))


def test_padding_is_black_and_does_not_count():
    """Values that mark places beyond the shutter neither stretch the image nor are shown."""
    image = radiograph(12) // 4 + 1000
    stored = image.copy()
    stored[:9] = 4095
    decoded = decode(dicom(stored, 12, PixelPaddingValue=4095), "a")
    assert not decoded[:9].any() and np.array_equal(decoded[9:], as_png(image[9:], 16))
    stored[3] = 4090
    for polarity in ("MONOCHROME1", "MONOCHROME2"):
        tags = {"PixelPaddingValue": 4090, "PixelPaddingRangeLimit": 4095, "PhotometricInterpretation": polarity}
        assert not decode(dicom(stored, 12, **tags), "a")[:9].any()
    signed = np.where(np.arange(61)[:, None] < 9, -2000, image - 1500)
    made = dataset(signed, 16, signed=True)
    made.add_new("PixelPaddingValue", "SS", -2000)
    assert not decode(written(made), "a")[:9].any()
    assert np.array_equal(decode(written(made), "a")[9:], as_png(image[9:], 16))


def test_broken_numbers_are_refused():
    """The tag is named; its value is not shown."""
    image = radiograph(8)
    for keyword, value in (("RescaleSlope", "0"), ("WindowWidth", "0"), ("WindowWidth", "-5")):
        tags = {"WindowCenter": "7", keyword: value}
        assert keyword in refusal(dicom(image, **tags))
    content = dicom(image, WindowCenter="77.25", WindowWidth="9")
    for other in (b"abcde ", b"nan   ", b"inf   "):
        assert "WindowCenter is not a number" in refusal(content.replace(b"77.25 ", other))
    assert "VOILUTFunction" in refusal(dicom(image, WindowCenter="7", WindowWidth="9", VOILUTFunction="CUBIC"))


# ---- pydicom's own files ---------------------------------------------------------------------------------------

GREY_FILES = {
    "CT_small.dcm": "explicit",
    "MR_small_implicit.dcm": "implicit",
    "MR_small_bigendian.dcm": "big endian",
    "MR_small_padded.dcm": "padded pixels",
    "image_dfl.dcm": "deflated",
    "MR_small_RLE.dcm": "RLE",
    "JPGExtended.dcm": "JPEG of 12 bits",
    "MR_small_jpeg_ls_lossless.dcm": "JPEG-LS",
    "JPEGLSNearLossless_08.dcm": "JPEG-LS, near lossless, 8 bits",
    "JPEGLSNearLossless_16.dcm": "JPEG-LS, near lossless, 16 bits",
    "MR_small_jp2klossless.dcm": "JPEG 2000",
    "JPEG2000.dcm": "JPEG 2000, lossy",
    "693_J2KI.dcm": "JPEG 2000, lossy, 14 bits",
    "J2K_pixelrep_mismatch.dcm": "JPEG 2000 whose sign contradicts the header",
    "examples_overlay.dcm": "with an overlay",
}


@pytest.mark.parametrize("name", GREY_FILES)
def test_files_of_pydicom_as_pydicom_shows_them(name):
    """The grey ones, once their tags no longer name another kind of image; to one level, which is rounding."""
    with warnings.catch_warnings(action="ignore"):
        made = pydicom.dcmread(FILES / name)
        made.Modality, made.BodyPartExamined, made.SeriesDescription = "DX", "HAND", "Hand"
        values = apply_modality_lut(made.pixel_array, made)
        file = io.BytesIO()
        made.save_as(file)
        shown = apply_voi_lut(values, made).astype(float)
    low, high = values.min(), values.max()
    if "WindowWidth" in made:
        bottom = -(1 << made.BitsStored - 1) if made.PixelRepresentation else 0
        slope, intercept = float(made.get("RescaleSlope", 1)), float(made.get("RescaleIntercept", 0))
        low, high = ((bottom + more) * slope + intercept for more in (0, (1 << made.BitsStored) - 1))
    elif made.BitsStored == 8:
        low, high = 0, 255
    levels = (shown - low) / (high - low) * 255
    levels = 255 - levels if made.PhotometricInterpretation == "MONOCHROME1" else levels
    decoded = decode(file.getvalue(), name)
    keep = made.pixel_array != made.get("PixelPaddingValue", -99999)
    assert np.abs(decoded - levels)[keep].max() <= 0.51 and len(np.unique(decoded)) >= 7


def test_every_file_of_pydicom_is_read_or_refused():
    """No other kind of error for any of them, and the header's size is that of the pixels."""
    files = [path for path in FILES.rglob("*") if path.is_file() and path.suffix not in (".json", ".txt")]
    read = []
    for path in files:
        try:
            assert image_size(path) == read_image(path).shape[::-1]
            read.append(path.name)
        except ImageError as error:
            assert str(path) in str(error)
    assert len(files) > 100 and "image_dfl.dcm" in read


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("dicomdirtests/DICOMDIR", "index of DICOM files"),
        ("dicomdirtests/77654033/CR1/6154", "CSPINE, by its tag BodyPartExamined"),
        ("CT_small.dcm", "a CT image"),
        ("SC_rgb_rle.dcm", "a colour DICOM image (RGB, 3 values per pixel)"),
        ("examples_palette.dcm", "an ultrasound image"),
        ("SC_rgb_rle_2frame.dcm", "2 frames"),
        ("reportsi.dcm", "without an image"),
        ("JPEG-lossy.dcm", "a nuclear medicine image"),
        ("no_meta.dcm", "named as a DICOM file"),
        ("meta_missing_tsyntax.dcm", "does not name the transfer syntax"),
    ],
)
def test_files_that_are_no_radiograph_are_named(name, named):
    """With the remedy."""
    with pytest.raises(ImageError) as caught:
        read_image(FILES / name)
    assert named in str(caught.value)


# ---- refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tags", "named"),
    [
        ({"NumberOfFrames": 12}, "12 frames"),
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, "colour DICOM image"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "colour DICOM image (PALETTE COLOR"),
        ({"BodyPartExamined": "CHEST"}, "CHEST, by its tag BodyPartExamined"),
        ({"BodyPartExamined": None, "StudyDescription": "XR left knee, 2 views"}, "KNEE, by its tag StudyDescription"),
        ({"BodyPartExamined": "ABDOMEN", "StudyDescription": "with and without contrast"}, "ABDOMEN"),
        ({"Modality": "MG"}, "a mammogram"),
        ({"BitsAllocated": 32, "BitsStored": 32, "HighBit": 31}, "32 bits in 32"),
        ({"HighBit": 6}, "end at bit 6"),
        ({"Rows": 0}, "without an image"),
        ({"Columns": 65535, "Rows": 65535}, f"the limit is {PIXELS_AT_MOST:,}"),
        ({"Columns": 44}, "its pixels have"),
        ({"PixelData": None}, "without its pixels"),
    ],
)
def test_refused_by_name(tmp_path, tags, named):
    """What is not one grey radiograph of a hand, from its header; of size too."""
    content = dicom(radiograph(8), **tags)
    assert named in refusal(content)
    if not tags.keys() & {"PixelData", "Columns"} or "Rows" in tags:  # by the header alone
        (tmp_path / "a.dcm").write_bytes(content)
        with pytest.raises(ImageError):
            image_size(tmp_path / "a.dcm")


@pytest.mark.parametrize(
    "tags",
    [
        {"BodyPartExamined": "CHEST", "StudyDescription": "Bone age"},
        {"BodyPartExamined": None},
        {"BodyPartExamined": "EXTREMITY"},
        {"BodyPartExamined": "WRIST", "StudyDescription": "HEAD AND NECK"},
        {"BodyPartExamined": "", "StudyDescription": "XR Handgelenk links"},
    ],
)
def test_a_hand_that_is_tagged_carelessly_is_read(tags):
    """Refused is only what is clearly something else."""
    assert decode(dicom(radiograph(8), **tags), "a").shape == (61, 43)


def test_without_pydicom_the_error_has_the_command(monkeypatch):
    """And so without a decoder."""
    content = dicom(radiograph(8), 8, JPEG_2000)
    from pydicom.pixels.decoders import JPEG2000LosslessDecoder

    with monkeypatch.context() as patched:
        patched.setattr(JPEG2000LosslessDecoder, "_available", {})
        assert "pip install 'bonecaffe[dicom]'" in refusal(content) and "JPEG 2000" in refusal(content)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(ImageError, match=r"needs pydicom.*pip install 'bonecaffe\[dicom\]'"):
        decode(content, "a.dcm")


def test_a_stream_that_declares_another_size_is_refused():
    """Before a decoder allocates what the stream declares."""
    image = radiograph(8)
    huge = {JPEG_2000: (b"\xff\x51", 6), LOSSLESS: (b"\xff\xc3", 5), JPEG: (b"\xff\xc0", 5)}  # where the size is
    for syntax, (marker, offset) in huge.items():
        content = bytearray(dicom(image, 8, syntax))
        at = content.index(marker) + offset
        content[at : at + 4] = struct.pack(">HH", 60000, 60000)  # in JPEG 2000: the width
        assert "its header declares 43 x 61" in refusal(bytes(content)), syntax
    wrong = dataset(image)
    wrong.PixelData = encapsulate([b"\0" * 64])
    wrong["PixelData"].is_undefined_length = True
    wrong.file_meta.TransferSyntaxUID = JPEG_2000
    assert "not JPEG 2000" in refusal(written(wrong))


def test_the_file_header_is_read_in_one_way(monkeypatch):
    """pydicom gets the syntax that was found here: it would inflate a file without a limit."""
    content = dicom(radiograph(8), 8, DEFLATED)
    monkeypatch.setattr(headers, "_INFLATED_AT_MOST", 1000)
    at = content.index(b"\x02\x00\x10\x00UI")
    hidden = content[:at] + b"\x02\x00\x10\x00UI\x14\x001.2.840.10008.1.2.1\0" + content[at:]
    for changed in (hidden, hidden.replace(b"\x02\x00\x10\x00UI\x16", b"\x02\x00\x10\x00UN\x16")):
        refusal(changed)


@pytest.mark.parametrize("syntax", [JPEG, LOSSLESS_1, JPEG_2000])
def test_a_stream_without_its_end_is_refused(syntax):
    """Decoders would fill the rest with grey. The DICOM file around it is whole."""
    made = pydicom.dcmread(io.BytesIO(dicom(radiograph(8), 8, syntax)))
    frame = next(generate_frames(made.PixelData, number_of_frames=1)).rstrip(b"\0")
    for rest in (frame[:-2], frame[: len(frame) * 3 // 4]):
        made.PixelData = encapsulate([rest])
        assert "has no end mark" in refusal(written(made))


def test_a_frame_in_several_fragments():
    """They are one stream."""
    made = pydicom.dcmread(io.BytesIO(dicom(image := radiograph(12), 12, JPEG_2000)))
    frame = next(generate_frames(made.PixelData, number_of_frames=1))
    made.PixelData = encapsulate([frame], fragments_per_frame=3)
    assert np.array_equal(decode(written(made), "a"), as_png(image, 16))


def test_a_deflated_file_that_unpacks_to_gigabytes_is_refused(monkeypatch):
    """It is unpacked up to the limit only."""
    content = dicom(radiograph(8), 8, DEFLATED)
    monkeypatch.setattr(headers, "_INFLATED_AT_MOST", 1000)
    assert "unpacks to more than 1,000 bytes" in refusal(content)


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT, BIG, DEFLATED, RLE, LOSSLESS_1, JPEG, JPEG_2000])
def test_truncated_files_are_refused(syntax):
    """Wherever they end."""
    content = dicom(radiograph(8), 8, syntax)
    for end in range(140, len(content) - 12, 131):
        refusal(content[:end])
    assert "cut off" in refusal(content[: len(content) // 2 + 400]) or syntax == DEFLATED


@pytest.mark.parametrize("syntax", [IMPLICIT, EXPLICIT, BIG, DEFLATED, RLE, LOSSLESS_1, JPEG, JPEG_2000])
def test_damaged_files_are_read_or_refused(syntax):
    """Flipped, deleted and repeated bytes: an image, or ImageError in one sentence."""
    image = radiograph(12) if syntax != JPEG else radiograph(8)
    bits = 8 if syntax == JPEG else 12
    content = dicom(image, bits, syntax, WindowCenter="700", WindowWidth="900", PatientName="Telltale^Name")
    random = np.random.default_rng(7)
    for _ in range(MUTATIONS):
        broken = bytearray(content)
        for _ in range(random.integers(1, 4)):
            at, kind = int(random.integers(132, len(broken))), random.integers(3)
            if kind == 0:
                broken[at] = random.integers(256)
            elif kind == 1:
                del broken[at : at + int(random.integers(1, 9))]
            else:
                broken[at:at] = broken[at : at + int(random.integers(1, 33))]
        try:
            decode(bytes(broken), "a.dcm")
        except ImageError as error:
            assert "\n" not in str(error) and "Telltale" not in str(error)


# ---- folders and ids -------------------------------------------------------------------------------------------


def test_files_are_found_by_suffix_and_by_their_mark(tmp_path):
    """Without a suffix, and named by a UID; an index of files is no image, and neither are other files."""
    content = dicom(radiograph(8))
    for name in ("a.dcm", "b.DICOM", "sub/IM0001", "1.2.840.113.7", "DICOMDIR"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    (tmp_path / "notes").write_text("no image")
    (tmp_path / "1.5").write_bytes(bytes(200))
    found = find_images(tmp_path)
    assert set(found) == {"a", "b", "IM0001", "1.2.840.113.7"}
    assert all(image_size(path) == (43, 61) for path in found.values())


def test_the_uid_is_the_id_on_request(tmp_path):
    """Of DICOM files only. Two files of one UID, and one without, are named."""
    (tmp_path / "doe_jane.dcm").write_bytes(dicom(radiograph(8), SOPInstanceUID="1.2.3", PatientID="77"))
    (tmp_path / "7.png").write_bytes(cv2.imencode(".png", radiograph(8).astype(np.uint8))[1].tobytes())
    assert set(find_images(tmp_path)) == {"doe_jane", "7"}
    with dicom_ids("uid"):
        assert set(find_images(tmp_path)) == {"1.2.3", "7"}
        assert id_of(tmp_path / "doe_jane.dcm") == "1.2.3" and id_of(tmp_path / "missing.dcm") == "missing"
        (tmp_path / "again.dcm").write_bytes(dicom(radiograph(8), SOPInstanceUID="1.2.3"))
        (tmp_path / "none.dcm").write_bytes(dicom(radiograph(8), SOPInstanceUID=""))
        with pytest.raises(ImageError, match=r"two images have the id 1\.2\.3.*") as caught:
            find_images(tmp_path)
        assert "none.dcm has no id" in str(caught.value)
        refused: dict[Path, str] = {}
        assert set(find_images(tmp_path, refused)) == {"7"} and len(refused) == 3
    assert set(find_images(tmp_path)) == {"doe_jane", "7", "again", "none"}


def test_only_the_needed_tags_are_read():
    """The patient's name, id, sex and age are not parsed: a value that cannot be decoded changes nothing."""
    content = dicom(radiograph(8), PatientName="Telltale", PatientAge="007Y", PatientSex="F")
    found = headers.dataset(headers.of_bytes(content, "a"))
    assert not {"PatientName", "PatientID", "PatientAge", "PatientSex", "PatientBirthDate"} & set(found.dir())
    assert decode(content.replace(b"Telltale", b"\xff\xfe\xfd\xfc\xff\xfe\xfd\xfc"), "a").shape == (61, 43)
