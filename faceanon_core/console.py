"""What the command line says to people."""

from __future__ import annotations

import sys


def say(text: str) -> None:
    """What was asked for: to standard output."""
    sys.stdout.write(text + "\n")


def warn(text: str) -> None:
    """What went wrong or is left out: to standard error."""
    sys.stderr.write(text + "\n")
