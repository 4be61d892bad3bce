"""How far one picture of a face is a copy of another, by its fine structure; no network is asked."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from .geometry import FloatArray

NEAR_COPY = 0.8  # likeness from which a face counts as a copy of the original; measured in docs/PRIVACY.md
BLURRED_COPY = 0.9  # the same for the likeness to a blurred original
_FINE_PX = 64  # side of what is left of a crop
_BLURS = (0.7, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # standard deviations, of `_FINE_PX`, that the source is blurred with
_DETAIL_SIGMA = 2.0  # of `_FINE_PX`: coarser structure is light and skin, which a new face shares with the old one
_RIM = 5  # of `_FINE_PX`: what is nearer than half of it to what stays does not count
_ENOUGH = 0.5  # of the outline that must be replaced for `replaced_likeness`


def likeness(before: NDArray[np.uint8], after: NDArray[np.uint8], outline: FloatArray) -> float:
    """How far one crop is a copy of the other inside an outline: correlation of their fine structure, -1..1.

    A copy keeps it when it is compressed, blurred, brightened or recoloured. A flat area is like nothing: 0.

    Args:
        before, after: (S, S, 3) uint8 RGB.
        outline: (N, 2) xy in pixels of the crops.
    """
    inside = _inside(before, outline)
    return _correlation(_fine_structure(before)[inside], _fine_structure(after)[inside])


def blurred_likeness(before: NDArray[np.uint8], after: NDArray[np.uint8], outline: FloatArray) -> float:
    """`likeness` to the blurred original: the highest over several strengths of blur."""
    inside = _inside(before, outline)
    new = _fine_structure(after)[inside]
    return max(_correlation(_fine_structure(before, blur)[inside], new) for blur in _BLURS)


def replaced_likeness(before: NDArray[np.uint8], after: NDArray[np.uint8], outline: FloatArray, replaced: Tensor) -> float:
    """`likeness` of what was replaced alone, without the rim, where what stays shows through.

    Args:
        replaced: (1, 1, S, S), 1 where a new face was to take the old one's place.
    Returns: 0 where too little of the outline was replaced to say anything, as with single regions.
    """
    new = (replaced[0, 0].cpu().numpy() > 0).astype(np.float32)
    whole = cv2.resize(new, (_FINE_PX, _FINE_PX), interpolation=cv2.INTER_AREA) > 0.999
    rim = np.ones((_RIM, _RIM), np.uint8)
    inside = _inside(before, outline)
    counted = inside & (cv2.erode(whole.astype(np.uint8), rim) > 0)
    if counted.sum() < _ENOUGH * inside.sum():
        return 0.0
    return _correlation(_fine_structure(before)[counted], _fine_structure(after)[counted])


def _inside(crop: NDArray[np.uint8], outline: FloatArray) -> NDArray[np.bool_]:
    scale = _FINE_PX / crop.shape[0]
    inside = np.zeros((_FINE_PX, _FINE_PX), np.uint8)
    cv2.fillConvexPoly(inside, cv2.convexHull(np.round(outline * scale).astype(np.int32)), 1)
    return inside > 0


def _correlation(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    first, second = first - first.mean(), second - second.mean()
    lengths = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float(first @ second) / lengths if lengths > 1e-3 else 0.0


def _fine_structure(pixels: NDArray[np.uint8], blur: float = 0.0) -> NDArray[np.float32]:
    gray = cv2.cvtColor(cv2.resize(pixels, (_FINE_PX, _FINE_PX), interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
    values = gray.astype(np.float32)
    if blur:
        values = np.asarray(cv2.GaussianBlur(values, (0, 0), blur), np.float32)
    detail: NDArray[np.float32] = values - cv2.GaussianBlur(values, (0, 0), _DETAIL_SIGMA)
    return detail
