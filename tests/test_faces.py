"""Detection on real pictures: sizes, counts, orientations; no face where there is none."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import mediapipe
import numpy as np
import pytest
from skimage import data

from faceanon_core.errors import InputError, WeightsError
from faceanon_core.faces import MESHES_DISAGREE, MIRROR_DISTANCE, TASK_FILE_VARIABLE, FaceDetector, _Fit, _Proposal, face_at
from faceanon_core.geometry import LEFT_EYE, RIGHT_EYE, Box
from faceanon_core.training.data import FaceSet

BUNDLED = hasattr(mediapipe, "solutions")  # the detector of later releases says otherwise why a face is unsure


@pytest.fixture(scope="module")
def detector(anonymizer) -> FaceDetector:
    return anonymizer.detector


def scaled(portrait: np.ndarray, face_px: float) -> np.ndarray:
    """The portrait with its face `face_px` high."""
    factor = face_px / 107
    method = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    return cv2.resize(portrait, None, fx=factor, fy=factor, interpolation=method)


def on_canvas(width: int, height: int, *pieces: tuple[np.ndarray, int, int]) -> np.ndarray:
    """Pictures pasted at (left, top) into a large photograph of coffee."""
    canvas = cv2.resize(data.coffee(), (width, height))
    for piece, left, top in pieces:
        canvas[top : top + piece.shape[0], left : left + piece.shape[1]] = piece
    return canvas


def test_a_portrait_has_one_face_with_its_landmarks_where_the_eyes_are(face) -> None:
    assert face.landmarks.shape == (478, 2)
    assert 0.5 < face.score <= 1
    right, left = face.landmarks[list(RIGHT_EYE)].mean(0), face.landmarks[list(LEFT_EYE)].mean(0)
    assert right == pytest.approx((204, 101), abs=3)  # read off the picture by eye
    assert left == pytest.approx((247, 103), abs=3)


@pytest.mark.parametrize("picture", ["coffee", "chelsea", "rocket", "brick", "text", "page"])
def test_nothing_is_found_where_there_is_no_face(detector, picture: str) -> None:
    pixels = getattr(data, picture)()
    if pixels.ndim == 2:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB)
    pixels = cv2.copyMakeBorder(pixels, 0, max(0, 64 - pixels.shape[0]), 0, 0, cv2.BORDER_REFLECT)
    assert detector.detect(np.ascontiguousarray(pixels)) == []


@pytest.mark.parametrize("face_px", [32, 64, 107, 400, 1500])
def test_a_face_is_found_at_any_size_and_its_landmarks_scale_with_it(detector, portrait, face, face_px: int) -> None:
    (found,) = detector.detect(scaled(portrait, face_px))
    expected = (face.landmarks - (115, 10)) * face_px / 107
    error = np.linalg.norm(found.landmarks - expected, axis=1).mean()
    assert error < 0.05 * face_px


@pytest.mark.parametrize("place", [(200, 300), (3700, 2700), (1960, 1430), (700, 1100)])
def test_a_70_px_face_is_found_anywhere_in_a_12_megapixel_photograph(detector, portrait, place) -> None:
    small = scaled(portrait, 70)
    (found,) = detector.detect(on_canvas(4000, 3000, (small, *place)))
    assert found.box.center == pytest.approx((place[0] + 72, place[1] + 74), abs=8)
    assert 50 < found.box.height < 90


def test_several_faces_are_each_found_once_largest_first(detector, portrait) -> None:
    sizes = [(300, 60, 40), (60, 900, 80), (140, 1250, 420), (90, 760, 600)]
    pieces = [(scaled(portrait, face_px), left, top) for face_px, left, top in sizes]
    found = detector.detect(on_canvas(1700, 900, *pieces))
    assert len(found) == 4
    heights = [f.box.height for f in found]
    assert heights == sorted(heights, reverse=True)
    assert heights == pytest.approx([300, 140, 90, 60], rel=0.15)


@pytest.mark.parametrize(("x", "y"), [(0.95, 0.8), (0.05, 0.8)])
def test_a_small_face_at_a_large_ones_edge_hides_neither(detector, portrait, face, x: float, y: float) -> None:
    large, small = scaled(portrait, 400), scaled(portrait[:, ::-1], 170)
    (found,) = detector.detect(large)
    (head,) = detector.detect(np.ascontiguousarray(small))
    oval = np.zeros(small.shape[:2], np.uint8)
    center = tuple(round(float(value)) for value in head.box.center)
    cv2.ellipse(oval, center, (round(0.6 * head.box.width), round(0.65 * head.box.height)), 0, 0, 360, 255, -1)
    left = round(found.box.left + x * found.box.width) - center[0]
    top = round(found.box.top + y * found.box.height) - center[1]
    room = cv2.copyMakeBorder(large, 200, 200, 200, 200, cv2.BORDER_REFLECT_101)
    window = room[top + 200 : top + 200 + small.shape[0], left + 200 : left + 200 + small.shape[1]]
    window[oval > 0] = small[oval > 0]
    scan = detector.scan(room)
    boxes = [each.box for each in (*scan.faces, *scan.unfitted)]
    for box, dx, dy in ((found.box, 200, 200), (head.box, left + 200, top + 200)):
        place = Box(box.left + dx, box.top + dy, box.right + dx, box.bottom + dy)
        assert max(place.iou(other) for other in boxes) > 0.5, (place, boxes)


def test_the_mesh_of_the_face_beside_a_detection_does_not_stand_for_it(detector, portrait, face, monkeypatch) -> None:
    (beside,) = detector.detect(portrait)
    left, right = beside.box.left - 0.9 * beside.box.width, beside.box.left - 0.1 * beside.box.width
    lost = Box(left, beside.box.top, right, beside.box.bottom)  # a crop around it shows the other face
    proposals = [*detector._proposals(portrait), _Proposal(lost, 0.8, 0)]
    monkeypatch.setattr(detector, "_proposals", lambda image: proposals)
    scan = detector._scan_once(portrait)
    assert len(scan.faces) == 1 and [one.box for one in scan.unfitted] == [lost]


@pytest.mark.parametrize("degrees", [-30, 30])
def test_a_tilted_face_is_found(detector, portrait, degrees: int) -> None:
    matrix = cv2.getRotationMatrix2D((110, 110), degrees, 1)
    turned = cv2.warpAffine(portrait, matrix, (220, 220), borderMode=cv2.BORDER_REFLECT)
    assert len(detector.detect(turned)) == 1


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_a_face_on_its_side_or_upside_down_is_found_with_its_landmarks_in_place(detector, astronaut, face, turns) -> None:
    (found,) = detector.detect(np.ascontiguousarray(np.rot90(astronaut, turns)))
    points = found.landmarks
    for _ in range(turns):
        points = np.stack([511 - points[:, 1], points[:, 0]], axis=1)
    assert np.abs(points - face.landmarks).mean() < 2


@pytest.mark.parametrize(("rows", "columns"), [((0, 512), (224, 512)), ((0, 512), (0, 224)), ((112, 512), (0, 512))])
def test_half_a_face_at_the_border_is_found(detector, astronaut, rows, columns) -> None:
    half = np.ascontiguousarray(astronaut[slice(*rows), slice(*columns)])
    scan = detector.scan(half)
    assert len(scan.faces) + len(scan.unfitted) == 1


def test_the_mirror_image_of_a_face_near_the_border_is_not_counted(detector, astronaut, face) -> None:
    box = face.box
    near = np.ascontiguousarray(astronaut[: int(box.bottom) + 6, int(box.left) - 6 :])
    assert len(detector.detect(near)) == 1


def test_a_gray_face_is_found(detector, portrait) -> None:
    gray = cv2.cvtColor(cv2.cvtColor(portrait, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    assert len(detector.detect(gray)) == 1


def test_detection_gives_the_same_landmarks_each_time(detector, astronaut, coffee, face) -> None:
    detector.detect(coffee)  # nothing is remembered from another picture
    (again,) = detector.detect(astronaut)
    assert np.array_equal(again.landmarks, face.landmarks)


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.zeros((100, 100), np.uint8), r"\(height, width, 3\) uint8 RGB array, got \(100, 100\) uint8"),
        (np.zeros((100, 100, 4), np.uint8), r"got \(100, 100, 4\) uint8"),
        (np.zeros((100, 100, 3), np.float32), r"got \(100, 100, 3\) float32"),
        (np.zeros((63, 100, 3), np.uint8), "100x63; the shorter side must be at least 64 pixels"),
        (np.broadcast_to(np.uint8(0), (9000, 9000, 3)), "81 megapixels and the limit is 80"),
        (np.broadcast_to(np.uint8(0), (300, 33000, 3)), "33000x300; a side may have 30000 pixels, cut it into parts"),
    ],
)
def test_only_pictures_of_the_documented_form_and_size_are_taken(detector, pixels, message: str) -> None:
    with pytest.raises(InputError, match=message):
        detector.detect(pixels)


def test_a_missing_task_file_is_refused_with_where_to_get_it(tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(WeightsError, match=r"missing\.task is no file; download face_landmarker\.task .*Apache-2\.0"):
        FaceDetector(task_file=tmp_path / "missing.task")
    monkeypatch.setenv("FACEANON_FACE_LANDMARKER", str(tmp_path / "missing.task"))
    with pytest.raises(WeightsError, match=r"download face_landmarker\.task"):
        FaceDetector()


def test_a_mediapipe_without_models_takes_the_task_file_of_a_folder(tmp_path: Path, monkeypatch) -> None:
    """Later releases of mediapipe lack `solutions`, as this one does here; a broken file shows that it is read."""
    monkeypatch.delattr("mediapipe.solutions", raising=False)
    monkeypatch.delenv(TASK_FILE_VARIABLE, raising=False)
    folders = [tmp_path / "extra", tmp_path / "models"]
    with pytest.raises(WeightsError, match=rf"no face models inside; download .* put it into {folders[0]}.* or name it"):
        FaceDetector(task_folders=folders)
    folders[1].mkdir()
    (folders[1] / "face_landmarker.task").write_bytes(b"not a model")
    with pytest.raises(WeightsError, match=rf"{folders[1]}/face_landmarker\.task is not a face landmarker"):
        FaceDetector(task_folders=folders)


def test_a_task_file_in_a_folder_does_not_replace_the_models_inside_mediapipe(tmp_path: Path) -> None:
    (tmp_path / "face_landmarker.task").write_bytes(b"not a model")
    FaceDetector(task_folders=[tmp_path]).close()


def test_a_file_that_is_no_task_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.task").write_bytes(b"not a model")
    with pytest.raises(WeightsError, match=r"bad\.task is not a face landmarker this mediapipe can read"):
        FaceDetector(task_file=tmp_path / "bad.task")


@pytest.mark.skipif(not os.environ.get(TASK_FILE_VARIABLE), reason=f"{TASK_FILE_VARIABLE} names no face_landmarker.task")
def test_the_tasks_api_finds_the_same_faces_and_landmarks(portrait, astronaut, face) -> None:
    """Run it under mediapipe 0.10.21 and under a release without bundled models."""
    row = np.concatenate([portrait, portrait[:, ::-1], portrait, portrait], axis=1)
    with FaceDetector(task_file=Path(os.environ[TASK_FILE_VARIABLE])) as tasks:
        (found,) = tasks.detect(astronaut)
        assert len(tasks.detect(row)) == 4
        assert len(tasks.detect(np.ascontiguousarray(astronaut[::-1, ::-1]))) == 1
    assert np.abs(found.landmarks - face.landmarks).mean() < 1


def test_a_mesh_beside_the_picture_is_no_face_but_a_sure_detection_that_must_not_pass(astronaut, face, monkeypatch) -> None:
    detector = FaceDetector(cross_check=False)
    monkeypatch.setattr(detector, "_fit", lambda image, proposal: _Fit(face.landmarks - 1000, 0.0))
    scan = detector.scan(astronaut)
    assert scan.faces == [] and len(scan.unfitted) == 1


def half_hidden(astronaut, face) -> np.ndarray:
    """The astronaut with half of her face behind a plain wall: the detector is unsure (0.61), a mesh still fits."""
    pixels = astronaut.copy()
    pixels[:, int(face.box.center[0]) - 10 :] = (120, 110, 100)
    return pixels


def blurred(astronaut, face) -> np.ndarray:
    """So blurred that no mesh fits the mirror image."""
    return cv2.GaussianBlur(astronaut, (0, 0), 6)


@pytest.mark.parametrize("ruin", [half_hidden, blurred])
def test_a_mesh_that_the_mirror_image_does_not_confirm_is_no_face_and_must_not_pass(astronaut, face, ruin) -> None:
    with FaceDetector(cross_check=False) as detector:
        scan = detector.scan(ruin(astronaut, face))
    assert scan.faces == []
    (lost,) = scan.unfitted
    if BUNDLED:
        assert lost.reason == MESHES_DISAGREE and lost.box.iou(face.box) > 0.3
    assert lost.box.iou(face.box) > 0.2


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_the_mesh_of_the_mirror_image_agrees_on_a_plain_face_whichever_way_up(astronaut, turns: int) -> None:
    with FaceDetector(cross_check=False) as detector:
        turned = np.ascontiguousarray(np.rot90(astronaut, turns))
        proposal = detector._proposals(turned)[0]
        assert detector._fit(turned, proposal).mirror_distance < MIRROR_DISTANCE / 3


@pytest.mark.faces
def test_profiles_beside_whose_edge_the_mesh_lies_are_refused_and_plain_faces_are_not(detector, shared_faces: Path) -> None:
    faces = FaceSet(shared_faces, "test")
    for number in (296, 297):  # looked at: nose and lips lie beyond the mesh
        scan = detector.scan(faces.image(number))
        assert scan.faces == [] and len(scan.unfitted) == 1
        assert scan.unfitted[0].reason == MESHES_DISAGREE or not BUNDLED
    for number in (0, 60, 120, 180, 240, 300):
        assert len(detector.detect(faces.image(number))) == 1, number


def test_the_face_at_a_place_is_the_one_that_takes_it_up(face) -> None:
    beside = replace(face, box=Box(face.box.left + 200, face.box.top, face.box.right + 200, face.box.bottom))
    small = replace(face, box=Box(face.box.left, face.box.top, face.box.left + 20, face.box.top + 20))
    assert face_at(face.box, [beside, small, face]) == face
    assert face_at(face.box, [beside, small]) is None and face_at(face.box, []) is None


def test_a_detector_that_nobody_closed_says_nothing_at_the_end() -> None:
    code = "from faceanon_core.faces import FaceDetector; detector = FaceDetector(); print('made')"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=True
    )
    assert done.stdout == "made\n" and "Traceback" not in done.stderr
