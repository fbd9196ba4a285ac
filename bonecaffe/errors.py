"""What can go wrong for a reason the user can fix. One subclass per stage.

The command line prints the text of such an error and exits 1; anything else is a bug and exits 3
with its traceback in a file. A message states what went wrong, where, the evidence, and what to do next.
"""

from __future__ import annotations


class BonecaffeError(Exception):
    """An expected failure: its text is all that the user needs to see."""


class FilesError(BonecaffeError):
    """A file that is a link, a device or too large, or a folder that cannot be locked."""


class RecipeError(BonecaffeError):
    """A recipe that cannot be read, or a departure without a reason."""


class RunError(BonecaffeError):
    """A run folder that is in use, incomplete, or not a run."""


class CaffeError(BonecaffeError):
    """Caffe is missing, or one of its programs failed."""


class CasesError(BonecaffeError):
    """The table of ages, or the split drawn from it."""


class PointsError(BonecaffeError):
    """The table of reference points."""


class ImageError(BonecaffeError):
    """An image that cannot be read, or is not a grey radiograph."""


class PrepareError(BonecaffeError):
    """Cropping, equalizing, packing or auditing."""


class WeightsError(BonecaffeError):
    """A caffemodel that is truncated, of another network, or not one."""


class ModelError(BonecaffeError):
    """A net that bonecaffe cannot compute or convert, or a model file that is damaged or not one."""


class PreflightError(BonecaffeError):
    """Something that would make Caffe abort, or do silently the wrong thing."""


class TrainError(BonecaffeError):
    """A training that could not start, or did not finish."""


class PredictError(BonecaffeError):
    """A prediction that cannot be made."""


class EvaluateError(BonecaffeError):
    """Predictions and truths that cannot be compared."""


class AnnotateError(BonecaffeError):
    """Marking in the browser: a table in use, a change that cannot be accepted."""


class LocateError(BonecaffeError):
    """A locator that cannot be used, or could not be trained."""


class RepeatError(BonecaffeError):
    """A repeat over seeds that could not be completed."""


class RepeatInterrupted(RepeatError):
    """A repeat stopped by the user; it continues when called again."""


class Problems:
    """Collects what is wrong with many rows, so that one run names them all.

    >>> problems = Problems()
    >>> problems.add("row 3: no age")
    >>> problems.raise_if_any(CasesError, "ages.csv", "Fix or delete these rows.")
    Traceback (most recent call last):
    bonecaffe.errors.CasesError: ages.csv: row 3: no age. Fix or delete these rows.
    """

    SHOWN = 10

    def __init__(self) -> None:
        self.found: list[str] = []

    def add(self, problem: str) -> None:
        """Add one problem; its text names the row or file."""
        self.found.append(problem)

    def raise_if_any(self, error: type[BonecaffeError], where: str, remedy: str) -> None:
        """Raise ``error`` naming up to ten problems, or return when there are none."""
        if not self.found:
            return
        if len(self.found) == 1:
            raise error(f"{where}: {self.found[0]}. {remedy}")
        shown = "".join(f"\n  {line}" for line in self.found[: self.SHOWN])
        rest = len(self.found) - self.SHOWN
        more = f"\n  … and {rest} more" if rest > 0 else ""
        raise error(f"{where}: {len(self.found)} problems:{shown}{more}\n{remedy}")
