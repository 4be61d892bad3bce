"""Target faces: people who do not exist, whose attributes the result is pulled towards."""

from __future__ import annotations

import json
import logging
import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from .attributes import BY_NAME, Attributes, check_learned, describe
from .crop import FaceCrop, crop_face
from .encoder import DemoEncoder
from .errors import FaceAnonError, InputError, UnknownNameError
from .faces import FaceDetector
from .image import Picture, load_picture, pixels_to_tensor, save_picture, tensor_to_pixels
from .report import captioned_sheet
from .skin import crop_skin_tone, mouth_expression
from .weights import GALLERY

log = logging.getLogger(__name__)

INDEX = "gallery.json"
_LINE = 24  # letters in a line under a thumbnail
_SURE = 0.5  # probability from which the encoder's word is taken


@dataclass(frozen=True)
class Target:
    """A target face: `image` (1, 3, 256, 256) float 0..1, an upright crop; `attributes` as far as known."""

    name: str
    image: Tensor
    attributes: Attributes


def gallery_index(folders: Sequence[Path] = (GALLERY,)) -> dict[str, Attributes]:
    """Names and attributes of the faces in gallery folders (`gallery.json` beside `<name>.jpg` or `.png`).

    Args:
        folders: those that do not exist are passed over; of equal names the first counts.
    """
    index: dict[str, Attributes] = {}
    for folder in reversed(folders):
        index |= _read_index(folder)
    return index


def gallery_target(name: str, folders: Sequence[Path] = (GALLERY,)) -> Target:
    """Load one gallery face.

    Raises: UnknownNameError naming those that exist; InputError if its picture is gone.
    """
    for folder in folders:
        if name in (index := _read_index(folder)):
            pixels = load_picture(_picture_file(folder, name)).pixels
            return Target(name, pixels_to_tensor(pixels), index[name])
    raise UnknownNameError(f"there is no target named {name!r}; the gallery has {', '.join(sorted(gallery_index(folders)))}")


def gallery_sheet(folders: Sequence[Path] = (GALLERY,)) -> NDArray[np.uint8]:
    """Thumbnails of all gallery faces, each with its name and attributes; (H, W, 3) uint8 RGB.

    A face whose picture is gone or cannot be read has a grey one that says so.
    """
    index = sorted(gallery_index(folders).items())
    pictures, captions = [], []
    for name, shown in index:
        try:
            picture, said = tensor_to_pixels(gallery_target(name, folders).image)[0], describe(shown)
        except FaceAnonError as error:
            picture, said = np.full((256, 256, 3), 128, np.uint8), "its picture cannot be read"
            log.warning("%s", error)
        pictures.append(picture)
        captions.append([name, *textwrap.wrap(said, _LINE, break_on_hyphens=False)])
    return captioned_sheet(pictures, captions)


def save_target(target: Target, name: str, folder: Path, taken: Iterable[str] = ()) -> Path:
    """Add a target to a gallery folder, which is made where there is none.

    Args:
        name: letters, digits, - and _.
        taken: names of other galleries that must stay unambiguous.
    Returns: the picture's path.
    Raises: InputError for an unusable or taken name; nothing is ever overwritten.
    """
    check_new_name(name, folder, taken)
    index, path = _read_index(folder), folder / f"{name}.png"
    folder.mkdir(parents=True, exist_ok=True)
    save_picture(Picture(tensor_to_pixels(target.image)[0]), path)
    partial = folder / "gallery.partial"
    partial.write_text(json.dumps(index | {name: target.attributes}, indent=1) + "\n", encoding="utf-8")
    partial.replace(folder / INDEX)
    return path


def check_new_name(name: str, folder: Path, taken: Iterable[str] = ()) -> None:
    """Refuse what `save_target` would refuse, before a target is made.

    Raises: InputError.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name):
        raise InputError(f"a target cannot be named {name!r}; use up to 64 letters, digits, - and _")
    if name in _read_index(folder) or name in taken or (folder / f"{name}.png").exists():
        raise InputError(f"there is a target named {name!r} already; choose another name")


def _read_index(folder: Path) -> dict[str, Attributes]:
    path = folder / INDEX
    if not path.is_file():
        return {}
    try:
        index: dict[str, Attributes] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is damaged and cannot be read; restore it or move the folder away") from error
    return index


def _picture_file(folder: Path, name: str) -> Path:
    for suffix in (".png", ".jpg"):
        if (path := folder / f"{name}{suffix}").is_file():
            return path
    raise InputError(f"the picture of the target {name!r} is gone from {folder}; choose another target")


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
    return Target(name, image, {key: value for key, value in attributes.items() if sure[key] >= _SURE})


def source_attributes(crop: FaceCrop, encoder: DemoEncoder | None, names: tuple[str, ...]) -> Attributes:
    """Attributes of a source face that its target is to share: measured where they can be, else as the encoder is sure.

    Args:
        encoder: None: those that are measured can be had, and no others.
        names: attributes of the vocabulary.
    Raises: UnknownNameError for names of no attribute; InputError for attributes the encoder does not know, or that need
        one where there is none.
    """
    check_learned(names)
    found = {name: value for name, value in measured_attributes(crop).items() if name in names}
    guessed = [name for name in names if name not in found]
    if not guessed:
        return found
    if encoder is None:
        raise InputError(f"{', '.join(guessed)} of the source cannot be measured; connect the demo model's encoder")
    values, sure = encoder.predict(crop.tensor)[0]
    return found | {name: values[name] for name in guessed if sure[name] >= _SURE}


def measured_attributes(crop: FaceCrop) -> Attributes:
    """Those that need no network: expression from the landmarks and skin tone from the cheeks."""
    return {"expression": mouth_expression(crop.landmarks), "skin": crop_skin_tone(crop.pixels, crop.landmarks)}


def new_face_attributes(
    source: FaceCrop, target: Target, asked: Attributes, keep: tuple[str, ...], encoder: DemoEncoder | None
) -> tuple[Attributes, Attributes | None]:
    """What the model is told of a new face, and what it is to move away from where emphasis is laid on what was asked.

    Told is what the user asked, what stays as in the source, else the target's own; hair only where asked for: it lies
    outside the face and stays. The opposite has the source's values of what was asked, and leaves open what is asked to be
    as it is; None where nothing was asked. What is kept needs no emphasis: the surroundings say it as well.

    Args:
        keep: attributes taken from the source.
        encoder: see `source_attributes`.
    """
    kept = source_attributes(source, encoder, keep)
    own = {name: value for name, value in target.attributes.items() if name != "hair"}
    told = {**own, **kept, **asked}
    if not asked:
        return told, None
    guessed = source_attributes(source, encoder, tuple(asked)) if encoder is not None else measured_attributes(source)
    opposite = {name: value for name, value in told.items() if name not in asked}
    changed = {name: guessed[name] for name in asked if guessed.get(name, asked[name]) != asked[name]}
    return told, opposite | changed


def fitting_attributes(source: FaceCrop, predicted: Attributes) -> Attributes:
    """What an automatically chosen target shares with its source: sex and age as the encoder sees them, the measured rest.

    Args:
        predicted: values of `DemoEncoder.predict` for this crop.
    """
    return {"sex": predicted["sex"], "age": predicted["age"], **measured_attributes(source)}


def choose_target(
    wanted: Attributes, seed: int, folders: Sequence[Path] = (GALLERY,), avoid: frozenset[str] = frozenset()
) -> Target:
    """The gallery face that shares most of `wanted`; `seed` decides between equals.

    Args:
        avoid: names not to use again, for example those given to other faces of the same picture.
    Raises: InputError if the picture of none can be read; one that cannot is passed over.
    """
    index = gallery_index(folders)
    names = [name for name in sorted(index) if name not in avoid] or sorted(index)
    order = np.random.default_rng(seed).permutation(len(names))
    for name in sorted((names[i] for i in order), key=lambda name: -_agreement(index[name], wanted)):
        try:
            return gallery_target(name, folders)
        except FaceAnonError as error:
            log.warning("%s", error)
    raise InputError("no target face is left whose picture can be read; reinstall the pack, it carries a gallery")


def _agreement(shown: Attributes, wanted: Attributes) -> int:
    score = sum(_WEIGHT.get(key, 1) for key, value in wanted.items() if shown.get(key) == value)
    for name, weight in _ORDERED.items():
        if name in wanted and name in shown:
            values = BY_NAME[name].values
            score -= weight * abs(values.index(wanted[name]) - values.index(shown[name]))  # a near one beats a far one
    return score


_ORDERED = {"skin": 1, "expression": 2}  # the guidance pulls the mouth along: a neutral target takes a smile away
_WEIGHT = {"sex": 4, "age": 2}  # a wrong sex or age shows more than a wrong hair colour
