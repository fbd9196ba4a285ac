"""How long work tells how far it is: one kind of callback for all of it, and when to print a line of it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Told (done, in all), in order, as the work goes on."""


def unseen(done: int, total: int) -> None:
    """The progress that nobody looks at; the default of what takes one."""


def duration(seconds: float) -> str:
    """A time to wait in words.

    >>> duration(75), duration(4000), duration(float("nan"))
    ('1 min 15 s', '1 h 06 min', '?')
    """
    if not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(int(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


class Pace:
    """When another line is due, where lines are not drawn over each other: in a pipe, in a log.

    At once, 2 seconds later, then after half as long again each time, up to a minute: whoever looks on learns in the
    first seconds how long it will take, and a night's log stays short.
    """

    FIRST_S, LAST_S, GROWTH = 2.0, 60.0, 1.5

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._next: float | None = None
        self._wait = self.FIRST_S

    def due(self, anyway: bool = False) -> bool:
        """Whether to print now; ``anyway`` for a line that is printed in any case, such as the last."""
        now = self._clock()
        in_time = self._next is None or now >= self._next
        if not in_time and not anyway:
            return False
        self._next = now + self._wait
        if in_time:
            self._wait = min(self.LAST_S, self.GROWTH * self._wait)
        return True


def lines(what: str, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> Progress:
    """A progress that prints ``what: done/total`` with the time left, at a `Pace`, at each tenth, and at the end."""
    pace = Pace(clock)
    tenth = -1
    first: tuple[int, float] | None = None  # what was done, and when, at the first call: the rest is measured from it

    def line(done: int, total: int) -> None:
        nonlocal tenth, first
        now = clock()
        first = first or (done, now)
        passed = total > 0 and done * 10 // total > tenth
        if not pace.due(anyway=passed):
            return
        tenth = done * 10 // total if total > 0 else tenth
        done_since, seconds = done - first[0], now - first[1]
        left = f", {duration(seconds / done_since * (total - done))} left" if done_since > 0 and done < total else ""
        say(f"{what}: {done}/{total}{left}")

    return line
