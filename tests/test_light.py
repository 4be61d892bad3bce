"""The skin's light: a plane of colour, and the same light on another tone."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from faceanon_core.attributes import BY_NAME
from faceanon_core.light import in_tone, paint_light, skin_light
from faceanon_core.sketch import face_sketch
from faceanon_core.skin import skin_tone


def test_a_plane_of_colour_is_found_again_whatever_is_drawn_on_a_part_of_it(crop) -> None:
    plane = np.array([[150, 120, 100], [60, 50, 40], [-30, -20, -10]], np.float32)
    picture = paint_light(plane, (256, 256))
    cv2.line(picture, (60, 110), (196, 110), (0, 0, 0), 8)
    assert np.abs(skin_light(picture, crop.landmarks) - plane).max() < 2


@pytest.mark.parametrize("tone", BY_NAME["skin"].values)
def test_another_tone_has_the_angle_of_its_class(crop, tone: str) -> None:
    middle = np.clip(in_tone(skin_light(crop.pixels, crop.landmarks), tone)[:1], 0, 255) / 255
    lightness, _, yellow = cv2.cvtColor(middle[None], cv2.COLOR_RGB2LAB)[0, 0]
    assert skin_tone(float(np.degrees(np.arctan2(lightness - 50, yellow)))) == tone


def test_the_sketch_shows_the_light_inside_the_face_and_grey_outside(crop) -> None:
    plane = np.array([[200, 150, 120], [0, 0, 0], [0, 0, 0]], np.float32)
    sketch = face_sketch(crop.landmarks, 256, plane)[0].permute(1, 2, 0).numpy() * 255
    x, y = crop.landmarks[[50]].round().astype(int)[0]  # a cheek
    assert np.allclose(sketch[y, x], plane[0], atol=1) and np.allclose(sketch[2, 2], 128, atol=1)
