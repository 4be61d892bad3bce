"""Other proportions for the new face: where eyes, brows, nose and mouth sit, and how large they are.

The sketch would otherwise hand the source's proportions on, and face recognition knows people by them. Pose, expression
and gaze stay: each feature is moved, stretched and turned as a whole, along the face's own axes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from . import geometry
from .geometry import FloatArray, eye_centers

CHECKED, UNCHECKED = 0.45, 0.9  # amounts to start with; only the second hides a person without a check (MODEL_CARD.md)

# One unit of change, in inter-ocular distances (moves) or as a share (stretches)
_EYES_APART, _EYES_DOWN, _EYE_SIZE = 0.16, 0.015, 0.2
_BROWS_DOWN, _BROW_ARCH = 0.17, 0.38
_NOSE_DOWN, _NOSE_WIDTH = 0.13, 0.33
_MOUTH_DOWN, _MOUTH_WIDTH = 0.045, 0.24  # further down costs likeness of pose and hides nothing
_EYE_TILT, _BROW_TILT = 0.12, 0.09  # radians, outer end upwards
_COUNT = 11
_DRAWN_AT_ONCE = 4096  # about one of 2,700 fits
_CLOSEST, _FARTHEST = -0.08, 0.2  # change of the gaps between brows and eyes, nose and mouth, inter-ocular distances
_VISIBLE = 0.75  # share of a moved feature that must lie inside the mask: a brow's end may come to lie under hair
_SHARES = (1.0, 0.7, 0.4)  # of a change, tried in turn until the feature stays inside the mask
_LARGEST, _SMALLEST_EYES = 1.4, -1.0  # units; beyond, the model draws caricatures
_EYES_BETWEEN = (-1.0, 1.1)


@dataclass(frozen=True)
class _Feature:
    points: tuple[int, ...]
    right: float  # move towards the subject's left, inter-ocular distances
    down: float
    wide: float = 0.0  # growth of the width, a share
    high: float = 0.0
    turn: float = 0.0  # radians, clockwise as the viewer sees it

    def scaled(self, share: float) -> _Feature:
        """The same feature, moved and stretched by a share of it."""
        changes = (self.right, self.down, self.wide, self.high, self.turn)
        return _Feature(self.points, *(share * change for change in changes))


def change_proportions(landmarks: FloatArray, core: Tensor, seed: int, amount: float = 1.0) -> FloatArray:
    """Move and stretch the features that are regenerated; kept ones stay.

    Args:
        landmarks: (478, 2) xy in pixels of a square crop.
        core: (1, 1, S, S), 1 = regenerate. A feature moves only in there: less far where it would leave it by more
            than a part.
        seed: the same seed changes every face alike, so that a person looks the same in every frame.
        amount: 1 moves the features by about 8% of the inter-ocular distance on average; 0 changes nothing.
    """
    if amount == 0:
        return landmarks
    draw = amount * _draw(seed)
    apart, eyes_down, eye_size, brows_down, nose_down, nose_width, mouth_down, mouth_width = map(float, draw[:8])
    sideways, size = apart * _EYES_APART, eye_size * _EYE_SIZE
    arch, eye_tilt, brow_tilt = (float(x) for x in draw[8:] * (_BROW_ARCH, _EYE_TILT, _BROW_TILT))
    groups = (
        (
            _Feature(geometry.RIGHT_EYE + geometry.RIGHT_IRIS, -sideways, eyes_down * _EYES_DOWN, size, size, eye_tilt),
            _Feature(geometry.LEFT_EYE + geometry.LEFT_IRIS, sideways, eyes_down * _EYES_DOWN, size, size, -eye_tilt),
        ),
        (
            _Feature(geometry.RIGHT_BROW, -sideways, brows_down * _BROWS_DOWN, 0.0, arch, brow_tilt),
            _Feature(geometry.LEFT_BROW, sideways, brows_down * _BROWS_DOWN, 0.0, arch, -brow_tilt),
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
        for feature, points in _largest_fitting(group, landmarks, axes, unit, core).items():
            changed[list(feature.points)] = points
    return changed


def _largest_fitting(
    group: tuple[_Feature, ...], landmarks: FloatArray, axes: FloatArray, unit: float, core: Tensor
) -> dict[_Feature, FloatArray]:
    """The features of a group after the largest share of their change that stays inside `core`; none if none does."""
    if all(_inside(landmarks[list(feature.points)], core) for feature in group):
        for share in _SHARES:
            moved = {f: _move(landmarks[list(f.points)], f.scaled(share), axes, unit) for f in group}
            if all(_inside(points, core, _VISIBLE) for points in moved.values()):
                return moved
    return {}


def _draw(seed: int) -> NDArray[np.float64]:
    """(_COUNT,) of length sqrt(_COUNT): no seed may leave a face as it was, and none make it one that nobody could have."""
    rng = np.random.default_rng(seed)
    while True:
        directions = rng.normal(size=(_DRAWN_AT_ONCE, _COUNT))
        draws: NDArray[np.float64] = directions * np.sqrt(_COUNT) / np.linalg.norm(directions, axis=1, keepdims=True)
        eyes_apart, eyes, size, brows, nose, _, mouth = draws[:, :7].T
        from_brows = eyes * _EYES_DOWN - brows * _BROWS_DOWN  # how far eyes and brows move apart, mouth and nose likewise
        from_nose = mouth * _MOUTH_DOWN - nose * _NOSE_DOWN
        fits = np.abs(draws).max(1) <= _LARGEST
        for apart in (from_brows, from_nose):
            fits &= (apart > _CLOSEST) & (apart < _FARTHEST)
        fits &= (size > _SMALLEST_EYES) & (eyes_apart > _EYES_BETWEEN[0]) & (eyes_apart < _EYES_BETWEEN[1])
        if fits.any():
            return draws[int(fits.argmax())]


def _move(points: FloatArray, feature: _Feature, axes: FloatArray, unit: float) -> FloatArray:
    middle = points.mean(0)
    stretched = (points - middle) @ axes.T * np.array([1 + feature.wide, 1 + feature.high])
    cos, sin = np.cos(feature.turn), np.sin(feature.turn)
    turned = stretched @ np.array([[cos, sin], [-sin, cos]])
    moved: FloatArray = ((turned + unit * np.array([feature.right, feature.down])) @ axes + middle).astype(np.float32)
    return moved


def _inside(points: FloatArray, core: Tensor, share: float = 1.0) -> bool:
    side = core.shape[-1]
    x, y = np.round(points).astype(int).T
    if x.min() < 0 or y.min() < 0 or x.max() >= side or y.max() >= side:
        return False
    return bool((core[0, 0].cpu().numpy()[y, x] > 0).mean() >= share)
