"""The command line: verbs, each one call. Nothing heavy is imported before a verb runs."""

from bonecaffe.cli import hands, machine, pipeline, review  # noqa: F401  each adds its verbs, in the order of the work
from bonecaffe.cli.group import main

__all__ = ["main"]
