"""Skin tone and mouth shape measured on pixels and landmarks, without a network."""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray

from .geometry import FloatArray, inter_ocular

_CHEEKS = (
    (117, 118, 119, 120, 100, 142, 36, 205, 50),
    (346, 347, 348, 349, 329, 371, 266, 425, 280),
)
# Chardon, Cretois and Hourseau 1991: lower bounds of the individual typology angle, degrees
_ITA_CLASSES = ((55, "very-light"), (41, "light"), (28, "intermediate"), (10, "tan"), (-30, "brown"), (-181, "dark"))


def typology_angle(crop: NDArray[np.uint8], landmarks: FloatArray) -> float:
    """Individual typology angle of the cheeks, degrees: atan((L* - 50) / b*) of the median colour.

    Args:
        crop: (H, W, 3) uint8 sRGB.
        landmarks: (478, 2) xy in crop pixels.
    """
    lab = cv2.cvtColor(crop.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    mask = np.zeros(crop.shape[:2], np.uint8)
    for ring in _CHEEKS:
        cv2.fillConvexPoly(mask, cv2.convexHull(landmarks[list(ring)].astype(np.int32)), 1)
    cheeks = lab[mask > 0]
    if len(cheeks) == 0:
        cheeks = lab.reshape(-1, 3)
    lightness, _, yellow = np.median(cheeks, axis=0)
    return float(np.degrees(np.arctan2(lightness - 50, yellow)))


def skin_tone(angle: float) -> str:
    """Value of the attribute "skin" for a typology angle in degrees."""
    return next(name for bound, name in _ITA_CLASSES if angle > bound)


def typical_colour(tone: str, lab: NDArray[np.float32]) -> NDArray[np.float32]:
    """CIE L*a*b* (3,) of skin of another tone; what `lab` (3,) already agrees with, it keeps.

    The yellow-blue part stays where it is skin-like, and lightness follows from the middle of the tone's class of angles.
    """
    angles = [62.0, *(0.5 * (above[0] + below[0]) for above, below in pairwise(_ITA_CLASSES[:-1])), -45.0]
    lightness, red, yellow = map(float, lab)
    if skin_tone(float(np.degrees(np.arctan2(lightness - 50, yellow)))) == tone:
        return lab
    index = [name for _, name in _ITA_CLASSES].index(tone)
    yellow, red = float(np.clip(yellow, 12, 24)), float(np.clip(red, 8, 18))
    return np.array([50 + yellow * np.tan(np.radians(angles[index])), red, yellow], np.float32)


def crop_skin_tone(crop: NDArray[np.uint8], landmarks: FloatArray) -> str:
    """Value of the attribute "skin" that a face crop shows; arguments as for `typology_angle`."""
    return skin_tone(typology_angle(crop, landmarks))


def mouth_expression(landmarks: FloatArray) -> str:
    """Value of the attribute "expression": a wide mouth is a smile, else an open one is open, else neutral."""
    unit = max(inter_ocular(landmarks), 1e-6)
    width = float(np.linalg.norm(landmarks[61] - landmarks[291])) / unit
    gap = float(np.linalg.norm(landmarks[13] - landmarks[14])) / unit
    if width > 0.95:
        return "smile"
    return "open-mouth" if gap > 0.12 else "neutral"
