"""How a GPU computes: with TF32 or not, with which of cuDNN's algorithms. Three variables; each training records them.

The paper's GPU, a GTX 1060, had no TF32: a multiplication keeps 10 bits of 23. On newer GPUs cuDNN's convolutions use
it unless they are told not to, so bonecaffe tells them. The variables about algorithms are read by the Caffe that
bonecaffe builds (scripts/caffe_cuda.h), not by another one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

from bonecaffe.errors import CaffeError

TF32 = "BONECAFFE_TF32"
CUDNN = "BONECAFFE_CUDNN"
EXCLUDE = "BONECAFFE_CUDNN_EXCLUDE"
_CUDA = "NVIDIA_TF32_OVERRIDE"
UNKNOWN = "algorithms of its own choice"
"""In the records, how a Caffe that bonecaffe did not build chooses cuDNN's algorithms."""
_EXCLUDED = re.compile(r"(?:(?:forward|filter|data):\d+(?:,\d+)*(?: +|$))*")


@dataclass(frozen=True)
class Arithmetic:
    """The settings of a training on a GPU."""

    tf32: bool = False
    fastest: bool = False
    """cuDNN's fastest algorithms, not only those that give the same sum each time."""
    excluded: str = ""
    """Algorithms that are not used, such as "forward:6 filter:0,3"."""

    @classmethod
    def read(cls, environment: Mapping[str, str] = os.environ) -> Arithmetic:
        """The settings of an environment; CaffeError, with the variable, for a value that is none.

        >>> Arithmetic.read({"BONECAFFE_TF32": "1"})
        Arithmetic(tf32=True, fastest=False, excluded='')
        """
        tf32, cudnn = environment.get(TF32) or "0", environment.get(CUDNN) or "deterministic"
        if tf32 not in ("0", "1"):
            raise CaffeError(f"{TF32}={tf32}: expected 1 (TF32 allowed) or 0 (the default).")
        if cudnn not in ("deterministic", "fast"):
            raise CaffeError(f"{CUDNN}={cudnn}: expected fast or deterministic (the default).")
        excluded = " ".join((environment.get(EXCLUDE) or "").split())
        if not _EXCLUDED.fullmatch(excluded):
            raise CaffeError(
                f"{EXCLUDE}={excluded}: expected numbers by direction, such as forward:6 filter:0,3 data:0."
            )
        return cls(tf32 == "1", cudnn == "fast", excluded)

    def apply(self, environment: MutableMapping[str, str]) -> None:
        """Set the variable that CUDA's libraries read, whatever it was: a training records what was used."""
        if self.tf32:
            environment.pop(_CUDA, None)
        else:
            environment[_CUDA] = "0"

    def words(self, own_build: bool = True) -> str:
        """The settings in words, for the records; those about algorithms only if bonecaffe built Caffe.

        >>> Arithmetic().words(), Arithmetic(True, True, "forward:6").words()
        ('float32; deterministic algorithms', 'TF32; fastest algorithms; without forward:6')
        >>> Arithmetic(fastest=True).words(own_build=False)
        'float32; algorithms of its own choice'
        """
        parts = ["TF32" if self.tf32 else "float32"]
        if not own_build:
            return "; ".join([*parts, UNKNOWN])
        parts += [
            "fastest algorithms" if self.fastest else "deterministic algorithms",
            *([f"without {self.excluded}"] if self.excluded else []),
        ]
        return "; ".join(parts)
