"""Hair that hangs over the face, found by its colour: it stays, so that the new face comes to lie under it.

A fringe hides no identity worth hiding, and a model asked to draw it anew has to meet every strand at the mask's edge.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from . import geometry
from .geometry import FloatArray, face_area, filled_polygon, inter_ocular
from .light import Plane, paint_light

_UNLIKE = 16.0  # CIE L*a*b* distance to the skin's light from which a pixel is not skin
_AROUND = 0.5  # how far beyond the face hair is looked at, inter-ocular distances
_APART = 0.1  # how far beyond the face, so that none of its skin is taken for a sample of the hair
_SAMPLE = 64  # pixels above the forehead that must be unlike skin for a sample
_LEAST_SPREAD = np.array([8.0, 5.0, 5.0], np.float32)  # L*, a*, b*: a sample of one colour still knows its neighbours
_FARTHEST = 2.0  # spreads from the sample's colour within which a pixel is of that hair
_SHINE = 8.0  # L* above the skin's from which a pixel is a highlight rather than hair
_HEIGHTS = ((105, 334), (33, 263), (61, 291))  # landmarks at the brows, the outer corners of the eyes and of the mouth
_BESIDE = 0.1  # nearer to the features than this, beside them, hair is a shadow; inter-ocular distances
_ISLAND = 0.15  # side of the largest patch of skin between strands that stays with them, inter-ocular distances
_FEATURES = (
    geometry.RIGHT_EYE, geometry.LEFT_EYE, geometry.RIGHT_BROW, geometry.LEFT_BROW, geometry.NOSE, geometry.LIPS_OUTER,
)  # fmt: skip


def hair_over_face(crop: NDArray[np.uint8], landmarks: FloatArray, light: Plane) -> NDArray[np.bool_]:
    """Pixels of the face, from its top down to the mouth, that hair or a hat covers.

    A pixel is hair only if it has the colour of what grows above the forehead, is more like that than like the skin, and
    hangs together with it: a cheek in shadow or a shining forehead is unlike the rest of the skin, too, but must not stay.
    Never eyes, brows, nose and mouth or what lies between them, and nothing below the mouth: what is not found there is
    regenerated. Where hair and skin are alike in colour, nothing is found.

    Args:
        crop: (H, W, 3) uint8 RGB.
        landmarks: (478, 2) xy in crop pixels.
        light: of the skin, see `light.skin_light`.
    Returns: (H, W) bool.
    """
    unit = max(inter_ocular(landmarks), 1.0)
    face = face_area(crop.shape, landmarks)
    features = filled_polygon(crop.shape, np.concatenate([landmarks[list(part)] for part in _FEATURES]), hull=True)
    blurred = cv2.GaussianBlur(crop, (0, 0), max(unit / 50, 0.5))
    colour, skin = _lab(blurred), _lab(paint_light(light, crop.shape))
    unlike = (_length(colour - skin) > _UNLIKE) & (colour[..., 0] < skin[..., 0] + _SHINE)
    from_face, from_features = _distance(face) / unit, _distance(features) / unit
    above = (from_face <= _AROUND) & (from_face > _APART)
    brows, eyes, mouth = (int(np.clip(landmarks[list(ends), 1].mean(), 0, len(crop))) for ends in _HEIGHTS)
    above[brows:] = False
    sample = colour[above & unlike]
    if len(sample) < _SAMPLE:
        return np.zeros(crop.shape[:2], bool)
    candidates = unlike & (from_features > 0.04) & (from_face <= _AROUND)
    candidates[mouth:] = False
    covered = np.zeros(candidates.shape, np.uint8)
    covered[candidates] = _of_hair(colour[candidates], skin[candidates], sample)
    covered = cv2.morphologyEx(covered, cv2.MORPH_OPEN, _disc(0.03 * unit))
    hair = _without_shadows(_connected(covered > 0, above), from_features, brows, eyes)
    return np.asarray(face & (hair | _islands(face & ~hair, features, unit)))


def _without_shadows(
    hair: NDArray[np.bool_], from_features: NDArray[np.float32], brows: int, eyes: int
) -> NDArray[np.bool_]:
    """At the height of eyes and cheeks hair keeps to the face's edge; what comes up to the features there is a shadow.

    Args:
        from_features: distance from them, inter-ocular distances.
        brows, eyes: the rows they are in.
    """
    beside, near = hair.copy(), from_features <= _BESIDE
    beside[:brows], near[:eyes] = False, False
    return hair & ~_connected(beside, near)


def _islands(bare: NDArray[np.bool_], features: NDArray[np.bool_], unit: float) -> NDArray[np.bool_]:
    """What little skin is seen between strands: the face is what hangs together with its features."""
    opened = cv2.morphologyEx(bare.astype(np.uint8), cv2.MORPH_OPEN, _disc(0.06 * unit)) > 0
    return _small(bare & (_distance(_connected(opened, features)) > 0.06 * unit), (_ISLAND * unit) ** 2)


def _of_hair(colour: NDArray[np.float32], skin: NDArray[np.float32], sample: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Pixels of the sample's colour, and nearer to it than to the skin's.

    Args:
        colour, skin: (N, 3) CIE L*a*b* of the pixels, and of the skin in its light there.
        sample: (M, 3) colours of hair.
    Returns: (N,) bool.
    """
    middle = np.median(sample, axis=0)
    spread = np.maximum(1.5 * np.median(np.abs(sample - middle), axis=0), _LEAST_SPREAD)
    of_colour = (np.abs(colour - middle) < _FARTHEST * spread).all(axis=1)
    return np.asarray(of_colour & (_length(colour - middle) < _length(colour - skin)))


def _lab(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(H, W, 3) uint8 RGB -> CIE L*a*b*, L* 0..100."""
    return np.asarray(cv2.cvtColor(pixels.astype(np.float32) / 255, cv2.COLOR_RGB2LAB), np.float32)


def _disc(radius_px: float) -> NDArray[np.uint8]:
    side = 2 * max(1, round(radius_px)) + 1
    return np.asarray(cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side)), np.uint8)


def _length(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Of vectors along the last axis."""
    return np.asarray(np.sqrt(np.einsum("...k,...k->...", vectors, vectors)), np.float32)


def _distance(area: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Of every pixel from `area`, in pixels; infinite where that is empty."""
    if not area.any():
        return np.full(area.shape, np.inf, np.float32)
    return np.asarray(cv2.distanceTransform((~area).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5), np.float32)


def _connected(area: NDArray[np.bool_], seeds: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The parts of `area` that hold a seed."""
    count, parts = cv2.connectedComponents(area.astype(np.uint8))
    chosen = np.zeros(count, bool)
    chosen[parts[seeds]] = True
    chosen[0] = False
    return np.asarray(chosen[parts])


def _small(area: NDArray[np.bool_], largest: float) -> NDArray[np.bool_]:
    """The parts of `area` of at most so many pixels."""
    _, parts, stats, _ = cv2.connectedComponentsWithStats(area.astype(np.uint8))
    few = stats[:, cv2.CC_STAT_AREA] <= largest
    few[0] = False
    return np.asarray(few[parts])
