"""The attribute vocabulary and what people call its values; skin tone and mouth shape measured without a network."""

from __future__ import annotations

import numpy as np
import pytest

from faceanon_core.attributes import (
    LEARNED,
    VOCABULARY,
    check_learned,
    describe,
    normalise_value,
    parse_attributes,
    to_indices,
)
from faceanon_core.errors import UnknownNameError
from faceanon_core.skin import mouth_expression, skin_tone, typology_angle


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("age=60s,sex=female", {"age": "senior", "sex": "female"}),
        (" Age = 30s ; SEX=Man ", {"age": "adult", "sex": "male"}),
        ("facial hair=beard", {"facial_hair": "beard"}),
        ("facial-hair=moustache", {"facial_hair": "mustache"}),
        ("skin=olive,hair=blonde,glasses=yes", {"skin": "intermediate", "hair": "blond", "glasses": "glasses"}),
        ("expression=surprised,", {"expression": "open-mouth"}),
        ("age=teen,age=senior", {"age": "senior"}),
    ],
)
def test_attributes_are_read_as_people_write_them(text: str, expected: dict[str, str]) -> None:
    assert parse_attributes(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("female", "cannot read the attribute 'female'; write name=value, for example age=senior"),
        ("sex=", "cannot read the attribute 'sex='; write name=value"),
        ("gender=male", r"there is no attribute named 'gender'.*known: sex, age, skin"),
        ("agee=20s", r"'agee' \(did you mean age\?\)"),
        ("age=seniro", r"age cannot be 'seniro' \(did you mean senior\?\); it is one of baby, child"),
        ("age=42", "age cannot be '42'.*it is one of baby"),
    ],
)
def test_unknown_attributes_are_refused_with_what_exists(text: str, message: str) -> None:
    with pytest.raises(UnknownNameError, match=message):
        parse_attributes(text)


def test_a_list_of_names_is_refused_for_one_that_is_no_attribute() -> None:
    with pytest.raises(UnknownNameError, match=r"no attribute named 'exprssion' \(did you mean expression\?\); known: sex"):
        check_learned(["skin", "exprssion"])


@pytest.mark.parametrize("attribute", VOCABULARY, ids=lambda a: a.name)
def test_every_value_names_itself_and_every_synonym_a_value(attribute) -> None:
    for value in attribute.values:
        assert normalise_value(attribute.name, value.upper()) == value
    for word, value in attribute.synonyms.items():
        assert word not in attribute.values
        assert normalise_value(attribute.name, word) == value
        assert value in attribute.values


def test_a_description_reads_back_as_the_same_attributes() -> None:
    every = {attribute.name: attribute.values[-2] for attribute in VOCABULARY}
    assert parse_attributes(describe(every)) == every
    assert describe({"age": "senior", "sex": "female"}) == "sex=female, age=senior"


def test_indices_count_from_1_and_0_means_unknown() -> None:
    assert to_indices({}) == [0] * len(LEARNED)
    first = {attribute.name: attribute.values[0] for attribute in LEARNED}
    assert to_indices(first) == [1] * len(LEARNED)
    assert to_indices({"sex": "male"})[:2] == [2, 0]


@pytest.mark.parametrize(
    ("angle", "tone"),
    [(70, "very-light"), (55, "light"), (42, "light"), (30, "intermediate"), (11, "tan"), (0, "brown"), (-29, "brown"),
     (-31, "dark"), (-90, "dark"), (-180, "dark")],
)  # fmt: skip
def test_skin_tones_follow_the_classes_of_chardon(angle: float, tone: str) -> None:
    assert skin_tone(angle) == tone


def test_darker_cheeks_have_a_smaller_typology_angle(crop) -> None:
    angles = [typology_angle((crop.pixels * light).astype(np.uint8), crop.landmarks) for light in (1.0, 0.7, 0.4, 0.2)]
    assert angles == sorted(angles, reverse=True)
    assert angles[0] - angles[-1] > 40


def test_the_astronaut_smiles(crop) -> None:
    assert mouth_expression(crop.landmarks) == "smile"


def test_a_narrow_closed_mouth_is_neutral_and_a_narrow_open_one_is_open(crop) -> None:
    mouth = crop.landmarks.copy()
    center = (mouth[61] + mouth[291]) / 2
    mouth[61], mouth[291] = center + 0.6 * (mouth[61] - center), center + 0.6 * (mouth[291] - center)
    mouth[13] = mouth[14] = center
    assert mouth_expression(mouth) == "neutral"
    mouth[14, 1] += 30
    assert mouth_expression(mouth) == "open-mouth"
