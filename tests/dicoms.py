"""DICOM files for the tests, made here from pixels. Needs pydicom."""

from __future__ import annotations

import io
import struct

import numpy as np
import pydicom
import simplejpeg
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import DigitalXRayImageStorageForPresentation, generate_uid

IMPLICIT, EXPLICIT, BIG, DEFLATED = (f"1.2.840.10008.1.2{end}" for end in ("", ".1", ".2", ".1.99"))
RLE, JPEG, JPEG_12 = (f"1.2.840.10008.1.2{end}" for end in (".5", ".4.50", ".4.51"))
LOSSLESS, LOSSLESS_1 = "1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70"
JPEG_LS, JPEG_2000 = "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.90"


def dataset(stored, bits=8, signed=False, **tags) -> FileDataset:
    """A radiograph of these stored values, (height, width), with further tags; a value None removes a tag."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[str(np.asarray(stored).tobytes())])
    meta.TransferSyntaxUID = EXPLICIT
    made = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    made.SOPClassUID, made.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    made.Modality, made.BodyPartExamined = "DX", "HAND"
    made.Rows, made.Columns = np.asarray(stored).shape
    made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
    made.BitsAllocated, made.BitsStored, made.HighBit = (8 if bits <= 8 else 16), bits, bits - 1
    made.PixelRepresentation = int(signed)
    made.PixelData = padded(np.asarray(stored).astype({False: "<u", True: "<i"}[signed] + str(made.BitsAllocated // 8)))
    made["PixelData"].VR = "OB" if bits <= 8 else "OW"
    for keyword, value in tags.items():
        if value is None:
            del made[keyword]
        else:
            setattr(made, keyword, value)
    return made


def padded(stored) -> bytes:
    """Pixels, filled up to an even number of bytes."""
    content = stored.tobytes()
    return content + bytes(len(content) % 2)


def written(made: FileDataset) -> bytes:
    """The file's bytes."""
    file = io.BytesIO()
    pydicom.dcmwrite(file, made, enforce_file_format=True)
    return file.getvalue()


def dicom(stored, bits=8, syntax=EXPLICIT, signed=False, **tags) -> bytes:
    """A file of these stored values in a transfer syntax."""
    made = dataset(stored, bits, signed, **tags)
    stored = np.asarray(stored)
    if syntax in (RLE, JPEG_LS, JPEG_2000):
        made.compress(syntax, generate_instance_uid=False)
    elif syntax in (LOSSLESS, LOSSLESS_1):
        made.PixelData = encapsulate([lossless_jpeg(stored & ((1 << bits) - 1), bits)])
    elif syntax == JPEG:
        grey = np.ascontiguousarray(stored.astype(np.uint8)[..., None])
        made.PixelData = encapsulate([simplejpeg.encode_jpeg(grey, 95, "GRAY", "gray")])
    elif syntax == BIG and bits > 8:
        made.PixelData = np.frombuffer(made.PixelData, "<u2").astype(">u2").tobytes()
    made.file_meta.TransferSyntaxUID = syntax
    if syntax not in (IMPLICIT, EXPLICIT, BIG, DEFLATED):
        made["PixelData"].VR, made["PixelData"].is_undefined_length = "OB", True
    return written(made)


def lossless_jpeg(image, bits: int) -> bytes:
    """A lossless JPEG file (ITU-T T.81 annex H), predicted from the left, with a Huffman code of 5 bits for all sizes.

    None of the packages that the tests install writes this format.
    """
    image = image.astype(np.int64)
    predicted = np.empty_like(image)
    predicted[:, 1:], predicted[1:, 0], predicted[0, 0] = image[:, :-1], image[:-1, 0], 1 << (bits - 1)
    text = []
    for difference in (image - predicted).ravel():
        difference = (int(difference) + 32768) % 65536 - 32768  # modulo 2^16
        if difference == -32768:
            difference = 32768
        size = abs(difference).bit_length()
        text.append(f"{size:05b}")
        if 0 < size < 16:
            text.append(f"{difference if difference > 0 else difference + (1 << size) - 1:0{size}b}")
    joined = "".join(text)
    joined += "1" * (-len(joined) % 8)
    scan = int(joined, 2).to_bytes(len(joined) // 8).replace(b"\xff", b"\xff\0")
    height, width = image.shape
    frame = struct.pack(">HBHHBBBB", 11, bits, height, width, 1, 1, 0x11, 0)
    table = struct.pack(">HB16B17B", 36, 0, *[0, 0, 0, 0, 17, *[0] * 11], *range(17))
    start = struct.pack(">HBBBBBB", 8, 1, 1, 0, 1, 0, 0)
    return b"\xff\xd8\xff\xc3" + frame + b"\xff\xc4" + table + b"\xff\xda" + start + scan + b"\xff\xd9"
