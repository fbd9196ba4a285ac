"""Under ``make`` a user sets variables, not options: an error that names an option also names its variable."""

from __future__ import annotations

import os
import re

VARIABLES = {
    "--images": "IMAGES=",
    "--ages": "AGES=",
    "--test-ages": "TEST_AGES=",
    "--split": "SPLIT=",
    "--ages-in-years": "AGES_IN_YEARS=1",
    "--ages-in-months": "AGES_IN_MONTHS=1",
    "--points": "POINTS=",
    "--recipe": "RECIPE=",
    "--train": "TRAIN=",
    "--test": "TEST=",
    "--seed": "SEED=",
    "--labels": "LABELS=",
    "--origin": "ORIGIN=",
    "--weights": "WEIGHTS=",
    "--gpu": "GPU=",
    "--cpu": "GPU=cpu",
    "--resume": "RESUME=1",
    "--suggest": "SUGGEST=",
    "--sheet": "SHEET=",
    "--locator": "LOCATOR=",
    "--dicom-id": "DICOM_ID=",
}
"""The Makefile's variable for each option that one of its targets passes on."""
IS_UNDER_MAKE = "BONECAFFE_MAKE"
"""Environment variable that the Makefile sets for the commands it calls."""
_OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
_STEP = re.compile(r": bonecaffe (?:prepare|train) ")
"""How an error about a run without a preparation or a training begins its remedy."""


def explained(message: str) -> str:
    """The message, plus the variables of the options and of the run it names if the Makefile called bonecaffe."""
    if not os.environ.get(IS_UNDER_MAKE):
        return message
    named = {option: VARIABLES[option] for option in _OPTION.findall(message) if option in VARIABLES}
    if not named:
        return f"{message} Under make, give RUN= for another run." if _STEP.search(message) else message
    listed = ", ".join(f"{variable} for {option}" for option, variable in named.items())
    return f"{message} Under make, give {listed}."
