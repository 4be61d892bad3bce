"""Hair over the face is found by its colour, stays in the result, and never covers a feature."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from faceanon_core import geometry
from faceanon_core.hair import hair_over_face
from faceanon_core.light import skin_light
from faceanon_core.parsing import INDEX, LandmarkParser
from faceanon_core.regions import RegionChoice, region_mask

FEATURES = (
    geometry.RIGHT_EYE, geometry.LEFT_EYE, geometry.RIGHT_BROW, geometry.LEFT_BROW, geometry.NOSE, geometry.LIPS_OUTER,
)  # fmt: skip


def found(crop, pixels: np.ndarray) -> np.ndarray:
    return hair_over_face(pixels, crop.landmarks, skin_light(pixels, crop.landmarks))


def at(crop, landmark: int) -> tuple[int, int]:
    x, y = crop.landmarks[landmark].round().astype(int)
    return y, x


def test_the_astronauts_fringe_is_hair_and_her_cheeks_brow_and_chin_are_not(crop) -> None:
    hair = found(crop, crop.pixels)
    assert hair[at(crop, 103)] and hair[at(crop, 332)]  # both upper corners of the forehead lie under the fringe
    assert not any(hair[at(crop, point)] for point in (50, 280, 9, 152, 4))


@pytest.mark.parametrize("brightness", [0, 128, 255])
def test_features_are_never_hair_whatever_their_colour(crop, brightness: int) -> None:
    pixels = crop.pixels.copy()
    for feature in FEATURES:
        cv2.fillConvexPoly(pixels, cv2.convexHull(crop.landmarks[list(feature)].astype(np.int32)), (brightness,) * 3)
    hair = found(crop, pixels)
    inside = np.zeros(hair.shape, np.uint8)
    for feature in FEATURES:
        cv2.fillConvexPoly(inside, cv2.convexHull(crop.landmarks[list(feature)].astype(np.int32)), 1)
    assert inside.sum() > 1000 and not hair[inside > 0].any()


def test_a_dark_spot_on_the_cheek_is_not_hair(crop) -> None:
    y, x = at(crop, 50)
    pixels = cv2.circle(crop.pixels.copy(), (x, y), 6, (30, 20, 10), -1)
    assert not found(crop, pixels)[y, x]


def test_a_picture_of_one_colour_shows_no_hair(crop) -> None:
    assert not found(crop, np.full_like(crop.pixels, 120)).any()


def test_the_fringe_stays_and_the_bare_face_does_not(crop) -> None:
    labels = LandmarkParser().parse(crop.pixels, crop.landmarks)
    mask = region_mask(labels, RegionChoice(feather_px=0))
    hair = torch.from_numpy(labels == INDEX["hair"])
    assert hair.sum() > 1000 and float(mask.core[0, 0][hair].max()) == 0
    bare = torch.from_numpy((labels > 0) & (labels != INDEX["hair"]))
    assert float(mask.core[0, 0][bare].min()) == 1
