"""The light and tone of a face's skin, as a plane of colour: all that the new face takes over from the source's pixels.

Nine numbers (a colour and how it changes across and down) carry skin tone, exposure, white balance and where the light
comes from. They carry no shape, so they do not hand the source's face on.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from . import geometry
from .crop import FaceCrop
from .geometry import FloatArray, filled_polygon
from .skin import typical_colour

Plane = NDArray[np.float32]  # (3, 3) rows: the colour 0..255 at the crop's middle, its change to the right, and down
_NOT_SKIN = (geometry.RIGHT_BROW, geometry.LEFT_BROW, geometry.RIGHT_EYE, geometry.LEFT_EYE, geometry.LIPS_OUTER)
_ROUNDS = 3  # of the fit, each without what lies far from the last: fringes, glasses, beards


def skin_light(crop: NDArray[np.uint8], landmarks: FloatArray) -> Plane:
    """Fit the plane to the skin of a face crop.

    Args:
        crop: (H, W, 3) uint8 RGB.
        landmarks: (478, 2) xy in crop pixels.
    """
    skin = filled_polygon(crop.shape, landmarks[list(geometry.FACE_OVAL)])
    for feature in _NOT_SKIN:
        skin &= ~filled_polygon(crop.shape, landmarks[list(feature)])
    rows, columns = np.nonzero(skin)
    if len(rows) < 3:
        return np.concatenate([crop.reshape(-1, 3).mean(0, keepdims=True), np.zeros((2, 3))]).astype(np.float32)
    places = _places(rows, columns, crop.shape).astype(np.float64)
    colours = crop[rows, columns].astype(np.float64)
    used = np.ones(len(rows), bool)
    for _ in range(_ROUNDS):
        within = places[used]
        plane = np.linalg.pinv(within.T @ within) @ (within.T @ colours[used])  # least squares, of 3 x 3 numbers
        rest = colours - places @ plane
        distance = np.sqrt(np.einsum("ij,ij->i", rest, rest))
        used = distance <= max(float(np.quantile(distance, 0.75)), 1.0)
    return plane.astype(np.float32)


def paint_light(plane: Plane, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """The plane as a picture of `shape`, height and width first. Returns: (H, W, 3) uint8 RGB."""
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    colours = _places(rows.ravel(), columns.ravel(), shape) @ plane
    return np.clip(np.round(colours), 0, 255).astype(np.uint8).reshape(*shape[:2], 3)


def in_tone(plane: Plane, tone: str) -> Plane:
    """The same light on skin of another tone, a value of the attribute "skin"."""
    middle = cv2.cvtColor(np.clip(plane[:1], 0, 255)[None] / 255, cv2.COLOR_RGB2LAB)[0, 0]
    wanted = cv2.cvtColor(typical_colour(tone, middle)[None, None], cv2.COLOR_LAB2RGB)[0, 0] * 255
    scale = wanted / np.maximum(plane[0], 1.0)
    return (plane * scale).astype(np.float32)


def _places(rows: NDArray[np.int64], columns: NDArray[np.int64], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """(N, 3): one, x and y, the latter -0.5..0.5 from the crop's middle."""
    x, y = (columns + 0.5) / shape[1] - 0.5, (rows + 0.5) / shape[0] - 0.5
    return np.stack([np.ones_like(x), x, y], axis=1).astype(np.float32)


def new_face_light(crop: FaceCrop, skin: str | None = None) -> Plane:
    """Light of the source's skin; on skin of another tone where `skin`, a value of that attribute, is asked for."""
    light = skin_light(crop.pixels, crop.landmarks)
    return light if skin is None else in_tone(light, skin)
