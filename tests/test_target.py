"""Target faces: the gallery, the choice among it, and pictures the user brings."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from faceanon_core.attributes import BY_NAME
from faceanon_core.errors import InputError, NoFaceError, UnknownNameError
from faceanon_core.target import (
    choose_target,
    fitting_attributes,
    gallery_index,
    gallery_sheet,
    gallery_target,
    measured_attributes,
    target_from_pixels,
)
from faceanon_core.weights import GALLERY

FOUR = {
    "ann": {"sex": "female", "age": "senior", "skin": "light"},
    "ben": {"sex": "male", "age": "senior", "skin": "dark"},
    "cem": {"sex": "male", "age": "adult", "skin": "light", "hair": "black"},
    "dot": {"sex": "female", "age": "child", "skin": "dark"},
}


@pytest.fixture
def gallery(tmp_path: Path) -> Path:
    (tmp_path / "gallery.json").write_text(json.dumps(FOUR))
    for shade, name in enumerate(FOUR):
        Image.new("RGB", (256, 256), (50 * shade,) * 3).save(tmp_path / f"{name}.jpg")
    return tmp_path


def test_a_target_is_wanted_with_the_sources_expression_and_skin(crop) -> None:
    wanted = fitting_attributes(crop, {"sex": "female", "age": "adult", "expression": "neutral", "hair": "red"})
    assert wanted == {"sex": "female", "age": "adult", **measured_attributes(crop)}
    assert wanted["expression"] == "smile"


def test_of_two_alike_the_smiling_target_is_chosen_for_a_smile_and_the_other_for_none(tmp_path: Path) -> None:
    alike = {"sex": "female", "age": "adult", "skin": "light"}
    both = {"joy": {**alike, "expression": "smile"}, "kim": {**alike, "expression": "neutral"}}
    (tmp_path / "gallery.json").write_text(json.dumps(both))
    for name in both:
        Image.new("RGB", (256, 256)).save(tmp_path / f"{name}.jpg")
    for name, wanted in both.items():
        assert {choose_target(wanted, seed, (tmp_path,)).name for seed in range(10)} == {name}


@pytest.mark.parametrize("name", sorted(gallery_index()))
def test_every_shipped_target_is_a_crop_with_attributes_of_the_vocabulary(name: str) -> None:
    target = gallery_target(name)
    assert target.name == name
    assert target.image.shape == (1, 3, 256, 256)
    assert 0 <= target.image.min() < target.image.max() <= 1
    assert target.attributes
    assert all(value in BY_NAME[key].values for key, value in target.attributes.items())


def test_an_unknown_target_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match=f"no target named 'nobody'; the gallery has .*{min(gallery_index())}"):
        gallery_target("nobody")


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        ({"sex": "male", "age": "adult"}, {"cem"}),
        ({"sex": "female", "age": "child"}, {"dot"}),
        ({"age": "senior"}, {"ann", "ben"}),
        ({"sex": "female", "age": "adult"}, {"ann", "dot"}),  # the sex weighs more than the age
        ({"skin": "very-light"}, {"ann", "cem"}),  # nobody has it, the nearest tone counts
        ({"sex": "male", "age": "senior", "skin": "light"}, {"cem"}),  # a far tone shows more than another age
        ({}, set(FOUR)),
    ],
)
def test_the_chosen_target_shares_most_of_what_was_asked_and_the_seed_decides_the_rest(gallery, wanted, names) -> None:
    chosen = {choose_target(wanted, seed, (gallery,)).name for seed in range(40)}
    assert chosen == names


def test_a_picture_that_is_lost_or_damaged_is_passed_over_and_shown_grey(gallery: Path) -> None:
    (gallery / "cem.jpg").unlink()
    (gallery / "dot.jpg").write_bytes(b"this is no picture")
    chosen = {choose_target({"sex": "male", "age": "adult"}, seed, (gallery,)).name for seed in range(10)}
    assert chosen == {"ben"}
    sheet = gallery_sheet((gallery,))
    assert [int(sheet[96, 196 * i + 96].mean()) for i in range(4)] == [0, 50, 128, 128]  # ann, ben, and the two grey ones
    with pytest.raises(InputError, match=r"the picture of the target 'cem' is gone from .*; choose another target"):
        gallery_target("cem", (gallery,))
    for name in ("ann", "ben"):
        (gallery / f"{name}.jpg").unlink()
    with pytest.raises(InputError, match="no target face is left whose picture can be read"):
        choose_target({}, 0, (gallery,))


def test_the_sheet_shows_every_face_of_both_galleries_with_its_name(gallery: Path) -> None:
    both = gallery_sheet((gallery, GALLERY))
    place = sorted(gallery_index((gallery, GALLERY))).index("cem")
    assert place < 6  # in the first row
    assert both[96, place * 196 + 96].tolist() == [100, 100, 100]
    assert both[192:216, place * 196 : place * 196 + 192].min() < 80  # its name is written under it
    assert both.shape[0] > 192 * -(-len(gallery_index((gallery, GALLERY))) // 6)


def test_the_same_seed_chooses_the_same_target(gallery) -> None:
    assert len({choose_target({}, 7, (gallery,)).name for _ in range(5)}) == 1


def test_targets_already_used_are_avoided_as_long_as_others_are_left(gallery) -> None:
    wanted = {"sex": "male", "age": "adult"}
    assert choose_target(wanted, 0, (gallery,), frozenset({"cem"})).name == "ben"
    assert choose_target(wanted, 0, (gallery,), frozenset(FOUR)).name == "cem"


def test_a_target_picture_is_cut_to_its_face_with_estimated_attributes(anonymizer, astronaut, crop) -> None:
    target = target_from_pixels(astronaut, "someone.png", anonymizer.detector, anonymizer.encoder, 256)
    assert target.name == "someone.png"
    assert np.array_equal(target.image.numpy(), crop.tensor.numpy())
    assert target.attributes["sex"] == "female"


def test_a_target_picture_without_a_face_is_refused(anonymizer, coffee) -> None:
    with pytest.raises((InputError, NoFaceError), match=r"the target picture cup\.png shows no face; choose one with"):
        target_from_pixels(coffee, "cup.png", anonymizer.detector, anonymizer.encoder, 256)


def test_a_target_picture_with_several_faces_is_refused(anonymizer, two_faces) -> None:
    with pytest.raises(InputError, match=r"the target picture group\.png shows 2 faces; crop it to the one you mean"):
        target_from_pixels(two_faces, "group.png", anonymizer.detector, anonymizer.encoder, 256)
