"""The identity check, with a real face-recognition network where shared/models holds one."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data

from faceanon_core.calibration import calibrate
from faceanon_core.cli import _fingerprint, main
from faceanon_core.dlib_recogniser import DlibRecogniser
from faceanon_core.errors import AnonymizationError, InputError, WeightsError
from faceanon_core.identity import LAYOUTS, Card, Recogniser, Verdict, card_text, content_hash, read_card
from faceanon_core.judge import judge_face
from faceanon_core.pipeline import Anonymizer, Settings
from faceanon_core.retry import Push, push_harder
from faceanon_core.sources import find_sources
from faceanon_core.training.data import FaceSet

QUICK = Settings(steps=2)
MOBILE = LAYOUTS["mobilefacenet"]


def at(*limits: float, network: Path) -> list[Recogniser]:
    """The network once for each limit."""
    return [Recogniser(network, Card(MOBILE, {0.01: limit})) for limit in limits]


def with_checks(anonymizer: Anonymizer, recognisers: list[Recogniser]) -> Anonymizer:
    """The tests' anonymizer with recognisers."""
    copy = Anonymizer(recognisers=recognisers)
    copy.__dict__.update(model=anonymizer.model, encoder=anonymizer.encoder)
    return copy


@pytest.fixture
def own_copy(network: Path, tmp_path: Path) -> Path:
    """The network in a folder of its own, under another name and with a changed file, so that nothing knows it."""
    copy = tmp_path / "networks" / "mine.onnx"
    copy.parent.mkdir()
    shutil.copy(network.with_name("MobileFaceNet.onnx.data"), copy.parent / "MobileFaceNet.onnx.data")
    copy.write_bytes(network.read_bytes() + b"\x7a\x00")  # an empty unknown field of the protobuf
    return copy


@pytest.fixture(scope="module")
def people(shared_faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 50 pictures of different people."""
    folder, faces = tmp_path_factory.mktemp("people"), FaceSet(shared_faces, "test")
    for i in range(50):
        Image.fromarray(faces.image(i)).save(folder / f"{i:02}.png")
    return folder


# ---- the check ----


@pytest.mark.faces
def test_one_face_twice_is_more_alike_than_two_people(network: Path, shared_faces: Path) -> None:
    faces, recogniser = FaceSet(shared_faces, "test"), Recogniser(network)
    one = recogniser.embed(faces.image(0), faces.landmarks[0])
    darker = (faces.image(0) * 0.8).astype(np.uint8)
    others = [recogniser.embed(faces.image(i), faces.landmarks[i]) for i in range(1, 12)]
    assert one @ recogniser.embed(darker, faces.landmarks[0]) > 0.8 > max(float(one @ other) for other in others)


@pytest.mark.faces
def test_a_result_reports_its_similarity_to_the_source(anonymizer: Anonymizer, network: Path, astronaut) -> None:
    settings = replace(QUICK, proportions=0.9)
    (report,) = with_checks(anonymizer, at(1.0, network=network)).anonymize(astronaut, settings).faces
    assert report.similarity is not None and report.similarity < 0.6
    assert report.verdicts == [Verdict("MobileFaceNet", report.similarity, 1.0)]
    (unchecked,) = anonymizer.anonymize(astronaut, settings).faces
    assert unchecked.similarity is None and unchecked.readout == report.readout  # the check itself changes nothing


@pytest.mark.faces
def test_a_face_that_stays_too_alike_is_made_again_and_then_fails_closed(
    anonymizer: Anonymizer, network: Path, astronaut
) -> None:
    steps: list[int] = []
    checked = with_checks(anonymizer, at(-1.0, network=network))  # the card's limit, which nothing can pass
    with pytest.raises(AnonymizationError, match=r"after 3 tries it still looks like the source .*at most -1\.00 was asked"):
        checked.anonymize(astronaut, Settings(steps=1, tries=3), lambda face, faces, step: steps.append(step.index))
    assert len(steps) == 3
    redacted = checked.anonymize(astronaut, Settings(steps=1, tries=1, on_failure="redact"))
    assert [report.status for report in redacted.faces] == ["redacted"]
    asked = checked.anonymize(astronaut, Settings(steps=1, max_similarity=1.0))  # what is asked comes before the card
    assert [report.status for report in asked.faces] == ["anonymized"]


@pytest.mark.faces
def test_every_recogniser_must_pass(anonymizer: Anonymizer, network: Path, astronaut) -> None:
    both = with_checks(anonymizer, at(1.0, -1.0, network=network))
    with pytest.raises(AnonymizationError, match=r"after 1 try .*at most -1\.00"):
        both.anonymize(astronaut, Settings(steps=1, tries=1))


@pytest.mark.faces
def test_a_further_try_makes_another_face(anonymizer: Anonymizer, network: Path, astronaut) -> None:
    (first,) = with_checks(anonymizer, at(1.0, network=network)).anonymize(astronaut, QUICK).faces
    bound = first.similarity - 0.01
    try:
        (second,) = (
            with_checks(anonymizer, at(bound, network=network)).anonymize(astronaut, Settings(steps=2, tries=6)).faces
        )
    except AnonymizationError:
        pytest.fail("six tries gave no less similar face than the first")
    assert second.similarity <= bound


def test_further_tries_push_harder_but_never_move_features_beyond_the_range() -> None:
    tries = [push_harder(Push(1.0, 1.4, 0.15), pushes) for pushes in range(8)]
    strengths, proportions = [push.strength for push in tries], [push.proportions for push in tries]
    assert tries[0] == Push(1.0, 1.4, 0.15) and {push.drawn for push in tries[1:]} == {1.0}
    assert strengths == sorted(set(strengths)) and proportions == sorted(proportions) and max(proportions) == 2.0
    assert push_harder(Push(1.0, 0.0, 0.15), 3).proportions == 0  # asked to stay, and so not drawn longer either
    assert push_harder(Push(1.0, 0.0, 0.15), 3).drawn == 0.15


def test_a_similarity_that_is_no_number_does_not_pass() -> None:
    assert Verdict("a", 0.3, 0.3).passed and not Verdict("a", 0.301, 0.3).passed
    assert not Verdict("a", float("nan"), 0.3).passed


def test_one_reading_that_is_no_number_is_enough_to_fail(anonymizer: Anonymizer, astronaut, crop) -> None:
    class Broken(DlibRecogniser):
        """Its third reading, at the landmarks found in the result, is no number."""

        readings = 0

        def embed(self, pixels, landmarks):
            self.readings += 1
            return super().embed(pixels, landmarks) * (float("nan") if self.readings == 3 else 1.0)

    network = Broken()
    (verdict,) = judge_face(crop, astronaut, [network], anonymizer.detector, max_similarity=1.0).verdicts
    assert network.readings == 3 and not verdict.passed


@pytest.mark.faces
def test_a_recogniser_without_a_limit_is_refused_before_any_work(anonymizer: Anonymizer, network: Path, astronaut) -> None:
    checked = with_checks(anonymizer, [Recogniser(network, Card(MOBILE))])
    with pytest.raises(InputError, match="no card says which similarity is too high for MobileFaceNet; measure it"):
        checked.anonymize(astronaut, QUICK)


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


@pytest.mark.faces
def test_work_checked_by_another_network_or_limit_does_not_pass_for_finished(network: Path, own_copy: Path) -> None:
    def key(*recognisers: Recogniser) -> str:
        return _fingerprint(QUICK, False, Anonymizer(recognisers=recognisers))

    one, strict = at(0.5, 0.4, network=network)
    (other,) = at(0.5, network=own_copy)
    keys = [key(), key(one), key(strict), key(other), key(one, other)]
    assert len(set(keys)) == 5 and key(*at(0.5, network=network)) == keys[1]


# ---- files and cards ----


def test_files_that_are_no_recogniser_are_refused(tmp_path: Path, portrait_file: Path, capsys) -> None:
    pytest.importorskip("onnxruntime")
    with pytest.raises(WeightsError, match="is missing; name a face-recognition network in ONNX"):
        Recogniser(tmp_path / "none.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"no network")
    with pytest.raises(WeightsError, match="is no network onnxruntime can read"):
        Recogniser(tmp_path / "broken.onnx")
    command = ["anonymize", portrait_file, "-o", tmp_path / "new.png", "--recogniser", tmp_path / "broken.onnx"]
    assert main([str(word) for word in command]) == 2
    assert "is no network onnxruntime can read" in capsys.readouterr().err
    assert not (tmp_path / "new.png").exists()


@pytest.mark.faces
def test_a_network_nothing_is_known_of_needs_a_card(own_copy: Path) -> None:
    with pytest.raises(WeightsError, match=r"nothing says how mine\.onnx wants its input.* card mine\.json with"):
        Recogniser(own_copy)
    own_copy.with_name("mine.json").write_text('{"layout": "insightface", "thresholds": {"0.01": 0.4}}')
    recogniser = Recogniser(own_copy)
    assert recogniser.card.layout == LAYOUTS["insightface"] and recogniser.limit() == 0.4


@pytest.mark.faces
def test_a_card_of_another_network_is_refused(own_copy: Path, network: Path) -> None:
    own_copy.with_name("mine.json").write_text(card_text(Card(MOBILE, {0.01: 0.4}, content_hash(network))))
    with pytest.raises(WeightsError, match=r"mine\.json was measured with another network than mine\.onnx"):
        Recogniser(own_copy)


@pytest.mark.faces
def test_the_content_hash_covers_weights_in_a_file_beside_the_network(network: Path, tmp_path: Path) -> None:
    copy = tmp_path / network.name
    shutil.copy(network, copy)
    shutil.copy(network.with_name(network.name + ".data"), tmp_path)
    before = content_hash(copy)
    assert before == content_hash(network)
    (tmp_path / (network.name + ".data")).write_bytes(b"other weights")
    assert content_hash(copy) != before


@pytest.mark.parametrize("layout", [*LAYOUTS.values(), LAYOUTS["sface"].__class__("BGR", 1.0, (0.5,) * 3, (0.25,) * 3)])
def test_a_card_survives_its_file(tmp_path: Path, layout) -> None:
    card = Card(layout, {0.01: 0.3125, 0.001: 0.5}, "abc", {"pairs": 1225})
    (tmp_path / "card.json").write_text(card_text(card))
    assert read_card(tmp_path / "card.json") == card


@pytest.mark.parametrize(
    "text",
    [
        "not json",
        "[]",
        "{}",
        '{"layout": "arcface"}',
        '{"layout": {"channels": "RGB", "top": 1, "mean": [0, 0, 0], "spread": [1, 1]}}',
        '{"layout": {"channels": "GRB", "top": 1, "mean": [0, 0, 0], "spread": [1, 1, 1]}}',
        '{"layout": {"channels": "RGB", "top": 1, "mean": [0, 0, 0], "spread": [1, 0, 1]}}',
        '{"layout": "sface", "thresholds": {"1%": 0.3}}',
    ],
)
def test_what_is_no_card_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "card.json").write_text(text)
    with pytest.raises(WeightsError, match=r"card\.json is no card of a face-recognition network .* its layout must be"):
        read_card(tmp_path / "card.json")


@pytest.mark.parametrize("thresholds", ['{"0.01": 1.5}', '{"0": 0.3}', '{"0.01": NaN}'])
def test_thresholds_without_a_meaning_are_refused(tmp_path: Path, thresholds: str) -> None:
    (tmp_path / "card.json").write_text(f'{{"layout": "sface", "thresholds": {thresholds}}}')
    with pytest.raises(WeightsError, match="has thresholds that are no similarities of -1 to 1"):
        read_card(tmp_path / "card.json")


# ---- calibration ----


@pytest.mark.faces
def test_calibration_writes_a_card_that_the_check_then_uses(own_copy: Path, people: Path, capsys) -> None:
    command = ["calibrate", str(own_copy), str(people), "--layout", "mobilefacenet"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "0.1% false accepts cannot be measured on 1225 pairs; it takes 10000" in said and "most alike: " in said
    card = json.loads(own_copy.with_name("mine.json").read_text())
    assert card["layout"] == "mobilefacenet" and list(card["thresholds"]) == ["0.01"]
    assert card["measured"].keys() == {"date", "pictures", "people", "pairs"} and card["measured"]["pairs"] == 1225
    assert 0.1 < Recogniser(own_copy).limit() == card["thresholds"]["0.01"] < 0.9
    assert main(command) == 2  # never overwritten unless asked
    assert "mine.json exists already" in capsys.readouterr().err
    assert main([*command[:3], "--overwrite"]) == 0  # the layout is the card's own


@pytest.mark.faces
def test_the_threshold_is_exceeded_by_the_stated_share_of_pairs(network: Path, people: Path, anonymizer) -> None:
    recogniser = Recogniser(network)
    bound = calibrate(recogniser, people).card.thresholds[0.01]
    pictures = [np.asarray(Image.open(path)) for path in find_sources(people).pictures]
    rows = np.stack([recogniser.embed(p, anonymizer.detector.detect(p)[0].landmarks) for p in pictures])
    scores = (rows @ rows.T)[np.triu_indices(50, 1)]
    assert (scores > bound).sum() == 12  # of 1225


@pytest.mark.faces
def test_pictures_of_one_person_are_no_pairs_and_what_cannot_be_read_is_named(
    network: Path, people: Path, tmp_path: Path
) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    (tmp_path / "photo.heic").touch()
    for i, path in enumerate(find_sources(people).pictures):
        (tmp_path / f"person {i}").mkdir()
        shutil.copy(path, tmp_path / f"person {i}" / "one.png")
        if i < 10:
            shutil.copy(path, tmp_path / f"person {i}" / "two.png")
    measured = calibrate(Recogniser(network), tmp_path)
    assert measured.card.measured["people"] == 50 and measured.card.measured["pictures"] == 60
    assert measured.card.measured["pairs"] == 60 * 59 // 2 - 10
    assert measured.most_alike[2] < 0.99
    assert {line.partition(":")[0] for line in measured.left_out if "read" in line} == {"broken.png", "photo.heic"}


@pytest.mark.faces
def test_a_rate_that_too_few_pairs_cannot_resolve_is_refused(network: Path, tmp_path: Path) -> None:
    Image.fromarray(data.astronaut()).save(tmp_path / "one.png")
    Image.fromarray(data.coffee()).save(tmp_path / "no face.png")
    with pytest.raises(
        InputError, match="gives 0 pairs of different people, but a false-accept rate of 1% needs at least 1000"
    ):
        calibrate(Recogniser(network), tmp_path)


@pytest.mark.faces
def test_a_network_fed_the_wrong_way_is_refused(network: Path, people: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"knows only \d+% of the faces .* this layout is wrong for it"):
        calibrate(Recogniser(network, Card(LAYOUTS["sface"])), people)
