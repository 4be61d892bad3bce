"""Tracking on the real detector's faces of moving pictures."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from faceanon_core.crop import crop_face
from faceanon_core.errors import InputError
from faceanon_core.faces import Face
from faceanon_core.geometry import Box
from faceanon_core.tracking import fill_gaps, for_each_face, person_rows, track_faces


def moved(face: Face, x: float, y: float = 0.0, scale: float = 1.0) -> Face:
    """The face shifted by that share of its size, and grown about its centre."""
    center = np.array(face.box.center)
    landmarks = ((face.landmarks - center) * scale + center + np.array([x, y]) * face.box.area**0.5).astype(np.float32)
    return Face(Box.around(landmarks), face.score, landmarks)


def people(frames: list[list[Face]]) -> list[list[int | None]]:
    return [[face.person for face in faces] for faces in frames]


def test_a_real_face_keeps_its_number_while_the_camera_pans_and_another_enters(anonymizer, two_faces) -> None:
    """The window moves right by 30 px per frame, so the right face comes in and both move left."""
    frames = [anonymizer.detector.detect(two_faces[:280, 30 * i : 30 * i + 520]) for i in range(6)]
    tracked = track_faces(frames)
    counts = [len(faces) for faces in frames]
    assert counts[0] == 1 and counts[-1] == 2
    for faces in tracked:
        left_to_right = sorted(faces, key=lambda face: face.box.left)
        assert [face.person for face in left_to_right] == list(range(len(faces)))


def test_faces_and_their_order_stay_as_they_are(face) -> None:
    frames = [[moved(face, 3), face], [face, moved(face, 3.1)]]
    tracked = track_faces(frames)
    assert people(tracked) == [[0, 1], [1, 0]]
    assert all(
        a.box == b.box for before, after in zip(frames, tracked, strict=True) for a, b in zip(before, after, strict=True)
    )


def test_two_faces_of_one_frame_are_never_one_person(face) -> None:
    tracked = track_faces([[face], [moved(face, 0.1), moved(face, -0.1), face]])
    assert sorted(people(tracked)[1]) == [0, 1, 2]
    assert tracked[1][2].person == 0


def test_neighbours_keep_their_numbers_when_all_move_more_than_half_way_to_the_next(face) -> None:
    row = [moved(face, x) for x in (0, 1.1, 2.2)]
    assert people(track_faces([row, [moved(other, 0.6) for other in row]])) == [[0, 1, 2], [0, 1, 2]]


def test_one_who_stays_keeps_the_number_when_the_neighbour_leaves(face) -> None:
    stays = moved(face, 0.9)
    assert people(track_faces([[face, stays], [moved(stays, -0.05)]])) == [[0, 1], [1]]


@pytest.mark.parametrize(("gap", "person"), [(0, 0), (3, 0), (4, 1)])
def test_a_person_may_be_missing_for_some_frames(face, gap: int, person: int) -> None:
    tracked = track_faces([[face], *[[]] * gap, [moved(face, 0.2)]], max_gap=3)
    assert tracked[-1][0].person == person


@pytest.mark.parametrize("other", [(1.2, 0.0, 1.0), (0.0, -1.2, 1.0), (0.0, 0.0, 2.2), (0.0, 0.0, 0.4)])
def test_a_face_elsewhere_or_of_quite_another_size_is_a_new_person(face, other: tuple[float, float, float]) -> None:
    assert people(track_faces([[face], [moved(face, *other)]])) == [[0], [1]]


def test_missed_faces_are_filled_in_on_the_way(face) -> None:
    frames = track_faces([[face], [moved(face, 9)], [], [moved(face, 0.9), moved(face, 9)]])
    assert people(frames) == [[0], [1], [], [0, 1]]
    filled = fill_gaps(frames)
    assert [sorted(f.person for f in faces) for faces in filled] == [[0], [0, 1], [0, 1], [0, 1]]
    size = face.box.area**0.5
    on_the_way = [next(f for f in faces if f.person == 0) for faces in filled]
    steps = [(f.box.left - face.box.left) / size for f in on_the_way]
    assert steps == pytest.approx([0, 0.3, 0.6, 0.9], abs=1e-3)
    assert np.allclose(on_the_way[1].landmarks, moved(face, 0.3).landmarks, atol=1e-2)
    assert people(frames) == [[0], [1], [], [0, 1]]  # the input is left alone


def test_nothing_is_filled_in_before_a_first_or_after_a_last_appearance_or_without_tracking(face) -> None:
    tracked = track_faces([[], [face], []])
    assert people(fill_gaps(tracked)) == [[], [0], []]
    assert people(fill_gaps([[face], [], [face]])) == [[None], [], [None]]


def test_a_crop_carries_its_person(astronaut, face) -> None:
    assert crop_face(astronaut, face, 256).person is None
    assert crop_face(astronaut, replace(face, person=4), 256).person == 4


def test_people_are_counted_in_order_of_first_appearance(face) -> None:
    assert person_rows([face, face]) == [0, 1]
    assert person_rows([replace(face, person=person) for person in (3, 0, 3, 7)]) == [0, 1, 0, 2]
    assert person_rows([face, replace(face, person=0), face]) == [0, 1, 2]


def test_values_are_handed_out_to_people(face) -> None:
    film = [replace(face, person=person) for person in (3, 0, 3)]
    assert for_each_face(["a"], film, "target") == ["a", "a", "a"]
    assert for_each_face(["a", "b"], film, "target") == ["a", "b", "a"]
    assert for_each_face(["a", "b"], [face, face], "target") == ["a", "b"]
    with pytest.raises(InputError, match="there are 3 targets for 2 people in 3 crops; give one target for all, or one for"):
        for_each_face(["a", "b", "c"], film, "target")
    with pytest.raises(InputError, match="there are 2 targets for 3 faces"):
        for_each_face(["a", "b"], [face] * 3, "target")
