"""List file -> convert_imageset -> audited LMDB (paper II.1).

convert_imageset reads a label with ``atoi`` (126.9 becomes 126), logs and skips an image that it cannot read, and still
exits 0. So its output is not trusted: the LMDB is read back, record by record.
"""

from __future__ import annotations

import contextlib
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from bonecaffe.caffe import lmdb, programs
from bonecaffe.errors import CaffeError, PrepareError
from bonecaffe.files import follow_umask, remove, sha256
from bonecaffe.hands.cases import Case
from bonecaffe.recipe import Preparation


def list_text(cases: Sequence[Case], labels: str = "whole_months") -> str:
    """The list that convert_imageset reads: one line ``relative/path label`` per case, in the order of training.

    Raises PrepareError for a fractional age when ``labels`` is whole_months, because atoi would cut it silently.
    """
    if labels == "whole_months":
        check_whole_months(cases)
    return "".join(f"{case.id}.png {label(case)}\n" for case in cases)


def label(case: Case) -> int:
    """The age as convert_imageset can pack it: whole months, halves up."""
    return math.floor(case.boneage_months + 0.5)


def key(number: int, case: Case) -> str:
    """The key of a record, as convert_imageset writes it."""
    return f"{number:08d}_{case.id}.png"


def check_whole_months(cases: Sequence[Case], where: str = "labels") -> None:
    """Refuse fractional ages, with ``where`` they are, their number, the first three and the two remedies."""
    fractional = [case for case in cases if case.boneage_months != int(case.boneage_months)]
    if fractional:
        shown = ", ".join(f"{case.id} ({case.boneage_months:g})" for case in fractional[:3])
        raise PrepareError(
            f"{where}: {len(fractional)} of {len(cases)} ages are not whole months: {shown}"
            f"{', …' if len(fractional) > 3 else ''}. convert_imageset would cut the fraction off silently. "
            "Give --labels round to train on rounded ages, or --labels exact to keep them in a separate database; "
            "the report lists either as a departure. Evaluation uses the exact ages in any case."
        )


def write_labels(target: Path, cases: Sequence[Case]) -> None:
    """Write exact ages as an LMDB, in the order of the images and under their keys."""
    lmdb.write_labels(target, [(key(number, case), case.boneage_months) for number, case in enumerate(cases)])


class Conversion:
    """A convert_imageset that is running: the paper's command, ``-resize_height H -resize_width W FOLDER/ LIST LMDB``.

    PrepareError when the LMDB already exists, because convert_imageset would abort.
    """

    def __init__(self, image_folder: Path, list_file: Path, target: Path, preparation: Preparation) -> None:
        if target.exists():
            raise PrepareError(f"{target}: already exists; convert_imageset would abort. Remove it and try again.")
        self._target = target
        self._call = programs.Call("convert_imageset", command(image_folder, list_file, target, preparation))

    def finish(self) -> None:
        """Wait for its end. PrepareError when it failed; the half-written LMDB is removed then."""
        try:
            self._call.finish()
        except CaffeError as error:
            remove(self._target)
            free = shutil.disk_usage(self._target.parent).free
            full = f" The disk is full ({free / 1e6:.0f} MB free); make room and try again." if free < 50e6 else ""
            raise PrepareError(f"imageset: {self._target.name}: {error}{full}") from error
        follow_umask(self._target)  # Caffe makes the folder with mode 0744, which nobody else can enter

    def stop(self) -> None:
        """Stop it at once, if it is still running."""
        self._call.stop()


def convert(image_folder: Path, list_file: Path, target: Path, preparation: Preparation) -> None:
    """Run the paper's command to its end; see `Conversion`."""
    conversion = Conversion(image_folder, list_file, target, preparation)
    try:
        conversion.finish()
    finally:
        conversion.stop()


def command(image_folder: Path, list_file: Path, target: Path, preparation: Preparation) -> list[str]:
    """The arguments of the paper's command. The folder ends in a slash, because Caffe joins without one."""
    size = [f"-resize_height={preparation.height}", f"-resize_width={preparation.width}"]
    return [*size, f"{image_folder}/", str(list_file), str(target)]


def audit(target: Path, cases: Sequence[Case], images: Mapping[str, str], preparation: Preparation) -> int:
    """Read an LMDB back and compare it with what was listed; return the number of records.

    Every case must have a record under its key, in order, with its label, as 3 equal channels of height x width whose
    pixels have the SHA-256 in ``images``. Raises PrepareError naming the first difference.
    """
    expected_shape = (3, preparation.height, preparation.width)
    count, stray = 0, None
    with contextlib.closing(lmdb.records(target)) as packed:
        for name, stored, pixels in packed:
            if count == len(cases) or name != key(count, cases[count]):
                stray = name
                break
            case = cases[count]
            where = f"imageset: {target.name}: {case.id}"
            if stored != label(case):
                raise PrepareError(f"{where} has label {stored}, but its age is {case.boneage_months:g}.")
            if pixels.shape != expected_shape:
                raise PrepareError(f"{where} is {pixels.shape}, not {expected_shape}.")
            grey = np.array_equal(pixels[0], pixels[1]) and np.array_equal(pixels[0], pixels[2])
            if not grey or sha256(pixels[0].tobytes()) != images[case.id]:
                raise PrepareError(f"{where}: its pixels differ from the prepared ones.")
            count += 1
    if stray is not None or count != len(cases):
        raise _incomplete(target, cases, stray)
    return count


def _incomplete(target: Path, cases: Sequence[Case], stray: str | None) -> PrepareError:
    """The error for an LMDB that does not hold the listed cases in order."""
    keys = [name for name, _, _ in lmdb.records(target)]
    packed = {name.split("_", 1)[1] for name in keys if "_" in name}
    missing = [case.id for case in cases if f"{case.id}.png" not in packed]
    message = f"imageset: {target.name} holds {len(keys)} records for {len(cases)} listed cases"
    if missing:
        return PrepareError(
            f"{message}; first missing: {missing[0]}. convert_imageset skips unreadable files: "
            f"repair images/{missing[0]}.png or remove it from the list."
        )
    return PrepareError(f"{message}; {stray or 'its end'} is where another record was expected.")
