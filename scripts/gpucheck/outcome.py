"""What a part of the check ends with: a result, or an exception with the reason why there is none."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Dict

OK, FAILED, SKIPPED = "ok", "FAILED", "skipped"


class CheckError(Exception):
    """The check cannot start or continue; its text is for the user."""


class Failed(Exception):
    """A part found a fault; ``figures`` is what it had measured before."""

    def __init__(self, reason: str, figures: Dict[str, Any] | None = None) -> None:
        super().__init__(reason)
        self.figures = figures or {}


class Skip(Exception):
    """A part cannot be run here; its text is the reason."""


@dataclass
class Result:
    """One part's outcome: ``status`` is ok, FAILED or skipped; figures are JSON values with their unit in the name."""

    status: str
    summary: str
    figures: Dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
