"""Known attributes of the training faces, from metadata, captions, measured skin and landmarks."""

from __future__ import annotations

import re

from ..attributes import Attributes
from ..skin import crop_skin_tone, mouth_expression
from .data import FaceRecord, FaceSet

# First match wins; the captions are the queries under which SFHQ shows its pictures.
_CAPTION_RULES: dict[str, tuple[tuple[str, str], ...]] = {
    "sex": (
        (r"\b(female|woman|girl)\b", "female"),
        (r"\b(male|man|boy|beard|goatee|mustache|stubble)\b", "male"),
    ),
    "age": (
        (r"month old|baby|toddler|todller", "baby"),
        (r"small child|young child|\bchild\b", "child"),
        (r"teen", "teen"),
        (r"middle-aged", "middle-aged"),
        (r"senior|elderly|old age|wrinkly", "senior"),
        (r"30 year old|adult", "adult"),
    ),
    "ethnicity": (
        (r"native american", "native-american"),
        (r"african", "black"),
        (r"asian\b", "asian"),
        (r"caucasian|irish|scandinavian", "white"),
        (r"south-american|hispanic", "latino"),
        (r"persian|middle eastern", "middle-eastern"),
        (r"indian", "indian"),
    ),
    "hair": (
        (r"bald", "bald"),
        (r"(white|gray)( or gray)? hair", "gray"),
        (r"(green|blue|pink|purple)( or pink)? hair", "dyed"),
        (r"(yellow or )?(blond|blonde) hair", "blond"),
        (r"(red|red or orange) hair", "red"),
        (r"black hair", "black"),
        (r"brown hair", "brown"),
    ),
    "facial_hair": (
        (r"goatee", "goatee"),
        (r"mustache", "mustache"),
        (r"stubble", "stubble"),
        (r"beard", "beard"),
        (r"shaved|\b(female|woman|girl|baby|toddler|todller|child)\b", "none"),
    ),
    "glasses": ((r"sunglasses", "sunglasses"), (r"glasses", "glasses")),
}


def caption_attributes(caption: str) -> Attributes:
    """Parse one caption; what it does not say is left out."""
    text = caption.lower()
    found: Attributes = {}
    for name, rules in _CAPTION_RULES.items():
        for pattern, value in rules:
            if re.search(pattern, text):
                found[name] = value
                break
    return found


def record_attributes(record: FaceRecord) -> Attributes:
    """What metadata and caption say about one face."""
    known = caption_attributes(record.caption)
    if record.sex:
        known["sex"] = record.sex
    if record.ethnicity:
        known["ethnicity"] = record.ethnicity
    if "generated-faces" in record.source:  # the whole set shows adults without glasses
        known |= {"age": "adult", "glasses": "none"}
    if known.get("sex") == "female":
        known.setdefault("facial_hair", "none")
    return known


def label_faces(faces: FaceSet) -> list[Attributes]:
    """Attributes of every face of a set, those measured on the picture included."""
    labels = []
    for i, record in enumerate(faces.records):
        known = record_attributes(record)
        known["skin"] = crop_skin_tone(faces.image(i), faces.landmarks[i])
        known["expression"] = mouth_expression(faces.landmarks[i])
        labels.append(known)
    return labels
