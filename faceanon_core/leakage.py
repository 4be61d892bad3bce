"""Warnings that state what our own attacks measured (docs/EVALUATION.md).

The figures are `assets/leakage.json`, as `faceanon evaluate --attacks regions,start` writes it.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from .parsing import region_labels
from .regions import RegionChoice
from .weights import ASSETS

NOTHING = "nothing kept"  # the line of the table with which the others are compared
FILE = "leakage.json"


@cache
def measured_leakage() -> dict[str, Any]:
    """What was measured: "network", "faces", "searched_among", "kept" with one entry per region, "start" with one per share
    of the noise schedule that sampling began at.

    An entry has the mean "similarity" to the source, how many faces were "found" at rank 1 and how many were the
    "same_person" at 1% false accepts.
    """
    table: dict[str, Any] = json.loads((ASSETS / FILE).read_text("utf-8"))
    return table


def kept_region_warning(choice: RegionChoice) -> str | None:
    """One sentence on what the parts of a face that stay tell about the person; None if the whole face is replaced.

    Eyeglasses were not measured and do not count.

    Raises: UnknownNameError for an unknown region.
    """
    face = region_labels(("face",)) - {"eyeglasses"}
    kept = (region_labels(choice.keep) & face) | (face - region_labels(choice.regenerate))
    if not kept:
        return None
    table = measured_leakage()
    lines = table["kept"]
    told = [f"with the {name} kept {_say(lines[name], table)}" for name in lines if _covers(name, kept)]
    told.append(f"with {NOTHING} {_say(lines[NOTHING], table)}")
    measured = f" Measured on the demo model with {table['network']}: {'; '.join(told)}."
    return (
        f"parts of the face stay ({', '.join(sorted(kept))}), and what stays can identify the person; several parts tell "
        f"more than each alone.{measured if len(told) > 1 else ''}"
    )


def late_start_warning(denoise: float) -> str | None:
    """One sentence on what sampling from less than all of the noise hands on; None if it starts from all of it.

    Args:
        denoise: share of the noise schedule that is run, 0..1.
    """
    table = measured_leakage()
    shares = sorted(map(float, table["start"]))
    if denoise >= 1:
        return None
    nearest = min(shares[:-1], key=lambda share: abs(share - denoise))
    return (
        f"denoise {denoise:g} starts from the source with less than all of the noise, and what is left of it can show the "
        f"person. Measured on the demo model with {table['network']}: begun at {nearest:.0%} of the schedule "
        f"{_say(table['start'][f'{nearest:g}'], table)}; at 100% {_say(table['start']['1'], table)}."
    )


def _covers(name: str, kept: frozenset[str]) -> bool:
    return name != NOTHING and bool(region_labels((name,)) & kept)


def _say(line: dict[str, Any], table: dict[str, Any]) -> str:
    return (
        f"{line['found']} of {table['faces']} results were traced to their source among {table['searched_among']} "
        f"(mean similarity {line['similarity']:.2f})"
    )
