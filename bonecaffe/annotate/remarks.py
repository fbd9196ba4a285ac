"""What the page remarks about the hand that it shows, in sentences: the rules of `bonecaffe points check`, at once.

A remark about a whole hand holds the page at it until somebody confirms that the points are right.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

from bonecaffe.hands import ids, plausibility
from bonecaffe.hands.reference_points import ReferencePoints


def about(hand: ReferencePoints, twins: Sequence[str] = ()) -> list[str]:
    """What is implausible about a hand's seven points; ``twins`` are the other hands that have the very same ones.

    >>> about(ReferencePoints("1", 400, 500, ((200, 400), *[(150, 100)] * 6)))[0]
    'Two joints are at the same place.'
    """
    same = [f"the points are those of {ids.listed(twins, at_most=3)}"] if twins else []
    return sentences([*_doubts(hand), *same])


def sentences(texts: Iterable[str]) -> list[str]:
    """Remarks in words as the page shows them.

    >>> sentences(["bones are dark"])
    ['Bones are dark.']
    """
    return [f"{text[0].upper()}{text[1:]}." for text in texts]


@lru_cache(maxsize=1 << 16)
def _doubts(hand: ReferencePoints) -> tuple[str, ...]:
    return tuple(hand.problems()) or tuple(plausibility.doubts(hand))
