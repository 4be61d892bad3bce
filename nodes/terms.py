"""Guidance terms beside the target's attributes, each a link in the GUIDANCE chain, and the chart of what they did."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..faceanon_core.errors import InputError
from ..faceanon_core.guidance import TermSettings
from .convert import CATEGORY, from_pixels
from .folders import weights_names, weights_path


def _schedule(strength: str) -> dict[str, Any]:
    """The inputs every term has."""
    share, defaults = {"min": 0.0, "max": 1.0, "step": 0.05}, TermSettings()
    return {
        "strength": (
            "FLOAT",
            {"default": defaults.strength, "min": 0.0, "max": 20.0, "step": 0.1, "tooltip": strength},
        ),
        "start": ("FLOAT", {**share, "default": defaults.start, "tooltip": "Share of the steps where the term begins."}),
        "end": ("FLOAT", {**share, "default": defaults.end, "tooltip": "Share of the steps where it ends."}),
    }


class LoadRecognition:
    """A face-recognition network the user brings, for guidance."""

    TITLE = "Load Recognition Network"
    CATEGORY = CATEGORY
    FUNCTION = "load"
    RETURN_TYPES = ("RECOGNITION_NETWORK",)
    RETURN_NAMES = ("network",)
    DESCRIPTION = "An IResNet (arcface_torch) or MobileFaceNet that guidance can push away from the source's identity with."
    SEARCH_ALIASES = ("ArcFace", "insightface", "face recognition", "IResNet")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        tip = "Recognition weights in models/faceanon: safetensors, or a PyTorch file of weights alone."
        return {"required": {"file": (weights_names(), {"tooltip": tip})}}

    def load(self, file: str) -> tuple[Any]:
        from . import comfy_bridge

        return (comfy_bridge.load_recognition(weights_path(file)),)


class AwayFromIdentity:
    """GUIDANCE -> GUIDANCE, with a term that pushes away from the source's identity."""

    TITLE = "Guidance: Away From Identity"
    CATEGORY = CATEGORY
    FUNCTION = "add"
    RETURN_TYPES = ("GUIDANCE",)
    DESCRIPTION = (
        "Pushes the predicted face away from what a recognition network knows the source by. "
        "Fooling one network need not fool another: check results with a second one."
    )
    SEARCH_ALIASES = ("anonymize", "ArcFace", "face recognition", "identity loss")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        tip = "0 = off. 1 = about as hard as the pull to the target. It stops by itself where the faces are strangers."
        return {
            "required": {
                "guidance": ("GUIDANCE", {"tooltip": "From Attribute Guidance or another term."}),
                "network": ("RECOGNITION_NETWORK", {"tooltip": "From Load Recognition Network."}),
                "crops": ("FACE_CROP", {"tooltip": "The source faces."}),
                **_schedule(tip),
            }
        }

    def add(self, guidance: Any, network: Any, crops: Any, strength: float, start: float, end: float) -> tuple[Any]:
        from ..faceanon_core.geometry import arcface_alignment
        from . import comfy_bridge

        places = torch.stack([torch.from_numpy(arcface_alignment(crop.landmarks)) for _, crop in crops])
        inputs = (torch.cat([crop.tensor for _, crop in crops]), places)
        return (comfy_bridge.add_identity(guidance, network, TermSettings(strength, start, end), inputs),)


class HoldPose:
    """GUIDANCE -> GUIDANCE, with a term that holds pose, expression and gaze."""

    TITLE = "Guidance: Hold Pose"
    CATEGORY = CATEGORY
    FUNCTION = "add"
    RETURN_TYPES = ("GUIDANCE",)
    DESCRIPTION = (
        "Holds the shapes of eyes, brows, nose and mouth at the source's, so that pose, expression and gaze stay. "
        "Where and how large they are is left free, because other proportions hide a person."
    )
    SEARCH_ALIASES = ("keep expression", "gaze", "head pose", "landmarks")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "guidance": ("GUIDANCE", {"tooltip": "From Attribute Guidance or another term."}),
                "encoder": ("FACE_ENCODER", {"tooltip": "From Load Demo Model: it alone finds landmarks."}),
                "crops": ("FACE_CROP", {"tooltip": "The source faces."}),
                **_schedule("0 = off. 1 = about as hard as the pull to the target. Too much makes blotches."),
            }
        }

    def add(self, guidance: Any, encoder: Any, crops: Any, strength: float, start: float, end: float) -> tuple[Any]:
        from . import comfy_bridge

        if not hasattr(encoder.model, "find_landmarks"):
            raise InputError("this encoder finds no landmarks; connect the encoder of Load Demo Model here")
        inputs = (torch.cat([crop.tensor for _, crop in crops]),)
        return (comfy_bridge.add_pose(guidance, encoder, TermSettings(strength, start, end), inputs),)


class GuidanceChart:
    """What the guidance did at every step, as an IMAGE."""

    TITLE = "Guidance Chart"
    CATEGORY = CATEGORY
    FUNCTION = "draw"
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("chart",)
    DESCRIPTION = "Draws every loss of the guidance, and sigma, over the steps of one run."
    SEARCH_ALIASES = ("plot", "loss curve", "sigma", "debug guidance")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        tip = "From the Attribute-Guided Sampler."
        return {"required": {"readout": ("GUIDANCE_READOUT", {"tooltip": tip})}}

    def draw(self, readout: Any) -> tuple[Tensor]:
        from ..faceanon_core.chart import draw_chart

        return (from_pixels([draw_chart(readout)]),)


NODES = (LoadRecognition, AwayFromIdentity, HoldPose, GuidanceChart)
