"""Figures as people read them, alike in the report, on the command line and in the checklist."""

from __future__ import annotations


def signed(value: float, digits: int = 1) -> str:
    """A difference with its sign, a true minus; nothing is minus zero.

    >>> signed(-12.34), signed(0.26), signed(-0.04)
    ('−12.3', '+0.3', '+0.0')
    """
    return f"{round(value, digits) + 0.0:+.{digits}f}".replace("-", "−")


def between(pair: tuple[float, float] | None, digits: int = 1, otherwise: str = "") -> str:
    """An interval of figures that are never negative; ``otherwise`` where there is none.

    >>> between((6.91, 10.68)), between(None, otherwise="not defined")
    ('6.9 to 10.7', 'not defined')
    """
    return f"{pair[0]:.{digits}f} to {pair[1]:.{digits}f}" if pair else otherwise


def between_signed(pair: tuple[float, float] | None, digits: int = 1) -> str:
    """An interval of differences, "" where there is none.

    >>> between_signed((-15.43, -0.04))
    '−15.4 to +0.0'
    """
    return f"{signed(pair[0], digits)} to {signed(pair[1], digits)}" if pair else ""
