"""Target faces from the gallery or a picture. A TARGET_FACE is a list: one for all, or one per person."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..faceanon_core.attributes import parse_attributes
from ..faceanon_core.crop import FaceCrop
from ..faceanon_core.errors import InputError
from ..faceanon_core.target import (
    INDEX,
    Target,
    choose_target,
    fitting_attributes,
    gallery_index,
    gallery_sheet,
    gallery_target,
)
from .convert import CATEGORY, from_pixels, seed_input, to_image, to_pixels
from .folders import file_stamps, model_folders, target_galleries

AUTOMATIC = "automatic"


class TargetFace:
    """A face of the gallery that comes with the pack, or of the user's own; none of them exists."""

    TITLE = "Target Face (gallery)"
    CATEGORY = CATEGORY
    FUNCTION = "pick"
    RETURN_TYPES = ("TARGET_FACE", "IMAGE", "IMAGE")
    RETURN_NAMES = ("target", "image", "gallery")
    OUTPUT_TOOLTIPS = (
        "The chosen faces.",
        "Their pictures.",
        "All faces one can choose, with their names; connect Preview Image.",
    )
    DESCRIPTION = (
        "A synthesized face whose attributes the result is pulled towards. automatic takes the one that fits the source's "
        "sex, age and skin tone best, another one for each face; a tracked person has one in all frames."
    )
    SEARCH_ALIASES = ("synthetic face", "identity")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        names = [AUTOMATIC, *sorted(gallery_index(target_galleries()))]
        seed = "automatic only: decides between faces that fit equally well; another number, another face."
        asked = 'automatic only: what the face must show, e.g. "age=60s, sex=female". Empty: fit the source face alone.'
        return {
            "required": {
                "name": (names, {"default": AUTOMATIC, "tooltip": "automatic, or one face of the gallery by its name."}),
                "attributes": ("STRING", {"default": "", "tooltip": asked}),
                "seed": seed_input(seed, renew=False),
            },
            "optional": {
                "crops": (
                    "FACE_CROP",
                    {"tooltip": "automatic only: the source faces; each gets a target that fits."},
                ),
                "encoder": ("FACE_ENCODER", {"tooltip": "automatic only: estimates sex, age and skin tone of the crops."}),
            },
        }

    @classmethod
    def VALIDATE_INPUTS(cls, name: str | None = None) -> bool | str:
        """Answer for a workflow made with another gallery in our words, not the server's. None: the name is linked."""
        known = sorted(gallery_index(target_galleries()))
        if name in (None, AUTOMATIC, *known):
            return True
        return f"there is no target named {name!r}; choose automatic or one of {', '.join(known)}"

    @classmethod
    def IS_CHANGED(cls, **_: Any) -> Any:
        """A face that Save Target adds is among those to choose from at the next run."""
        return file_stamps(*(folder / INDEX for folder in target_galleries()))

    def pick(
        self, name: str, attributes: str = "", seed: int = 0, crops: Any = None, encoder: Any = None
    ) -> tuple[Any, Tensor, Tensor]:
        if name == AUTOMATIC:
            targets: list[Target] = []
            asked = parse_attributes(attributes)
            for index, shown in enumerate(_estimate(crops, encoder)):
                used = frozenset(target.name for target in targets)
                targets.append(choose_target(shown | asked, seed + index, target_galleries(), used))
        else:
            targets = [gallery_target(name, target_galleries())]
        shown = to_image(torch.cat([target.image for target in targets]))
        return targets, shown, from_pixels([gallery_sheet(target_galleries())])


def _estimate(crops: Any, encoder: Any) -> list[dict[str, str]]:
    """What every person's largest face shows of the attributes a target is chosen by; one empty entry without crops.

    Raises: InputError if only one of the two is connected.
    """
    if crops is None and encoder is None:
        return [{}]
    if crops is None or encoder is None:
        raise InputError("an automatic target that fits the source needs both crops and encoder; connect both or neither")
    from ..faceanon_core.tracking import person_rows
    from . import comfy_bridge

    sources = [crop for _, crop in crops]
    largest: dict[int, FaceCrop] = {}
    for row, crop in zip(person_rows(sources), sources, strict=True):
        if row not in largest or crop.frame.scale < largest[row].frame.scale:  # the less it was enlarged, the larger it is
            largest[row] = crop
    chosen = [largest[row] for row in sorted(largest)]
    with comfy_bridge.ready_encoder(encoder) as network:
        guesses = network.predict(torch.cat([crop.tensor for crop in chosen]).to(encoder.load_device))
    return [fitting_attributes(crop, guessed) for crop, (guessed, _) in zip(chosen, guesses, strict=True)]


class TargetFromImage:
    """A target face out of a picture, for example one made by another branch of the graph."""

    TITLE = "Target Face (image)"
    CATEGORY = CATEGORY
    FUNCTION = "cut"
    RETURN_TYPES = ("TARGET_FACE", "IMAGE")
    RETURN_NAMES = ("target", "image")
    DESCRIPTION = "Cuts the single face out of a picture. Use pictures of people who do not exist."
    SEARCH_ALIASES = ("synthetic face", "reference face", "face from image")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "image": ("IMAGE", {"tooltip": "A picture with exactly one face; of a batch the first is used."}),
                "encoder": ("FACE_ENCODER", {"tooltip": "Estimates the target's attributes."}),
            }
        }

    def cut(self, image: Tensor, encoder: Any) -> tuple[Any, Tensor]:
        from ..faceanon_core.faces import FaceDetector
        from ..faceanon_core.target import target_from_pixels
        from . import comfy_bridge

        detector = FaceDetector(task_folders=model_folders())
        with detector, comfy_bridge.ready_encoder(encoder) as network:
            target = target_from_pixels(to_pixels(image[:1])[0], "image", detector, network, size_px=256)
        return [target], to_image(target.image)


class CombineTargets:
    """Targets chosen one by one, handed to the faces in order."""

    TITLE = "Combine Targets"
    CATEGORY = CATEGORY
    FUNCTION = "combine"
    RETURN_TYPES = ("TARGET_FACE",)
    RETURN_NAMES = ("target",)
    DESCRIPTION = (
        "Gives every face the target you choose: the first to the first face, and so on; with Track Faces to the people "
        "in order of their first appearance. Put one after another for more than four."
    )
    SEARCH_ALIASES = ("several targets", "target list", "assign faces")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        def target(number: int) -> tuple[str, dict[str, Any]]:
            return "TARGET_FACE", {"tooltip": f"The target of face {number} in the order of Crop Faces."}

        return {
            "required": {"target_1": target(1), "target_2": target(2)},
            "optional": {"target_3": target(3), "target_4": target(4)},
        }

    def combine(self, target_1: Any, target_2: Any, target_3: Any = (), target_4: Any = ()) -> tuple[Any]:
        return ([*target_1, *target_2, *target_3, *target_4],)


NODES = (TargetFace, TargetFromImage, CombineTargets)
