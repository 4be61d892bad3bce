"""The check of finished pictures: copies in disguise are found, new faces pass."""

from __future__ import annotations

import io
from collections.abc import Callable

import cv2
import numpy as np
import pytest
from PIL import Image

from faceanon_core.check import check_picture
from faceanon_core.errors import ShapeError
from faceanon_core.faces import Scan, Unfitted
from faceanon_core.identity import LAYOUTS, Card, Recogniser
from faceanon_core.likeness import NEAR_COPY
from faceanon_core.pipeline import Anonymizer, Settings
from faceanon_core.redact import redact_face

Pixels = np.ndarray


@pytest.fixture(scope="module")
def scan(anonymizer: Anonymizer, astronaut: Pixels) -> Scan:
    return anonymizer.detector.scan(astronaut)


def jpeg(pixels: Pixels) -> Pixels:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=30)
    return np.asarray(Image.open(stream))


DISGUISES: dict[str, Callable[[Pixels], Pixels]] = {
    "untouched": lambda pixels: pixels,
    "compressed": jpeg,
    "darker": lambda pixels: (pixels * 0.6).astype(np.uint8),
    "gray": lambda pixels: np.repeat(pixels.mean(-1, keepdims=True), 3, -1).astype(np.uint8),
    "other hue": lambda pixels: np.roll(pixels, 1, -1),
    "noisy": lambda pixels: np.clip(pixels + np.random.default_rng(0).normal(0, 15, pixels.shape), 0, 255).astype(np.uint8),
    "blurred": lambda pixels: cv2.GaussianBlur(pixels, (0, 0), 1.0),
}


@pytest.mark.parametrize("disguise", DISGUISES)
def test_a_copy_of_the_face_is_found_in_disguise(anonymizer: Anonymizer, astronaut: Pixels, scan: Scan, disguise) -> None:
    (face,) = check_picture(astronaut, DISGUISES[disguise](astronaut), scan, [], anonymizer.detector)
    assert not face.passed and "near copy" in face.problem


def test_a_new_face_and_a_covered_one_pass(anonymizer: Anonymizer, astronaut: Pixels, scan: Scan) -> None:
    result = anonymizer.anonymize(astronaut, Settings(steps=4)).pixels
    for pixels in (result, redact_face(astronaut, scan.faces[0])):
        (face,) = check_picture(astronaut, pixels, scan, [], anonymizer.detector)
        assert face.passed and face.likeness < NEAR_COPY, face


def test_a_ruined_face_fails_and_one_solidly_covered_passes_also_when_compressed(anonymizer, astronaut, scan) -> None:
    x, y = (round(value) for value in scan.faces[0].box.center)
    noise = np.random.default_rng(0).integers(0, 256, (180, 150, 3), np.uint8)
    ruined = astronaut.copy()
    ruined[y - 90 : y + 90, x - 75 : x + 75] = noise
    (failed,) = check_picture(astronaut, ruined, scan, [], anonymizer.detector)
    assert not failed.passed and "no face is recognisable in the result" in str(failed)
    (passed,) = check_picture(astronaut, jpeg(redact_face(astronaut, scan.faces[0])), scan, [], anonymizer.detector)
    assert passed.passed


@pytest.mark.parametrize("sigma", [2, 3, 4, 6, 8, 12])
def test_a_face_that_was_merely_blurred_fails(anonymizer, astronaut, scan, sigma: float) -> None:
    """From 4 on the fine structure says nothing any more; up to 6 a detector still sees a face."""
    (face,) = check_picture(astronaut, cv2.GaussianBlur(astronaut, (0, 0), sigma), scan, [], anonymizer.detector)
    assert not face.passed and ("near copy" in face.problem or "blurred" in face.problem)


def test_a_new_face_that_is_soft_is_not_taken_for_the_old_one_blurred(anonymizer, astronaut, scan) -> None:
    result = cv2.GaussianBlur(anonymizer.anonymize(astronaut, Settings(steps=4)).pixels, (0, 0), 1.5)
    (face,) = check_picture(astronaut, result, scan, [], anonymizer.detector)
    assert "blurred" not in face.problem


def test_a_face_no_mesh_fits_or_that_the_border_cuts_must_be_covered(
    anonymizer: Anonymizer, astronaut: Pixels, cut_portrait: Pixels, scan: Scan
) -> None:
    lost = Unfitted(scan.faces[0].box, 0.9)
    cut = anonymizer.detector.scan(cut_portrait)
    assert len(cut.faces) == 1
    for pixels, found, face in ((astronaut, Scan([], [lost]), lost), (cut_portrait, cut, cut.faces[0])):
        (copied,) = check_picture(pixels, pixels.copy(), found, [], anonymizer.detector)
        (covered,) = check_picture(pixels, redact_face(pixels, face), found, [], anonymizer.detector)
        assert not copied.passed and covered.passed
        small = cv2.resize(pixels, None, fx=1 / 12, fy=1 / 12, interpolation=cv2.INTER_AREA)
        pixelated = cv2.resize(small, pixels.shape[1::-1], interpolation=cv2.INTER_NEAREST)
        for veiled in (cv2.GaussianBlur(pixels, (0, 0), 4), cv2.GaussianBlur(pixels, (0, 0), 12), pixelated):
            (failed,) = check_picture(pixels, veiled, found, [], anonymizer.detector)
            assert "nothing can replace it, and no solid shape covers it" in str(failed)
        (compressed,) = check_picture(pixels, jpeg(redact_face(pixels, face)), found, [], anonymizer.detector)
        assert compressed.passed


@pytest.mark.faces
def test_every_recogniser_must_take_it_for_another_person(anonymizer, astronaut, scan, network) -> None:
    result = anonymizer.anonymize(astronaut, Settings(steps=2)).pixels
    lenient, strict = (Recogniser(network, Card(LAYOUTS["mobilefacenet"], {0.01: limit})) for limit in (1.0, -1.0))
    (passed,) = check_picture(astronaut, result, scan, [lenient], anonymizer.detector)
    (failed,) = check_picture(astronaut, result, scan, [lenient, strict], anonymizer.detector)
    assert passed.passed and not failed.passed and "takes it for the same person" in str(failed)


def test_pictures_of_two_sizes_are_refused(anonymizer: Anonymizer, astronaut: Pixels, scan: Scan) -> None:
    with pytest.raises(ShapeError, match="the result is 500x512 but its source is 512x512"):
        check_picture(astronaut, astronaut[:, :500], scan, [], anonymizer.detector)
