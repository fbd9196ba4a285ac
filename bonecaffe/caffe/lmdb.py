"""LMDBs of Datum records, as Caffe's Data layer reads them: read back, and written where convert_imageset cannot."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bonecaffe.caffe.programs import caffe_pb2
from bonecaffe.errors import CaffeError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_RECORDS_PER_MAPPING = 512  # the map is closed and opened again, so that its pages don't pile up in memory
_PAGES = 1 << 20  # bytes of a database in addition to its records


def records(lmdb: Path) -> Generator[tuple[str, int, NDArray[np.uint8]]]:
    """Each record of an image LMDB: its key, its label, its pixels (channel, row, column), uint8, BGR.

    Memory does not grow with their number. Raises CaffeError for an LMDB or a record that is not readable.
    """
    import lmdb as package
    import numpy

    Datum = caffe_pb2().Datum
    after: bytes | None = None
    while True:
        try:
            environment = package.open(str(lmdb), readonly=True, lock=False, create=False)
            with environment, environment.begin() as reader:
                cursor = reader.cursor()
                for _ in range(_RECORDS_PER_MAPPING):
                    if not _advance(cursor, after):
                        return
                    after = cursor.key()
                    key = after.decode(errors="replace")
                    datum = Datum.FromString(cursor.value())
                    shape = datum.channels, datum.height, datum.width
                    pixels = numpy.frombuffer(datum.data, numpy.uint8)
                    if datum.encoded or pixels.size != shape[0] * shape[1] * shape[2]:
                        size = " x ".join(map(str, shape))
                        raise CaffeError(f"{lmdb}: record {key} is not {size} bytes.")
                    yield key, datum.label, pixels.reshape(shape)
        except package.Error as error:
            raise CaffeError(f"{lmdb}: not readable as an LMDB: {error}. Remove it and run prepare again.") from error


def _advance(cursor: object, after: bytes | None) -> bool:
    """Move to the record that follows the key ``after``, or to the first one."""
    if after is None:
        return bool(cursor.first())  # type: ignore[attr-defined]  # lmdb has no types
    if cursor.key() == after:  # type: ignore[attr-defined]
        return bool(cursor.next())  # type: ignore[attr-defined]
    return bool(cursor.set_range(after) and (cursor.key() != after or cursor.next()))  # type: ignore[attr-defined]


def shape_and_count(lmdb: Path) -> tuple[tuple[int, int, int], int]:
    """Channels, height and width of the first record, and how many records there are.

    Raises CaffeError when there is no LMDB, an empty or an unreadable one.
    """
    import lmdb as package

    name = lmdb.name
    if not (lmdb / "data.mdb").is_file():
        raise CaffeError(f"{name}: no LMDB in this folder. Make it with: bonecaffe prepare {lmdb.parent} …")
    try:
        with package.open(str(lmdb), readonly=True, lock=False, create=False) as environment:
            count = int(environment.stat()["entries"])
            if not count:
                raise CaffeError(f"{name}: the LMDB is empty; Caffe would crash on its first read. Run prepare again.")
            with environment.begin() as reader:
                value = next(iter(reader.cursor()))[1]
    except package.Error as error:
        raise CaffeError(f"{name}: not readable as an LMDB ({error}). Remove it and run prepare again.") from error
    try:
        datum = caffe_pb2().Datum.FromString(value)
    except Exception as error:  # protobuf's DecodeError has no public base of its own
        raise CaffeError(f"{name}: its first record is damaged ({error}). Run prepare again.") from error
    return (datum.channels, datum.height, datum.width), count


def write_labels(lmdb: Path, labels: Sequence[tuple[str, float]]) -> None:
    """Write an LMDB of 1 x 1 x 1 float records from keys and numbers.

    convert_imageset cannot do this: ``Datum.label`` is a whole number. The database is read back and compared.
    """
    import numpy

    Datum = caffe_pb2().Datum
    with Writer(lmdb, max(len(labels) * 1024, _PAGES) + _PAGES, sync=True) as writer:
        writer.put(
            (key, Datum(channels=1, height=1, width=1, float_data=[value]).SerializeToString()) for key, value in labels
        )
    if read_labels(lmdb) != [float(numpy.float32(value)) for _, value in labels]:
        raise CaffeError(f"{lmdb.name}: the ages read back differ from those written. Run prepare again.")


def read_labels(lmdb: Path) -> list[float]:
    """The numbers in a database of exact labels, in order."""
    import lmdb as package

    Datum = caffe_pb2().Datum
    environment = package.open(str(lmdb), readonly=True, lock=False, create=False)
    with environment, environment.begin() as reader:
        return [Datum.FromString(value).float_data[0] for _, value in reader.cursor()]


class Writer:
    """An LMDB that is being written; use it in a ``with`` block. ``size`` is the most it can hold, in bytes."""

    def __init__(self, lmdb: Path, size: int, sync: bool) -> None:
        import lmdb as package

        self._environment = package.open(str(lmdb), map_size=size, sync=sync)

    def put(self, pairs: Iterable[tuple[str, bytes]]) -> None:
        """Write keys and values in one transaction."""
        with self._environment.begin(write=True) as transaction:
            for key, value in pairs:
                transaction.put(key.encode(), value)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *exception: object) -> None:
        self._environment.sync(True)
        self._environment.close()
