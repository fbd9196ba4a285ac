"""Files: read safely, written whole or not at all, locked, hashed. The only place that opens a file for writing.

A run folder or a data folder may come from a stranger. So a file is opened only when it is a regular file, nothing is
written through a link, and a run folder holds no links at all (`check_tree`).
"""

from __future__ import annotations

import contextlib
import csv
import errno
import fcntl
import hashlib
import io
import math
import os
import re
import shutil
import stat
import struct
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import BinaryIO

from bonecaffe.errors import BonecaffeError, FilesError

MEGABYTE = 1 << 20
LARGEST = {
    "settings": 4 * MEGABYTE,  # recipes, prototxts, plans
    "table": 256 * MEGABYTE,
    "record": 512 * MEGABYTE,  # manifests, other tools' annotations
    "image": 512 * MEGABYTE,
}
"""The largest file of each kind that is read into memory, in bytes."""
TEMPORARY = ".part"
"""Suffix of a file that is being written; `sweep` removes those that a killed process left."""


# ---- reading -----------------------------------------------------------------------------------------------------


def open_regular(path: str | os.PathLike[str], error: type[BonecaffeError] = FilesError) -> io.BufferedReader:
    """Open a regular file for reading.

    Raises ``error`` for a folder, a named pipe or a device, and OSError where it cannot be opened.
    Reading a named pipe would block forever, and a device never ends.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        _refuse_special(path, os.fstat(handle).st_mode, error)
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def _refuse_special(path: str | os.PathLike[str], mode: int, error: type[BonecaffeError]) -> None:
    if stat.S_ISREG(mode):
        return
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFLNK: "a link", stat.S_IFSOCK: "a socket"}
    raise error(f"{os.fspath(path)}: {kinds.get(stat.S_IFMT(mode), 'a device')}, not a file.")


def open_inside(path: Path, folder: Path, error: type[BonecaffeError] = FilesError) -> io.BufferedReader:
    """Open a regular file for reading that is really inside ``folder``, an absolute path without links.

    The check is on the open file, not on its path: a file that is swapped for a link to elsewhere is refused, whenever
    that happens. Raises ``error`` for it, and what `open_regular` raises.
    """
    file = open_regular(path, error)
    real = Path(os.readlink(f"/proc/self/fd/{file.fileno()}"))
    if real.is_relative_to(folder):
        return file
    file.close()
    raise error(f"{path}: a link that leads out of {folder}, which is not followed. Replace it by a copy of the file.")


def followed(path: Path) -> Path:
    """The real path of a file that may be a link: the link's target is what must be locked and replaced."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def read_bytes(
    path: str | os.PathLike[str], kind: str, error: type[BonecaffeError] = FilesError, inside: Path | None = None
) -> bytes:
    """The content of a regular file; ``error`` when it is not one, or is larger than `LARGEST` allows for its ``kind``.

    With ``inside``, the file must be inside that folder (`open_inside`). Raises OSError where it cannot be opened or
    read.
    """
    with open_inside(Path(path), inside, error) if inside else open_regular(path, error) as file:
        size = os.fstat(file.fileno()).st_size
        if size > LARGEST[kind]:
            raise error(
                f"{os.fspath(path)}: {size / 1e6:.0f} MB; a {kind} file of more than {LARGEST[kind] / 1e6:.0f} MB "
                "is not read. Is it the right file?"
            )
        return file.read()


def read_text(path: str | os.PathLike[str], kind: str, error: type[BonecaffeError] = FilesError) -> str:
    """The text of a regular file in UTF-8; ``error`` when it is not one, OSError where it cannot be read."""
    content = read_bytes(path, kind, error)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as cause:
        raise error(f"{os.fspath(path)}: not text in UTF-8 ({cause.reason} at byte {cause.start}).") from cause


def sha256(content: bytes | memoryview | str) -> str:
    """The SHA-256 of bytes or of a text's UTF-8, as 64 hexadecimal digits."""
    return hashlib.sha256(content.encode("utf-8") if isinstance(content, str) else content).hexdigest()


def sha256_file(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a regular file, read in pieces."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---- writing -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], parents: bool = False) -> Iterator[Path]:
    """Yield a temporary path next to ``path``; move it into place if the block succeeds, remove it otherwise.

    A link at ``path`` is replaced, never followed. The folder must exist; with ``parents`` it is created. That is for
    paths that a user names, not for a run: a run that was moved meanwhile must not reappear as an empty folder.
    """
    path = Path(path)
    if parents:
        path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=TEMPORARY)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: str | os.PathLike[str], content: str, parents: bool = False) -> None:
    """Write a text file whole or not at all; see `replacing`."""
    write_bytes(path, content.encode("utf-8"), parents)


@contextlib.contextmanager
def writing(path: str | os.PathLike[str], parents: bool = False) -> Iterator[BinaryIO]:
    """Yield an open file whose content replaces ``path``, whole, if the block succeeds; see `replacing`.

    For content that is written piece by piece. It does not wait for the disk.
    """
    with replacing(path, parents) as temporary, open(temporary, "wb") as file:
        yield file


def write_bytes(path: str | os.PathLike[str], content: bytes, parents: bool = False) -> None:
    """Write a file whole or not at all: next to its target, synced, then moved into place; see `replacing`."""
    with replacing(path, parents) as temporary:
        fill(temporary, [content])


def write_if_unchanged(path: Path, content: str, expected: bytes | None) -> bool:
    """Write a text file whole if it still holds ``expected`` (None: if no file exists); return whether that was done.

    For a table that other programs write too, without our lock. The new file and the old one are exchanged in one step;
    then the old one, which no program can open any more, is compared with ``expected``, and exchanged back if it is
    newer. So nothing that another program writes is lost, whether it replaces the file or writes into it. A link at
    ``path`` would be replaced: pass `followed`. Where the file system cannot exchange files, the comparison comes just
    before the replacement.
    """
    if _content(path) != expected:
        return False
    mode = 0o666 & ~_umask() if expected is None else stat.S_IMODE(os.stat(path).st_mode)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=TEMPORARY)
    os.close(handle)
    temporary = Path(name)
    try:
        fill(temporary, [content.encode("utf-8")])
        os.chmod(temporary, mode)
        return _take_place(temporary, path, expected)
    except (FileExistsError, FileNotFoundError):  # made or removed by another program meanwhile
        if not path.parent.is_dir():
            raise
        return False
    finally:
        temporary.unlink(missing_ok=True)


_NO_REPLACE, _EXCHANGE = 1, 2  # flags of renameat2
_WRITER_S = 2.0
"""How long to wait for a program that has the old file open for writing."""
_PUT_BACK = 100


def _take_place(temporary: Path, path: Path, expected: bytes | None) -> bool:
    new_content, patience = _content(temporary), time.monotonic() + _WRITER_S
    if _has_writer(temporary):  # it cannot have one: this file system grants no leases, like some network shares
        patience = 0.0
    if expected is None and _renameat2(temporary, path, _NO_REPLACE):
        return True
    while expected is not None and _renameat2(temporary, path, _EXCHANGE):
        writer, taken = _has_writer(temporary), _content(temporary)  # in this order: without a writer it is the last
        if taken == expected and (not writer or time.monotonic() > patience):
            return True
        if not _put_back(temporary, path, new_content, taken) or taken != expected:
            return False
        time.sleep(0.005)  # for the writer, which has its file in place again
        if _content(path) != expected:
            return False
    if _content(path) != expected:
        return False
    os.replace(temporary, path)
    return True


def _put_back(temporary: Path, path: Path, new_content: bytes | None, taken: bytes | None) -> bool:
    """Exchange the two files back; return whether ``temporary`` then holds ``new_content``, unchanged.

    Our file was at ``path`` for a moment, and another program may have used it. Rows that it appended are appended to
    the other file. A file that it put there instead is newer than both, and stays.
    """
    placed = new_content or b""
    for number in range(_PUT_BACK):
        _renameat2(temporary, path, _EXCHANGE)
        patience = time.monotonic() + _WRITER_S
        while _has_writer(temporary) and time.monotonic() < patience:
            time.sleep(0.002)
        back = _content(temporary) or b""
        if back == placed:
            return number == 0
        if number == 0 and back.startswith(placed):
            with open(path, "ab") as file:
                file.write(back[len(placed) :])
            return False
        placed, taken = taken or b"", back
    return False


def _content(path: Path) -> bytes | None:
    try:
        return read_bytes(path, "table")
    except FileNotFoundError:
        return None


def _renameat2(source: Path, target: Path, flags: int) -> bool:
    """Rename as Linux's renameat2; False where the kernel, the C library or the file system has no such flags."""
    import ctypes

    library = ctypes.CDLL(None, use_errno=True)
    here = -100  # AT_FDCWD
    if not hasattr(library, "renameat2"):
        return False
    if library.renameat2(here, os.fsencode(source), here, os.fsencode(target), ctypes.c_uint(flags)) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
        return False
    raise OSError(number, os.strerror(number), str(target))


def _has_writer(path: Path) -> bool:
    """Whether a program has a file open for writing: then, and only then, the kernel refuses a read lease.

    Only for a file that no other program can open any more: opening it while we hold the lease would send us a signal.
    """
    with open_regular(path) as file:
        try:
            fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_RDLCK)
            fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        except OSError as error:  # no leases here, or another owner: unknown
            return error.errno == errno.EAGAIN
    return False


def write_pieces(path: str | os.PathLike[str], pieces: Iterable[bytes], parents: bool = False) -> None:
    """Write a file too large for memory, such as a download, whole or not at all; see `replacing`.

    If ``pieces`` raises, for example for an incomplete or wrong download, the error is raised here and nothing is kept.
    """
    with replacing(path, parents) as temporary:
        fill(temporary, pieces)


def fill(temporary: Path, pieces: Iterable[bytes]) -> None:
    """Write the content of a file that `replacing` yielded, and wait for the disk."""
    with open(temporary, "wb") as file:
        for piece in pieces:
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())


def write_scratch(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file whole or not at all, without waiting for the disk: for many files that can be recreated."""
    part = f"{os.fspath(path)}{TEMPORARY}"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(part)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(part, flags, 0o666), "wb") as file:
        file.write(content)
    os.replace(part, path)


def scratch_file() -> BinaryIO:
    """An open file without a name, for what a program prints; gone when it is closed."""
    return tempfile.TemporaryFile()


def write_new(content: str, prefix: str) -> str:
    """Write a text to a new file in the system's folder for temporary files, whole or not at all; return its path."""
    handle, name = tempfile.mkstemp(prefix=prefix, suffix=".txt")
    try:
        with open(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(content)
    except BaseException:
        os.unlink(name)
        raise
    return name


def write_secret(path: str | os.PathLike[str], content: str) -> None:
    """Write a new file that only its owner can read; one that exists is replaced."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, 0o600), "w", encoding="utf-8") as file:
        file.write(content)


def open_append(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a file for reading and appending; create it when it is missing.

    Raises FilesError for a link, a special file, or a file with a second name: writing through a hard link would change
    a file elsewhere.
    """
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        handle = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK):
            raise FilesError(f"{os.fspath(path)}: a link; bonecaffe writes through no links. Remove it.") from None
        raise
    try:
        status = os.fstat(handle)
        _refuse_special(path, status.st_mode, FilesError)
        if status.st_nlink > 1:
            raise FilesError(f"{os.fspath(path)}: a file with another name elsewhere (a hard link). Remove it.")
        return os.fdopen(handle, "a+b")
    except BaseException:
        os.close(handle)
        raise


def cut_unfinished_line(path: str | os.PathLike[str]) -> None:
    """Remove an incomplete last line from a file that lines are appended to: its writer was interrupted.

    Call it only while the writer's lock is held. A missing file is fine.
    """
    try:
        with open_regular(path) as file:
            content = file.read()
    except FileNotFoundError:
        return
    if content and not content.endswith(b"\n"):
        with open_append(path) as file:
            file.truncate(content.rfind(b"\n") + 1)


def copy_file(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Copy a regular file, whole or not at all."""
    with open_regular(source) as file, writing(target) as out:
        shutil.copyfileobj(file, out)


@contextlib.contextmanager
def folder_made(path: str | os.PathLike[str]) -> Iterator[bool]:
    """Create a folder and its parents where they are missing; yield whether the folder is new.

    If the block fails, the folders that this call created are removed again, the last one with its content. Folders
    that another process created at the same time, or whose ``.lock`` it holds, stay.
    """
    path = Path(path)
    made: list[Path] = []
    for folder in (*reversed(path.parents), path):
        if not folder.exists():
            with contextlib.suppress(FileExistsError):  # another process was quicker: the folder is its own
                folder.mkdir()
                made.append(folder)
    path.mkdir(exist_ok=True)  # raises where a file has the name
    try:
        yield path in made
    except BaseException as error:
        if not isinstance(error, KeyboardInterrupt):
            if path in made and not holder(path / ".lock"):
                shutil.rmtree(path, ignore_errors=True)
            for folder in reversed(made):
                with contextlib.suppress(OSError):  # not empty: something uses it
                    folder.rmdir()
        raise


def make_folder(path: str | os.PathLike[str]) -> None:
    """Create a folder where it is missing; its parents must exist. FilesError when a file or a link has its name."""
    try:
        os.mkdir(path)
    except FileExistsError:
        mode = os.lstat(path).st_mode
        if not stat.S_ISDIR(mode):
            what = "a link" if stat.S_ISLNK(mode) else "a file"
            raise FilesError(f"{os.fspath(path)}: {what}, where a folder is needed. Remove it.") from None


def follow_umask(folder: Path) -> None:
    """Give a flat folder that another program made, and its files, the permissions that the user's umask leaves."""
    mask = _umask()
    os.chmod(folder, 0o777 & ~mask)
    for path in folder.iterdir():
        if not path.is_symlink():
            os.chmod(path, 0o666 & ~mask)


def move(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Move a file or folder on the same file system; a file at the target is replaced."""
    os.rename(source, target)


def link_file(existing: str | os.PathLike[str], new: str | os.PathLike[str]) -> bool:
    """Give a file a second name (a hard link); False where the file is gone, or the file system has no hard links."""
    try:
        os.link(existing, new, follow_symlinks=False)
        return True
    except OSError:
        return False


def remove(path: str | os.PathLike[str]) -> None:
    """Remove a file, or a folder with its content. A link is removed, never followed. A missing path is fine."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if stat.S_ISDIR(mode):
        shutil.rmtree(path)
    else:
        os.unlink(path)


# ---- folders from strangers --------------------------------------------------------------------------------------


def check_tree(root: Path, names: Iterable[str], error: type[BonecaffeError] = FilesError) -> None:
    """Refuse the first link or special file at or below ``root``/NAME for each of ``names``.

    ``root`` itself may be a link.
    """
    for name in names:
        path = os.path.join(root, name)
        try:
            mode = os.lstat(path).st_mode
        except (FileNotFoundError, NotADirectoryError):
            continue
        _check(path, mode, error)
        if stat.S_ISDIR(mode):
            _check_below(path, error)


def _check_below(folder: str, error: type[BonecaffeError]) -> None:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_file(follow_symlinks=False):
                continue
            if entry.is_dir(follow_symlinks=False):
                _check_below(entry.path, error)
            else:
                _check(entry.path, entry.stat(follow_symlinks=False).st_mode, error)


def _check(path: str, mode: int, error: type[BonecaffeError]) -> None:
    if stat.S_ISLNK(mode):
        raise error(
            f"{path}: a link, and links inside this folder are not followed. Remove it, or replace it by a copy."
        )
    if not stat.S_ISDIR(mode):
        _refuse_special(path, mode, error)


def is_inside(path: str) -> bool:
    """Whether a path, as text, is relative and does not lead out of its folder.

    >>> is_inside("snapshots/a.caffemodel"), is_inside("../a"), is_inside("/etc/passwd"), is_inside("a/../../b")
    (True, False, False, False)
    """
    parts = path.split("/")
    return (
        bool(path)
        and not path.startswith("/")
        and "\0" not in path
        and not any(part in ("", ".", "..") for part in parts)
    )


def sweep(folder: Path, name: str = "") -> None:
    """Remove the temporary files that a killed process left in a folder: all, or those of the file ``name``.

    Call it only while the writer's lock is held.
    """
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(f".{name}." if name else ".") and entry.name.endswith(TEMPORARY):
                with contextlib.suppress(OSError):
                    os.unlink(entry.path)


# ---- one at a time -----------------------------------------------------------------------------------------------

_FLOCK = "hhqqi4x"  # struct flock of Linux, 64 bits


def _lock(kind: int) -> bytes:
    return struct.pack(_FLOCK, kind, os.SEEK_SET, 0, 0, 0)


def _locked(file: int) -> bool:
    """Take the lock of an open file; False when another has it.

    The lock lasts until every copy of the open file is closed.
    """
    try:
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, _lock(fcntl.F_WRLCK))
        return True
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise


@contextlib.contextmanager
def held(lock_file: Path, doing: str, busy: Callable[[str], BonecaffeError], wait_s: float = 0.0) -> Iterator[int]:
    """Hold a lock file, with our name in it. While another process holds it, raise ``busy(name of the holder)``.

    Yields the open file: the lock lasts until every process that has the file open has ended, however it ended. The
    folder must exist. FilesError where the lock file is a link, or the file system has no locks.
    """
    patience = time.monotonic() + wait_s
    with open_append(lock_file) as file:
        try:
            while not _locked(file.fileno()):
                if time.monotonic() >= patience:
                    raise busy(_holder(file))
                time.sleep(0.2)
        except OSError as error:
            raise FilesError(
                f"{lock_file}: this file system has no locks ({error.strerror}). Use another folder."
            ) from error
        with contextlib.suppress(OSError):  # the name is only information; a full disk is no reason to fail
            file.truncate(0)
            file.write(f"bonecaffe {doing}, process {os.getpid()}".encode())
            file.flush()
        try:
            yield file.fileno()
        finally:
            with contextlib.suppress(OSError):
                file.truncate(0)


def holder(lock_file: Path) -> str:
    """Which process holds a lock file, such as ``bonecaffe train, process 77``; empty if none. Takes no lock itself."""
    try:
        with open_regular(lock_file) as file:
            answer = fcntl.fcntl(file.fileno(), fcntl.F_OFD_GETLK, _lock(fcntl.F_WRLCK))
            free = struct.unpack(_FLOCK, answer)[0] == fcntl.F_UNLCK
            return "" if free else _holder(file) or "another process"
    except (OSError, FilesError):
        return ""


def _holder(file: BinaryIO) -> str:
    file.seek(0)
    return file.read(200).decode("utf-8", "replace").strip()


# ---- CSV tables as people have them ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Table:
    """The cells of a CSV file, stripped of surrounding blanks."""

    columns: tuple[str, ...]
    cells: list[tuple[str, ...]]

    def rows(self) -> Iterator[tuple[int, dict[str, str]]]:
        """Each row with its number in the file: the header is row 1. Empty rows are skipped."""
        for number, cells in enumerate(self.cells, start=2):
            if any(cells):
                yield number, dict(zip(self.columns, cells, strict=True))


def table_text(columns: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A table as the text of a CSV file, header first.

    >>> table_text(["id", "months"], [["a,b", 12]])
    'id,months\\n"a,b",12\\n'
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return out.getvalue()


def read_table(path: str | os.PathLike[str], error: type[BonecaffeError]) -> Table:
    """Read a CSV file with a header, every cell as text; raise ``error`` naming the file when it is not one.

    Short rows are padded. Columns without a name and without content, which spreadsheets leave behind, are dropped.
    """
    try:
        content = read_bytes(path, "table", error)
    except FileNotFoundError:
        raise error(f"{path}: no such file.") from None
    except OSError as cause:
        raise error(f"{path}: not readable: {cause.strerror or cause}.") from cause
    if (other := _other_format(content, os.fspath(path))) is not None:
        raise error(f"{path}: {other}.")
    text = content.decode("utf-8-sig")
    rows = _parsed(text, path, error)
    if not rows:
        raise error(f"{path}: the file is empty.")
    columns = rows[0]
    if not any(columns):
        raise error(f"{path}: the first row is empty; it must hold the names of the columns.")
    _check_lengths(rows, text, path, error)
    cells = [(*row, *[""] * len(columns))[: len(columns)] for row in rows[1:]]
    kept = [i for i, name in enumerate(columns) if name or any(row[i] for row in cells)]
    columns = tuple(columns[i] for i in kept)
    if twice := [name for i, name in enumerate(columns) if name in columns[:i]]:
        raise error(f"{path}: the column {quoted(twice[0])} appears twice in the header. Remove one of them.")
    return Table(columns, [tuple(row[i] for i in kept) for row in cells])


_AS_CSV = 'Save it as "CSV UTF-8 (comma delimited)"'
_BLANKS = " \t\r\n\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B))) + "\u202f\u205f\u3000"
"""What is stripped from a cell. Other characters that Python counts as white space separate lines: they are kept, so
that the cell is refused when it is used."""


def _other_format(content: bytes, name: str) -> str | None:
    """What a file is if it is not text in UTF-8, and what to do about it; None when it is text in UTF-8."""
    suffix = os.path.splitext(name)[1].lower()
    sheet = f"not CSV. Open it in a spreadsheet program. {_AS_CSV}"
    if content.startswith(b"PK\x03\x04"):
        if b"opendocument.spreadsheet" in content:
            return f"a LibreOffice workbook (.ods), {sheet}"
        if b"xl/workbook" in content or suffix in (".xlsx", ".xlsm"):
            return f"an Excel workbook (.xlsx), {sheet}"
        return "a workbook or an archive (zip), not CSV. Unpack it, or save its table as CSV UTF-8"
    if content.startswith(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"):
        return f"an Excel workbook (.xls), {sheet}"
    if content.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"7z\xbc\xaf")):
        return "a compressed file, not CSV. Unpack it"
    if content.startswith((b"\xff\xfe", b"\xfe\xff")) or content[:2].count(0) == 1:
        return f"not readable as CSV: text in UTF-16, not UTF-8. {_AS_CSV}"
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as cause:
        line = content.count(b"\n", 0, cause.start) + 1
        return f"not readable as CSV: not text in UTF-8 (byte 0x{content[cause.start]:02x} in line {line}). {_AS_CSV}"
    if (at := content.find(0)) >= 0:
        line = content.count(b"\n", 0, at) + 1
        return f"not readable as CSV: a NUL byte in line {line}. Get the file again"
    if content.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"<":
        return f"markup (XML or HTML), {sheet}"
    return None


def _parsed(text: str, path: str | os.PathLike[str], error: type[BonecaffeError]) -> list[tuple[str, ...]]:
    """The rows of a CSV text, header first, each as long as it is."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, skipinitialspace=True)
    rows: list[tuple[str, ...]] = []
    try:
        for row in reader:
            rows.append(tuple(cell.strip(_BLANKS) for cell in row))
    except csv.Error as cause:
        words = {"unexpected end of data": "a quotation mark is not closed"}
        what = words.get(str(cause), str(cause))
        raise error(f"{path}: not readable as CSV: row {len(rows) + 1}: {what}.") from cause
    if rows and rows[0]:
        _check_separator(rows[0], path, error)
    return rows


def _check_separator(header: tuple[str, ...], path: str | os.PathLike[str], error: type[BonecaffeError]) -> None:
    """Refuse a header that is one cell because its separators are not commas, and Excel's ``sep=``."""
    if header[0].lower().startswith("sep="):
        raise error(f"{path}: the first line, {quoted(header[0])}, is only for Excel. Remove it.")
    if len(header) > 1:
        return
    (text,) = header
    for separator, plural in ((";", "semicolons"), ("\t", "tabs"), ("|", "vertical bars")):
        if separator in text:
            raise error(
                f"{path}: its columns are separated by {plural}, not by commas. "
                f"{_AS_CSV}, with decimal points, not decimal commas."
            )


def _check_lengths(
    rows: list[tuple[str, ...]], text: str, path: str | os.PathLike[str], error: type[BonecaffeError]
) -> None:
    """Refuse rows that have more cells than the header, and a last row that was cut off."""
    width = len(rows[0])
    for number, row in enumerate(rows, start=1):
        if any(row[width:]):
            raise error(
                f"{path}: not readable as CSV: row {number} has {len(row)} cells, the header {width}. "
                'Put a cell that holds a comma into quotation marks ("a, b"), and write decimal points, not commas.'
            )
    named = max(i for i, name in enumerate(rows[0], start=1) if name)
    if any(rows[-1]) and len(rows[-1]) < named and not text.endswith(("\n", "\r")):
        raise error(
            f"{path}: the file ends within row {len(rows)}, which has {len(rows[-1])} cells of {named}. "
            "Get the file again, or complete the row and end it with a line break."
        )


_NUMBER = re.compile(r"-?(\d+\.?\d*|\.\d+)", re.ASCII)


def number(text: str) -> float:
    """The number in a cell: plain digits with at most a sign in front and one decimal point.

    ValueError, with a text that continues "… is", for anything else: ``float`` would accept ``1_2``, ``+12``, ``1e3``,
    ``nan`` and digits of other scripts, which are more likely to be damage than intended.

    >>> number("168.9325153"), number("-3")
    (168.9325153, -3.0)
    """
    if _NUMBER.fullmatch(text) and math.isfinite(value := float(text)):
        return value + 0.0  # no negative zero
    hint = "; write a decimal point, not a comma" if re.fullmatch(r"-?\d+,\d+", text) else ""
    raise ValueError(f"{quoted(text)}, not a number{hint}")


def number_text(value: float) -> str:
    """A finite number as text that `number` reads back exactly: all significant digits, never an exponent.

    >>> number_text(126.0), number_text(168.9325153), number_text(1e-7)
    ('126', '168.9325153', '0.0000001')
    """
    return f"{Decimal(repr(float(value) + 0.0)):f}".removesuffix(".0")


def quoted(text: str, at_most: int = 60) -> str:
    """Untrusted text for an error message: in quotation marks, on one line, cut when it is long.

    >>> quoted("old"), quoted("a\\tb"), quoted("x" * 100, 3)
    ("'old'", "'a\\\\tb'", "'xxx' …")
    """
    return repr(text) if len(text) <= at_most else f"{text[:at_most]!r} …"


# ---- the cache ---------------------------------------------------------------------------------------------------


def cache_folder() -> Path:
    """Where bonecaffe keeps what is slow to compute or download.

    ``BONECAFFE_CACHE``, or a folder of the user's cache.
    """
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(os.environ.get("BONECAFFE_CACHE") or os.path.join(home, "bonecaffe"))
