"""Import the hands of many files of other tools, and list everything that was left out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from bonecaffe.errors import ImageError, PointsError, Problems
from bonecaffe.hands import ids
from bonecaffe.hands.formats.marks import Kind, LeftOut, Unmarked, left_out, listed, shown
from bonecaffe.hands.formats.names import ImageNames
from bonecaffe.hands.formats.parsing import SUFFIXES, parse
from bonecaffe.hands.formats.placing import place
from bonecaffe.hands.images import find_images
from bonecaffe.hands.reference_points import ReferencePoints

REMEDY = "Correct these hands in the tool that marked them, and import again."
REMEDY_INCOMPLETE = f"{REMEDY} --skip-incomplete leaves out hands that lack points or their image."


@dataclass
class Imported:
    """The content of other tools' files: the hands by id, notes on some of them, and what was left out.

    An error in one hand does not affect the others. A caller that uses ``hands`` must look at ``errors`` too.
    """

    hands: list[ReferencePoints] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    notes: list[tuple[str, str]] = field(default_factory=list)
    """The id of a hand, and what was done to it, as a phrase that follows a number of hands."""
    skip_incomplete: bool = False

    @property
    def errors(self) -> list[LeftOut]:
        """What should have given a hand but did not; incomplete hands too, unless they may be skipped."""
        accepted = (Kind.UNMARKED, Kind.INCOMPLETE) if self.skip_incomplete else (Kind.UNMARKED,)
        return [one for one in self.left_out if one.kind not in accepted]

    @property
    def skipped(self) -> list[LeftOut]:
        """Incomplete hands that are not errors, because they may be skipped."""
        return [one for one in self.left_out if self.skip_incomplete and one.kind is Kind.INCOMPLETE]

    @property
    def remedy(self) -> str:
        """What to do about the errors."""
        return REMEDY_INCOMPLETE if any(one.kind is Kind.INCOMPLETE for one in self.errors) else REMEDY

    def counts(self) -> str:
        """What was left out, counted by reason, with evidence for what is not listed one by one; may be empty."""
        by_reason: dict[str, list[LeftOut]] = {}
        for one in self.left_out:
            by_reason.setdefault(one.reason, []).append(one)
        counted = []
        for reason, all_of_it in by_reason.items():
            evidence = listed(one.detail for one in all_of_it if one.detail and one.kind is Kind.UNMARKED)
            counted.append(f"{len(all_of_it)} {reason}{f' ({evidence})' if evidence else ''}")
        return ", ".join(counted)

    def noted(self) -> list[str]:
        """The notes, counted, each with the first few ids."""
        by_note: dict[str, list[str]] = {}
        for hand_id, note in self.notes:
            by_note.setdefault(note, []).append(hand_id)
        return [
            f"{len(noted)} hand{'s' if len(noted) > 1 else ''} {note}: {ids.listed(noted)}"
            for note, noted in by_note.items()
        ]


def read(sources: Iterable[Path], images: Path | None = None, skip_incomplete: bool = False) -> Imported:
    """Import the hands of annotation files, or of folders of them.

    With ``images``, the folder of radiographs, names and sizes come from the images: points that were marked in another
    size of the same shape are scaled. Raises PointsError when a source is missing, and when no hand could be imported;
    ImageError when the folder of images cannot be used.
    """
    sources = list(sources)
    names = ImageNames(find_images(images)) if images is not None else None
    imported = Imported(skip_incomplete=skip_incomplete)
    placed: dict[str, list[_Placed]] = {}
    for path in _files(sources):
        try:
            reading = parse(path)
        except ValueError as error:
            imported.left_out.append(replace(left_out(error), path=path))
            continue
        imported.left_out += [replace(one, path=path) for one in reading.left_out]
        for hand in reading.hands:
            try:
                points, notes = place(hand, names)
            except (Unmarked, ValueError, ImageError) as error:
                imported.left_out.append(replace(left_out(error, hand.where), path=path))
                continue
            placed.setdefault(points.id, []).append(_Placed(points, notes, path, hand.where))
    for _, found in sorted(placed.items()):
        _keep_one(imported, found)
    if not imported.hands:
        where = ", ".join(shown(str(source), at_most=1000) for source in sources)
        problems = Problems()
        for one in imported.errors:
            problems.add(str(one))
        problems.raise_if_any(PointsError, f"no hand imported from {where}", f"{imported.remedy} Nothing was written.")
        raise PointsError(f"{where}: no marked hands ({imported.counts() or 'nothing in these files'}).")
    return imported


class _Placed(NamedTuple):
    """A hand, and where it was found."""

    hand: ReferencePoints
    notes: list[str]
    path: Path
    where: str


def _keep_one(imported: Imported, found: list[_Placed]) -> None:
    """Import the hand of an image. If several hands differ, import none, because it is unclear which is meant."""
    first, *others = found
    if all(_is_same(other.hand, first.hand) for other in others):
        imported.hands.append(first.hand)
        imported.notes += [(first.hand.id, note) for note in first.notes]
        for other in others:
            imported.left_out.append(
                LeftOut(Kind.UNMARKED, "identical to one already read", other.where, path=other.path)
            )
        return
    for one in found:
        other = next(other for other in found if other is not one)
        path = "" if other.path == one.path else shown(str(other.path), at_most=1000)
        elsewhere = ": ".join(part for part in (path, other.where) if part)
        detail = f"image {shown(one.hand.id)} is marked {len(found)} times, also in {elsewhere}; none is imported"
        reason = "of images that are marked several times"
        imported.left_out.append(LeftOut(Kind.WRONG, reason, one.where, detail, one.path))


def _is_same(a: ReferencePoints, b: ReferencePoints) -> bool:
    """Whether two markings of an image differ by no more than the rounding to a tenth of a pixel."""
    pairs = zip(a.points, b.points, strict=True)
    return (a.width, a.height) == (b.width, b.height) and all(
        abs(p[0] - q[0]) < 0.15 and abs(p[1] - q[1]) < 0.15 for p, q in pairs
    )


def _files(sources: Iterable[Path]) -> list[Path]:
    """The annotation files of the sources, each once; PointsError when a source is missing, or there are none."""
    files: list[Path] = []
    for source in sources:
        if source.is_dir():
            files += sorted(p for p in source.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
        elif source.exists():
            files.append(source)
        else:
            raise PointsError(f"{source}: no such file or folder.")
    if not files:
        where = ", ".join(map(str, sources))
        raise PointsError(f"{where}: no annotation files ({', '.join(SUFFIXES)}) here.")
    return list(dict.fromkeys(files))
