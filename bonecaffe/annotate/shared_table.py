"""A table that other programs may write at the same time: read when it changes, written row by row, no row lost."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from bonecaffe.errors import BonecaffeError, Problems
from bonecaffe.files import Table, followed, read_bytes, table_text, write_if_unchanged

_PATIENCE_S = 5.0

Row = dict[str, str]


def signature(path: Path) -> tuple[int, ...]:
    """Time, size and inode of a file, which change when the file does; empty if there is no file."""
    try:
        stat = os.stat(path)
    except FileNotFoundError:
        return ()
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


class SharedTable:
    """The rows of a CSV file by id. Rows and columns that other programs added are kept, and so is the order.

    ``path`` may be a link: the file that it leads to is read and replaced, and the link stays. ``read`` reads the
    file. ``check`` raises ValueError for an invalid row. Errors are raised as the class ``error``.
    """

    def __init__(
        self,
        path: Path,
        columns: tuple[str, ...],
        read: Callable[[Path], Table],
        check: Callable[[Row], object],
        error: type[BonecaffeError],
    ) -> None:
        self.path = path
        self.target = followed(path)
        if path.is_symlink() and not self.target.exists():
            raise error(f"{path}: a link to {self.target}, which does not exist. Make that file, or remove the link.")
        self._own_columns = self.columns = columns
        self._read, self._check, self._error = read, check, error
        self.rows: dict[str, Row] = {}
        self._content: bytes | None = None
        self._signature: tuple[int, ...] | None = None

    def refresh(self, accept: Callable[[Mapping[str, Row]], None] = lambda rows: None) -> None:
        """Read the file again if another program has changed it. ``accept`` may raise for rows that cannot be used.

        Raises the table's error for a file that cannot be read now; the rows read before are kept.
        """
        if followed(self.path) != self.target:
            raise self._error(f"{self.path}: leads to another file than before. Start bonecaffe annotate again.")
        now = signature(self.target)
        if now == self._signature:
            return
        until = time.monotonic() + _PATIENCE_S
        while True:
            content = self._bytes()
            columns, rows = self._parse() if content else (self._own_columns, {})
            if self._bytes() == content:
                break
            if time.monotonic() > until:
                raise self._error(f"{self.path}: another program keeps writing to it. Stop that program.")
            time.sleep(0.001)
        accept(rows)
        self.columns, self.rows, self._content, self._signature = columns, rows, content, now

    def _bytes(self) -> bytes | None:
        try:
            return read_bytes(self.path, "table", self._error)
        except FileNotFoundError:
            return None

    def _parse(self) -> tuple[tuple[str, ...], dict[str, Row]]:
        table = self._read(self.path)
        rows: dict[str, Row] = {}
        problems = Problems()
        for number, row in table.rows():
            where = f"row {number} (id {row.get('id') or 'missing'})"
            if not row.get("id") or row["id"] in rows:
                problems.add(f"{where}: {'an earlier row has the same id' if row.get('id') else 'no id'}")
                continue
            rows[row["id"]] = row
            try:
                self._check(row)
            except ValueError as error:
                problems.add(f"{where}: {error}")
        problems.raise_if_any(self._error, str(self.path), "Fix these rows.")
        return (*table.columns, *(column for column in self._own_columns if column not in table.columns)), rows

    def put(self, case_id: str, row: Row) -> bool:
        """Write one row to disk. If another program has changed the file meanwhile, write nothing and return False."""
        rows = {**self.rows, case_id: row}
        text = table_text(self.columns, ([each.get(column, "") for column in self.columns] for each in rows.values()))
        if not write_if_unchanged(self.target, text, self._content):
            self._signature = None  # it must be read again
            return False
        # only after the write has succeeded
        self.rows, self._content, self._signature = rows, text.encode(), signature(self.target)
        if (
            self._bytes() != self._content
        ):  # another program has written since, and the signature may be that of its file
            self._signature = None
        return True
