"""Label maps from landmarks, and the names of regions."""

from __future__ import annotations

import numpy as np
import pytest

from faceanon_core import geometry
from faceanon_core.crop import crop_face
from faceanon_core.errors import UnknownNameError
from faceanon_core.parsing import GROUPS, INDEX, LABELS, LandmarkParser, region_labels
from faceanon_core.regions import RegionChoice, region_mask
from faceanon_core.training.data import FaceSet


@pytest.fixture(scope="module")
def labels(crop) -> np.ndarray:
    return LandmarkParser().parse(crop.pixels, crop.landmarks)


def center(labels: np.ndarray, name: str) -> np.ndarray:
    return np.argwhere(labels == INDEX[name]).mean(0)[::-1]  # xy


def test_the_labels_are_celebamask_hqs_in_order() -> None:
    assert len(LABELS) == 19
    assert [INDEX[name] for name in ("background", "skin", "nose", "eyeglasses", "hair", "clothing")] == [0, 1, 2, 3, 13, 18]


def test_a_real_face_has_every_region_the_parser_promises_and_no_other(labels) -> None:
    assert {LABELS[i] for i in np.unique(labels)} == LandmarkParser.delivers | {"hair"}  # of which only a part is found


def test_regions_lie_where_a_face_has_them(labels) -> None:
    at = {name: center(labels, name) for name in LandmarkParser.delivers}
    assert at["right_eye"][0] < at["nose"][0] < at["left_eye"][0]  # the subject's own right is at the picture's left
    assert at["right_brow"][1] < at["right_eye"][1] < at["nose"][1]
    assert at["left_brow"][1] < at["left_eye"][1] < at["nose"][1]
    assert at["nose"][1] < at["upper_lip"][1] < at["inner_mouth"][1] < at["lower_lip"][1]


def test_regions_follow_the_face(labels, crop) -> None:
    blank = np.zeros_like(crop.pixels)  # the regions of the mesh alone: hair is where the picture shows it
    still, moved = (LandmarkParser().parse(blank, crop.landmarks + np.array(by, np.float32)) for by in ((0, 0), (10, -6)))
    assert np.array_equal(moved[:-6, 10:], still[6:, :-10])


def test_every_landmark_lies_in_the_face_also_where_the_head_turns_away(crop) -> None:
    """Seen from the side, nose and lips lie beyond the face's oval; squeezed to one side, a mesh looks like that."""
    turned = crop.landmarks.copy()
    depth = np.abs(turned[:, 0] - turned[geometry.NOSE[0], 0]) < 25  # the middle of the face sticks out
    turned[depth, 0] -= 70
    face = LandmarkParser().parse(np.full_like(crop.pixels, 120), turned) > 0
    inside = face.copy()
    inside[1:-1, 1:-1] |= face[:-2, 1:-1] | face[2:, 1:-1] | face[1:-1, :-2] | face[1:-1, 2:]  # corners are rounded
    assert all(inside[y, x] for x, y in turned.round().astype(int))


@pytest.mark.faces
@pytest.mark.parametrize("number", [256, 279, 289])
def test_the_nose_of_a_profile_is_in_the_mask_that_is_regenerated(anonymizer, shared_faces, number: int) -> None:
    pixels = FaceSet(shared_faces, "test").image(number)
    crop = crop_face(pixels, anonymizer.detector.detect(pixels)[0], 256)
    labels = LandmarkParser().parse(crop.pixels, crop.landmarks)
    core = region_mask(labels, RegionChoice(grow_px=0)).core[0, 0].numpy()
    points = crop.landmarks[[*geometry.NOSE, *geometry.LIPS_OUTER]].round().astype(int)
    assert core[points[:, 1], points[:, 0]].min() == 1


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ((), set()),
        (("nose",), {"nose"}),
        (("eyes",), {"left_eye", "right_eye"}),
        (("mouth", "lips"), {"inner_mouth", "upper_lip", "lower_lip"}),
        (("face",), set(GROUPS["face"])),
        (("hair", "eyes"), {"hair", "left_eye", "right_eye"}),
    ],
)
def test_groups_stand_for_their_regions(names: tuple[str, ...], expected: set[str]) -> None:
    assert region_labels(names) == expected


def test_the_default_face_is_the_methods_list_of_regions() -> None:
    assert {INDEX[name] for name in GROUPS["face"]} == {1, 2, 3, 4, 5, 6, 7, 10, 11, 12}


@pytest.mark.parametrize("name", ["eys", "background", "", "Nose"])
def test_an_unknown_region_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(UnknownNameError, match=f"there is no region named '{name}'; known regions: eyes, brows"):
        region_labels((name,))


@pytest.mark.parametrize("name", ["hair", "glasses", "ears"])
def test_a_region_the_parser_cannot_find_is_refused_and_never_ignored(name: str) -> None:
    with pytest.raises(UnknownNameError, match=r"the active face parser cannot find .*; it finds inner_mouth"):
        region_labels((name,), LandmarkParser())


def test_face_means_what_the_parser_can_tell_apart() -> None:
    assert region_labels(("face",), LandmarkParser()) == LandmarkParser.delivers - {"background"}


def test_a_window_of_any_shape_is_parsed_like_the_square_around_it(crop) -> None:
    square, window = crop.pixels, crop.pixels[8:, 30:-20]
    labels = LandmarkParser().parse(np.ascontiguousarray(window), crop.landmarks - np.array([30, 8], np.float32))
    assert (labels == LandmarkParser().parse(square, crop.landmarks)[8:, 30:-20]).mean() > 0.98
