"""Numbers in print. The report, the command line and the checklist all format numbers here.

A minus is the sign − (U+2212), never a hyphen, and a value that rounds to zero has no minus.
"""

from __future__ import annotations

import re

MINUS, NO_BREAK_SPACE = "−", "\N{NO-BREAK SPACE}"


def number(value: float, digits: int = 1) -> str:
    """A number with so many decimals.

    >>> number(12.34), number(-0.784, 2), number(-0.04)
    ('12.3', '−0.78', '0.0')
    """
    return f"{_rounded(value, digits):.{digits}f}".replace("-", MINUS)


def signed(value: float, digits: int = 1) -> str:
    """A difference, with its sign.

    >>> signed(-12.34), signed(0.26), signed(-0.04)
    ('−12.3', '+0.3', '+0.0')
    """
    return f"{_rounded(value, digits):+.{digits}f}".replace("-", MINUS)


def percent(share: float) -> str:
    """A share from 0 to 1, as a whole number of percent.

    >>> percent(0.734)
    '73 %'
    """
    return f"{number(100 * share, 0)} %"


def between(pair: tuple[float, float] | None, digits: int = 1, otherwise: str = "") -> str:
    """An interval; ``otherwise`` when it is None.

    >>> between((6.91, 10.68)), between((-0.2, 0.61), 2), between(None, otherwise="not defined")
    ('6.9 to 10.7', '−0.20 to 0.61', 'not defined')
    """
    return f"{number(pair[0], digits)} to {number(pair[1], digits)}" if pair else otherwise


def between_signed(pair: tuple[float, float] | None, digits: int = 1) -> str:
    """An interval of differences, with signs; "" when it is None.

    >>> between_signed((-15.43, -0.04))
    '−15.4 to +0.0'
    """
    return f"{signed(pair[0], digits)} to {signed(pair[1], digits)}" if pair else ""


def _rounded(value: float, digits: int) -> float:
    return round(value, digits) + 0.0  # -0.0 + 0.0 is 0.0


def without_folders(text: str) -> str:
    """A text without the paths of this machine, for what is given to others.

    >>> without_folders("mean of file:/data/of/me/mean.npy, from ~/data; 5 / 7, ~2 %")
    'mean of file:a local path, from a local path; 5 / 7, ~2 %'
    """
    return re.sub(r"""(?<![^\s=:('"])~?/[^\s,;)'"/][^\s,;)'"]*""", "a local path", text)


# ---- line breaks ---------------------------------------------------------------------------------------------------

_UNITS = "%|months?|years?|px|pixels|hands?|cases|iterations|cores|GB|kB|s|ms|SD"
_BREAKS = (rf"(?<=\d) (?=(?:{_UNITS})\b|[%×])", r"(?<=\b[np]) (?=(?:[=−]|&lt;) \d)", r"(?:(?<=[=−×])|(?<=&lt;)) (?=\d)")
_QUANTITY = re.compile("|".join(_BREAKS))
_NOT_TEXT = re.compile(r"(<(style|svg|code|title)\b.*?</\2>|<[^>]*>)", re.DOTALL)


def unbroken(html: str) -> str:
    """A page in which a number and its unit, ``n − 1`` and ``p < 0.001`` stay on one line.

    Tags, style sheets, drawings and code keep their spaces.

    >>> unbroken('<p title="95 %">95 % interval, 6.9 months, n − 1, p &lt; 0.001</p>').replace(NO_BREAK_SPACE, "~")
    '<p title="95 %">95~% interval, 6.9~months, n~−~1, p~&lt;~0.001</p>'
    """
    parts = _NOT_TEXT.split(html)
    parts[::3] = [_QUANTITY.sub(NO_BREAK_SPACE, text) for text in parts[::3]]
    del parts[2::3]
    return "".join(parts)
