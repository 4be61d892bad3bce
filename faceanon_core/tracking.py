"""Which faces of a sequence of frames are one person, and one value for each person.

Only place and size are compared, never looks: nothing here recognises anybody.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol, TypeVar

import numpy as np
from scipy.optimize import linear_sum_assignment

from .errors import InputError
from .faces import Face
from .geometry import Box

MAX_MOVE = 1.0  # face sizes a face may move between two frames and still be the same person
MAX_ZOOM = 2.0  # factor by which it may grow or shrink
_STRANGER = MAX_MOVE + 1  # cost of matching two faces that cannot be one person, above every possible match
_Value = TypeVar("_Value")


class _OfAPerson(Protocol):
    @property
    def person(self) -> int | None: ...


def track_faces(frames: list[list[Face]], max_gap: int = 12) -> list[list[Face]]:
    """Number the people of a sequence of frames.

    Every frame's faces are assigned to the people's last seen faces so that the sum of their distances is smallest.

    Args:
        frames: the faces of each frame, in the order of time.
        max_gap: frames a person may be missing and still be the same one; after more it is a new person. >= 0.
    Returns: the same faces in the same order with `person` set, counted from 0 in order of first appearance.
    """
    seen: list[tuple[int, Face]] = []  # person -> frame and face where last seen
    tracked = []
    for index, faces in enumerate(frames):
        recent = [person for person, (last, _) in enumerate(seen) if index - last <= max_gap + 1]
        cost = np.array([[_cost(seen[person][1].box, face.box) for face in faces] for person in recent])
        found: dict[int, int] = {}  # place in `faces` -> person
        if cost.size:
            for row, place in zip(*linear_sum_assignment(cost), strict=True):
                if cost[row, place] < _STRANGER:
                    found[int(place)] = recent[row]
        numbered = []
        for place, face in enumerate(faces):
            person = found.get(place, len(seen))
            if person == len(seen):
                seen.append((index, face))
            seen[person] = (index, face)
            numbered.append(replace(face, person=person))
        tracked.append(numbered)
    return tracked


def fill_gaps(frames: list[list[Face]]) -> list[list[Face]]:
    """Add the faces the detector missed between two frames that show the same person, at the place in between.

    Without it, a face missed in one frame would stay as it is there.

    Args:
        frames: from `track_faces`.
    """
    filled = [list(faces) for faces in frames]
    seen: dict[int, tuple[int, Face]] = {}
    for index, faces in enumerate(frames):
        for face in faces:
            if face.person is None:
                continue
            last, before = seen.get(face.person, (index, face))
            for missed in range(last + 1, index):
                filled[missed].append(_between(before, face, (missed - last) / (index - last)))
            seen[face.person] = (index, face)
    return filled


def person_rows(faces: Sequence[_OfAPerson]) -> list[int]:
    """For each face or crop its person, counted from 0 in order of first appearance; an untracked face is its own."""
    rows: dict[object, int] = {}
    keys = [("face", index) if face.person is None else face.person for index, face in enumerate(faces)]
    return [rows.setdefault(key, len(rows)) for key in keys]


def for_each_face(values: Sequence[_Value], faces: Sequence[_OfAPerson], name: str) -> list[_Value]:
    """Hand out one value for all faces, or one per person, in order of first appearance.

    Args:
        name: what the values are, for the message.
    Returns: one value per face.
    Raises: InputError if there are neither one nor as many values as people.
    """
    rows = person_rows(faces)
    count = max(rows) + 1
    if len(values) == 1:
        return list(values) * len(rows)
    if len(values) != count:
        of = "faces" if count == len(rows) else f"people in {len(rows)} crops"
        raise InputError(f"there are {len(values)} {name}s for {count} {of}; give one {name} for all, or one for each")
    return [values[row] for row in rows]


def _cost(a: Box, b: Box) -> float:
    sizes = [max(box.area, 1.0) ** 0.5 for box in (a, b)]
    distance = float(np.hypot(a.center[0] - b.center[0], a.center[1] - b.center[1])) / (sum(sizes) / 2)
    if distance >= MAX_MOVE or max(sizes) > MAX_ZOOM * min(sizes):
        return _STRANGER
    return distance + 1 - a.iou(b)


def _between(before: Face, after: Face, share: float) -> Face:
    landmarks = ((1 - share) * before.landmarks + share * after.landmarks).astype(np.float32)
    return replace(before, box=Box.around(landmarks), score=min(before.score, after.score), landmarks=landmarks)
