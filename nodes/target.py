"""Target faces from the gallery or from a picture."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..faceanon_core.target import gallery_index, gallery_target
from .convert import CATEGORY, to_image, to_pixels


class TargetFace:
    """A face of the gallery that comes with the pack; none of them exists."""

    TITLE = "Target Face (gallery)"
    CATEGORY = CATEGORY
    FUNCTION = "pick"
    RETURN_TYPES = ("TARGET_FACE", "IMAGE")
    RETURN_NAMES = ("target", "image")
    DESCRIPTION = "A synthesized face whose attributes the result is pulled towards."
    SEARCH_ALIASES = ("synthetic face", "identity")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"name": (sorted(gallery_index()), {"tooltip": "Names say sex and age; see the image output."})}}

    def pick(self, name: str) -> tuple[Any, Tensor]:
        target = gallery_target(name)
        return target, to_image(target.image)


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
