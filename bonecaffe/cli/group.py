"""What all verbs share: the group, error handling, progress, tables, common options."""

from __future__ import annotations

import contextlib
import errno
import functools
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from bonecaffe import __version__
from bonecaffe.cli import make, process
from bonecaffe.errors import BonecaffeError
from bonecaffe.files import write_new
from bonecaffe.progress import Progress, lines, unseen

_REMEDIES = {
    errno.ENOSPC: "the disk is full; make room and try again",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission denied. Change the permissions of the file and its folder, or use another folder",
    errno.EPERM: "not permitted",
}
_MEMORY = "there is not enough memory. Close other programs, or use fewer processes (--jobs 1, if the command has it)"
_THREADS = (
    "the system allows no more processes or threads. End other programs, raise the limit (ulimit -u), "
    "or use fewer (--jobs 1, if the command has it)"
)
_FILES = "too many files are open. Raise the limit (ulimit -n 4096), or close other programs"
_SHORTAGES = {errno.ENOMEM: _MEMORY, errno.EAGAIN: _THREADS, errno.EMFILE: _FILES, errno.ENFILE: _FILES}


class _Boundary(click.Group):
    """Expected failures exit 1 with a message, Ctrl-C exits 130, a bug exits 3 with its traceback in a file."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, **extra: Any) -> Any:
        """Like click's. Without ``args`` this is the command itself, which owns its process."""
        if args is None:
            process.run(functools.partial(super().main, None, *rest, **extra))
        return super().main(args, *rest, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb."""
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            explained = make.explained(error.format_message())
            if explained != error.format_message():
                raise click.UsageError(explained, error.ctx) from None
            raise
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except KeyboardInterrupt:
            code = _interrupted()
        except Exception as error:
            if (
                process.interrupted()
            ):  # Ctrl-C that a library turned into another exception, for example while it was imported
                code = _interrupted()
            elif message := expected(error):
                complain(message)
                code = 1
            else:
                _report_bug(error)
                code = 3
        ctx.exit(code)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order they are used, not in alphabetical order."""
        return list(self.commands)


def expected(error: Exception) -> str | None:
    """The message for an error that the user or the machine caused; None for a bug in bonecaffe."""
    if isinstance(error, BonecaffeError):
        return str(error)
    if shortage := _shortage(error):
        return f"{shortage}."
    if isinstance(error, OSError) and (error.errno in _REMEDIES or error.filename):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{_REMEDIES.get(error.errno or 0, error.strerror)}."
    return None


def _shortage(error: Exception) -> str | None:
    """The resource that has run out, as Python, its imports and OpenCV report it."""
    if isinstance(error, MemoryError) or (type(error).__module__ == "cv2" and getattr(error, "code", 0) == -4):
        return _MEMORY
    if isinstance(error, OSError):
        return _SHORTAGES.get(error.errno or 0)
    if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        return _THREADS
    if isinstance(error, ImportError):
        text = str(error)
        if "Too many open files" in text:
            return _FILES
        if "Cannot allocate memory" in text or "failed to map segment" in text:
            return _MEMORY
    return None


def complain(message: str) -> None:
    """Print an error on stderr, with the make variables if make called bonecaffe. Never fails."""
    with contextlib.suppress(Exception):  # stderr is broken: there is nowhere left to report that
        click.echo(f"bonecaffe: {make.explained(message)}", err=True)


def _interrupted() -> int:
    with contextlib.suppress(Exception):
        process.print_interrupted()
    return 130


def _report_bug(error: Exception) -> None:
    """Name the bug. Its traceback goes to a file, or to stderr if no file can be written. Never fails."""
    with contextlib.suppress(Exception):
        text = f"bonecaffe {__version__}\n{' '.join(sys.argv)}\n{''.join(traceback.format_exception(error))}"
        what = f"{type(error).__name__}: {_text(error)}".rstrip(".")
        try:
            where = f"The traceback is in {write_new(text, 'bonecaffe-bug-')}."
        except Exception as failure:
            where = f"Its traceback could not be written to a file ({_text(failure)}):\n{text.rstrip()}"
        complain(f"this is a bug in bonecaffe: {what}. {where}")
        return
    complain(f"this is a bug in bonecaffe: {type(error).__name__}.")


def _text(error: Exception) -> str:
    try:
        return " ".join(str(error).split())
    except Exception:
        return "(no message)"


@contextlib.contextmanager
def progress_bar(what: str) -> Iterator[Progress]:
    """A progress bar with the time left on a terminal, lines elsewhere. An error in it never stops the work."""
    with contextlib.ExitStack() as shown:
        show: Progress | None = None
        if sys.stderr is not None and sys.stderr.isatty():
            with contextlib.suppress(Exception):
                show = _bar(what, shown)
        yield _until_it_fails(show or lines(what, lambda line: click.echo(line, err=True)))


def _until_it_fails(show: Progress) -> Progress:
    def quietly(done: int, total: int) -> None:
        nonlocal show
        try:
            show(done, total)
        except Exception:
            show = unseen

    return quietly


def _bar(what: str, shown: contextlib.ExitStack) -> Progress:
    from rich import progress as bars
    from rich.console import Console

    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TimeRemainingColumn(),
    )
    bar = bars.Progress(*columns, console=Console(stderr=True))

    def stop() -> None:
        with contextlib.suppress(Exception):
            bar.stop()

    shown.callback(stop)
    bar.start()
    task = bar.add_task(what, total=None)
    return lambda done, total: bar.update(task, completed=done, total=total)


def on_one_line(text: str) -> str:
    """A text, such as a file name, with line breaks and unprintable characters escaped."""
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


def print_table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Print a table as wide as the terminal. Its cells are printed as they are, never read as markup."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(title), title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    Console(width=None if sys.stdout.isatty() else 120).print(table)


RUN = click.argument("run", metavar="RUN", type=click.Path(file_okay=False, path_type=Path))
FILE = click.Path(dir_okay=False, path_type=Path)
FOLDER = click.Path(path_type=Path)
IMAGES = click.option(
    "--images",
    type=FOLDER,
    required=True,
    multiple=True,
    help="Folder of the radiographs, each named by its id; can be given more than once.",
)


def _identify_dicom(ctx: click.Context, parameter: click.Parameter, value: Any) -> None:
    if value != "name":  # otherwise nothing needs to be loaded
        from bonecaffe.hands.images import dicom_ids

        ctx.with_resource(dicom_ids(value))


DICOM_ID = click.option(
    "--dicom-id",
    type=click.Choice(["name", "uid"]),
    default="name",
    show_default=True,
    expose_value=False,
    callback=_identify_dicom,
    help="Id of a DICOM image: the name of its file, or its SOP instance UID.",
)
"""For every verb that takes images. It holds until the verb ends (`bonecaffe.hands.images.dicom_ids`)."""
CLAIM = click.option(
    "--claim",
    type=FILE,
    help="Markdown file to write: the CLAIM 2024 checklist for reviewers, filled in from the run's records.",
)
_WHICH = "The locator to find the points with, trained by train-locator. [default: the one in bonecaffe]"
LOCATOR = click.option("--locator", type=FOLDER, help=_WHICH)
LOCATOR_OR_MODEL = click.option("--locator", "--model", "locator", type=FOLDER, help=_WHICH)
"""`LOCATOR` for a verb whose option was --model in 0.1."""
ENGINE = click.option(
    "--engine",
    type=click.Choice(["caffe", "onnx", "opencv"]),
    help="Software that runs the net; onnx and opencv need no Caffe. [default: caffe, or onnx if none is installed]",
)
AGES_IN_YEARS = click.option(
    "--ages-in-years", "ages_in", flag_value="years", help="The ages in the table are in years."
)
AGES_IN_MONTHS = click.option(
    "--ages-in-months",
    "ages_in",
    flag_value="months",
    help="The ages are in months, even though none is above 20. [default: months, refused if none is above 20]",
)


@click.group(cls=_Boundary, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="bonecaffe")
def main() -> None:
    """Estimate bone age from hand radiographs with Lee & Kim's Caffe pipeline of 2018.

    Every difference from the paper is recorded. RUN is a folder, such as runs/paper, that holds everything about one
    trained model. Use the commands in this order: prepare, train, evaluate, then predict. Each reads what the one
    before it wrote into RUN. This is not a medical device.
    """
