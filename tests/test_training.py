"""Training at tiny size: a run that was cut off and resumed ends with the same weights as one that was not."""

from __future__ import annotations

import csv
import io
import logging
import shutil
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from faceanon_core.attributes import BY_NAME
from faceanon_core.diffusion import load_vae
from faceanon_core.errors import FaceAnonError
from faceanon_core.faces import FaceDetector
from faceanon_core.geometry import LIPS_OUTER, RIGHT_EYE, inter_ocular, upright_frame
from faceanon_core.identity import Recogniser
from faceanon_core.image import load_picture, tensor_to_pixels
from faceanon_core.target import gallery_index, gallery_target
from faceanon_core.training import unet
from faceanon_core.training.attributes import (
    JUDGES,
    RUNS,
    Judges,
    fit_second_judge,
    measure_attributes,
    plan,
    summarize,
)
from faceanon_core.training.data import FaceRecord, FaceSet, batch_at
from faceanon_core.training.encoder import EncoderSettings, augment, train_encoder
from faceanon_core.training.evaluate import evaluate
from faceanon_core.training.labels import caption_attributes, label_faces, record_attributes
from faceanon_core.training.loop import cosine_rate, load_checkpoint, save_checkpoint
from faceanon_core.training.quality import Judged, compare, measure_quality, run_settings
from faceanon_core.training.results import SETTINGS, Made, result_file, shuffled
from faceanon_core.training.unet import LatentCache, UnetSettings, complete_labels, draw_view, train_unet
from faceanon_core.training.vae import VaeSettings, train_vae
from faceanon_core.training.warp import bend_proportions
from faceanon_core.training.workers import Crew
from faceanon_core.weights import ASSETS

COUNT = 4


@pytest.fixture(scope="module")
def folder(crop, tmp_path_factory) -> Path:
    """A set of four faces in the format of the training data: the astronaut in four lights, three to train on."""
    return write_faces(crop, tmp_path_factory.mktemp("faces"), ("train", "train", "train", "test"))


def write_faces(crop, root: Path, splits: tuple[str, ...], lights: tuple[float, ...] = (1.0, 0.8, 0.6, 0.9)) -> Path:
    root.mkdir(exist_ok=True)
    names = [f"face_{i}" for i in range(COUNT)]
    with tarfile.open(root / "faces256.tar", "w") as archive:
        for light, name in zip(lights, names, strict=True):
            stream = io.BytesIO()
            Image.fromarray((crop.pixels * light).astype(np.uint8)).save(stream, "PNG")
            entry = tarfile.TarInfo(f"faces/{name}.png")
            entry.size = stream.tell()
            stream.seek(0)
            archive.addfile(entry, stream)
    np.savez(root / "landmarks.npz", names=np.array(names), landmarks=np.stack([crop.landmarks] * COUNT))
    with (root / "metadata.csv").open("w", newline="") as handle:
        table = csv.writer(handle)
        table.writerow(["name", "split", "source", "license", "sex", "ethnicity", "caption", "px_per_source_px"])
        for name, split in zip(names, splits, strict=True):
            table.writerow([name, split, "here", "none", "female", "", "a senior woman with red hair", 1])
    return root


@pytest.fixture(scope="module")
def faces(folder: Path) -> FaceSet:
    return FaceSet(folder, "train")


@contextmanager
def cut_off_at(logger: str, beginning: str) -> Iterator[None]:
    """Interrupt, as Ctrl-C would, when training reports a line that begins so."""

    class Interrupt(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage().startswith(beginning):
                raise KeyboardInterrupt

    log, handler = logging.getLogger(logger), Interrupt()
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


def assert_resumes(train: Callable[[Path], object], result: str, logger: str, beginning: str, tmp_path: Path) -> None:
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt), cut_off_at(logger, beginning):
        train(tmp_path / "cut")
    assert not (tmp_path / "cut" / result).exists()
    train(tmp_path / "cut")
    whole, resumed = (load_file(tmp_path / name / result) for name in ("whole", "cut"))
    assert whole.keys() == resumed.keys()
    assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == []


def test_the_vae_resumes_to_the_same_weights(faces, tmp_path: Path) -> None:
    settings = VaeSettings(steps=21, batch=1, crop_px=32, checkpoint_every=20)
    start = ASSETS / "vae.safetensors"
    assert_resumes(
        lambda work: train_vae(faces, start, work, settings),
        "vae.safetensors", "faceanon_core.training.loop", "vae step 20/", tmp_path,
    )  # fmt: skip


def test_sharpening_changes_the_vaes_decoder_and_leaves_its_encoder_untouched(faces, tmp_path: Path) -> None:
    settings = VaeSettings(steps=2, batch=1, crop_px=32, sharpen_steps=4)
    train_vae(faces, ASSETS / "vae.safetensors", tmp_path, settings)
    plain, sharp = (load_file(tmp_path / f"{name}.safetensors") for name in ("vae-plain", "vae"))
    changed = {name.split(".")[0] for name in plain if not torch.equal(plain[name], sharp[name])}
    assert plain.keys() == sharp.keys() and changed == {"decoder"}


def test_the_encoder_resumes_to_the_same_weights(faces, tmp_path: Path) -> None:
    labels = label_faces(faces)
    settings = EncoderSettings(steps=201, batch=1)
    assert_resumes(
        lambda work: train_encoder(faces, labels, work, settings),
        "encoder.safetensors", "faceanon_core.training.loop", "encoder step 200/", tmp_path,
    )  # fmt: skip


def test_the_unet_resumes_to_the_same_weights_after_its_time_was_up(faces, tmp_path: Path) -> None:
    vae, start, labels = load_vae(ASSETS / "vae.safetensors"), ASSETS / "unet.safetensors", label_faces(faces)
    settings = UnetSettings(steps=2, batch=1)
    for name, runs in {"whole": [1e9], "cut": [0.0, 1e9]}.items():
        (tmp_path / name).mkdir()
        for minutes in runs:
            train_unet(faces, labels, vae, start, tmp_path / name, settings, minutes)
    for result in ("unet.safetensors", "tokens.safetensors"):
        whole, resumed = (load_file(tmp_path / name / result) for name in ("whole", "cut"))
        assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == []
    began = load_file(start)
    assert any(not torch.equal(began[name].float(), value.float()) for name, value in load_file(
        tmp_path / "whole" / "unet.safetensors").items())  # fmt: skip
    shutil.rmtree(tmp_path / "whole")
    shutil.rmtree(tmp_path / "cut")  # half a gigabyte each


def test_a_view_is_drawn_the_same_each_time_and_another_one_differs(crop) -> None:
    settings = UnetSettings()
    for i in range(4):
        first, again, other = (draw_view(crop.pixels, crop.landmarks, settings, view, i) for view in (0, 0, 1))
        assert first.skin == again.skin and first.mask.shape == (32, 32)
        for name in ("pixels", "hidden", "mask"):
            assert np.array_equal(getattr(first, name), getattr(again, name))
        assert not np.array_equal(first.hidden, other.hidden)


def test_the_lines_of_the_features_are_drawn_in_the_share_of_views_that_is_asked_for(crop) -> None:
    def shows_lines(no_lines: float, view: int) -> bool:
        settings = UnetSettings(no_lines=no_lines, no_sketch=0, bend=0, exposure=0)
        red, green, _ = draw_view(crop.pixels, crop.landmarks, settings, view, 0).hidden.astype(int).transpose(2, 0, 1)
        return bool((green - red > 100).any())  # the eyes' green

    assert not any(shows_lines(1.0, view) for view in range(6))
    assert any(shows_lines(0.0, view) for view in range(6))


def test_faces_drawn_by_other_processes_are_those_drawn_when_first_needed(faces, monkeypatch) -> None:
    monkeypatch.setattr(unet, "_AT_ONCE", 2)  # so that both processes have a part of the three faces
    vae, labels, settings = load_vae(ASSETS / "vae.safetensors"), label_faces(faces), UnetSettings()
    order = {0: [2, 0, 1], 1: [1, 2, 0]}
    ahead = LatentCache(faces, labels, vae, settings, lambda view: order[view % 2], workers=2)
    lazy = LatentCache(faces, labels, vae, settings)
    try:
        for view, chosen in order.items():
            for part in (chosen[:2], chosen[2:]):
                for found, expected in zip(ahead.get(part, view), lazy.get(part, view), strict=True):
                    assert torch.equal(found, expected) and found.abs().max() > 0
            assert torch.equal(ahead.targets, lazy.targets)
    finally:
        ahead.close()


def test_a_split_holds_its_own_faces_in_the_tables_order(folder: Path, crop) -> None:
    train, test = FaceSet(folder, "train"), FaceSet(folder, "test")
    assert [record.name for record in train.records] == ["face_0", "face_1", "face_2"]
    assert len(test) == 1
    assert np.array_equal(train.image(0), crop.pixels)
    assert np.array_equal(train.landmarks[2], crop.landmarks)
    assert train.images([0, 1]).shape == (2, 3, 256, 256)


@pytest.mark.parametrize("name", ["faces256.tar", "landmarks.npz", "metadata.csv"])
def test_a_missing_data_file_is_named(folder: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / name).unlink()
    with pytest.raises(FaceAnonError, match=f"{name} is missing; --faces must name the folder that holds it"):
        FaceSet(tmp_path / "copy", "train")


def test_an_empty_split_is_refused(folder: Path) -> None:
    with pytest.raises(FaceAnonError, match="no rows of split 'nothing'"):
        FaceSet(folder, "nothing")


def test_batches_visit_every_face_once_a_pass() -> None:
    first = [batch_at(10, 3, 1, step) for step in range(9)]
    assert all(len(set(sum(first[i : i + 3], []))) == 9 for i in (0, 3, 6))  # noqa: RUF017
    assert first[3] != first[0] and batch_at(10, 3, 1, 4) == first[4]
    assert first != [batch_at(10, 3, 2, step) for step in range(9)]


def test_the_learning_rate_warms_up_and_ends_at_0() -> None:
    rates = [cosine_rate(progress) for progress in (0, 0.015, 0.03, 0.5, 1.0)]
    assert rates[0] == 0
    assert rates[1] == pytest.approx(0.5)
    assert rates[2] == 1
    assert rates[3] > rates[4] == pytest.approx(0)


def test_a_checkpoint_reads_back_and_none_is_none(tmp_path: Path) -> None:
    assert load_checkpoint(tmp_path / "new" / "run.ckpt") is None
    save_checkpoint(tmp_path / "new" / "run.ckpt", {"step": 3, "model": {"w": torch.ones(2)}})
    state = load_checkpoint(tmp_path / "new" / "run.ckpt")
    assert state["step"] == 3
    assert torch.equal(state["model"]["w"], torch.ones(2))


def test_augmented_landmarks_stay_on_their_pixels() -> None:
    """A bright dot moves with the point that marks it."""
    image = torch.zeros(8, 3, 256, 256)
    image[..., 100:112, 150:162] = 1
    points = torch.tensor([[[156 / 256, 106 / 256]]]).repeat(8, 1, 1)
    moved_image, moved = augment(image, points, torch.Generator().manual_seed(1))
    for i in range(8):
        light = (moved_image[i].mean(0) - moved_image[i].mean(0).median()).clamp_min(0).square()
        rows, columns = torch.meshgrid(torch.arange(128) + 0.5, torch.arange(128) + 0.5, indexing="ij")
        near = (rows / 128 - moved[i, 0, 1]).abs().maximum((columns / 128 - moved[i, 0, 0]).abs()) < 0.08
        assert light[near].sum() > 0.5 * light.sum()


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("", {}),
        ("a senior man with gray hair", {"sex": "male", "age": "senior", "hair": "gray"}),
        ("middle-aged asian woman with glasses",
         {"sex": "female", "age": "middle-aged", "ethnicity": "asian", "glasses": "glasses", "facial_hair": "none"}),
        ("young child, bald, sunglasses", {"age": "child", "hair": "bald", "glasses": "sunglasses", "facial_hair": "none"}),
        ("African male with a goatee", {"sex": "male", "ethnicity": "black", "facial_hair": "goatee"}),
    ],
)  # fmt: skip
def test_captions_are_read_for_what_they_say_and_no_more(caption: str, expected: dict[str, str]) -> None:
    assert caption_attributes(caption) == expected


def test_labels_join_table_caption_and_what_is_measured(faces) -> None:
    for known in label_faces(faces):
        assert {key: known[key] for key in ("sex", "age", "hair", "facial_hair", "expression")} == {
            "sex": "female", "age": "senior", "hair": "red", "facial_hair": "none", "expression": "smile",
        }  # fmt: skip
        assert known["skin"] in BY_NAME["skin"].values


def test_generated_faces_are_adults_without_glasses_and_others_what_is_said_of_them() -> None:
    said = {"licence": "", "sex": "male", "ethnicity": "", "caption": "a senior man with glasses"}
    assert record_attributes(FaceRecord("f", "hmdghoul/generated-faces", **said)) == {
        "sex": "male", "age": "adult", "glasses": "none"
    }  # fmt: skip
    other = record_attributes(FaceRecord("f", "SelfishGene/SFHQ-dataset", **said))
    assert (other["age"], other["glasses"]) == ("senior", "glasses")
    unsaid = FaceRecord("f", "SelfishGene/SFHQ-dataset", "", "", "", "")
    assert record_attributes(unsaid) == {}


def test_the_encoder_completes_sex_age_and_ethnicity_alone_and_overrules_nobody(faces, anonymizer) -> None:
    known = [{}, {"sex": "male"}, {"hair": "red"}]
    sure, unsure = (complete_labels(anonymizer.encoder, faces, known, certainty) for certainty in (0.0, 1.1))
    assert [set(labels) for labels in sure] == [{"sex", "age", "ethnicity"}] * 2 + [{"sex", "age", "ethnicity", "hair"}]
    assert [labels["sex"] for labels in sure] == ["female", "male", "female"]
    assert unsure == known


@pytest.mark.faces
def test_no_face_of_the_real_data_is_in_both_splits(shared_faces: Path) -> None:
    with (shared_faces / "metadata.csv").open(newline="", encoding="utf-8") as handle:
        rows = list(csv.DictReader(handle))
    splits = {split: {row["name"] for row in rows if row["split"] == split} for split in ("train", "test")}
    assert len(splits["test"]) == 302
    assert not splits["train"] & splits["test"]


@pytest.mark.faces
def test_the_real_test_set_loads_whole_with_landmarks_inside_its_crops(shared_faces: Path) -> None:
    faces = FaceSet(shared_faces, "test")
    assert len(faces) == 302
    assert faces.landmarks.shape == (302, 478, 2)
    assert ((faces.landmarks > -30) & (faces.landmarks < 286)).all()
    for i in range(0, 302, 50):
        assert faces.image(i).shape == (256, 256, 3)


def test_a_bent_picture_shows_the_face_where_its_landmarks_say(crop) -> None:
    bent, landmarks = bend_proportions(crop.pixels, crop.landmarks, seed=3, amount=1.0)
    with FaceDetector() as detector:
        (found,) = detector.detect(bent)
    unit = inter_ocular(crop.landmarks)
    moved = np.linalg.norm(landmarks - crop.landmarks, axis=1)[list(RIGHT_EYE + LIPS_OUTER)].mean() / unit
    missed = np.linalg.norm(landmarks - found.landmarks, axis=1)[list(RIGHT_EYE + LIPS_OUTER)].mean() / unit
    assert moved > 0.05 and missed < 0.04
    assert np.abs(bent[0].astype(int) - crop.pixels[0]).mean() < 4  # the picture's edge stays


@pytest.mark.faces
def test_the_attributes_of_results_are_judged_against_their_sources(crop, network, anonymizer, tmp_path: Path) -> None:
    """The sources stand in for the results, so that the answers are known. The third is black, and one was refused."""
    root = tmp_path / "faces"
    write_faces(crop, root, ("train", "test", "test", "test"), (1.0, 0.8, 0.6, 0.0))
    recogniser, faces = Recogniser(network), FaceSet(root, "test")
    with Crew(1) as crew:
        weights = fit_second_judge(root, recogniser, tmp_path / "judge.npz", crew)
    judges = Judges(anonymizer.encoder, recogniser, weights)
    for run in RUNS:
        for i in range(2):
            settings = plan(run, i, judges.read_source(faces, i)).settings
            Made.keep(result_file(tmp_path, faces, i, settings), faces.image(i), "anna")
    refused = result_file(tmp_path, faces, 1, plan("default", 1, {}).settings)
    refused.unlink()
    figures = measure_attributes(root, recogniser, tmp_path, minutes=0, workers=2)
    assert (figures["not found"]["hits"], figures["not found"]["of"]) == (1, 3)
    for run in RUNS:
        missing = int(run == "default")
        assert figures[run]["faces"] == 2 - missing and figures[run]["same_person"]["share"] == 1
        assert (figures[run]["refused"]["hits"], figures[run]["refused"]["of"]) == (missing, 2)
        assert figures[run]["pose_error"] < 2
        shares = [share["share"] for share in figures[run]["kept"].values() if share["of"]]
        assert len(shares) >= 3 and sum(shares) / len(shares) >= 0.9  # a tone at a class's border may tip over
    asked = figures["asked"]["asked"].values()
    assert sum(found["exact"]["of"] for found in asked) > 0 and sum(found["exact"]["hits"] for found in asked) == 0
    assert "100.0%" in (tmp_path / "attributes" / "attributes.md").read_text()


@pytest.mark.faces
def test_the_fast_default_is_compared_with_full_guidance(crop, network, tmp_path: Path) -> None:
    """Sources stand in for unguided results, targets for full ones; fast, one face is like the one, one like the other."""
    root = tmp_path / "faces"
    write_faces(crop, root, ("train", "train", "test", "test"))
    faces, settings = FaceSet(root, "test"), run_settings(SETTINGS)
    name, target = target_in_place_of(crop)
    for i in range(2):
        source = faces.image(i)
        for run, pixels in {"unguided": source, "full": target, "fast": target if i == 0 else source}.items():
            Made.keep(result_file(tmp_path, faces, i, settings[run]), pixels, name)
    figures = measure_quality(root, Recogniser(network), tmp_path, minutes=0, workers=1)
    assert figures["faces"] == 2
    assert figures["distance"]["full"] < 0.5 * figures["distance"]["unguided"]
    assert 0.2 < figures["kept"]["value"] < 0.8
    assert figures["kept"]["low"] < 0.05 and figures["kept"]["high"] > 0.95  # either face may be drawn twice
    assert figures["same_person"] == {"unguided": 1.0, "full": 0.0, "fast": 0.5}
    assert figures["same_person_points"]["value"] == 50
    assert "+50.0" in (tmp_path / "quality" / "quality.md").read_text()


def target_in_place_of(crop) -> tuple[str, np.ndarray]:
    """A gallery face's name, and a picture in which it takes the place that the face has in `crop`."""
    name = sorted(gallery_index())[0]
    frame = upright_frame(crop.landmarks, 256)
    back = cv2.invertAffineTransform(frame.matrix)
    return name, cv2.warpAffine(tensor_to_pixels(gallery_target(name).image)[0], back, (256, 256))


@pytest.mark.faces
def test_results_are_measured_beside_other_people_and_refusals_counted(crop, network, tmp_path: Path) -> None:
    """One result is its target's picture, one the source itself; the third face is black and refused."""
    root = tmp_path / "faces"
    splits = ("train", "test", "test", "test")
    hidden, traced, black = shuffled(FaceSet(write_faces(crop, root, splits), "test"))
    faces = FaceSet(
        write_faces(crop, root, splits, (1.0, *(0.0 if i == black else 0.8 - 0.2 * i for i in range(3)))), "test"
    )
    off = replace(SETTINGS, guidance=replace(SETTINGS.guidance, strength=0.0))
    name, target = target_in_place_of(crop)
    for i, pixels in ((hidden, target), (traced, faces.image(traced))):
        Made.keep(result_file(tmp_path, faces, i, SETTINGS), pixels, name, tries=1 + (i == traced))
        Made.keep(result_file(tmp_path, faces, i, off), faces.image(i), name)
    figures = evaluate(root, Recogniser(network), tmp_path)
    assert (figures["faces"], figures["refused"], figures["detected_rate"]) == (2, 1, 1.0)
    assert (figures["same_person_rate"], figures["made_more_than_once"]) == (0.5, 1)
    assert figures["landmark_distance"] > 0.01 and figures["guidance_compared_on"] == 1
    assert figures["guidance_lowers_distance_rate"] == 1.0
    assert figures["other_people_of_the_kind"]["people"] == 3  # the only one for each
    with (tmp_path / "evaluation" / "rows.csv").open() as handle:
        rows = {row["name"]: row for row in csv.DictReader(handle)}
    source = faces.records[traced].name
    assert float(rows[source]["similarity"]) == pytest.approx(1, abs=0.02)
    assert (rows[source]["same_person"], rows[source]["target"]) == ("1", name)
    assert (load_picture(tmp_path / "evaluation" / "results" / f"{source}.png").pixels == faces.image(traced)).all()


def test_a_face_that_is_lost_counts_for_the_distance_alone() -> None:
    nowhere = float("nan")
    rows = [
        [Judged(8.0, 1.0, 0.02), Judged(4.0, 0.0, 0.04), Judged(5.0, 0.0, 0.06)],
        [Judged(6.0, 1.0, 0.02), Judged(2.0, nowhere, nowhere), Judged(1.0, 1.0, 0.02)],
    ]
    figures = compare(rows)
    assert (figures["faces"], figures["with a face in all"]) == (2, 1)
    assert figures["kept"]["value"] == pytest.approx((14 - 6) / (14 - 6))
    assert (figures["kept"]["low"], figures["kept"]["high"]) == pytest.approx((3 / 4, 5 / 4))
    assert figures["landmark_change"]["value"] == pytest.approx(0.5)
    assert compare([]) == {"faces": 0}


def test_every_face_is_asked_for_something_else_than_it_shows() -> None:
    reading = {
        judge: {"sex": "female", "age": "adult", "skin": "tan", "expression": "smile"}[JUDGES[judge]] for judge in JUDGES
    }
    asked = [plan("asked", i, reading).asked for i in range(60)]
    values = {(name, value) for each in asked for name, value in each.items()}
    assert all(len(each) == 1 for each in asked)
    assert values == {
        ("sex", "male"),
        *(("age", value) for value in ("child", "teen", "senior")),
        *(("skin", value) for value in ("very-light", "light", "intermediate", "brown", "dark")),
    }
    off = plan("asked, off", 0, reading)
    assert off.asked == plan("asked", 0, reading).asked and off.settings.guidance.strength == 0
    unsure = {judge: value if judge == "skin, measured" else None for judge, value in reading.items()}
    assert {name for i in range(9) for name in plan("asked", i, unsure).asked} == {"skin"}


def test_a_share_counts_only_faces_whose_judge_is_sure_and_who_show_something_else() -> None:
    judge = "sex, by the demo encoder"
    nothing = dict.fromkeys(JUDGES)

    def row(source: str | None, asked: str, shown: str | None) -> dict[str, object]:
        readings = {"source": nothing | {judge: source}, "shown": nothing | {judge: shown}}
        return {"run": "asked", "asked": {"sex": asked}, **readings}

    changed, same, lost = (row("female", "male", shown) for shown in ("male", "female", None))
    rows = [changed, same, lost, row(None, "male", "male")]
    found = summarize([*rows, row("male", "male", "male")])["asked"]["asked"][judge]["exact"]
    assert (found["hits"], found["of"]) == (1, 3)
