"""What the guidance did at every step, as a picture."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from .errors import InputError

_LEFT_PX, _RIGHT_PX, _TITLE_PX, _GAP_PX = 12, 12, 30, 14
_COLOURS = {"toward": (30, 90, 220), "away": (200, 60, 60), "identity": (150, 50, 180), "pose": (20, 140, 90)}
_GREY, _BLACK = (120, 120, 120), (0, 0, 0)


def draw_chart(
    readout: list[dict[str, float]], width_px: int = 768, panel_px: int = 150, whose: str = ""
) -> NDArray[np.uint8]:
    """One panel over the steps for every loss, and one for sigma; each with a scale of its own, from 0.

    Args:
        readout: per step "sigma" and the losses, which are missing where a term did not act.
        whose: put before every panel's title, e.g. "face 1, ".
    Returns: (H, W, 3) uint8 RGB.
    Raises: InputError if there is no step.
    """
    if not readout:
        raise InputError("there is nothing to draw: the sampler has made no step")
    names = list(dict.fromkeys(name for step in readout for name in step if name != "sigma"))
    panels = []
    for name in [*names, "sigma"]:
        panel, title = _panel(name, [step.get(name) for step in readout], width_px, panel_px)
        cv2.putText(panel, whose + title, (_LEFT_PX, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.5, _BLACK, 1, cv2.LINE_AA)
        panels.append(panel)
    return np.vstack(panels)


def _panel(name: str, values: list[float | None], width: int, height: int) -> tuple[NDArray[np.uint8], str]:
    """The curve, and what its title says of its ends."""
    panel = np.full((height, width, 3), 255, np.uint8)
    known = [(index, value) for index, value in enumerate(values) if value is not None and math.isfinite(value)]
    low = min(0.0, *(value for _, value in known)) if known else 0.0
    high = max(1e-9, *(value for _, value in known)) if known else 1.0
    bottom = height - _GAP_PX
    across, up = (width - _LEFT_PX - _RIGHT_PX) / max(1, len(values) - 1), (bottom - _TITLE_PX) / (high - low)
    points = np.array([(_LEFT_PX + i * across, bottom - (value - low) * up) for i, value in known]).reshape(-1, 1, 2)
    zero = round(bottom + low * up)
    cv2.line(panel, (_LEFT_PX, zero), (width - _RIGHT_PX, zero), _GREY, 1, cv2.LINE_AA)
    colour = _COLOURS.get(name, _GREY)
    cv2.polylines(panel, [points.round().astype(np.int32)], False, colour, 2, cv2.LINE_AA)
    for x, y in points[:, 0].round().astype(int):
        cv2.circle(panel, (int(x), int(y)), 3, colour, -1, cv2.LINE_AA)
    first, last = (f"{known[end][1]:.3g}" for end in (0, -1)) if known else ("-", "-")
    title = f"{name}: {first} at step {known[0][0] + 1 if known else 0} to {last} at step {known[-1][0] + 1 if known else 0}"
    return panel, title
