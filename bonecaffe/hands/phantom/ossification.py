"""When the ossification centres of the hand appear and fuse, and how its bones grow, by sex.

Sources. Appearance: 50th percentiles of Garn, Rohmann & Silverman, Med Radiogr Photogr 1967;43:45-66, the table that
Gilsanz & Ratib (Hand Bone Age, Springer 2005) build on; pisiform: Greulich & Pyle (1959). Fusion: the standards of
Greulich & Pyle in which the line of fusion is last seen. Growth: the third metacarpal's length after Garn et al.,
Radiology 1972;105:375-381. All values are rounded to months and millimetres; a phantom is a teaching aid, not an atlas.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Centre(NamedTuple):
    """Mean ages, in months, of one ossification centre: (male, female). ``fuses`` is None for a carpal."""

    appears: tuple[float, float]
    fuses: tuple[float, float] | None


CARPALS = {
    "capitate": Centre((3, 2), None),
    "hamate": Centre((4, 2), None),
    "triquetrum": Centre((29, 21), None),
    "lunate": Centre((49, 31), None),
    "scaphoid": Centre((68, 49), None),
    "trapezium": Centre((70, 49), None),
    "trapezoid": Centre((75, 50), None),
    "pisiform": Centre((126, 102), None),
}

EPIPHYSES = {
    "radius": Centre((13, 10), (220, 204)),
    "ulna": Centre((85, 64), (214, 198)),
    "metacarpal1": Centre((31, 19), (196, 172)),
    "metacarpal2": Centre((19, 13), (200, 176)),
    "metacarpal3": Centre((21, 14), (200, 176)),
    "metacarpal4": Centre((23, 15), (200, 176)),
    "metacarpal5": Centre((26, 16), (200, 176)),
    "proximal1": Centre((32, 21), (194, 170)),
    "proximal2": Centre((17, 11), (194, 170)),
    "proximal3": Centre((16, 10), (194, 170)),
    "proximal4": Centre((17, 11), (194, 170)),
    "proximal5": Centre((21, 14), (194, 170)),
    "middle2": Centre((26, 16), (195, 171)),
    "middle3": Centre((24, 15), (195, 171)),
    "middle4": Centre((25, 15), (195, 171)),
    "middle5": Centre((41, 22), (195, 171)),
    "distal1": Centre((19, 12), (186, 160)),
    "distal2": Centre((38, 23), (186, 160)),
    "distal3": Centre((29, 18), (186, 160)),
    "distal4": Centre((29, 18), (186, 160)),
    "distal5": Centre((39, 24), (186, 160)),
}

SESAMOID = Centre((153, 129), None)
"""The sesamoid of the thumb's adductor."""

_GROWTH_MONTHS = (0, 12, 24, 48, 72, 96, 120, 144, 168, 192, 216, 240)
_METACARPAL3_MM = {
    True: (18, 25, 30, 36, 41.5, 46.5, 51, 55.5, 61, 65, 66.5, 66.5),
    False: (18, 25, 30, 36.5, 42.5, 47.5, 53, 58, 61, 62, 62, 62),
}

_CARPAL_MATURE_MONTHS = (162, 138)
_EPIPHYSIS_WIDE_MONTHS = (132, 110)
"""The age at which an epiphysis is as wide as its metaphysis (male, female)."""


def metacarpal3_mm(age_months: float, male: bool) -> float:
    """Length of the third metacarpal, joint to joint, in millimetres."""
    return float(np.interp(age_months, _GROWTH_MONTHS, _METACARPAL3_MM[male]))


def _smooth(t: float) -> float:
    t = min(1.0, max(0.0, t))
    return t * t * (3 - 2 * t)


def maturity(age_months: float, male: bool) -> float:
    """How far proportions have gone from an infant's (0, at birth) to an adult's (1)."""
    return _smooth(age_months / (170 if male else 150)) ** 0.7


def carpal_size(centre: Centre, age_months: float, male: bool) -> float:
    """Size of a carpal relative to its adult's: 0 before it appears, then growing to 1."""
    sex = 0 if male else 1
    grown = (age_months - centre.appears[sex]) / (_CARPAL_MATURE_MONTHS[sex] - centre.appears[sex])
    if grown <= 0:
        return 0.0
    return 0.22 + 0.78 * _smooth(min(1.0, grown)) ** 0.62 if grown < 1 else 1.0


class Epiphysis(NamedTuple):
    """The state of an epiphysis at an age."""

    width: float
    """Relative to its metaphysis; 0 before it appears."""
    fused: float
    """0: an open growth plate; 1: fused; between: the plate narrows."""
    scar: float
    """How visible the line of fusion still is, 0 to 1."""


def epiphysis(centre: Centre, age_months: float, male: bool) -> Epiphysis:
    """Width and fusion of an epiphysis at an age."""
    sex = 0 if male else 1
    appears = centre.appears[sex]
    if age_months <= appears:
        return Epiphysis(0.0, 0.0, 0.0)
    assert centre.fuses is not None
    fuses = centre.fuses[sex]
    grown = (age_months - appears) / (_EPIPHYSIS_WIDE_MONTHS[sex] - appears)
    width = min(1.04, 0.24 + 0.76 * max(0.0, grown) ** 0.6 if grown < 1 else 1.0 + 0.04 * min(1.0, grown - 1))
    fused = _smooth((age_months - (fuses - 34)) / 34)
    scar = max(0.0, 1 - abs(age_months - fuses) / 26) if fused > 0.5 else 0.0
    return Epiphysis(width, fused, scar)
