"""Whole group photographs through the real path: no face that any detector sees leaves them unchanged."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from group_photographs import CELL_PX, EMITTED, Group, fates, group_photograph, seen

from faceanon_core.faces import FaceDetector
from faceanon_core.pipeline import Anonymizer, Result, Settings
from faceanon_core.training.data import FaceSet

pytestmark = pytest.mark.faces
COVER = Settings(steps=4, on_failure="redact")


@pytest.fixture(scope="module")
def faces(shared_faces: Path) -> FaceSet:
    return FaceSet(shared_faces, "test")


@pytest.fixture(scope="module")
def plain(faces: FaceSet) -> Group:
    return group_photograph(faces, np.random.default_rng(1))


def test_every_face_of_a_group_is_replaced_or_covered(anonymizer: Anonymizer, plain: Group) -> None:
    assert fates(plain, Result(plain.pixels, [])) == [EMITTED] * 8  # the measure sees what is left
    result = anonymizer.anonymize(plain.pixels, COVER)
    found = fates(plain, result)
    assert set(found) <= {"anonymized", "redacted"} and found.count("anonymized") >= 6, found


def test_no_face_that_a_detector_sees_leaves_a_hard_group_unchanged(anonymizer: Anonymizer, faces: FaceSet) -> None:
    group = group_photograph(faces, np.random.default_rng(2), hard=True)
    found = fates(group, anonymizer.anonymize(group.pixels, COVER))
    known = seen(group, anonymizer.detector.scan(group.pixels))
    assert sum(known) >= 6
    assert not [fate for fate, was_seen in zip(found, known, strict=True) if was_seen and fate in (EMITTED, "unseen")], found


class HalfBlind(FaceDetector):
    """mediapipe misses whatever lies in the lower half of a group photograph."""

    def _proposals(self, image):
        found = super()._proposals(image)
        return found if image.shape[0] != 2 * CELL_PX else [one for one in found if one.box.center[1] < CELL_PX]


def test_what_mediapipe_misses_and_the_second_detector_sees_is_covered(anonymizer: Anonymizer, plain: Group) -> None:
    blind = Anonymizer()
    blind.__dict__.update(model=anonymizer.model, encoder=anonymizer.encoder)
    blind.detector = HalfBlind()
    found = fates(plain, blind.anonymize(plain.pixels, COVER))
    known = seen(plain, blind.detector.scan(plain.pixels))
    assert sum(known[4:]) >= 3
    assert all(fate == "redacted" for fate, was_seen in zip(found[4:], known[4:], strict=True) if was_seen), found
