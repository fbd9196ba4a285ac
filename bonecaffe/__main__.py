"""``python -m bonecaffe`` is the command ``bonecaffe``."""

from bonecaffe.cli import main

main(prog_name="bonecaffe")
