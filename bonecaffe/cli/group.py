"""What all verbs share: the group, its way with errors, progress, tables, arguments."""

from __future__ import annotations

import errno
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from bonecaffe import __version__
from bonecaffe.errors import BonecaffeError

_DISK = {
    errno.ENOSPC: "the disk is full; make room and try again",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission denied",
    errno.EPERM: "not permitted",
}


class _Boundary(click.Group):
    """Expected failures exit 1 with their sentence, Ctrl-C exits 130, a bug exits 3 with its traceback in a file."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BonecaffeError as error:
            click.echo(f"bonecaffe: {error}", err=True)
            ctx.exit(1)
        except KeyboardInterrupt:
            click.echo(
                "bonecaffe: interrupted. prepare, repeat, locate and train-locator pick up where they stopped when called again, train with --resume.",
                err=True,
            )
            ctx.exit(130)
        except OSError as error:
            if error.errno not in _DISK and not error.filename:
                _report_bug(ctx)
            where = f"{error.filename}: " if error.filename else ""
            click.echo(f"bonecaffe: {where}{_DISK.get(error.errno, error.strerror)}.", err=True)
            ctx.exit(1)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception:
            _report_bug(ctx)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)  # in the order of the work, not of the alphabet


def _report_bug(ctx: click.Context) -> None:
    with tempfile.NamedTemporaryFile(
        "w", prefix="bonecaffe-bug-", suffix=".txt", delete=False, encoding="utf-8"
    ) as file:
        file.write(f"bonecaffe {__version__}\n{' '.join(sys.argv)}\n{traceback.format_exc()}")
    click.echo(
        f"bonecaffe: this is a bug of ours: {traceback.format_exc().strip().splitlines()[-1]}. The traceback is in {file.name}.",
        err=True,
    )
    ctx.exit(3)


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar with an ETA on a terminal; a line at each tenth elsewhere."""
    if not sys.stderr.isatty():
        last = -1

        def line(done: int, total: int) -> None:
            nonlocal last
            if done * 10 // total > last:
                last = done * 10 // total
                click.echo(f"{what}: {done}/{total}", err=True)

        yield line
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    ) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def print_table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Print a table as wide as the terminal; what is in it is never taken for markup."""
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
ENGINE = click.option(
    "--engine",
    type=click.Choice(["caffe", "opencv"]),
    default="caffe",
    show_default=True,
    help="What computes; opencv needs no Caffe.",
)


@click.group(cls=_Boundary, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="bonecaffe")
def main() -> None:
    """Bone age from hand radiographs: Lee & Kim's 2018 Caffe pipeline, as printed or with declared departures.

    RUN is a folder, such as runs/paper; every stage reads there what the stage before wrote. The order of the work:
    prepare, train, evaluate; then predict. Nothing here is a medical device.
    """
