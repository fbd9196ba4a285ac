"""Find an image under two ids: on both sides of the split it makes the test worthless, on one side it counts twice.

Decoded pixels are compared, so a copy that was saved again without loss is found too. Two different images of one child
are not, because RSNA's tables do not identify the child. A table that does can give it in the column ``group``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bonecaffe.errors import PrepareError, Problems


def groups(hashes: Mapping[str, str]) -> list[tuple[str, ...]]:
    """The ids that share a hash of their image, in the order of the ids; an id without a hash shares none.

    >>> groups({"1": "a", "2": "b", "3": "a", "4": ""})
    [('1', '3')]
    """
    by_hash: dict[str, list[str]] = {}
    for case_id, value in hashes.items():
        if value:
            by_hash.setdefault(value, []).append(case_id)
    return [tuple(sharing) for sharing in by_hash.values() if len(sharing) > 1]


def refuse_leaks(hashes: Mapping[str, str], train: Sequence[str], tables: str) -> None:
    """PrepareError that names them, when images of the training split are in the test split too, under other ids.

    ``hashes`` are those of all images by id, ``train`` the ids of the training split, ``tables`` the tables to correct.
    """
    problems = Problems()
    trained = set(train)
    for sharing in groups(hashes):
        if len({case_id in trained for case_id in sharing}) == 2:
            named = (f"{case_id} ({'training' if case_id in trained else 'test'})" for case_id in sharing)
            problems.add(f"{' and '.join(named)} are the same image")
    problems.raise_if_any(
        PrepareError,
        "split",
        f"A test on training images is not a test. Keep one id of each image in {tables}.",
    )


def remarks(hashes: Mapping[str, str]) -> list[str]:
    """A sentence that names up to five duplicate images; empty when there are none."""
    if not (found := groups(hashes)):
        return []
    named = ", ".join(" = ".join(sharing) for sharing in found[:5]) + ", …" * (len(found) > 5)
    each = "image has" if len(found) == 1 else "images have"
    return [f"{len(found)} {each} more than one id: {named}"]
