"""The whole path on real pictures, with the shipped model at few steps; above all, that it fails closed."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from faceanon_core import geometry
from faceanon_core.crop import crop_face, seam_in_image
from faceanon_core.diffusion import InpaintCond
from faceanon_core.dlib_recogniser import DlibRecogniser
from faceanon_core.errors import AnonymizationError, Cancelled, FaceAnonError, InputError, NoFaceError, UnknownNameError
from faceanon_core.faces import Face, FaceDetector, Scan
from faceanon_core.geometry import LEFT_EYE, LIPS_OUTER, RIGHT_EYE
from faceanon_core.guidance import GuidanceSettings
from faceanon_core.judge import check_changed
from faceanon_core.light import new_face_light
from faceanon_core.parsing import INDEX, LandmarkParser
from faceanon_core.pipeline import (
    Anonymizer,
    Result,
    Settings,
    reference_settings,
)
from faceanon_core.redact import redact_face
from faceanon_core.regions import RegionChoice, region_mask
from faceanon_core.sampling import sample_guided
from faceanon_core.sketch import face_sketch, hide_face
from faceanon_core.target import Target, gallery_index, gallery_target, measured_attributes, new_face_attributes

QUICK = Settings(steps=1)
NOSE_TIP = (6, 48, 278, 2)  # bridge, wings and base


@pytest.fixture(scope="module")
def default(anonymizer, astronaut) -> Result:
    """The astronaut with the default settings at two steps, the first of them guided."""
    return anonymizer.anonymize(astronaut, Settings(steps=2))


def seam_weight(image: np.ndarray, face: Face, choice: RegionChoice) -> np.ndarray:
    crop = crop_face(image, face, 256)
    mask = region_mask(LandmarkParser().parse(crop.pixels, crop.landmarks), choice)
    return seam_in_image(crop, mask.seam, image.shape[1], image.shape[0])


def covered(image: np.ndarray, face: Face) -> np.ndarray:
    """The pixels within the hull of a face's landmarks."""
    mask = np.zeros(image.shape[:2], np.uint8)
    cv2.fillConvexPoly(mask, cv2.convexHull(face.landmarks.round().astype(np.int32)), 1)
    return mask == 1


class BrokenModel(Anonymizer):
    """An anonymizer whose model returns what `answer` makes of the source crop."""

    def __init__(self, whole: Anonymizer, answer) -> None:
        super().__init__()
        self.__dict__.update(model=whole.model, encoder=whole.encoder)
        self.answer = answer

    def regenerate(self, crop, mask, target, settings, seed, callback=None) -> torch.Tensor:
        return self.answer(crop.tensor)


class NoMesh(FaceDetector):
    """A detector that proposes faces in a picture but can fit no mesh to those left of a border."""

    def __init__(self, border: float) -> None:
        super().__init__()
        self.border = border

    def _fit(self, image, proposal):
        is_crop = image.shape[:2] == (256, 256)  # in which results are looked at
        return None if proposal.box.center[0] < self.border and not is_crop else super()._fit(image, proposal)


# what is changed, and what is not


def test_the_face_changes_and_everything_outside_the_seam_is_bit_identical(default, astronaut, face) -> None:
    weight = seam_weight(astronaut, face, RegionChoice())
    changed = (default.pixels != astronaut).any(-1)
    assert not changed[weight == 0].any()
    assert changed[weight == 1].mean() > 0.95
    assert np.abs(default.pixels.astype(int) - astronaut)[weight == 1].mean() > 8
    assert default.pixels.dtype == np.uint8


def test_the_report_names_face_target_and_what_the_guidance_did(default, face) -> None:
    (report,) = default.faces
    assert report.status == "anonymized"
    assert report.face.box == face.box
    assert report.target in gallery_index()
    # the last step adds no noise and is not guided
    assert [set(step) for step in report.readout] == [{"sigma", "toward", "away"}, {"sigma"}]
    assert report.readout[0]["sigma"] > report.readout[1]["sigma"]
    assert default.warnings == []


def test_the_same_seed_gives_the_same_bits_and_another_seed_another_face(anonymizer, astronaut, default) -> None:
    assert np.array_equal(anonymizer.anonymize(astronaut, Settings(steps=2)).pixels, default.pixels)
    assert not np.array_equal(anonymizer.anonymize(astronaut, Settings(steps=2, seed=1)).pixels, default.pixels)


def test_pictures_have_seeds_of_their_own_on_request_and_one_picture_always_the_same(anonymizer, astronaut) -> None:
    def seeds(picture: np.ndarray, settings: Settings) -> list[int]:
        asked: list[int] = []
        model = BrokenModel(anonymizer, lambda source: source.flip(-1))
        answer = model.regenerate
        model.regenerate = lambda *given, **named: asked.append(given[4]) or answer(*given, **named)
        model.anonymize(picture, settings)
        return asked

    other = np.ascontiguousarray(astronaut[:, ::-1])
    assert seeds(astronaut, Settings(seed=3)) == seeds(other, Settings(seed=3)) == [3]
    one, again, two = (seeds(picture, Settings(own_seed=True)) for picture in (astronaut, astronaut.copy(), other))
    assert one == again != two
    assert seeds(astronaut, Settings(seed=3, own_seed=True)) == [one[0] + 3]


def test_strength_0_is_bit_identical_to_a_guidance_that_never_acts_and_strength_1_is_not(anonymizer, astronaut, default):
    never = Settings(steps=2, guidance=GuidanceSettings(end=0.0))
    off = anonymizer.anonymize(astronaut, Settings(steps=2, guidance=GuidanceSettings(strength=0.0)))
    assert np.array_equal(off.pixels, anonymizer.anonymize(astronaut, never).pixels)
    assert not np.array_equal(off.pixels, default.pixels)
    assert [set(step) for step in off.faces[0].readout] == [{"sigma"}, {"sigma"}]


BUT_THE_NOSE = ("skin", "eyes", "brows", "mouth")


@pytest.mark.parametrize(
    ("choice", "kept", "new"),
    [
        (RegionChoice(keep=("eyes",)), (LEFT_EYE, RIGHT_EYE), (LIPS_OUTER,)),
        (RegionChoice(keep=("left_eye",)), (LEFT_EYE,), (RIGHT_EYE, LIPS_OUTER)),
        (RegionChoice(keep=("mouth",)), (LIPS_OUTER,), (LEFT_EYE, RIGHT_EYE)),
        (RegionChoice(keep=BUT_THE_NOSE), (LEFT_EYE, RIGHT_EYE, LIPS_OUTER), (NOSE_TIP,)),
        (RegionChoice(("nose",)), (LEFT_EYE, RIGHT_EYE, LIPS_OUTER), (NOSE_TIP,)),
        (RegionChoice(("right_eye",)), (LEFT_EYE, LIPS_OUTER, NOSE_TIP), (RIGHT_EYE,)),
    ],
    ids=lambda value: " ".join(value.keep or value.regenerate) if isinstance(value, RegionChoice) else "",
)
def test_regions_are_kept_in_every_direction_bit_by_bit(anonymizer, astronaut, face, choice, kept, new) -> None:
    result = anonymizer.anonymize(astronaut, replace(QUICK, regions=choice)).pixels
    changed = (result != astronaut).any(-1)
    assert not changed[seam_weight(astronaut, face, choice) == 0].any()
    for outlines, expected in ((kept, False), (new, True)):
        for outline in outlines:
            part = np.zeros(astronaut.shape[:2], np.uint8)
            cv2.fillConvexPoly(part, cv2.convexHull(face.landmarks[list(outline)].round().astype(np.int32)), 1)
            part = cv2.erode(part, np.ones((3, 3))) == 1
            assert part.sum() > 20
            assert changed[part].mean() > 0.8 if expected else not changed[part].any()


def test_the_source_array_is_never_written_to(anonymizer, portrait) -> None:
    before = portrait.copy()
    result = anonymizer.anonymize(portrait, QUICK)
    assert np.array_equal(portrait, before)
    assert not np.shares_memory(result.pixels, portrait)


def test_the_model_never_sees_the_face_that_is_replaced(crop) -> None:
    core = region_mask(LandmarkParser().parse(crop.pixels, crop.landmarks), RegionChoice()).core
    sketch = face_sketch(crop.landmarks, 256)
    noise = torch.rand_like(crop.tensor)
    other = crop.tensor * (1 - core) + noise * core
    for filling in (0.5, sketch):
        assert torch.equal(hide_face(crop.tensor, core, filling), hide_face(other, core, filling))
    assert torch.equal(hide_face(crop.tensor, core) * (1 - core), crop.tensor * (1 - core))


def test_several_faces_are_all_replaced(anonymizer, two_faces) -> None:
    result = anonymizer.anonymize(two_faces, QUICK)
    assert [report.status for report in result.faces] == ["anonymized", "anonymized"]
    for report in result.faces:
        inside = seam_weight(two_faces, report.face, RegionChoice()) == 1
        assert (result.pixels != two_faces)[inside].any(-1).mean() > 0.9
    if len(gallery_index()) > 1:
        assert result.faces[0].target != result.faces[1].target


@pytest.mark.parametrize("faces", ["largest", "1"])
def test_a_face_that_was_not_asked_for_stays_bit_identical_with_a_warning(anonymizer, two_faces, faces: str) -> None:
    result = anonymizer.anonymize(two_faces, replace(QUICK, faces=faces))
    large, small = result.faces
    assert (large.status, small.status) == ("anonymized", "kept")
    inside = covered(two_faces, small.face)
    assert np.array_equal(result.pixels[inside], two_faces[inside])
    assert len(result.warnings) == 1
    assert "face 2: kept, left as it is because" in result.warnings[0]


def test_the_callback_sees_every_step_of_every_face(anonymizer, two_faces) -> None:
    seen = []
    once = Settings(steps=2, tries=1, on_failure="redact")  # so few steps may make no face, which would be made again
    anonymizer.anonymize(two_faces, once, lambda face, faces, step: seen.append((face, faces, step.index)))
    assert seen == [(0, 2, 0), (0, 2, 1), (1, 2, 0), (1, 2, 1)]


# failing closed


@pytest.mark.parametrize("policy", ["error", "redact"])
def test_no_face_is_an_error(anonymizer, coffee, policy) -> None:
    with pytest.raises(NoFaceError, match="no face was found, so nothing could be anonymized and nothing is written"):
        anonymizer.anonymize(coffee, Settings(on_failure=policy))


def test_a_picture_without_a_face_passes_only_under_keep_and_with_a_warning(anonymizer, coffee) -> None:
    result = anonymizer.anonymize(coffee, Settings(on_failure="keep"))
    assert np.array_equal(result.pixels, coffee)
    assert result.warnings == ["no face was found, the picture is unchanged"]


def test_a_face_that_cannot_be_processed_is_an_error_by_default(anonymizer, cut_portrait) -> None:
    with pytest.raises(AnonymizationError, match=r"face 1 of 1 .* could not be anonymized: the face is cut by the") as error:
        anonymizer.anonymize(cut_portrait, Settings())
    assert "nothing is written. Use the failure policy redact" in str(error.value)


def test_redact_covers_the_face_with_one_solid_colour(anonymizer, cut_portrait) -> None:
    result = anonymizer.anonymize(cut_portrait, Settings(on_failure="redact"))
    (report,) = result.faces
    inside = covered(cut_portrait, report.face)
    assert report.status == "redacted"
    assert inside.sum() > 2000
    assert len(np.unique(result.pixels[inside], axis=0)) == 1  # no pixel of the source survives
    assert (result.pixels == cut_portrait).all(-1).mean() > 0.8
    assert "face 1: redacted, the face is cut by the picture's border" in result.warnings[0]


def test_keep_leaves_the_face_with_a_warning(anonymizer, cut_portrait) -> None:
    result = anonymizer.anonymize(cut_portrait, Settings(on_failure="keep"))
    assert np.array_equal(result.pixels, cut_portrait)
    assert "face 1: kept, the face is cut by the picture's border" in result.warnings[0]


@pytest.mark.parametrize("degrees", [0, 40])
def test_a_redaction_reaches_beyond_the_whole_hull_at_any_angle(astronaut, face, degrees: int) -> None:
    matrix = cv2.getRotationMatrix2D((225, 125), degrees, 1).astype(np.float32)
    turned = cv2.warpAffine(astronaut, matrix, (512, 512))
    there = replace(face, landmarks=(face.landmarks @ matrix[:, :2].T + matrix[:, 2]).astype(np.float32))
    result = redact_face(turned, there)
    wide = cv2.dilate(covered(turned, there).astype(np.uint8), np.ones((11, 11))) == 1
    assert (result[wide] == result[wide][0]).all()


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda source: source, "the face came out nearly unchanged"),
        (lambda source: (source + 1 / 255).clamp(0, 1), "the face came out nearly unchanged"),
        (lambda source: source * torch.nan, "the model returned pixels that are not numbers"),
    ],
)
def test_a_model_that_leaves_the_face_as_it_is_gets_nothing_past(anonymizer, astronaut, face, answer, reason) -> None:
    broken = BrokenModel(anonymizer, answer)
    with pytest.raises(AnonymizationError, match=reason):
        broken.anonymize(astronaut, QUICK)
    redacted = broken.anonymize(astronaut, replace(QUICK, on_failure="redact"))
    assert len(np.unique(redacted.pixels[covered(astronaut, face)], axis=0)) == 1
    assert reason in redacted.warnings[0]


RUINED = {
    "noise": lambda source: torch.rand(source.shape, generator=torch.Generator().manual_seed(0)),
    "blobs": lambda source: torch.nn.functional.interpolate(
        torch.rand((1, 3, 8, 8), generator=torch.Generator().manual_seed(0)), source.shape[-1], mode="bicubic"
    ).clamp(0, 1),
    "white": torch.ones_like,
    "skin": lambda source: source[..., 150:151, 150:151].expand_as(source).contiguous(),
}


@pytest.mark.parametrize("kind", RUINED)
def test_a_result_that_is_no_face_is_made_again_and_then_fails_closed(anonymizer, astronaut, face, kind: str) -> None:
    made = []
    broken = BrokenModel(anonymizer, lambda source: made.append(1) or RUINED[kind](source))
    with pytest.raises(AnonymizationError, match="after 3 tries no face is recognisable in the result; nothing is written"):
        broken.anonymize(astronaut, Settings(tries=3))
    assert len(made) == 3
    redacted = broken.anonymize(astronaut, Settings(tries=1, on_failure="redact"))
    assert len(np.unique(redacted.pixels[covered(astronaut, face)], axis=0)) == 1


def test_guidance_that_ruins_the_face_fails_closed(anonymizer, astronaut) -> None:
    ruinous = Settings(steps=6, guidance=GuidanceSettings(strength=100.0, limit=None), tries=2)
    with pytest.raises(AnonymizationError, match="after 2 tries no face is recognisable in the result"):
        anonymizer.anonymize(astronaut, ruinous)


def test_a_face_that_is_one_on_the_second_try_is_emitted(anonymizer, astronaut) -> None:
    made = []

    def answer(source: torch.Tensor) -> torch.Tensor:
        made.append(1)
        return RUINED["noise"](source) if len(made) == 1 else source.flip(-1)

    (report,) = BrokenModel(anonymizer, answer).anonymize(astronaut, QUICK).faces
    assert report.status == "anonymized" and len(made) == 2


def test_a_face_is_compared_with_its_source_though_the_one_beside_it_was_covered(anonymizer, astronaut, face) -> None:
    compared: list[np.ndarray] = []

    class Watched(DlibRecogniser):
        def embed(self, pixels, landmarks):
            compared.append(pixels)
            return super().embed(pixels, landmarks)

    beside = replace(face, landmarks=face.landmarks + 25)
    answers = iter([torch.full((1, 3, 256, 256), float("nan")), torch.rand(1, 3, 256, 256)])
    broken = BrokenModel(anonymizer, lambda source: next(answers))
    broken.detector.scan = lambda pixels: Scan([beside, face], [])
    broken.recognisers = (Watched(),)
    result = broken.anonymize(astronaut, replace(QUICK, tries=1, on_failure="redact"))
    assert [report.status for report in result.faces] == ["redacted", "redacted"]  # the second is noise, no face
    assert np.array_equal(compared[0], crop_face(astronaut, face, 256).pixels)


def test_what_the_model_was_given_must_not_come_back_though_its_neighbour_was_covered(anonymizer, astronaut, face) -> None:
    beside = replace(face, landmarks=face.landmarks - (55, 0))
    factors = iter([float("nan"), 1.0])
    broken = BrokenModel(anonymizer, lambda source: next(factors) * source)
    broken.detector.scan = lambda pixels: Scan([beside, face], [])
    reports = broken.anonymize(astronaut, replace(QUICK, tries=1, on_failure="redact")).faces
    assert [report.status for report in reports] == ["redacted", "redacted"]
    assert "nearly unchanged" in reports[1].reason


def test_regions_that_leave_the_whole_face_are_refused() -> None:
    parser = LandmarkParser()
    parser.delivers = parser.delivers | {"hair"}
    with pytest.raises(InputError, match=r"the regions asked for \(hair\) leave the whole face as it is"):
        Anonymizer(parser=parser).check(Settings(regions=RegionChoice(("hair",))))


def test_a_parser_that_takes_most_of_a_face_for_something_else_fails_closed(anonymizer, astronaut) -> None:
    class Blind(LandmarkParser):
        def parse(self, crop, landmarks):
            labels = super().parse(crop, landmarks)
            labels[labels != INDEX["upper_lip"]] = 0
            return labels

    blind = BrokenModel(anonymizer, torch.rand_like)
    blind.parser = Blind()
    with pytest.raises(AnonymizationError, match=r"the face parser takes \d\d% of the face for something else"):
        blind.anonymize(astronaut, QUICK)


def test_a_change_outside_the_mask_does_not_count(crop) -> None:
    core = torch.zeros(1, 1, 256, 256)
    core[..., :128] = 1
    changed = crop.tensor.clone()
    changed[..., 128:] = 0
    with pytest.raises(AnonymizationError, match=r"nearly unchanged \(mean change 0\.00 of 255\)"):
        check_changed(crop, changed, core)
    check_changed(crop, changed, 1 - core)


def test_a_face_no_mesh_fits_is_an_error_though_others_work(anonymizer, two_faces) -> None:
    anonymizer = BrokenModel(anonymizer, lambda source: source.flip(-1))
    anonymizer.detector = NoMesh(400)  # the large face at the left
    with pytest.raises(AnonymizationError, match=r"face 2 of 2 .* no face mesh fits it; nothing is written"):
        anonymizer.anonymize(two_faces, QUICK)


def test_a_face_no_mesh_fits_is_covered_whole_under_redact(anonymizer, astronaut, face) -> None:
    anonymizer = BrokenModel(anonymizer, lambda source: 1 - source)
    anonymizer.detector = NoMesh(1000)
    result = anonymizer.anonymize(astronaut, replace(QUICK, on_failure="redact"))
    assert [report.status for report in result.faces] == ["redacted"]
    assert len(np.unique(result.pixels[covered(astronaut, face)], axis=0)) == 1


@pytest.mark.parametrize("policy", ["error", "redact", "keep"])
def test_stopping_is_not_taken_for_a_failure(anonymizer, astronaut, policy) -> None:
    def stop(*_: object) -> None:
        raise Cancelled("stopped")

    with pytest.raises(Cancelled):
        anonymizer.anonymize(astronaut, replace(QUICK, on_failure=policy), stop)


@pytest.mark.parametrize("policy", ["error", "redact", "keep"])
def test_a_mask_that_excludes_everything_is_refused_under_every_policy(anonymizer, astronaut, policy) -> None:
    settings = replace(QUICK, regions=RegionChoice(("eyes",), ("eyes",)), on_failure=policy)
    with pytest.raises(InputError, match="the mask excludes everything"):
        anonymizer.anonymize(astronaut, settings)


def test_a_target_picture_without_a_face_is_refused(anonymizer, astronaut, coffee, tmp_path: Path) -> None:
    Image.fromarray(coffee).save(tmp_path / "cup.png")
    with pytest.raises(FaceAnonError, match=r"the target picture cup\.png shows no face"):
        anonymizer.anonymize(astronaut, replace(QUICK, target=str(tmp_path / "cup.png")))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"regions": RegionChoice(("knee",))}, "no region named 'knee'"),
        ({"regions": RegionChoice(keep=("knee",))}, "no region named 'knee'"),
        ({"regions": RegionChoice(keep=("hair",))}, "the active face parser cannot find hair"),
        ({"target": "nobody"}, "no target named 'nobody'"),
    ],
)
def test_unknown_names_are_refused_before_any_work(change, message: str) -> None:
    with pytest.raises(UnknownNameError, match=message):
        Anonymizer(Path("no/such/folder")).anonymize(np.zeros((100, 100, 3), np.uint8), replace(QUICK, **change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps must be 1 to 1000, got 0"),
        ({"proportions": 3}, "proportions must be 0 to 2, got 3"),
        ({"drawn": 1.1}, r"drawn must be 0 to 1, got 1\.1"),
        ({"drawn": -0.1}, r"drawn must be 0 to 1, got -0\.1"),
        ({"drawn": float("nan")}, "drawn must be 0 to 1, got nan"),
        ({"emphasis": 0.5}, "emphasis must be 1 to 20, got 0.5"),
        ({"steps": 1001}, "steps must be 1 to 1000, got 1001"),
        ({"faces": "0"}, "faces must be all, largest or a number of at least 1, got '0'"),
        ({"faces": "some"}, "got 'some'"),
        ({"faces": "-1"}, "got '-1'"),
        ({"on_failure": "ignore"}, "on-failure must be error, redact or keep, got 'ignore'"),
    ],
)
def test_settings_without_a_meaning_are_refused(change, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Settings(**change)


# what the new face is made from


TARGET = {"sex": "male", "age": "adult", "expression": "neutral", "hair": "black", "skin": "dark"}


def told(crop, encoder, keep=("expression", "skin"), **asked: str) -> tuple[dict[str, str], dict[str, str] | None]:
    return new_face_attributes(crop, Target("t", crop.tensor, TARGET), asked, keep, encoder)


def test_the_new_face_has_the_targets_attributes_the_sources_expression_and_skin_and_what_was_asked(crop) -> None:
    own = measured_attributes(crop)
    assert set(own) == {"expression", "skin"} and own != {name: TARGET[name] for name in own}
    assert told(crop, None, age="senior")[0] == {"sex": "male", "age": "senior", **own}
    assert told(crop, None, skin="tan")[0]["skin"] == "tan"
    assert told(crop, None, hair="red")[0]["hair"] == "red"


def test_emphasis_moves_off_the_sources_own_values_of_what_was_asked(crop, anonymizer) -> None:
    encoder, own = anonymizer.encoder, measured_attributes(crop)
    assert told(crop, encoder)[1] is None
    assert told(crop, encoder, sex="male")[1] == {"age": "adult", "sex": "female", **own}
    assert told(crop, encoder, sex="female")[1] == {"age": "adult", **own}  # as it is already: only told harder
    assert told(crop, None, sex="male")[1] == {"age": "adult", **own}  # nobody knows what it is
    assert told(crop, None, skin="dark")[1] == {"sex": "male", "age": "adult", **own}
    kept, opposite = told(crop, encoder, ("sex",))
    assert kept["sex"] == "female" and opposite is None
    with pytest.raises(InputError, match="sex of the source cannot be measured; connect the demo model's encoder"):
        told(crop, None, ("sex",))


def test_emphasis_acts_on_what_is_asked_and_on_nothing_else(anonymizer, portrait) -> None:
    def made(**changes) -> np.ndarray:
        return anonymizer.anonymize(portrait, Settings(steps=3, **changes)).pixels

    asked = {"attributes": {"sex": "male"}}
    assert np.array_equal(made(emphasis=1), made())
    plain, pressed = made(emphasis=1, **asked), made(**asked)
    assert not np.array_equal(plain, pressed)
    assert np.array_equal(made(emphasis=1, keep_attributes=("sex",)), made(keep_attributes=("sex",)))


def test_the_reference_follows_the_paper() -> None:
    settings = reference_settings(60.0, seed=5)
    assert (settings.steps, settings.eta, settings.start, settings.seed) == (45, 1.0, "source", 5)
    assert settings.guidance.strength * 60.0 == pytest.approx(0.8)
    assert (settings.guidance.toward, settings.guidance.away, settings.guidance.tokens) == (1.0, 0.0, "all")
    assert not settings.guidance.normalise  # phi sees -1..1
    assert not settings.describe  # the unconditional branch only
    assert settings.same_seed
    assert settings.guidance.limit is None


def test_the_reference_gives_faces_of_one_picture_the_same_noise(anonymizer, two_faces) -> None:
    quick = replace(reference_settings(anonymizer.encoder.unit_strength), steps=3)
    result = anonymizer.anonymize(two_faces, quick)
    assert [report.status for report in result.faces] == ["anonymized", "anonymized"]


def test_half_a_face_at_the_border_beside_a_whole_one_is_never_passed_on(anonymizer, astronaut) -> None:
    pixels = np.concatenate([astronaut, astronaut[:, :224]], axis=1)
    with pytest.raises(AnonymizationError, match=r"face 2 of 2 .* cut by the picture's border"):
        anonymizer.anonymize(pixels, Settings(steps=1))
    result = anonymizer.anonymize(pixels, Settings(steps=1, on_failure="redact"))
    assert [report.status for report in result.faces] == ["anonymized", "redacted"]
    face = pixels[80:170, 690:]
    assert (np.abs(result.pixels[80:170, 690:].astype(int) - face).max(-1) > 0).mean() > 0.9


# the drawing


def regenerated(anonymizer: Anonymizer, crop, settings: Settings, change=lambda cond: cond) -> torch.Tensor:
    """One new crop, unguided unless the settings say so; `change` alters what the model is told."""
    quick = copy.copy(anonymizer)
    quick.sampler = lambda model, x, sigmas, cond, *rest: sample_guided(model, x, sigmas, change(cond), *rest)
    mask = region_mask(LandmarkParser().parse(crop.pixels, crop.landmarks), RegionChoice())
    return quick.regenerate(crop, mask, gallery_target(min(gallery_index())), settings, seed=3)


EARLY = Settings(steps=4, drawn=0.28, guidance=GuidanceSettings(strength=0.0))


def test_drawn_1_shows_the_drawing_throughout_0_never_and_a_share_in_the_first_steps(anonymizer, crop) -> None:
    made = {drawn: regenerated(anonymizer, crop, replace(EARLY, drawn=drawn)) for drawn in (1, EARLY.drawn, 0)}
    throughout = regenerated(anonymizer, crop, EARLY, lambda cond: replace(cond, plain_latent=None))
    never = regenerated(
        anonymizer, crop, EARLY, lambda cond: replace(cond, masked_latent=cond.plain_latent, plain_latent=None)
    )
    assert torch.equal(made[1], throughout) and torch.equal(made[0], never)
    for other in (throughout, never):
        assert (made[EARLY.drawn] - other).abs().max() > 0.05


def test_where_the_drawing_is_not_shown_the_light_of_the_skin_is(anonymizer, crop) -> None:
    told: list[InpaintCond] = []
    regenerated(anonymizer, crop, replace(EARLY, steps=1, drawn=0.0), lambda cond: told.append(cond) or cond)
    core = region_mask(LandmarkParser().parse(crop.pixels, crop.landmarks), RegionChoice()).core
    lit = face_sketch(crop.landmarks, 256, new_face_light(crop), lines=False)
    assert told[0].plain_latent is None
    assert torch.equal(told[0].masked_latent, anonymizer.model.encode(hide_face(crop.tensor, core, lit)))
    inside = lit[0].permute(1, 2, 0)[geometry.face_area((256, 256), crop.landmarks)]
    colour = crop.tensor[0].permute(1, 2, 0)[core[0, 0] > 0].mean(0)
    assert (inside.mean(0) - colour).abs().max() < 0.1 < (inside.mean(0) - 0.5).abs().max()


def test_the_reference_sees_no_drawing(anonymizer, crop) -> None:
    told = []
    settings = replace(reference_settings(anonymizer.encoder.unit_strength), steps=1)
    regenerated(anonymizer, crop, settings, lambda cond: told.append(cond) or cond)
    core = region_mask(LandmarkParser().parse(crop.pixels, crop.landmarks), RegionChoice()).core
    assert told[0].plain_latent is None
    assert torch.equal(told[0].masked_latent, anonymizer.model.encode(hide_face(crop.tensor, core)))
