"""Target faces: chosen from the gallery, or cut out of a picture."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..faceanon_core.attributes import parse_attributes
from ..faceanon_core.errors import InputError
from ..faceanon_core.target import FITTED, choose_target, gallery_index, gallery_target
from .convert import CATEGORY, to_image, to_pixels

AUTOMATIC = "automatic"


class TargetFace:
    """A face of the gallery that comes with the pack; none of them exists."""

    TITLE = "Target Face (gallery)"
    CATEGORY = CATEGORY
    FUNCTION = "pick"
    RETURN_TYPES = ("TARGET_FACE", "IMAGE")
    RETURN_NAMES = ("target", "image")
    DESCRIPTION = (
        "A synthesized face whose attributes the result is pulled towards. "
        "automatic takes the one that fits the source's sex, age and skin tone best."
    )
    SEARCH_ALIASES = ("synthetic face", "identity")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        names = [AUTOMATIC, *sorted(gallery_index())]
        seed = {
            "default": 0, "min": 0, "max": 0xFFFFFFFFFFFFFFFF, "control_after_generate": False,
            "tooltip": "automatic only: decides between faces that fit equally well; another number, another face.",
        }  # fmt: skip
        asked = 'automatic only: what the face must show, e.g. "age=60s, sex=female". Empty: fit the source face alone.'
        return {
            "required": {
                "name": (names, {"default": AUTOMATIC, "tooltip": "automatic, or one face of the gallery by its name."}),
                "attributes": ("STRING", {"default": "", "tooltip": asked}),
                "seed": ("INT", seed),
            },
            "optional": {
                "crops": ("FACE_CROP", {"tooltip": "automatic only: the source faces; the target fits the first of them."}),
                "encoder": ("FACE_ENCODER", {"tooltip": "automatic only: estimates sex, age and skin tone of the crops."}),
            },
        }

    @classmethod
    def VALIDATE_INPUTS(cls, name: str | None = None) -> bool | str:
        """Answer for a workflow made with another gallery in our words, not the server's. None: the name is linked."""
        if name in (None, AUTOMATIC) or name in gallery_index():
            return True
        return f"there is no target named {name!r}; choose automatic or one of {', '.join(sorted(gallery_index()))}"

    def pick(
        self, name: str, attributes: str = "", seed: int = 0, crops: Any = None, encoder: Any = None
    ) -> tuple[Any, Tensor]:
        if name == AUTOMATIC:
            target = choose_target(_estimate(crops, encoder) | parse_attributes(attributes), seed)
        else:
            target = gallery_target(name)
        return target, to_image(target.image)


def _estimate(crops: Any, encoder: Any) -> dict[str, str]:
    """What the first face shows of the attributes a target is chosen by; nothing where no crops are connected.

    Raises: InputError if only one of the two is connected.
    """
    if crops is None and encoder is None:
        return {}
    if crops is None or encoder is None:
        raise InputError("an automatic target that fits the source needs both crops and encoder; connect both or neither")
    from . import comfy_bridge

    with comfy_bridge.ready_encoder(encoder) as network:
        guessed, _ = network.predict(crops[0][1].tensor.to(encoder.load_device))[0]
    return {name: guessed[name] for name in FITTED}


class TargetFromImage:
    """A target face out of a picture, for example one made by another branch of the graph."""

    TITLE = "Target Face (image)"
    CATEGORY = CATEGORY
    FUNCTION = "cut"
    RETURN_TYPES = ("TARGET_FACE", "IMAGE")
    RETURN_NAMES = ("target", "image")
    DESCRIPTION = "Cuts the single face out of a picture. Use pictures of people who do not exist."

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

        with FaceDetector() as detector, comfy_bridge.ready_encoder(encoder) as network:
            target = target_from_pixels(to_pixels(image[:1])[0], "image", detector, network, size_px=256)
        return target, to_image(target.image)


NODES = (TargetFace, TargetFromImage)
