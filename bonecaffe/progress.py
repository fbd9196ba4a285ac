"""How long work tells how far it is: one kind of callback for all of it."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Told (done, in all), in order, as the work goes on."""


def unseen(done: int, total: int) -> None:
    """The progress that nobody looks at; the default of what takes one."""
