"""Lists of names as people write them, on the command line and in the widgets of nodes."""

from __future__ import annotations


def split_names(text: str) -> tuple[str, ...]:
    """The names in a list with commas; white space around them does not count."""
    return tuple(name.strip() for name in text.split(",") if name.strip())
