"""The attribute vocabulary: every attribute, its values, and what people call them. Nodes, CLI, gallery and the demo
model read this one table.

Skin tone follows the individual typology angle (ITA) and its classes by Chardon et al. 1991, which can be measured on a
picture; it describes reflected light, not origin.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from .errors import UnknownNameError

UNKNOWN = "unknown"


@dataclass(frozen=True)
class Attribute:
    """One attribute. `values` are in a fixed order: the demo model's tokens count in it."""

    name: str
    values: tuple[str, ...]
    synonyms: dict[str, str]  # what users write -> value
    meaning: str


VOCABULARY: tuple[Attribute, ...] = (
    Attribute(
        "sex", ("female", "male"),
        {"f": "female", "woman": "female", "girl": "female", "m": "male", "man": "male", "boy": "male"},
        "sex presentation",
    ),
    Attribute(
        "age", ("baby", "child", "teen", "adult", "middle-aged", "senior"),
        {
            "toddler": "baby", "kid": "child", "teenager": "teen", "10s": "teen", "young": "adult", "20s": "adult",
            "30s": "adult", "40s": "middle-aged", "50s": "middle-aged", "middle aged": "middle-aged", "60s": "senior",
            "70s": "senior", "80s": "senior", "old": "senior", "elderly": "senior",
        },
        "age group: baby under 4, child under 13, teen under 20, adult under 40, middle-aged under 60, senior",
    ),
    Attribute(
        "skin", ("very-light", "light", "intermediate", "tan", "brown", "dark"),
        {"pale": "very-light", "fair": "light", "medium": "intermediate", "olive": "intermediate", "black": "dark"},
        "skin tone by individual typology angle: above 55, 41, 28, 10, -30 degrees, and below",
    ),
    Attribute(
        "ethnicity", ("white", "black", "asian", "latino", "indian", "middle-eastern", "native-american"),
        {"caucasian": "white", "african": "black", "hispanic": "latino", "persian": "middle-eastern"},
        "appearance as the data sets' authors named it",
    ),
    Attribute(
        "hair", ("black", "brown", "blond", "red", "gray", "dyed", "bald"),
        {"blonde": "blond", "grey": "gray", "white": "gray", "ginger": "red"},
        "hair colour, or none",
    ),
    Attribute(
        "facial_hair", ("none", "stubble", "mustache", "goatee", "beard"),
        {"moustache": "mustache", "shaved": "none", "no": "none"},
        "facial hair",
    ),
    Attribute("glasses", ("none", "glasses", "sunglasses"), {"no": "none", "yes": "glasses"}, "eye wear"),
    Attribute(
        "expression", ("neutral", "smile", "open-mouth"),
        {"smiling": "smile", "happy": "smile", "laughing": "open-mouth", "surprised": "open-mouth", "calm": "neutral"},
        "mouth: closed and level, corners up, or open",
    ),
)  # fmt: skip
BY_NAME = {attribute.name: attribute for attribute in VOCABULARY}

Attributes = dict[str, str]  # attribute name -> value; missing means unknown


def parse_attributes(text: str) -> Attributes:
    """Read "age=60s, sex=female" into values of the vocabulary.

    Raises: UnknownNameError naming the unknown part and what exists.
    """
    result: Attributes = {}
    for part in filter(None, (piece.strip() for piece in text.replace(";", ",").split(","))):
        name, sign, value = (item.strip().lower() for item in part.partition("="))
        if not sign or not value:
            raise UnknownNameError(f"cannot read the attribute {part!r}; write name=value, for example age=senior")
        key = name.replace(" ", "_").replace("-", "_")
        result[key] = normalise_value(key, value)
    return result


def normalise_value(name: str, value: str) -> str:
    """Value of the vocabulary that `value` names, synonyms included.

    Raises: UnknownNameError.
    """
    if name not in BY_NAME:
        raise UnknownNameError(
            f"there is no attribute named {name!r}{_guess(name, list(BY_NAME))}; known: {', '.join(BY_NAME)}"
        )
    attribute = BY_NAME[name]
    value = attribute.synonyms.get(value.lower(), value.lower())
    if value not in attribute.values:
        options = [*attribute.values, *attribute.synonyms]
        raise UnknownNameError(
            f"{name} cannot be {value!r}{_guess(value, options)}; it is one of {', '.join(attribute.values)}"
        )
    return value


def describe(attributes: Attributes) -> str:
    """ "sex=female, age=senior" in the vocabulary's order; inverse of `parse_attributes`."""
    return ", ".join(f"{a.name}={attributes[a.name]}" for a in VOCABULARY if a.name in attributes)


def to_indices(attributes: Attributes) -> list[int]:
    """One integer per attribute of `VOCABULARY`: 0 = unknown, else 1 + position of the value."""
    return [
        1 + attribute.values.index(attributes[attribute.name]) if attribute.name in attributes else 0
        for attribute in VOCABULARY
    ]


def _guess(word: str, options: list[str]) -> str:
    close = difflib.get_close_matches(word, options, n=1)
    return f" (did you mean {close[0]}?)" if close else ""
