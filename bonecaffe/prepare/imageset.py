"""List file -> convert_imageset -> audited LMDB (paper II.1).

convert_imageset reads a label with ``atoi`` (126.9 becomes 126), logs and skips an image that it cannot read, and
exits 0 all the same. So nothing it writes is believed: the LMDB is read back, record by record.
"""

from __future__ import annotations

import contextlib
import math
import shutil
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from bonecaffe.caffe import programs
from bonecaffe.errors import CaffeError, PrepareError
from bonecaffe.hands.cases import Case
from bonecaffe.recipe import Preparation

_RECORDS_PER_MAPPING = 512  # the map is closed and opened again, so that its pages don't pile up in memory


def list_text(cases: Sequence[Case], labels: str = "whole_months") -> str:
    """The list that convert_imageset reads: ``relative/path label`` a line, in the order of training.

    Raises PrepareError for a fractional age when ``labels`` is whole_months, because atoi would cut it in silence.
    """
    if labels == "whole_months":
        check_whole_months(cases)
    return "".join(f"{case.id}.png {label(case)}\n" for case in cases)


def label(case: Case) -> int:
    """The age as convert_imageset can pack it: whole months, halves up."""
    return math.floor(case.boneage_months + 0.5)


def check_whole_months(cases: Sequence[Case]) -> None:
    """Refuse fractional ages, with their number, the first three and the two remedies."""
    fractional = [case for case in cases if case.boneage_months != int(case.boneage_months)]
    if fractional:
        shown = ", ".join(f"{case.id} ({case.boneage_months:g})" for case in fractional[:3])
        raise PrepareError(
            f"labels: {len(fractional)} of {len(cases)} ages are not whole months: {shown}"
            f"{', …' if len(fractional) > 3 else ''}. convert_imageset would cut the fraction off in silence. "
            "Say --labels round to train on rounded ages, or --labels exact to keep them in a database of their own; "
            "either is declared as a departure. Evaluation uses the exact ages in any case."
        )


def write_labels(lmdb: Path, cases: Sequence[Case]) -> None:
    """Write exact ages as an LMDB of 1 x 1 x 1 float records, in the order of the images and under their keys.

    convert_imageset cannot do this: ``Datum.label`` is a whole number. The database is read back and compared.
    """
    import lmdb as lmdb_package

    Datum = programs.caffe_pb2().Datum
    size = 1 << 20 if len(cases) < 1000 else len(cases) * 1024
    with (
        lmdb_package.open(str(lmdb), map_size=size + (1 << 20)) as environment,
        environment.begin(write=True) as writer,
    ):
        for number, case in enumerate(cases):
            datum = Datum(channels=1, height=1, width=1, float_data=[case.boneage_months])
            writer.put(f"{number:08d}_{case.id}.png".encode(), datum.SerializeToString())
    if read_labels(lmdb) != [float(np.float32(case.boneage_months)) for case in cases]:
        raise PrepareError(f"imageset: {lmdb.name}: the ages read back are not those written.")


def read_labels(lmdb: Path) -> list[float]:
    """The ages in a database of exact labels, in order."""
    import lmdb as lmdb_package

    Datum = programs.caffe_pb2().Datum
    environment = lmdb_package.open(str(lmdb), readonly=True, lock=False, create=False)
    with environment, environment.begin() as reader:
        return [Datum.FromString(value).float_data[0] for _, value in reader.cursor()]


def convert(
    image_folder: Path, list_file: Path, lmdb: Path, preparation: Preparation, stop: threading.Event | None = None
) -> None:
    """Run the paper's command: ``convert_imageset -resize_height H -resize_width W FOLDER/ LIST LMDB``.

    Raises CaffeError when it fails, or ``stop`` is set; the half-written LMDB is removed then.
    """
    if lmdb.exists():
        raise PrepareError(f"{lmdb}: exists already; convert_imageset would abort. Remove it and try again.")
    arguments = command(image_folder, list_file, lmdb, preparation)
    try:
        programs.call("convert_imageset", arguments, stop=stop)
    except CaffeError as error:
        shutil.rmtree(lmdb, ignore_errors=True)
        free = shutil.disk_usage(lmdb.parent).free
        full = f" The disk is full ({free / 1e6:.0f} MB free); make room and try again." if free < 50e6 else ""
        raise PrepareError(f"imageset: {lmdb.name}: {error}{full}") from error


def command(image_folder: Path, list_file: Path, lmdb: Path, preparation: Preparation) -> list[str]:
    """The arguments of the paper's command. The folder ends in a slash, because Caffe joins without one."""
    size = [f"-resize_height={preparation.height}", f"-resize_width={preparation.width}"]
    return [*size, f"{image_folder}/", str(list_file), str(lmdb)]


def records(lmdb: Path) -> Iterator[tuple[str, int, np.ndarray]]:
    """Each record of an image LMDB: its key, its label, its pixels (channel, row, column), uint8, BGR.

    Memory stays flat however many there are. Raises PrepareError for an LMDB or a record that is not readable.
    """
    import lmdb as lmdb_package

    Datum = programs.caffe_pb2().Datum
    after: bytes | None = None
    while True:
        try:
            with (
                lmdb_package.open(str(lmdb), readonly=True, lock=False, create=False) as environment,
                environment.begin() as reader,
            ):
                cursor = reader.cursor()
                more = (
                    cursor.first()
                    if after is None
                    else (cursor.set_range(after) and (cursor.key() != after or cursor.next()))
                )
                for _ in range(_RECORDS_PER_MAPPING):
                    if not more:
                        return
                    after = cursor.key()
                    datum = Datum.FromString(cursor.value())
                    pixels = np.frombuffer(datum.data, np.uint8)
                    if datum.encoded or pixels.size != datum.channels * datum.height * datum.width:
                        raise PrepareError(
                            f"imageset: {lmdb}: record {after.decode(errors='replace')} is not {datum.channels} x {datum.height} x {datum.width} bytes."
                        )
                    yield (
                        after.decode(errors="replace"),
                        datum.label,
                        pixels.reshape(datum.channels, datum.height, datum.width),
                    )
                    more = cursor.next()
        except lmdb_package.Error as error:
            raise PrepareError(
                f"imageset: {lmdb}: not readable as an LMDB: {error}. Remove it and run prepare again."
            ) from error


def audit(
    lmdb: Path,
    cases: Sequence[Case],
    images: dict[str, str],
    preparation: Preparation,
    stop: threading.Event | None = None,
) -> int:
    """Read an LMDB back and compare it with what was listed; return the number of records.

    Every case must be there under its key, in order, with its label, as 3 equal channels of height x width whose
    pixels have the SHA-256 in ``images``. Raises PrepareError naming the first difference, or when ``stop`` is set.
    """
    from bonecaffe.files import sha256

    expected_shape = (3, preparation.height, preparation.width)
    count, stray = 0, None
    with contextlib.closing(records(lmdb)) as packed:
        for key, stored, pixels in packed:
            if stop is not None and stop.is_set():
                raise PrepareError(f"imageset: {lmdb.name}: stopped.")
            if count == len(cases) or key != f"{count:08d}_{cases[count].id}.png":
                stray = key
                break
            case = cases[count]
            where = f"imageset: {lmdb.name}: {case.id}"
            if stored != label(case):
                raise PrepareError(f"{where} has label {stored}, but its age is {case.boneage_months:g}.")
            if pixels.shape != expected_shape:
                raise PrepareError(f"{where} is {pixels.shape}, not {expected_shape}.")
            grey = np.array_equal(pixels[0], pixels[1]) and np.array_equal(pixels[0], pixels[2])
            if not grey or sha256(pixels[0].tobytes()) != images[case.id]:
                raise PrepareError(f"{where}: its pixels are not those that were prepared.")
            count += 1
    if stray is not None or count != len(cases):
        raise _short(lmdb, cases, stray)
    return count


def _short(lmdb: Path, cases: Sequence[Case], stray: str | None) -> PrepareError:
    """The error for an LMDB that does not hold the listed cases in order."""
    keys = [key for key, _, _ in records(lmdb)]
    packed = {key.split("_", 1)[1] for key in keys if "_" in key}
    lost = [case.id for case in cases if f"{case.id}.png" not in packed]
    said = f"imageset: {lmdb.name} holds {len(keys)} records for {len(cases)} listed cases"
    if lost:
        return PrepareError(
            f"{said}; first missing: {lost[0]}. convert_imageset skips unreadable files: "
            f"repair or unlist images/{lost[0]}.png."
        )
    return PrepareError(f"{said}, and {stray or 'its end'} stands where another was listed.")
