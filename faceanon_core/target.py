"""Target faces: people who do not exist, whose attributes the result is pulled towards."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .attributes import BY_NAME, Attributes
from .crop import FaceCrop, crop_face
from .encoder import DemoEncoder
from .errors import InputError, UnknownNameError
from .faces import FaceDetector
from .image import load_picture
from .skin import crop_skin_tone
from .weights import GALLERY


@dataclass(frozen=True)
class Target:
    """A target face: `image` (1, 3, 256, 256) float 0..1, an upright crop; `attributes` as far as known."""

    name: str
    image: Tensor
    attributes: Attributes


def gallery_index(folder: Path = GALLERY) -> dict[str, Attributes]:
    """Names and attributes of the faces in a gallery folder (`gallery.json` beside `<name>.jpg`)."""
    index: dict[str, Attributes] = json.loads((folder / "gallery.json").read_text(encoding="utf-8"))
    return index


def gallery_target(name: str, folder: Path = GALLERY) -> Target:
    """Load one gallery face.

    Raises: UnknownNameError naming those that exist.
    """
    index = gallery_index(folder)
    if name not in index:
        raise UnknownNameError(f"there is no target named {name!r}; the gallery has {', '.join(sorted(index))}")
    pixels = load_picture(folder / f"{name}.jpg").pixels
    return Target(name, torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255, index[name])


def target_from_pixels(
    pixels: NDArray[np.uint8], name: str, detector: FaceDetector, encoder: DemoEncoder, size_px: int
) -> Target:
    """Cut the target face out of a picture and estimate its attributes.

    Args:
        pixels: (H, W, 3) uint8 RGB with exactly one face.
    Raises: InputError if there is no face, or several: the failure policy is about source faces, never about the target.
    """
    faces = detector.detect(pixels)
    if not faces:
        raise InputError(f"the target picture {name} shows no face; choose one with a single, frontal face")
    if len(faces) > 1:
        raise InputError(f"the target picture {name} shows {len(faces)} faces; crop it to the one you mean")
    image = crop_face(pixels, faces[0], size_px).tensor
    attributes, sure = encoder.predict(image)[0]
    return Target(name, image, {key: value for key, value in attributes.items() if sure[key] >= 0.5})


def fitting_attributes(source: FaceCrop, predicted: Attributes) -> Attributes:
    """What an automatically chosen target shares with its source: sex and age as the encoder sees them, measured skin.

    Args:
        predicted: values of `DemoEncoder.predict` for this crop.
    """
    skin = crop_skin_tone(source.pixels, source.landmarks)
    return {"sex": predicted["sex"], "age": predicted["age"], "skin": skin}


def choose_target(wanted: Attributes, seed: int, folder: Path = GALLERY, avoid: frozenset[str] = frozenset()) -> Target:
    """The gallery face that shares most of `wanted`; `seed` decides between equals.

    Args:
        avoid: names not to use again, for example those given to other faces of the same picture.
    """
    index = gallery_index(folder)
    names = [name for name in sorted(index) if name not in avoid] or sorted(index)
    order = np.random.default_rng(seed).permutation(len(names))

    best = max((names[i] for i in order), key=lambda name: _agreement(index[name], wanted))
    return gallery_target(best, folder)


def _agreement(shown: Attributes, wanted: Attributes) -> int:
    score = sum(_WEIGHT.get(key, 1) for key, value in wanted.items() if shown.get(key) == value)
    if "skin" in wanted and "skin" in shown:
        tones = BY_NAME["skin"].values
        score -= abs(tones.index(wanted["skin"]) - tones.index(shown["skin"]))  # a near tone beats a far one
    return score


_WEIGHT = {"sex": 4, "age": 2}  # a wrong sex or age shows more than a wrong hair colour
