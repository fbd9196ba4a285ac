"""The command line of the builder's scripts: its parser, and the one place where an error becomes a message."""

from __future__ import annotations

import argparse
import signal
from collections.abc import Callable
from types import FrameType

from bonecaffe.errors import BonecaffeError
from builder.steps import say

INTERRUPTED = 130
"""The exit status after Ctrl-C or SIGTERM."""


def parser(document: str) -> argparse.ArgumentParser:
    """A parser whose help is a module's docstring: its first paragraph, the options, the rest."""
    description, _, rest = document.partition("\n\n")
    return argparse.ArgumentParser(
        description=description, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def run(work: Callable[[], int]) -> int:
    """Do a script's work and return the exit status; print an error as one message. SIGTERM stops it as Ctrl-C does."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return work()
    except BonecaffeError as error:
        say(str(error))
        return 1
    except OSError as error:
        say(f"{error.filename}: {error.strerror}" if error.filename else str(error))
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
