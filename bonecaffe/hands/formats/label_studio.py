"""Label Studio: a JSON list of tasks, each with annotations; key points are in percent of the image."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bonecaffe.hands.formats.marks import (
    Hand,
    Kind,
    LeftOut,
    Marks,
    Reading,
    Unmarked,
    collect,
    member,
    number,
    point_name,
    shown,
    size_of,
)
from bonecaffe.hands.formats.names import SUFFIXES, guess

_USUAL_KEYS = ("image", "img")
"""Of the image in a task's data, in Label Studio's own templates."""


def read(tree: list[Any] | dict[str, Any]) -> Reading:
    """The hands of all tasks, or of one task.

    Of several annotations of a task, the last one that was not cancelled is used; the others are left out.
    """
    return collect("task", enumerate(tree if isinstance(tree, list) else [tree], 1), _read, _any_image)


def _any_image(task: Any) -> str:
    """An image's name, for errors."""
    return next((guess(value) for value in member(task, "data", dict).values() if isinstance(value, str)), "")


def _read(task: Any) -> Iterator[Hand | LeftOut]:
    if isinstance(task, dict) and not {"annotations", "completions"} & task.keys():
        raise ValueError("not a Label Studio task with annotations. Export as JSON, not as JSON-MIN or another format")
    annotations = member(task, "annotations" if "annotations" in task else "completions", list)
    live = []
    for annotation in annotations:
        if isinstance(annotation, dict) and annotation.get("was_cancelled"):
            yield LeftOut(Kind.UNMARKED, "cancelled")
        else:
            live.append(annotation)
    for _ in live[:-1]:
        yield LeftOut(Kind.UNMARKED, "replaced by a later annotation of the same task")
    if not annotations:
        raise Unmarked("only predicted, not marked" if task.get("predictions") else "not marked")
    if live:
        yield from _hands(member(task, "data", dict), member(live[-1], "result", list))


def _hands(data: dict[str, Any], results: list[Any]) -> Iterator[Hand]:
    """The hands in one annotation's results: one for each image of the task, nearly always one."""
    by_image: dict[str, list[Any]] = {}
    for result in results:
        if member(result, "type", str) == "keypointlabels":
            to_name = result.get("to_name")
            by_image.setdefault(to_name if isinstance(to_name, str) else "", []).append(result)
    if not by_image:
        raise Unmarked("not marked")
    for to_name, points in by_image.items():
        marks = Marks()
        sizes = []
        for result in points:
            value = member(result, "value", dict)
            labels = member(value, "keypointlabels", list) if "keypointlabels" in value else []
            names = [label for label in labels if point_name(label)]
            if not names:
                marks.others += map(shown, labels)
                continue
            if len(labels) > 1:
                raise ValueError(f"a point with {len(labels)} labels: {', '.join(map(shown, labels[:5]))}")
            if rotation := number(result.get("image_rotation") or 0):
                raise ValueError(
                    f"marked on the image turned by {rotation:g}°. Turn it back in Label Studio, and export"
                )
            sizes.append(size_of(result.get("original_width"), result.get("original_height")))
            marks.put(names[0], value.get("x"), value.get("y"))
        if any(size != sizes[0] for size in sizes):
            raise ValueError("its points were marked on images of different sizes")
        image = _address(data, to_name)
        yield Hand(image, sizes[0] if sizes else None, marks.points, tuple(marks.others), percent=True)


def _address(data: dict[str, Any], to_name: str) -> str:
    """The image that an annotation's results belong to, from the data of a task.

    Results name the image's tag. The labelling's configuration, which is not exported, maps it to a key of the data.
    Templates use the same word for both, or call the key "image"; otherwise there must be exactly one image.
    """
    texts = {key: value for key, value in data.items() if isinstance(value, str) and value.strip()}
    for key in (to_name, *_USUAL_KEYS):
        if key in texts:
            return texts[key]
    images = {key: value for key, value in texts.items() if value.lower().split("?")[0].endswith(SUFFIXES)}
    images = images or {key: value for key, value in texts.items() if "/" in value} or texts
    if len({guess(value) for value in images.values()}) == 1:
        return next(iter(images.values()))
    if not images:
        raise ValueError("no image in its 'data'")
    raise ValueError(
        f"its image could be any of {', '.join(map(shown, images))} in its 'data'. "
        f"Rename the key of the marked image to {shown(to_name) if to_name else 'image'}"
    )
