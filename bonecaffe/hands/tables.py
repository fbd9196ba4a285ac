"""CSV tables as people have them: read as text, so that an id keeps its leading zeros and an error its row."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bonecaffe.errors import BonecaffeError


@dataclass(frozen=True)
class Table:
    """The cells of a CSV file, stripped of surrounding blanks."""

    columns: tuple[str, ...]
    cells: list[tuple[str, ...]]

    def rows(self) -> Iterator[tuple[int, dict[str, str]]]:
        """Each row with its number in the file: the header is row 1. Wholly empty rows are passed over."""
        for number, cells in enumerate(self.cells, start=2):
            if any(cells):
                yield number, dict(zip(self.columns, cells, strict=True))


def table_text(columns: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A table as the text of a CSV file, header first."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return out.getvalue()


def read_table(path: str | Path, error: type[BonecaffeError]) -> Table:
    """Read a CSV file with a header, every cell as text; raise ``error`` naming the file when it is not one."""
    import pandas

    try:
        frame = pandas.read_csv(
            path,
            header=None,
            dtype=str,
            keep_default_na=False,
            skip_blank_lines=False,
            encoding="utf-8-sig",
            compression=None,
        )
    except FileNotFoundError:
        raise error(f"{path}: no such file.") from None
    except pandas.errors.EmptyDataError:
        raise error(f"{path}: the file is empty.") from None
    except (pandas.errors.ParserError, UnicodeError, ValueError, OSError) as cause:
        raise error(f"{path}: not readable as CSV: {str(cause).strip()}.") from cause
    rows = [
        tuple("" if isinstance(cell, float) else cell.strip() for cell in row) for row in frame.itertuples(index=False)
    ]
    columns = rows[0]
    if len(set(columns)) < len(columns):
        raise error(f"{path}: a column name stands twice in the header: {', '.join(columns)}.")
    return Table(columns, rows[1:])
