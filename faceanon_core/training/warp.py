"""Training faces of other proportions: the picture is bent as `change_proportions` moves the features.

The drawings that the model is given when it anonymizes show proportions that few people have. Without such pictures in
the training it meets them for the first time then, and draws blotches.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.interpolate import RBFInterpolator

from .. import geometry
from ..geometry import FloatArray
from ..proportions import change_proportions

_ANCHORS = sorted({
    *geometry.FACE_OVAL, *geometry.RIGHT_EYE, *geometry.LEFT_EYE, *geometry.RIGHT_IRIS, *geometry.LEFT_IRIS,
    *geometry.RIGHT_BROW, *geometry.LEFT_BROW, *geometry.NOSE_RIDGE, *geometry.NOSE_BASE, *geometry.LIPS_OUTER,
    *geometry.LIPS_INNER,
})  # fmt: skip
_GRID = 33  # points per side at which the bending is computed
_TRIES = 3
_FOLDED = 0.25  # area of a bent pixel below which the picture counts as folded


def bend_proportions(
    pixels: NDArray[np.uint8], landmarks: FloatArray, seed: int, amount: float
) -> tuple[NDArray[np.uint8], FloatArray]:
    """A face crop bent to other proportions, and its landmarks.

    Args:
        pixels: (S, S, 3) uint8 RGB.
        landmarks: (478, 2) xy in crop pixels.
        seed, amount: as of `change_proportions`; halved while the picture would fold over itself.
    """
    side = len(pixels)
    everywhere = torch.ones(1, 1, side, side)
    edge = np.linspace(0, side - 1, 5)
    frame = np.array([(x, y) for x in edge for y in edge if x in edge[[0, -1]] or y in edge[[0, -1]]], np.float32)
    for attempt in range(_TRIES):
        moved = change_proportions(landmarks, everywhere, seed, amount * 0.5**attempt)
        before = np.concatenate([landmarks[_ANCHORS], frame])
        after = np.concatenate([moved[_ANCHORS], frame])
        shift = _field(after, before - after, side)
        if _smallest_area(shift, side) > _FOLDED:
            rows, columns = np.mgrid[:side, :side].astype(np.float32)
            bent = cv2.remap(
                pixels, columns + shift[..., 0], rows + shift[..., 1], cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT
            )
            follow = RBFInterpolator(before, after - before, smoothing=1.0)
            return bent, (landmarks + follow(landmarks)).astype(np.float32)
    return pixels, landmarks


def _field(places: FloatArray, shifts: FloatArray, side: int) -> NDArray[np.float32]:
    """(S, S, 2) thin-plate spline through the shifts at the places."""
    line = np.linspace(0, side - 1, _GRID)
    grid = np.stack(np.meshgrid(line, line), axis=-1).reshape(-1, 2)
    coarse = RBFInterpolator(places, shifts, smoothing=1.0)(grid).reshape(_GRID, _GRID, 2).astype(np.float32)
    # cv2.resize aligns pixel areas, the grid aligns corners: sample it where the pixels lie
    rows, columns = np.mgrid[:side, :side].astype(np.float32) * ((_GRID - 1) / (side - 1))
    return np.asarray(cv2.remap(coarse, columns, rows, cv2.INTER_CUBIC), np.float32)


def _smallest_area(shift: NDArray[np.float32], side: int) -> float:
    down, right = np.gradient(shift, axis=(0, 1))
    return float(((1 + right[..., 0]) * (1 + down[..., 1]) - right[..., 1] * down[..., 0]).min())
