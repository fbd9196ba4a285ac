"""The page's remarks about the hand that it shows. They follow the rules of `bonecaffe points check`.

The page stays at a complete hand with a remark until somebody corrects the points or confirms that they are right.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

from bonecaffe.hands import ids, plausibility
from bonecaffe.hands.reference_points import ReferencePoints


def about(hand: ReferencePoints, twins: Sequence[str] = ()) -> list[str]:
    """What is implausible about a hand's seven points. ``twins`` are other hands with exactly the same points.

    >>> about(ReferencePoints("1", 400, 500, ((200, 400), *[(150, 100)] * 6)))[0]
    'Two joints are at the same place.'
    """
    same = [f"the points are exactly those of {ids.listed(twins, at_most=3)}"] if twins else []
    return sentences([*_doubts(hand), *same])


def sentences(texts: Iterable[str]) -> list[str]:
    """Remarks as the sentences that the page shows.

    >>> sentences(["bones are dark"])
    ['Bones are dark.']
    """
    return [f"{text[0].upper()}{text[1:]}." for text in texts]


@lru_cache(maxsize=1 << 16)
def _doubts(hand: ReferencePoints) -> tuple[str, ...]:
    return tuple(hand.problems()) or tuple(plausibility.doubts(hand))
