"""Load the embedded demo model, and turn attributes into its conditioning."""

from __future__ import annotations

from typing import Any

from ..faceanon_core.attributes import parse_attributes
from .convert import CATEGORY


class LoadDemoModel:
    """MODEL and VAE as ComfyUI's own nodes take them, plus the attribute encoder."""

    TITLE = "Load Demo Model"
    CATEGORY = CATEGORY
    FUNCTION = "load"
    RETURN_TYPES = ("MODEL", "VAE", "FACE_ENCODER")
    RETURN_NAMES = ("model", "vae", "encoder")
    DESCRIPTION = "The small inpainting model that comes with the pack (256 px, no download)."
    SEARCH_ALIASES = ("anonymize", "face inpainting model", "checkpoint")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {}}

    def load(self) -> tuple[Any, Any, Any]:
        from . import comfy_bridge

        return (*comfy_bridge.load_demo_model(), comfy_bridge.load_demo_encoder())


class DemoConditioning:
    """Attributes of the new face as CONDITIONING for the demo model."""

    TITLE = "Demo Model Attributes"
    CATEGORY = CATEGORY
    FUNCTION = "encode"
    RETURN_TYPES = ("CONDITIONING", "CONDITIONING")
    RETURN_NAMES = ("positive", "negative")
    DESCRIPTION = "What CLIP Text Encode is for other models: the demo model understands attributes instead of text."
    SEARCH_ALIASES = ("prompt", "text encode", "age", "sex", "skin tone")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        tip = 'Attributes asked of the new face, e.g. "age=60s, sex=female". Empty: those of the target. They override the target\'s.'
        return {
            "required": {"attributes": ("STRING", {"default": "", "tooltip": tip})},
            "optional": {"target": ("TARGET_FACE", {"tooltip": "The target face whose attributes are used."})},
        }

    def encode(self, attributes: str, target: Any = None) -> tuple[Any, Any]:
        from . import comfy_bridge

        wanted = {**(target.attributes if target is not None else {}), **parse_attributes(attributes)}
        return comfy_bridge.demo_conditioning(wanted), comfy_bridge.demo_conditioning({})


NODES = (LoadDemoModel, DemoConditioning)
