"""The second detector: faces that mediapipe misses are reported, and nothing is seen where there is nothing."""

from __future__ import annotations

import hashlib
from pathlib import Path

import cv2
import mediapipe
import numpy as np
import pytest
from skimage import data

from faceanon_core.errors import AnonymizationError, WeightsError
from faceanon_core.faces import FaceDetector, Scan
from faceanon_core.geometry import Box
from faceanon_core.optional import FOLDER_VARIABLE, OPTIONAL_MODELS, model_folder
from faceanon_core.pipeline import Anonymizer, Settings
from faceanon_core.recall import SecondDetector

FACELESS = (
    "brick cell checkerboard chelsea clock coffee coins grass gravel horse hubble_deep_field immunohistochemistry logo "
    "moon page retina rocket text"
)


@pytest.fixture(params=["cascade", "yunet"])
def folders(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch) -> list[Path]:
    """Where the second detector looks for YuNet's file: nowhere, or where the environment says it is."""
    path = model_folder() / OPTIONAL_MODELS["yunet"].file
    if request.param == "cascade":
        monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    elif not path.is_file():
        pytest.skip(f"no {path}; fetch it with faceanon download yunet, or name its folder in {FOLDER_VARIABLE}")
    return [model_folder()]


@pytest.fixture
def blind(folders: list[Path], monkeypatch) -> FaceDetector:
    """A detector whose mediapipe proposes nothing: it finds every face that could be drawn here."""
    detector = FaceDetector()
    monkeypatch.setattr(detector, "_proposals", lambda image: [])
    return detector


@pytest.mark.parametrize("name", FACELESS.split())
def test_nothing_is_seen_where_there_is_no_face(folders: list[Path], name: str) -> None:
    pixels = getattr(data, name)()
    if pixels.dtype != np.uint8:
        pixels = (pixels / pixels.max() * 255).astype(np.uint8)
    if pixels.ndim == 2:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB)
    assert SecondDetector(folders).find(np.ascontiguousarray(pixels[..., :3])) == []


@pytest.mark.parametrize("width", [300, 512, 4000])
def test_a_face_is_found_in_the_pixels_of_the_picture(folders: list[Path], astronaut, face, width: int) -> None:
    (box,) = SecondDetector(folders).find(cv2.resize(astronaut, (width, width), interpolation=cv2.INTER_AREA))
    assert box.center == pytest.approx([value * width / 512 for value in face.box.center], abs=0.04 * width)


def test_a_face_that_both_find_is_one_face(anonymizer: Anonymizer, two_faces) -> None:
    scan = anonymizer.detector.scan(two_faces)
    assert len(scan.faces) == 2 and scan.unfitted == []


def test_a_face_that_mediapipe_misses_is_reported_unless_that_is_switched_off(blind, astronaut, monkeypatch) -> None:
    assert blind.detect(astronaut) == []
    (missed,) = blind.scan(astronaut).unfitted
    assert missed.reason in ("only OpenCV's cascade sees it", "only OpenCV's YuNet sees it")
    alone = FaceDetector(cross_check=False)
    monkeypatch.setattr(alone, "_proposals", lambda image: [])
    assert alone.scan(astronaut) == Scan([], [])


def test_a_face_that_mediapipe_misses_is_never_passed_on_silently(blind, astronaut, face) -> None:
    anonymizer = Anonymizer()
    anonymizer.detector = blind
    with pytest.raises(AnonymizationError, match=r"only OpenCV's (cascade|YuNet) sees it; nothing is written"):
        anonymizer.anonymize(astronaut, Settings())
    result = anonymizer.anonymize(astronaut, Settings(on_failure="redact"))
    assert [report.status for report in result.faces] == ["redacted"]
    covered = face.landmarks.round().astype(int)
    assert (result.pixels[covered[:, 1], covered[:, 0]] == 128).all()


@pytest.mark.faces
def test_generated_faces_are_seen_by_both(folders: list[Path], shared_faces: Path) -> None:
    from faceanon_core.training.data import FaceSet

    faces, second = FaceSet(shared_faces, "test"), SecondDetector(folders)
    detector = FaceDetector()
    seen = [len(second.find(faces.image(i))) for i in range(0, 302, 8)]
    assert np.mean(np.array(seen) == 1) >= 0.9 and max(seen) == 1
    assert all(not detector.scan(faces.image(i)).unfitted for i in range(0, 302, 40))


@pytest.mark.faces
def test_dark_faces_that_mediapipe_misses_are_reported(folders: list[Path], shared_faces: Path) -> None:
    """Twelve of them, 64 to 120 px with their surroundings, on two photographs of coffee."""
    from faceanon_core.training.data import FaceSet

    detector = FaceDetector()
    faces, draw, missed, reported = FaceSet(shared_faces, "test"), np.random.default_rng(4), 0, 0
    for _ in range(2):
        canvas, boxes = cv2.resize(data.coffee(), (1200, 800)), []
        for place in range(6):
            side = int(draw.integers(64, 120))
            small = cv2.resize(faces.image(int(draw.integers(302))), (side, side), interpolation=cv2.INTER_AREA)
            x, y = place % 3 * 400 + 50, place // 3 * 400 + 50
            canvas[y : y + side, x : x + side] = (small * 0.25).astype(np.uint8)
            boxes.append(Box(x, y, x + side, y + side))
        scan = detector.scan(canvas)
        lost = [box for box in boxes if not any(box.intersection(face.box) > 0 for face in scan.faces)]
        missed += len(lost)
        reported += sum(any(box.intersection(one.box) > 0 for one in scan.unfitted) for box in lost)
    if not hasattr(mediapipe, "solutions") and not missed:
        pytest.skip("this mediapipe misses none of them")
    assert missed >= 4 and reported >= 0.8 * missed, f"{reported} of {missed}"


def test_a_broken_file_of_yunet_is_refused(tmp_path: Path) -> None:
    (tmp_path / OPTIONAL_MODELS["yunet"].file).write_bytes(b"no network")
    with pytest.raises(WeightsError, match="is no face detector OpenCV can read; run faceanon download yunet"):
        SecondDetector([tmp_path])


def test_yunet_is_used_where_its_file_is(astronaut, face) -> None:
    model = OPTIONAL_MODELS["yunet"]
    path = model_folder() / model.file
    if not path.is_file():
        pytest.skip(f"no {path}; fetch it with: faceanon download yunet")
    assert hashlib.sha256(path.read_bytes()).hexdigest() == model.sha256
    second = SecondDetector([model_folder()])
    (box,) = second.find(astronaut)
    assert second.name == "OpenCV's YuNet" and box.iou(face.box) > 0.4
    assert second.find(data.coffee()) == []
