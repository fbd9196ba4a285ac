"""`bonecaffe annotate` as a process of its own, for the tests of its page and of its defences."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path


class Serving:
    """`bonecaffe annotate` as a process of its own."""

    def __init__(self, images: Path, table: Path, *options: str) -> None:
        command = [
            sys.executable,
            "-u",
            "-m",
            "bonecaffe",
            "annotate",
            str(images),
            "--points",
            str(table),
            "--no-open",
            *options,
        ]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.said = ""
        for line in self.process.stdout:
            self.said += line
            if line.startswith("Open "):
                self.address = line.split()[1]
                return
        raise AssertionError(self.said)

    def kill(self, number=signal.SIGKILL):
        self.process.send_signal(number)
        self.process.wait(60)
