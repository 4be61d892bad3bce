"""Target faces made by the demo model, the choice among candidates, and the gallery they go to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from faceanon_core.attributes import parse_attributes, prompt
from faceanon_core.cli import main
from faceanon_core.crop import crop_face
from faceanon_core.errors import InputError, UnknownNameError
from faceanon_core.geometry import FACE_OVAL, inter_ocular
from faceanon_core.skin import mouth_expression, typology_angle
from faceanon_core.synthesis import best_candidate, candidate_sheet, judge_candidate, random_pose, synthesize_picture
from faceanon_core.target import gallery_index, gallery_target, save_target, source_attributes


@pytest.fixture(scope="module")
def portraits(anonymizer) -> dict[str, np.ndarray]:
    """One light and one dark face of the same pose and seed."""
    wishes = {"light": "sex=female,age=adult,skin=very-light", "dark": "sex=female,age=adult,skin=dark"}
    return {name: synthesize_picture(anonymizer.model, parse_attributes(wish), 5) for name, wish in wishes.items()}


def test_the_demo_model_makes_one_face_with_the_skin_that_was_asked(anonymizer, portraits) -> None:
    angles = {}
    for name, pixels in portraits.items():
        (face,) = anonymizer.detector.detect(pixels)
        angles[name] = typology_angle(pixels, face.landmarks)
    assert angles["light"] > angles["dark"] + 40


def test_random_poses_are_frontal_faces_that_differ_in_shape() -> None:
    poses = [random_pose({}, seed) for seed in range(6)]
    for pose in poses:
        assert pose.min() > 0 and pose.max() < 256
    outlines = np.stack([pose[list(FACE_OVAL)] for pose in poses])
    assert 0.005 < np.std(outlines, axis=0).mean() / inter_ocular(poses[0]) < 0.2
    assert np.array_equal(random_pose({}, 3), random_pose({}, 3))


def test_a_child_has_its_eyes_lower_in_the_face_than_an_adult() -> None:
    def eyes_down(age: str) -> float:
        pose = random_pose({"age": age}, 0)
        return float((pose[33, 1] - pose[10, 1]) / (pose[152, 1] - pose[10, 1]))

    assert eyes_down("child") > eyes_down("adult")


@pytest.mark.parametrize("expression", ["smile", "open-mouth"])
def test_a_smile_begins_with_smiling_landmarks(expression: str) -> None:
    assert mouth_expression(random_pose({"expression": expression}, 0)) == "smile"
    assert mouth_expression(random_pose({"expression": "neutral"}, 0)) == mouth_expression(random_pose({}, 0)) == "neutral"
    assert mouth_expression(random_pose({"expression": expression, "age": "child"}, 0)) == mouth_expression(
        random_pose({"age": "child"}, 0)
    )  # there is no mean smile of children


def test_a_candidate_without_a_single_face_cannot_be_chosen(anonymizer, coffee, two_faces) -> None:
    judged = [judge_candidate(pixels, {}, anonymizer.detector, anonymizer.encoder) for pixels in (coffee, two_faces)]
    assert [candidate.faults for candidate in judged] == [("shows 0 faces, not one",), ("shows 2 faces, not one",)]
    with pytest.raises(InputError, match=r"none of the 2 candidates can be a target: 1 shows 0 faces.*; 2 shows 2 faces"):
        best_candidate(judged)


def test_the_candidate_that_shows_what_was_asked_is_chosen(anonymizer, astronaut, portraits) -> None:
    shown = judge_candidate(portraits["dark"], {}, anonymizer.detector, anonymizer.encoder).target.attributes["skin"]
    asked = {"skin": shown}
    judged = [
        judge_candidate(pixels, asked, anonymizer.detector, anonymizer.encoder) for pixels in (astronaut, portraits["dark"])
    ]
    assert shown in ("brown", "dark") and judged[0].faults[0].endswith(f"not {shown}")
    assert best_candidate(judged) is judged[1]


def test_a_candidate_that_is_the_source_is_refused(anonymizer, astronaut) -> None:
    judged = judge_candidate(astronaut, {}, anonymizer.detector, anonymizer.encoder, excess=lambda crop: 0.1)
    assert judged.faults[-1] == "looks like the source"
    with pytest.raises(InputError, match="none of the 1 candidates"):
        best_candidate([judged])


def test_attributes_the_demo_model_cannot_carry_are_refused_by_name(anonymizer) -> None:
    with pytest.raises(InputError, match=r"the demo model does not know makeup; it knows sex, age, .*SD or SDXL checkpoint"):
        synthesize_picture(anonymizer.model, {"makeup": "strong"}, 0)


def test_the_sheet_holds_every_candidate(anonymizer, astronaut, coffee) -> None:
    judged = [judge_candidate(p, {}, anonymizer.detector, anonymizer.encoder) for p in (astronaut, coffee, coffee)]
    assert candidate_sheet(judged, columns=2).shape == (512, 512, 3)


def test_attributes_of_the_source_are_carried_over(anonymizer, crop) -> None:
    assert source_attributes(crop, anonymizer.encoder, ("expression", "skin", "sex")) == {
        "expression": "smile", "skin": "very-light", "sex": "female",
    }  # fmt: skip
    with pytest.raises(InputError, match="does not know gaze"):
        source_attributes(crop, anonymizer.encoder, ("gaze",))


def test_a_saved_target_is_listed_and_nothing_is_overwritten(tmp_path: Path, anonymizer, crop) -> None:
    folder = tmp_path / "gallery"
    target = judge_candidate(crop.pixels, {}, anonymizer.detector, anonymizer.encoder).target
    path = save_target(target, "zoe", folder)
    assert gallery_index((folder,)) == {"zoe": target.attributes}
    assert np.abs(gallery_target("zoe", (folder,)).image - target.image).max() < 1 / 255
    before = path.read_bytes()
    for name, taken in (("zoe", ()), ("anna", ("anna",))):
        with pytest.raises(InputError, match=f"there is a target named '{name}' already"):
            save_target(target, name, folder, taken)
    with pytest.raises(InputError, match=r"cannot be named '\.\./x'"):
        save_target(target, "../x", folder)
    assert path.read_bytes() == before
    with pytest.raises(UnknownNameError, match="no target named 'anna'; the gallery has zoe"):
        gallery_target("anna", (folder,))


def test_prompts_say_what_was_asked_and_nothing_else() -> None:
    positive, negative = prompt(parse_attributes("age=60s,sex=f,glasses=none,makeup=strong"), "freckles")
    assert positive.startswith("portrait photograph of one 70 year old woman, strong makeup")
    assert positive.endswith("freckles") and "glasses" in negative
    assert "girl" in prompt({"sex": "female", "age": "child"})[0]
    assert "looking at the camera" not in prompt({"gaze": "left"})[0]


@pytest.mark.parametrize(
    "text",
    [
        "hair=bald,hair_style=long",
        "age=baby,facial_hair=beard",
        "age=child,facial_hair=stubble",
        "glasses=sunglasses,gaze=left",
    ],
)
def test_contradictory_attributes_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="contradict each other; leave one of them out"):
        parse_attributes(text)


def test_the_command_line_makes_a_target_that_anonymize_can_use(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("FACEANON_MODELS", str(tmp_path / "models"))
    sheet = tmp_path / "sheet.png"
    arguments = ["synthesize", "-o", str(sheet), "--count", "1", "--attributes", "sex=male", "--save", "new", "--seed", "2"]
    assert main(arguments) == 0
    assert Image.open(sheet).size == (256, 256)
    assert "use it with --target new" in capsys.readouterr().out
    assert main(["targets"]) == 0 and "\nnew " in capsys.readouterr().out
    assert main(arguments) == 2  # the sheet exists


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--keep-attributes", "age"], "name its photograph with --like"),
        (["--count", "0"], "count must be 1 to 100, got 0"),
        (["--pick", "9", "--count", "2"], "pick must be the number of a candidate, 1 to 2, got 9"),
        (["--save", "../tom"], "a target cannot be named '../tom'"),
        (["--save", "anna"], "there is a target named 'anna' already"),
        (["--attributes", "gaze=left"], "the demo model does not know gaze"),
    ],
)
def test_bad_input_of_synthesize_is_told_in_one_sentence_and_nothing_is_written(extra, message, tmp_path, capsys) -> None:
    assert main(["synthesize", "-o", str(tmp_path / "s.png"), *extra]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_synthesized_target_is_an_upright_crop(anonymizer, portraits) -> None:
    target = judge_candidate(portraits["light"], {}, anonymizer.detector, anonymizer.encoder).target
    assert target.image.shape == (1, 3, 256, 256)
    pixels = (target.image[0].permute(1, 2, 0).numpy() * 255).astype(np.uint8)
    (face,) = anonymizer.detector.detect(pixels)
    assert crop_face(pixels, face, 256).frame.scale == pytest.approx(1, abs=0.15)
