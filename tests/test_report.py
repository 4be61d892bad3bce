"""Pictures that show what was found and done."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from faceanon_core.faces import Face
from faceanon_core.geometry import LEFT_EYE, LIPS_INNER, RIGHT_EYE, Box
from faceanon_core.report import draw_faces

# landmarks whose mean lies inside a region, away from every line
INSIDE = {
    "nose": (4,), "skin": (50,), "left_eye": LEFT_EYE, "right_eye": RIGHT_EYE, "inner_mouth": LIPS_INNER,
    "left_brow": (334, 282), "right_brow": (105, 52),
}  # fmt: skip


def moved(face: Face, scale: float = 1, shift: tuple[int, int] = (0, 0)) -> Face:
    landmarks = (face.landmarks * scale + shift).astype(np.float32)
    return replace(face, box=Box.around(landmarks), landmarks=landmarks)


def test_every_region_has_a_colour_of_its_own_through_which_the_picture_shows(face) -> None:
    large = moved(face, 3)
    spots = {name: large.landmarks[list(wanted)].mean(0).round().astype(int) for name, wanted in INSIDE.items()}
    pictures = [draw_faces(np.full((1536, 1536, 3), grey, np.uint8), [large]).astype(int) for grey in (60, 200)]
    dark, light = ({name: tuple(picture[y, x]) for name, (x, y) in spots.items()} for picture in pictures)
    assert len(set(dark.values())) == len(INSIDE)
    assert all(np.subtract(light[name], dark[name]).min() > 70 for name in INSIDE)


def test_drawing_leaves_the_source_and_everything_far_from_the_face_alone(astronaut, face) -> None:
    before = astronaut.copy()
    drawn = draw_faces(astronaut, [face])
    assert np.array_equal(astronaut, before)
    far = np.ones((512, 512), bool)
    far[int(face.box.top) - 20 : int(face.box.bottom) + 5, int(face.box.left) - 5 : int(face.box.right) + 60] = False
    assert np.array_equal(drawn[far], before[far])


@pytest.mark.parametrize("shift", [(-220, 0), (0, -120), (290, 0), (0, 400)])
def test_a_face_beyond_the_border_is_drawn_as_far_as_it_lies_inside(astronaut, face, shift: tuple[int, int]) -> None:
    margin = 110
    drawn = draw_faces(astronaut, [moved(face, shift=shift)])
    padded = np.pad(astronaut, ((margin, margin), (margin, margin), (0, 0)))
    whole = draw_faces(padded, [moved(face, shift=(shift[0] + margin, shift[1] + margin))])
    below_the_number = slice(20, None)
    same = (drawn == whole[margin:-margin, margin:-margin])[below_the_number].all(-1)
    assert same.mean() > 0.999  # lines may be rastered differently at the border
    assert (drawn != astronaut)[below_the_number].any(-1).sum() > 1000
