"""The attribute vocabulary: every attribute, its values, what people call them, and how a prompt says them. Nodes, CLI,
gallery, reports and the demo model read this one table.

Skin tone follows the individual typology angle (ITA) and its classes by Chardon et al. 1991, which can be measured on a
picture; it describes reflected light, not origin.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

from .errors import InputError, UnknownNameError


@dataclass(frozen=True)
class Attribute:
    """One attribute. `values` are in a fixed order: the demo model's tokens count in it."""

    name: str
    values: tuple[str, ...]
    synonyms: dict[str, str]  # what users write -> value
    meaning: str
    phrases: tuple[str, ...]  # per value, what a prompt says; "" for what goes without saying
    learned: bool = True  # whether the demo model and its encoder know it; the others are for prompts only


VOCABULARY: tuple[Attribute, ...] = (
    Attribute(
        "sex", ("female", "male"),
        {"f": "female", "woman": "female", "girl": "female", "m": "male", "man": "male", "boy": "male"},
        "sex presentation", ("woman", "man"),
    ),
    Attribute(
        "age", ("baby", "child", "teen", "adult", "middle-aged", "senior"),
        {
            "toddler": "baby", "kid": "child", "teenager": "teen", "10s": "teen", "young": "adult", "20s": "adult",
            "30s": "adult", "40s": "middle-aged", "50s": "middle-aged", "middle aged": "middle-aged", "60s": "senior",
            "70s": "senior", "80s": "senior", "old": "senior", "elderly": "senior",
        },
        "age group: baby under 4, child under 13, teen under 20, adult under 40, middle-aged under 60, senior",
        ("2 year old", "9 year old", "16 year old", "30 year old", "50 year old", "70 year old"),
    ),
    Attribute(
        "skin", ("very-light", "light", "intermediate", "tan", "brown", "dark"),
        {"pale": "very-light", "fair": "light", "medium": "intermediate", "olive": "intermediate", "black": "dark"},
        "skin tone by individual typology angle: above 55, 41, 28, 10, -30 degrees, and below",
        ("very fair skin", "fair skin", "olive skin", "tan skin", "brown skin", "dark skin"),
    ),
    Attribute(
        "ethnicity", ("white", "black", "asian", "latino", "indian", "middle-eastern", "native-american"),
        {"caucasian": "white", "african": "black", "hispanic": "latino", "persian": "middle-eastern"},
        "appearance as the data sets' authors named it",
        ("Caucasian", "Black", "East Asian", "Latino", "Indian", "Middle Eastern", "Native American"),
    ),
    Attribute(
        "hair", ("black", "brown", "blond", "red", "gray", "dyed", "bald"),
        {"blonde": "blond", "grey": "gray", "white": "gray", "ginger": "red"},
        "hair colour, or none",
        ("black hair", "brown hair", "blond hair", "red hair", "gray hair", "dyed hair", "bald head"),
    ),
    Attribute(
        "facial_hair", ("none", "stubble", "mustache", "goatee", "beard"),
        {"moustache": "mustache", "shaved": "none", "no": "none"},
        "facial hair", ("", "stubble", "mustache", "goatee", "full beard"),
    ),
    Attribute(
        "glasses", ("none", "glasses", "sunglasses"), {"no": "none", "yes": "glasses"},
        "eye wear", ("", "wearing glasses", "wearing sunglasses"),
    ),
    Attribute(
        "expression", ("neutral", "smile", "open-mouth"),
        {"smiling": "smile", "happy": "smile", "laughing": "open-mouth", "surprised": "open-mouth", "calm": "neutral"},
        "mouth: closed and level, corners up, or open", ("neutral expression", "smiling", "open mouth"),
    ),
    Attribute(
        "hair_style", ("short", "long", "curly", "straight", "tied"), {"bun": "tied", "ponytail": "tied", "wavy": "curly"},
        "cut of the hair", ("short hair", "long hair", "curly hair", "straight hair", "tied back hair"), learned=False,
    ),
    Attribute(
        "makeup", ("none", "light", "strong"), {"no": "none", "natural": "light", "heavy": "strong"},
        "make-up", ("no makeup", "light makeup", "strong makeup"), learned=False,
    ),
    Attribute(
        "pose", ("frontal", "left", "right", "up", "down"), {"front": "frontal", "straight": "frontal"},
        "where the head turns, as the viewer sees it",
        ("facing the camera", "head turned left", "head turned right", "head tilted up", "head tilted down"), learned=False,
    ),
    Attribute(
        "gaze", ("camera", "left", "right", "closed"), {"viewer": "camera", "ahead": "camera", "shut": "closed"},
        "where the eyes look, as the viewer sees it",
        ("looking at the camera", "looking left", "looking right", "closed eyes"), learned=False,
    ),
)  # fmt: skip
LEARNED = tuple(attribute for attribute in VOCABULARY if attribute.learned)
BY_NAME = {attribute.name: attribute for attribute in VOCABULARY}

Attributes = dict[str, str]  # attribute name -> value; missing means unknown

# Values that cannot both be true of one face.
_CONTRADICTIONS: tuple[tuple[tuple[str, tuple[str, ...]], tuple[str, tuple[str, ...]]], ...] = (
    (("hair", ("bald",)), ("hair_style", BY_NAME["hair_style"].values)),
    (("age", ("baby", "child")), ("facial_hair", BY_NAME["facial_hair"].values[1:])),
    (("age", ("baby",)), ("makeup", ("light", "strong"))),
    (("glasses", ("sunglasses",)), ("gaze", BY_NAME["gaze"].values)),
)


def parse_attributes(text: str) -> Attributes:
    """Read "age=60s, sex=female" into values of the vocabulary.

    Raises: UnknownNameError naming the unknown part and what exists; InputError for values that contradict each other.
    """
    result: Attributes = {}
    for part in filter(None, (piece.strip() for piece in text.replace(";", ",").split(","))):
        name, sign, value = (item.strip().lower() for item in part.partition("="))
        if not sign or not value:
            raise UnknownNameError(f"cannot read the attribute {part!r}; write name=value, for example age=senior")
        key = name.replace(" ", "_").replace("-", "_")
        result[key] = normalise_value(key, value)
    check_consistent(result)
    return result


def check_consistent(attributes: Attributes) -> None:
    """Raises: InputError if two values cannot both be true of one face."""
    for (one, ones), (other, others) in _CONTRADICTIONS:
        if attributes.get(one) in ones and attributes.get(other) in others:
            raise InputError(
                f"{one}={attributes[one]} and {other}={attributes[other]} contradict each other; leave one of them out"
            )


def check_learned(attributes: Iterable[str]) -> None:
    """Raises: UnknownNameError for names of no attribute; InputError for those that the demo model cannot carry."""
    foreign = [name for name in attributes if not find_attribute(name).learned]
    if foreign:
        raise InputError(
            f"the demo model does not know {', '.join(foreign)}; it knows {', '.join(a.name for a in LEARNED)}. For others "
            "make the target with an SD or SDXL checkpoint (Target Prompt in ComfyUI)"
        )


def prompt(attributes: Attributes, extra: str = "") -> tuple[str, str]:
    """Positive and negative prompt for one portrait with these attributes, for SD 1.x, SD 2 and SDXL.

    Args:
        extra: free text, appended to the positive prompt.
    """
    check_consistent(attributes)
    said = {name: _phrase(name, value) for name, value in attributes.items()}
    noun = said.pop("sex", "person")
    if attributes.get("age") in ("baby", "child", "teen"):
        noun = {"woman": "girl", "man": "boy"}.get(noun, "child")
    who = " ".join(filter(None, (said.pop("age", ""), said.pop("ethnicity", ""), noun)))
    rest = [said[a.name] for a in VOCABULARY if said.get(a.name)]
    for name, usual in (("pose", "facing the camera"), ("gaze", "looking at the camera")):
        if name not in attributes and attributes.get("glasses") != "sunglasses":
            rest.append(usual)
    parts = [f"portrait photograph of one {who}", *rest, "head and shoulders", "plain background", "soft even light"]
    unwanted = ["several people", "cropped head", "hand", "text", "drawing", "deformed", "blurry"]
    if attributes.get("glasses") == "none":
        unwanted.append("glasses")
    if attributes.get("facial_hair") == "none":
        unwanted.append("beard")
    return ", ".join([*parts, *filter(None, [extra.strip()])]), ", ".join(unwanted)


def _phrase(name: str, value: str) -> str:
    attribute = BY_NAME[name]
    return attribute.phrases[attribute.values.index(value)]


def find_attribute(name: str) -> Attribute:
    """The attribute of that name. Raises: UnknownNameError."""
    if name not in BY_NAME:
        raise UnknownNameError(
            f"there is no attribute named {name!r}{_guess(name, list(BY_NAME))}; known: {', '.join(BY_NAME)}"
        )
    return BY_NAME[name]


def normalise_value(name: str, value: str) -> str:
    """Value of the vocabulary that `value` names, synonyms included.

    Raises: UnknownNameError.
    """
    attribute = find_attribute(name)
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
    """One integer per attribute of `LEARNED`: 0 = unknown, else 1 + position of the value."""
    return [
        1 + attribute.values.index(attributes[attribute.name]) if attribute.name in attributes else 0
        for attribute in LEARNED
    ]


def _guess(word: str, options: list[str]) -> str:
    close = difflib.get_close_matches(word, options, n=1)
    return f" (did you mean {close[0]}?)" if close else ""
