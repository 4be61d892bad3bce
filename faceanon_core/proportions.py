"""Other proportions for the new face: where eyes, brows, nose and mouth sit, and how large they are.

The sketch would otherwise hand the source's proportions on, and face recognition knows people by them. Pose, expression
and gaze stay: each feature is moved and stretched as a whole, along the face's own axes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from . import geometry
from .geometry import FloatArray, eye_centers

# One unit of change, in inter-ocular distances (moves) or as a share (stretches)
_EYES_APART, _EYES_DOWN, _EYE_SIZE = 0.10, 0.08, 0.20
_BROWS_DOWN = 0.12
_NOSE_DOWN, _NOSE_WIDTH = 0.12, 0.28
_MOUTH_DOWN, _MOUTH_WIDTH = 0.14, 0.24
_COUNT = 8


@dataclass(frozen=True)
class _Feature:
    points: tuple[int, ...]
    right: float  # move towards the subject's left, inter-ocular distances
    down: float
    wide: float = 0.0  # growth of the width, a share
    high: float = 0.0


def change_proportions(landmarks: FloatArray, core: Tensor, seed: int, amount: float = 1.0) -> FloatArray:
    """Move and stretch the features that are regenerated; kept ones stay.

    Args:
        landmarks: (478, 2) xy in pixels of a square crop.
        core: (1, 1, S, S), 1 = regenerate. A feature is changed only if it lies in there before and after.
        seed: the same seed changes every face alike, so that a person looks the same in every frame.
        amount: 1 moves the features by about 8% of the inter-ocular distance on average; 0 changes nothing.
    """
    if amount == 0:
        return landmarks
    # all changes of one size, in a random direction: no seed may leave a face as it was
    direction = np.random.default_rng(seed).normal(size=_COUNT)
    draw = amount * direction * np.sqrt(_COUNT) / np.linalg.norm(direction)
    apart, eyes_down, eye_size, brows_down, nose_down, nose_width, mouth_down, mouth_width = map(float, draw)
    sideways, size = apart * _EYES_APART, eye_size * _EYE_SIZE
    groups = (
        (
            _Feature(geometry.RIGHT_EYE + geometry.RIGHT_IRIS, -sideways, eyes_down * _EYES_DOWN, size, size),
            _Feature(geometry.LEFT_EYE + geometry.LEFT_IRIS, sideways, eyes_down * _EYES_DOWN, size, size),
        ),
        (
            _Feature(geometry.RIGHT_BROW, -sideways, brows_down * _BROWS_DOWN),
            _Feature(geometry.LEFT_BROW, sideways, brows_down * _BROWS_DOWN),
        ),
        (_Feature(geometry.NOSE_RIDGE + geometry.NOSE_BASE, 0.0, nose_down * _NOSE_DOWN, nose_width * _NOSE_WIDTH),),
        (_Feature(geometry.LIPS_OUTER + geometry.LIPS_INNER, 0.0, mouth_down * _MOUTH_DOWN, mouth_width * _MOUTH_WIDTH),),
    )
    right_eye, left_eye = eye_centers(landmarks)
    unit = float(np.linalg.norm(left_eye - right_eye))
    across = (left_eye - right_eye) / unit
    axes = np.stack([across, np.array([-across[1], across[0]])])  # rows: towards the subject's left, down
    changed = landmarks.copy()
    for group in groups:
        moved = {feature: _move(landmarks[list(feature.points)], feature, axes, unit) for feature in group}
        if all(_inside(landmarks[list(f.points)], core) and _inside(points, core) for f, points in moved.items()):
            for feature, points in moved.items():
                changed[list(feature.points)] = points
    return changed


def _move(points: FloatArray, feature: _Feature, axes: FloatArray, unit: float) -> FloatArray:
    middle = points.mean(0)
    stretched = (points - middle) @ axes.T * np.array([1 + feature.wide, 1 + feature.high])
    moved: FloatArray = ((stretched + unit * np.array([feature.right, feature.down])) @ axes + middle).astype(np.float32)
    return moved


def _inside(points: FloatArray, core: Tensor) -> bool:
    side = core.shape[-1]
    x, y = np.round(points).astype(int).T
    if x.min() < 0 or y.min() < 0 or x.max() >= side or y.max() >= side:
        return False
    return bool((core[0, 0].cpu().numpy()[y, x] > 0).all())
