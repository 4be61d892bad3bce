"""Face parsing: which pixel of a face crop belongs to which region, in CelebAMask-HQ's names."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from . import geometry
from .errors import UnknownNameError
from .geometry import FloatArray
from .hair import hair_over_face
from .light import skin_light

LabelMap = NDArray[np.uint8]

# CelebAMask-HQ's classes in its own order; left and right are the subject's own.
LABELS = (
    "background", "skin", "nose", "eyeglasses", "left_eye", "right_eye", "left_brow", "right_brow", "left_ear",
    "right_ear", "inner_mouth", "upper_lip", "lower_lip", "hair", "hat", "earring", "necklace", "neck", "clothing",
)  # fmt: skip
INDEX = {name: i for i, name in enumerate(LABELS)}

# Short names that stand for several labels.
GROUPS = {
    "eyes": ("left_eye", "right_eye"),
    "brows": ("left_brow", "right_brow"),
    "ears": ("left_ear", "right_ear"),
    "lips": ("upper_lip", "lower_lip"),
    "mouth": ("inner_mouth", "upper_lip", "lower_lip"),
    "glasses": ("eyeglasses",),
    "face": (
        "skin", "nose", "eyeglasses", "left_eye", "right_eye", "left_brow", "right_brow",
        "inner_mouth", "upper_lip", "lower_lip",
    ),
}  # fmt: skip


class FaceParser(Protocol):
    """Anything that labels the pixels of an upright face crop."""

    @property
    def delivers(self) -> frozenset[str]:
        """The label names this parser can produce."""
        ...

    def parse(self, crop: NDArray[np.uint8], landmarks: FloatArray) -> LabelMap:
        """Label every pixel.

        Args:
            crop: (H, W, 3) uint8 RGB.
            landmarks: (478, 2) xy in crop pixels.
        Returns: (H, W) uint8 indices into `LABELS`.
        """
        ...


class LandmarkParser:
    """Draws the regions from the face mesh and finds hair over them by its colour: no network, works on any picture.

    Only the hair over the face is found, so "hair" is not among what it delivers; it is there to be left out.
    """

    delivers = frozenset(GROUPS["face"]) - {"eyeglasses"} | {"background"}

    def parse(self, crop: NDArray[np.uint8], landmarks: FloatArray) -> LabelMap:
        """See `FaceParser.parse`; later regions are painted over earlier ones."""
        labels = np.where(geometry.face_area(crop.shape, landmarks), np.uint8(INDEX["skin"]), np.uint8(0))
        for name, indices, hull in _PAINT_ORDER:
            labels[geometry.filled_polygon(crop.shape, landmarks[list(indices)], hull)] = INDEX[name]
        labels[hair_over_face(crop, landmarks, skin_light(crop, landmarks))] = INDEX["hair"]
        return labels


def region_labels(names: list[str] | tuple[str, ...], parser: FaceParser | None = None) -> frozenset[str]:
    """Expand region and group names into label names.

    Args:
        names: labels ("nose") or groups ("eyes", "mouth", "face").
        parser: where given, names it cannot deliver are refused.
    Raises: UnknownNameError with the names that exist.
    """
    expanded: set[str] = set()
    for name in names:
        if name in GROUPS:
            members = set(GROUPS[name])
            # "face" means whatever of the face this parser can tell apart
            expanded |= members & parser.delivers if parser is not None and name == "face" else members
        elif name in INDEX and name != "background":
            expanded.add(name)
        else:
            known = ", ".join([*GROUPS, *LABELS[1:]])
            raise UnknownNameError(f"there is no region named {name!r}; known regions: {known}")
    if parser is not None and expanded - parser.delivers:
        missing = ", ".join(sorted(expanded - parser.delivers))
        have = ", ".join(sorted(parser.delivers - {"background"}))
        raise UnknownNameError(f"the active face parser cannot find {missing}; it finds {have}")
    return frozenset(expanded)


# Both lips are the outer outline cut at the mouth's corners by the inner one.
_UPPER_LIP = (61, 185, 40, 39, 37, 0, 267, 269, 270, 409, 291, 308, 415, 310, 311, 312, 13, 82, 81, 80, 191, 78)
_LOWER_LIP = (61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 308, 324, 318, 402, 317, 14, 87, 178, 88, 95, 78)
_PAINT_ORDER: tuple[tuple[str, tuple[int, ...], bool], ...] = (
    ("nose", geometry.NOSE, True),
    ("right_brow", geometry.RIGHT_BROW, False),
    ("left_brow", geometry.LEFT_BROW, False),
    ("right_eye", geometry.RIGHT_EYE, False),
    ("left_eye", geometry.LEFT_EYE, False),
    ("inner_mouth", geometry.LIPS_INNER, False),
    ("upper_lip", _UPPER_LIP, False),
    ("lower_lip", _LOWER_LIP, False),
)
