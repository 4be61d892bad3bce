"""Hair that hangs over the face, found by its colour: it stays, so that the new face comes to lie under it.

A fringe hides no identity worth hiding, and a model asked to draw it anew has to meet every strand at the mask's edge.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from . import geometry
from .geometry import FloatArray, filled_polygon, inter_ocular
from .light import Plane, paint_light

_UNLIKE = 16.0  # CIE L*a*b* distance to the skin's light from which a pixel is not skin
_AROUND = 0.5  # how far beyond the face it may come from, inter-ocular distances
_FEATURES = (
    geometry.RIGHT_EYE, geometry.LEFT_EYE, geometry.RIGHT_BROW, geometry.LEFT_BROW, geometry.NOSE, geometry.LIPS_OUTER,
)  # fmt: skip


def hair_over_face(crop: NDArray[np.uint8], landmarks: FloatArray, light: Plane) -> NDArray[np.bool_]:
    """Pixels of the face, from its top down to the mouth, that hair or a hat covers.

    Never eyes, brows, nose and mouth or what lies between them, and nothing below the mouth: what is not found there is
    regenerated. Where hair and skin are alike in colour, nothing is found.

    Args:
        crop: (H, W, 3) uint8 RGB.
        landmarks: (478, 2) xy in crop pixels.
        light: of the skin, see `light.skin_light`.
    Returns: (H, W) bool.
    """
    unit = inter_ocular(landmarks)
    face = filled_polygon(crop.shape, landmarks[list(geometry.FACE_OVAL)])
    features = filled_polygon(crop.shape, np.concatenate([landmarks[list(part)] for part in _FEATURES]), hull=True)
    unlike = cv2.GaussianBlur(_lab_distance(crop, paint_light(light, crop.shape)), (0, 0), max(unit / 50, 0.5)) > _UNLIKE
    covered = (unlike & ~_grown(features, 0.04 * unit) & _grown(face, _AROUND * unit)).astype(np.uint8)
    covered[int(np.clip(landmarks[[61, 291], 1].mean(), 0, len(crop))) :] = 0
    covered = cv2.morphologyEx(covered, cv2.MORPH_OPEN, _disc(0.03 * unit))
    # a shadow, a mole or a beard's edge lies within the face; hair comes in from beyond it
    hair = _connected(covered > 0, ~face)
    # skin seen between strands belongs to the hair: the face is what hangs together with its features
    bare = cv2.morphologyEx((face & ~hair).astype(np.uint8), cv2.MORPH_OPEN, _disc(0.06 * unit)) > 0
    return np.asarray(face & (hair | ~_grown(_connected(bare, features), 0.06 * unit)))


def _lab_distance(crop: NDArray[np.uint8], other: NDArray[np.uint8]) -> NDArray[np.float32]:
    first, second = (cv2.cvtColor(x.astype(np.float32) / 255, cv2.COLOR_RGB2LAB) for x in (crop, other))
    return np.asarray(np.linalg.norm(first - second, axis=2), np.float32)


def _disc(radius_px: float) -> NDArray[np.uint8]:
    side = 2 * max(1, round(radius_px)) + 1
    return np.asarray(cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side)), np.uint8)


def _grown(area: NDArray[np.bool_], radius_px: float) -> NDArray[np.bool_]:
    return cv2.dilate(area.astype(np.uint8), _disc(radius_px)) > 0


def _connected(area: NDArray[np.bool_], seeds: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The parts of `area` that hold a seed."""
    _, parts = cv2.connectedComponents(area.astype(np.uint8))
    return np.isin(parts, np.setdiff1d(parts[seeds], 0))
