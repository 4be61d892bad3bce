"""Other proportions for the new face: changed where the face is regenerated, untouched where it is kept."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from faceanon_core.crop import FaceCrop, crop_face
from faceanon_core.faces import FaceDetector
from faceanon_core.geometry import LEFT_EYE, LIPS_OUTER, NOSE_BASE, RIGHT_EYE, eye_centers, inter_ocular
from faceanon_core.parsing import LandmarkParser
from faceanon_core.proportions import change_proportions
from faceanon_core.regions import RegionChoice, region_mask


@pytest.fixture(scope="module")
def crop() -> FaceCrop:
    from skimage.data import astronaut

    pixels = astronaut()
    with FaceDetector() as detector:
        return crop_face(pixels, detector.detect(pixels)[0], 256)


def _core(crop: FaceCrop, **choice: object) -> torch.Tensor:
    return region_mask(LandmarkParser().parse(crop.pixels, crop.landmarks), RegionChoice(**choice)).core  # type: ignore[arg-type]


def _shift(crop: FaceCrop, changed: np.ndarray) -> np.ndarray:
    return np.linalg.norm(changed - crop.landmarks, axis=1) / inter_ocular(crop.landmarks)


def test_every_seed_changes_the_face_noticeably_but_keeps_the_outline(crop: FaceCrop) -> None:
    from faceanon_core.geometry import FACE_OVAL

    features = [*RIGHT_EYE, *LEFT_EYE, *NOSE_BASE, *LIPS_OUTER]
    for seed in range(20):
        shift = _shift(crop, change_proportions(crop.landmarks, _core(crop), seed))
        assert 0.03 < shift[features].mean() < 0.2
        assert shift[list(FACE_OVAL)].max() == 0


def test_the_same_seed_gives_the_same_face_and_another_seed_another(crop: FaceCrop) -> None:
    core = _core(crop)
    one, again, other = (change_proportions(crop.landmarks, core, seed) for seed in (3, 3, 4))
    assert np.array_equal(one, again) and not np.allclose(one, other, atol=0.5)


def test_amount_0_changes_nothing_and_2_about_twice_as_much_as_1(crop: FaceCrop) -> None:
    core = torch.ones(1, 1, 256, 256)
    assert np.array_equal(change_proportions(crop.landmarks, core, 0, 0), crop.landmarks)
    one, two = (change_proportions(crop.landmarks, core, 0, amount) - crop.landmarks for amount in (1, 2))
    assert np.abs(2 * one - two).max() < 0.1 * np.abs(two).max()


@pytest.mark.parametrize(("kept", "points"), [("eyes", RIGHT_EYE + LEFT_EYE), ("mouth", LIPS_OUTER), ("nose", NOSE_BASE)])
def test_kept_features_stay_in_place(crop: FaceCrop, kept: str, points: tuple[int, ...]) -> None:
    for seed in range(5):
        shift = _shift(crop, change_proportions(crop.landmarks, _core(crop, keep=(kept,)), seed))
        assert shift[list(points)].max() == 0 and shift.max() > 0


def test_a_tilted_head_is_changed_along_its_own_axes(crop: FaceCrop) -> None:
    turn = np.array([[0.8, -0.6], [0.6, 0.8]], np.float32)
    everywhere = torch.ones(1, 1, 1024, 1024)
    start = crop.landmarks + 400
    turned = change_proportions((start - 512) @ turn.T + 512, everywhere, 1)
    expected = (change_proportions(start, everywhere, 1) - 512) @ turn.T + 512
    assert np.allclose(turned, expected, atol=0.05)
    assert not np.allclose(eye_centers(turned)[0], eye_centers((start - 512) @ turn.T + 512)[0])
