"""How long-running work reports its progress: one type of callback, and when to print a line."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

Progress = Callable[[int, int], None]
"""Called with (done, total), in order, while the work runs."""


def unseen(done: int, total: int) -> None:
    """Shows nothing; the default wherever a `Progress` is a parameter."""


def duration(seconds: float) -> str:
    """A waiting time as text.

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
    """When the next line is due, where lines cannot be redrawn: in a pipe, in a log.

    The first line is due at once, the second after 2 seconds, and each later wait is 1.5 times as long, up to a minute.
    So a reader learns in the first seconds how long the work will take, and the log of a whole night stays short.
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
    """A `Progress` that prints ``what: done/total`` with the time left, at a `Pace`, at each tenth, and at the end."""
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
