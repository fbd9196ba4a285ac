"""The command line: each verb is one call. Nothing slow is imported before a verb runs."""

from bonecaffe.cli import hands, machine, pipeline, review  # noqa: F401  each adds its verbs
from bonecaffe.cli.group import main

__all__ = ["main"]
