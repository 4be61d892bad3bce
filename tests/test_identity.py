"""The identity check, with a real face-recognition network where shared/models holds one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from faceanon_core.cli import main
from faceanon_core.errors import AnonymizationError, InputError, WeightsError
from faceanon_core.identity import Recogniser
from faceanon_core.pipeline import Anonymizer, Settings
from faceanon_core.training.data import FaceSet

QUICK = Settings(steps=2)


@pytest.fixture(scope="module")
def network(shared_faces: Path) -> Path:
    path = shared_faces.parent / "models" / "MobileFaceNet.onnx"
    if not path.is_file():
        pytest.skip(f"{path} is missing")
    return path


@pytest.fixture(scope="module")
def checked(anonymizer: Anonymizer, network: Path) -> Anonymizer:
    """The tests' anonymizer with a recogniser."""
    copy = Anonymizer(recogniser=Recogniser(network))
    copy.__dict__.update(model=anonymizer.model, encoder=anonymizer.encoder)
    return copy


@pytest.mark.faces
def test_one_face_twice_is_more_alike_than_two_people(network: Path, shared_faces: Path) -> None:
    faces, recogniser = FaceSet(shared_faces, "test"), Recogniser(network)
    one = recogniser.embed(faces.image(0), faces.landmarks[0])
    darker = (faces.image(0) * 0.8).astype(np.uint8)
    others = [recogniser.embed(faces.image(i), faces.landmarks[i]) for i in range(1, 12)]
    assert one @ recogniser.embed(darker, faces.landmarks[0]) > 0.8 > max(float(one @ other) for other in others)


@pytest.mark.faces
def test_a_result_reports_its_similarity_to_the_source(checked: Anonymizer, astronaut) -> None:
    (report,) = checked.anonymize(astronaut, Settings(steps=2, max_similarity=1.0)).faces
    assert report.similarity is not None and report.similarity < 0.6
    (unchecked,) = checked.anonymize(astronaut, QUICK).faces
    assert unchecked.similarity == report.similarity  # the check itself changes nothing


@pytest.mark.faces
def test_a_face_that_stays_too_alike_is_made_again_and_then_fails_closed(checked: Anonymizer, astronaut) -> None:
    steps: list[int] = []
    impossible = Settings(steps=1, max_similarity=-1.0, tries=3)
    with pytest.raises(
        AnonymizationError, match=r"after 3 tries it still looks like the source .* at most -1\.00 was asked"
    ):
        checked.anonymize(astronaut, impossible, lambda face, faces, step: steps.append(step.index))
    assert len(steps) == 3
    redacted = checked.anonymize(astronaut, Settings(steps=1, max_similarity=-1.0, tries=1, on_failure="redact"))
    assert [report.status for report in redacted.faces] == ["redacted"]


@pytest.mark.faces
def test_a_further_try_makes_another_face(checked: Anonymizer, astronaut) -> None:
    (first,) = checked.anonymize(astronaut, QUICK).faces
    bound = first.similarity - 0.01
    try:
        (second,) = checked.anonymize(astronaut, Settings(steps=2, max_similarity=bound, tries=6)).faces
    except AnonymizationError:
        pytest.fail("six tries gave no less similar face than the first")
    assert second.similarity <= bound


def test_a_bound_without_a_network_is_refused(anonymizer: Anonymizer, astronaut) -> None:
    with pytest.raises(InputError, match="max-similarity needs a face-recognition network"):
        anonymizer.anonymize(astronaut, Settings(max_similarity=0.3))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_similarity": 1.5}, "max-similarity must be -1 to 1, got 1.5"),
        ({"max_similarity": float("nan")}, "got nan"),
        ({"tries": 0}, "tries must be 1 to 100, got 0"),
    ],
)
def test_bounds_without_a_meaning_are_refused(change, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Settings(**change)


def test_files_that_are_no_recogniser_are_refused(tmp_path: Path, portrait_file: Path, capsys) -> None:
    pytest.importorskip("onnxruntime")
    with pytest.raises(WeightsError, match="is missing; name an ONNX face-recognition network"):
        Recogniser(tmp_path / "none.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"no network")
    with pytest.raises(WeightsError, match="is no network onnxruntime can read"):
        Recogniser(tmp_path / "broken.onnx")
    command = [
        "anonymize",
        str(portrait_file),
        "-o",
        str(tmp_path / "new.png"),
        "--recogniser",
        str(tmp_path / "broken.onnx"),
    ]
    assert main(command) == 2
    assert "--recogniser needs --max-similarity" in capsys.readouterr().err
    assert not (tmp_path / "new.png").exists()
