"""Load the embedded demo model or an encoder of your own, and turn attributes into the demo model's conditioning."""

from __future__ import annotations

import contextlib
from typing import Any

from ..faceanon_core.attributes import check_learned, parse_attributes
from ..faceanon_core.names import split_names
from .convert import ASKED_SKIN, CATEGORY
from .folders import weights_names, weights_path


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
    """What every new face should be, as CONDITIONING for the demo model."""

    TITLE = "Demo Model Attributes"
    CATEGORY = CATEGORY
    FUNCTION = "encode"
    RETURN_TYPES = ("CONDITIONING", "CONDITIONING")
    RETURN_NAMES = ("positive", "negative")
    DESCRIPTION = (
        "What CLIP Text Encode is for other models: the demo model understands attributes instead of text. "
        "Takes the target's attributes, what is kept of each source face, and what you ask for. A cfg of 3 lays emphasis on "
        "what you ask for."
    )
    SEARCH_ALIASES = ("prompt", "text encode", "age", "sex", "skin tone")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        tip = 'Asked of the new face, e.g. "age=60s, expression=smile"; overrides target and source. Empty: nothing asked.'
        keep = "Taken from each source face. Those besides expression and skin are estimated, which needs encoder."
        return {
            "required": {
                "target": (
                    "TARGET_FACE",
                    {"tooltip": "One for all, or one for each face; attributes but the hair are used."},
                ),
                "crops": ("FACE_CROP", {"tooltip": "The source faces."}),
                "attributes": ("STRING", {"default": "", "tooltip": tip}),
            },
            "optional": {
                "keep": ("STRING", {"default": "expression, skin", "tooltip": keep}),
                "encoder": (
                    "FACE_ENCODER",
                    {"tooltip": "From Load Demo Model: reads what is kept, and what cfg moves off."},
                ),
            },
        }

    def encode(
        self, target: Any, crops: Any, attributes: str, keep: str = "expression, skin", encoder: Any = None
    ) -> tuple[Any, Any]:
        from ..faceanon_core.target import new_face_attributes
        from ..faceanon_core.tracking import for_each_face
        from . import comfy_bridge

        asked, sources = parse_attributes(attributes), [crop for _, crop in crops]
        check_learned(asked)
        targets = for_each_face(target, sources, "target")
        kept = split_names(keep)
        with contextlib.nullcontext() if encoder is None else comfy_bridge.ready_encoder(encoder) as network:
            told = [new_face_attributes(crop, one, asked, kept, network) for crop, one in zip(sources, targets, strict=True)]
        positive = comfy_bridge.demo_conditioning([attributes for attributes, _ in told])
        away = [opposite or {} for _, opposite in told]
        negative = comfy_bridge.demo_conditioning(away if any(away) else [{}])
        if "skin" in asked:
            positive = comfy_bridge.extend(positive, {ASKED_SKIN: asked["skin"]})
        return positive, negative


class LoadEncoder:
    """A vision transformer the user brings, as FACE_ENCODER."""

    TITLE = "Load Attribute Encoder"
    CATEGORY = CATEGORY
    FUNCTION = "load"
    RETURN_TYPES = ("FACE_ENCODER",)
    RETURN_NAMES = ("encoder",)
    DESCRIPTION = (
        "FaRL ViT-B/16 (the paper's), or any CLIP or DINOv2 vision model, for Attribute Guidance. It estimates no "
        "attributes: target nodes take the encoder of Load Demo Model."
    )
    SEARCH_ALIASES = ("FaRL", "CLIP vision", "DINOv2", "load encoder")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        tip = "A weights file in models/faceanon or models/clip_vision: safetensors, or a PyTorch file of weights alone."
        return {"required": {"file": (weights_names(("faceanon", "clip_vision")), {"tooltip": tip})}}

    def load(self, file: str) -> tuple[Any]:
        from . import comfy_bridge

        return (comfy_bridge.load_vision_encoder(weights_path(file)),)


NODES = (LoadDemoModel, DemoConditioning, LoadEncoder)
