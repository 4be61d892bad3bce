"""Boxes, the upright frame and the sampling of a square."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from safetensors.numpy import load_file

from faceanon_core import geometry
from faceanon_core.geometry import Box
from faceanon_core.weights import ASSETS


def turned(landmarks: np.ndarray, degrees: float, scale: float = 1.0) -> np.ndarray:
    matrix = cv2.getRotationMatrix2D((300, 200), degrees, scale).astype(np.float32)
    return geometry.apply_affine(matrix, landmarks)


@pytest.mark.parametrize(
    ("other", "shared", "iou"),
    [
        (Box(0, 0, 10, 10), 100, 1.0),
        (Box(5, 0, 15, 10), 50, 50 / 150),
        (Box(2, 2, 4, 4), 4, 4 / 100),
        (Box(10, 0, 20, 10), 0, 0.0),  # half-open: boxes that touch share nothing
        (Box(50, 50, 60, 60), 0, 0.0),
        (Box(3, 3, 3, 3), 0, 0.0),
    ],
)
def test_boxes_overlap_by_their_shared_area(other: Box, shared: float, iou: float) -> None:
    box = Box(0, 0, 10, 10)
    assert box.intersection(other) == other.intersection(box) == shared
    assert box.iou(other) == pytest.approx(iou)


def test_an_empty_box_has_no_area_and_no_overlap_with_itself() -> None:
    empty = Box(5, 5, 5, 5)
    assert empty.area == 0
    assert empty.iou(empty) == 0


def test_a_box_around_points_is_the_smallest_that_holds_them() -> None:
    box = Box.around(np.array([[3, 9], [-1, 4], [2, 5]], np.float32))
    assert box == Box(-1, 4, 3, 9)
    assert box.center == (1, 6.5)


@pytest.mark.parametrize("degrees", [-120, -45, 0, 10, 90, 180])
def test_the_frame_levels_the_eyes_and_centres_the_face_at_any_angle(face, degrees: float) -> None:
    landmarks = turned(face.landmarks, degrees)
    frame = geometry.upright_frame(landmarks, 256)
    inside = frame.to_crop(landmarks)
    right, left = geometry.eye_centers(inside)
    assert right[1] == pytest.approx(left[1], abs=0.05)
    assert right[0] < left[0]  # upright, not mirrored: the subject's right eye is at the picture's left
    assert inside[152, 1] > right[1]  # chin below the eyes
    box = Box.around(inside)
    assert box.center == pytest.approx((127.5, 127.5), abs=0.05)
    assert max(box.width, box.height) * geometry.CONTEXT == pytest.approx(256, abs=0.1)


def test_the_frame_maps_to_the_crop_and_back(face) -> None:
    frame = geometry.upright_frame(turned(face.landmarks, 17), 256)
    assert frame.to_image(frame.to_crop(face.landmarks)) == pytest.approx(face.landmarks, abs=1e-3)


@pytest.mark.parametrize("scale", [0.5, 4.0])
def test_the_frame_counts_crop_pixels_per_image_pixel(face, scale: float) -> None:
    once = geometry.upright_frame(face.landmarks, 256).scale
    scaled = geometry.upright_frame(turned(face.landmarks, 30, scale), 256).scale
    assert scaled * scale == pytest.approx(once, rel=0.02)


def test_inter_ocular_distance_does_not_change_with_rotation(face) -> None:
    distance = geometry.inter_ocular(face.landmarks)
    assert 20 < distance < 90  # pixels, of a face 93 wide
    assert geometry.inter_ocular(turned(face.landmarks, 73)) == pytest.approx(distance, rel=1e-4)


def test_a_square_sampled_without_change_is_the_picture(astronaut) -> None:
    matrix = np.array([[1, 0, 0], [0, 1, 0]], np.float32)
    assert np.array_equal(geometry.warp_square(astronaut, matrix, 512), astronaut)


def test_shrinking_averages_instead_of_picking_pixels() -> None:
    checkers = (np.indices((400, 400)).sum(0) % 2 * 255).astype(np.uint8)[..., None].repeat(3, 2)
    small = geometry.warp_square(checkers, np.array([[0.1, 0, 0], [0, 0.1, 0]], np.float32), 40)
    assert small[2:-2, 2:-2].astype(int) == pytest.approx(127.5, abs=2)


@pytest.mark.parametrize("scale", [0.05, 0.3, 0.7, 1.0, 2.0])
def test_a_square_shows_each_place_where_the_matrix_says(scale: float) -> None:
    columns = np.tile(np.arange(1000) / 4, (1000, 1)).astype(np.float32)  # grey level tells the place: x / 4
    picture = np.round(columns).astype(np.uint8)[..., None].repeat(3, 2)
    matrix = np.array([[scale, 0, 0], [0, scale, 0]], np.float32)
    size = int(900 * min(scale, 1))
    square = geometry.warp_square(picture, matrix, size)
    wanted = np.arange(size) / scale / 4
    middle = slice(size // 10, -size // 10)
    assert square[size // 2, middle, 0].astype(float) == pytest.approx(wanted[middle], abs=0.8)


def test_a_square_beyond_the_border_mirrors_the_picture(astronaut) -> None:
    shifted = geometry.warp_square(astronaut, np.array([[1, 0, 20], [0, 1, 0]], np.float32), 512)
    assert np.array_equal(shifted[:, :20], astronaut[:, 1:21][:, ::-1])


@pytest.mark.parametrize(
    ("shift", "expected"),
    [((0, 0), 0.0), ((-2000, 0), 1.0), ((2000, 0), 1.0), ((0, -2000), 1.0), ((0, 2000), 1.0)],
)
def test_the_share_of_a_face_outside_the_picture_has_exact_ends(face, shift, expected: float) -> None:
    landmarks = face.landmarks + np.array(shift, np.float32)
    assert geometry.fraction_outside(landmarks, 512, 512) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("axis", [0, 1])
def test_a_face_cut_through_its_middle_lies_about_half_outside(face, axis: int) -> None:
    shift = np.zeros(2, np.float32)
    shift[axis] = face.box.center[axis]
    assert geometry.fraction_outside(face.landmarks - shift, 512, 512) == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(
    ("part", "whole"),
    [("LIPS_INNER", "LIPS_OUTER"), ("LIPS_OUTER", "FACE_OVAL"), ("LEFT_EYE", "FACE_OVAL"), ("RIGHT_EYE", "FACE_OVAL")],
)
def test_inner_outlines_lie_within_outer_ones_on_a_real_face(face, part: str, whole: str) -> None:
    outline = face.landmarks[list(getattr(geometry, whole))]
    for point in face.landmarks[list(getattr(geometry, part))]:
        assert cv2.pointPolygonTest(outline, (float(point[0]), float(point[1])), True) > -1.5


def test_left_and_right_are_the_subjects_own(face) -> None:
    def x(indices: tuple[int, ...]) -> float:
        return float(face.landmarks[list(indices), 0].mean())

    assert x(geometry.RIGHT_EYE) < x(geometry.LEFT_EYE)
    assert x(geometry.RIGHT_BROW) < x(geometry.LEFT_BROW)
    assert x(geometry.RIGHT_IRIS) < x(geometry.LEFT_IRIS)


@pytest.mark.parametrize(
    ("part", "other"),
    [
        ("RIGHT_EYE", "LEFT_EYE"), ("RIGHT_BROW", "LEFT_BROW"), ("RIGHT_IRIS", "LEFT_IRIS"), ("FACE_OVAL", "FACE_OVAL"),
        ("LIPS_OUTER", "LIPS_OUTER"), ("LIPS_INNER", "LIPS_INNER"), ("NOSE_RIDGE", "NOSE_RIDGE"), ("NOSE_BASE", "NOSE_BASE"),
    ],
)  # fmt: skip
def test_mirroring_swaps_left_and_right(part: str, other: str) -> None:
    assert {geometry.MIRRORED[i] for i in getattr(geometry, part)} == set(getattr(geometry, other))


def test_mirroring_twice_changes_nothing(face) -> None:
    assert [geometry.MIRRORED[i] for i in geometry.MIRRORED] == list(range(geometry.LANDMARK_COUNT))
    twice = geometry.mirror_landmarks(geometry.mirror_landmarks(face.landmarks, 512), 512)
    assert twice == pytest.approx(face.landmarks, abs=1e-3)


@pytest.mark.parametrize("who", ["adult", "child"])
def test_a_frontal_face_is_its_own_mirror_image_landmark_by_landmark(who: str) -> None:
    mean = load_file(ASSETS / "poses.safetensors")[who]
    mean = mean - mean[[10, 152, 168]].mean(0)  # the middle at x 0
    distance = np.linalg.norm(geometry.mirror_landmarks(mean, 1) - mean, axis=1)
    assert distance.max() < 0.02 * np.ptp(mean, axis=0).max()
