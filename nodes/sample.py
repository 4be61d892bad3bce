"""Inpaint conditioning, guidance, and the three ways to sample with it: two of them run `comfy_bridge.GuidedSampler`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..faceanon_core.errors import InputError
from ..faceanon_core.guidance import LIMIT, GuidanceSettings
from ..faceanon_core.proportions import UNCHECKED
from ..faceanon_core.sketch import DRAWN
from .convert import ASKED_SKIN, CATEGORY, check_side, from_mask, match_batch, seed_input

# Share of the schedule by which the lines go early: ComfyUI counts both ends of a part in, and would mix both parts at a
# step right on the border.
_EARLIER = 1e-4
_SCHEDULERS = ("sgm_uniform", "normal", "karras", "exponential", "simple", "ddim_uniform", "beta")


class InpaintFaces:
    """Hide the faces and prepare conditioning and latent for an inpainting model."""

    TITLE = "Inpaint Faces"
    CATEGORY = CATEGORY
    FUNCTION = "encode"
    RETURN_TYPES = ("CONDITIONING", "CONDITIONING", "LATENT")
    RETURN_NAMES = ("positive", "negative", "latent")
    DESCRIPTION = (
        "Like InpaintModelConditioning, for face crops: the face is cut out before encoding, so that none of it is seen. "
        "Works with 9-channel inpaint models and with 4-channel models (noise mask). "
        "With Track Faces, all frames of a person start from the same noise."
    )
    SEARCH_ALIASES = ("InpaintModelConditioning", "noise mask")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "positive": ("CONDITIONING", {"tooltip": "What the new face should be."}),
                "negative": ("CONDITIONING", {"tooltip": "What it should not be."}),
                "vae": ("VAE", {"tooltip": "The VAE of the model you sample with."}),
                "crops": ("FACE_CROP", {"tooltip": "From Crop Faces."}),
                "mask": ("MASK", {"tooltip": "From Region Mask; hand-painted masks of the crops work as well."}),
                "sketch": (
                    "BOOLEAN",
                    {
                        "default": True,
                        "tooltip": "On: pose, expression and light are drawn there (demo model only). Off: plain grey.",
                    },
                ),
                "proportions": (
                    "FLOAT",
                    {
                        "default": UNCHECKED,
                        "min": 0.0,
                        "max": 2.0,
                        "step": 0.05,
                        "tooltip": "How far the sketch's eyes, brows, nose and mouth move from the source's places, so that "
                        "it does not hand the source's face on. 0 keeps them and leaks identity!",
                    },
                ),
                "seed": seed_input("Another number, other proportions.", renew=False),
            },
            "optional": {
                "drawn": (
                    "FLOAT",
                    {
                        "default": DRAWN,
                        "min": 0.0,
                        "max": 1.0,
                        "step": 0.01,
                        "tooltip": "Share of the noise schedule, from its start, in which the model sees the sketch's "
                        "lines, then its light alone; of the steps with sgm_uniform, normal and simple. 0.15: "
                        "faces look natural, and more like their sources; check them.",
                    },
                )
            },
        }

    def encode(
        self, positive: Any, negative: Any, vae: Any, crops: Any, mask: Tensor, sketch: bool, proportions: float, seed: int,
        drawn: float = DRAWN,
    ) -> tuple[Any, Any, Any]:  # fmt: skip
        return inpaint_faces(positive, negative, vae, crops, mask, sketch, proportions, seed, drawn)


def inpaint_faces(
    positive: Any, negative: Any, vae: Any, crops: Any, mask: Tensor, sketch: bool, proportions: float, seed: int,
    drawn: float,
) -> tuple[Any, Any, Any]:  # fmt: skip
    """CONDITIONING, CONDITIONING and LATENT of the crops with their faces hidden; the inputs are those of Inpaint Faces."""
    from ..faceanon_core.hiding import hide_faces
    from ..faceanon_core.regions import latent_mask
    from ..faceanon_core.tracking import person_rows
    from . import comfy_bridge

    sources = [crop for _, crop in crops]
    persons = person_rows(sources)
    core = (match_batch(from_mask(mask), len(crops), "mask") >= 0.5).float()
    check_side(core, crops, "mask")
    _check_hides(core)
    samples = comfy_bridge.vae_encode(vae, torch.cat([crop.tensor for crop in sources]))
    hole = latent_mask(core, samples.shape[-1])
    latent = {"samples": samples, "noise_mask": hole}
    if any(crop.person is not None for crop in sources):
        latent["batch_index"] = persons  # samplers then repeat each person's noise
    shown = max(0.0, drawn - _EARLIER * (drawn < 1)) if sketch else None
    seeds, skin = [seed + person for person in persons], positive[0][1].get(ASKED_SKIN)
    told: tuple[list[Any], list[Any]] = ([], [])
    for part in hide_faces(sources, core, seeds, proportions, shown, skin):
        extra = {"concat_latent_image": comfy_bridge.vae_encode(vae, part.image), "concat_mask": hole}
        for cond, entries in zip((positive, negative), told, strict=True):
            entries.extend(comfy_bridge.extend(comfy_bridge.narrow(cond, part.start, part.end), extra))
    return *told, latent


def _check_hides(core: Tensor) -> None:
    """Refuse masks (faces, 1, S, S) of which one is empty: its face would come out as it went in.

    Raises: InputError.
    """
    for number, plane in enumerate(core, 1):
        if not bool(plane.any()):
            whose = "the mask" if len(core) == 1 else f"the mask of face {number} of {len(core)}"
            raise InputError(f"{whose} is empty, so nothing of the face would be regenerated; use the mask of Region Mask")


class AttributeGuidance:
    """Everything the samplers need to pull the result towards a target: one GUIDANCE socket."""

    TITLE = "Attribute Guidance"
    CATEGORY = CATEGORY
    FUNCTION = "build"
    RETURN_TYPES = ("GUIDANCE",)
    DESCRIPTION = (
        "Pulls the predicted image towards the attributes of the target face at each step, and away from the source."
    )
    SEARCH_ALIASES = ("guidance", "feature matching", "IPAdapter")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        share = {"min": 0.0, "max": 1.0, "step": 0.05}
        defaults = GuidanceSettings()
        return {
            "required": {
                "encoder": ("FACE_ENCODER", {"tooltip": "The network whose features are matched."}),
                "target": ("TARGET_FACE", {"tooltip": "The face to pull towards: one for all, or one for each face."}),
                "strength": (
                    "FLOAT",
                    {
                        "default": defaults.strength,
                        "min": 0.0,
                        "max": 20.0,
                        "step": 0.1,
                        "tooltip": "0 = no guidance, exactly the stock sampler. 1 = as tuned. Too much makes blotches.",
                    },
                ),
                "away": (
                    "FLOAT",
                    {
                        "default": defaults.away,
                        "min": 0.0,
                        "max": 2.0,
                        "step": 0.05,
                        "tooltip": "Push away from the source's features. 0 = off; needs crops.",
                    },
                ),
                "start": (
                    "FLOAT",
                    {**share, "default": defaults.start, "tooltip": "Share of the steps where guidance begins."},
                ),
                "end": ("FLOAT", {**share, "default": defaults.end, "tooltip": "Share of the steps where guidance ends."}),
                "tokens": (
                    ["all", "class", "patches", "region"],
                    {
                        "default": defaults.tokens,
                        "tooltip": "all: as in the paper. class: the face as a whole. patches: where things are. "
                        "region: only patches inside the mask; needs mask.",
                    },
                ),
            },
            "optional": {
                "crops": (
                    "FACE_CROP",
                    {"tooltip": "The source faces; needed for away and for people with a target each."},
                ),
                "decoder": (
                    "VAE",
                    {
                        "tooltip": "What the guidance decodes with, e.g. TAESD. Empty: the model's TAESD decoder if it is "
                        "in models/vae_approx, else the sampler's own VAE."
                    },
                ),
                "mask": ("MASK", {"tooltip": "From Region Mask: what is regenerated. Needed for the tokens region."}),
                "reuse": (
                    "INT",
                    {
                        "default": defaults.reuse,
                        "min": 1,
                        "max": 100,
                        "tooltip": "Guided steps that one gradient serves. 1: a new one at each, as in the paper, and slow.",
                    },
                ),
                "limit": (
                    "FLOAT",
                    {
                        "default": LIMIT,
                        "min": 0.0,
                        "max": 10.0,
                        "step": 0.01,
                        "tooltip": "Longest pull, in shares of the noise a step adds; longer ones make stains. 0: no limit, "
                        "as in the paper.",
                    },
                ),
            },
        }

    def build(
        self, encoder: Any, target: Any, strength: float, away: float, start: float, end: float, tokens: Any,
        crops: Any = None, decoder: Any = None, mask: Tensor | None = None, reuse: int = GuidanceSettings.reuse,
        limit: float = LIMIT,
    ) -> tuple[Any]:  # fmt: skip
        from ..faceanon_core.tracking import for_each_face
        from . import comfy_bridge

        settings = GuidanceSettings(
            strength=strength, away=away, start=start, end=end, tokens=tokens, reuse=reuse, limit=limit or None
        )
        if away > 0 and crops is None:
            raise InputError("away pushes from the source's features, so connect crops, or set away to 0")
        if tokens == "region" and mask is None:
            raise InputError("the tokens region are those inside the mask, so connect mask, or choose other tokens")
        source = torch.cat([crop.tensor for _, crop in crops]) if crops is not None else None
        region = None if mask is None else (from_mask(mask) >= 0.5).float()
        if crops is not None and region is not None:
            region = match_batch(region, len(crops), "mask")
            check_side(region, crops, "mask")
        if crops is not None and len(target) > 1:
            target = for_each_face(target, [crop for _, crop in crops], "target")
        images = torch.cat([one.image for one in target])
        return (comfy_bridge.GuidanceSpec(encoder, images, source, settings, decoder, region),)


class GuidedSampler:
    """The one-box sampler: Euler-ancestral steps with attribute guidance."""

    TITLE = "Attribute-Guided Sampler"
    CATEGORY = CATEGORY
    FUNCTION = "sample"
    RETURN_TYPES = ("LATENT", "GUIDANCE_READOUT")
    RETURN_NAMES = ("latent", "readout")
    DESCRIPTION = (
        "A KSampler that follows GUIDANCE. With strength 0 it equals KSampler with euler_ancestral bit for bit, "
        "except that all frames of a tracked person get the same noise at every step."
    )
    SEARCH_ALIASES = ("KSampler", "anonymize")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "The model to sample with."}),
                "vae": ("VAE", {"tooltip": "Its VAE; decodes the prediction for the guidance."}),
                "positive": ("CONDITIONING", {"tooltip": "From Inpaint Faces."}),
                "negative": ("CONDITIONING", {"tooltip": "From Inpaint Faces."}),
                "latent": ("LATENT", {"tooltip": "From Inpaint Faces."}),
                "guidance": ("GUIDANCE", {"tooltip": "From Attribute Guidance."}),
                "seed": seed_input("Same seed, same face.", renew=True),
                "steps": (
                    "INT",
                    {"default": 20, "min": 1, "max": 1000, "tooltip": "More is slower and finer; 20 is usual."},
                ),
                "cfg": (
                    "FLOAT",
                    {
                        "default": 1.0,
                        "min": 0.0,
                        "max": 30.0,
                        "step": 0.1,
                        "tooltip": "1 = positive only; higher follows it more.",
                    },
                ),
                "scheduler": (
                    list(_SCHEDULERS),
                    {
                        "default": _SCHEDULERS[0],
                        "tooltip": "How noise levels are spaced; the demo model is tuned for sgm_uniform.",
                    },
                ),
                "denoise": (
                    "FLOAT",
                    {
                        "default": 1.0,
                        "min": 0.05,
                        "max": 1.0,
                        "step": 0.05,
                        "tooltip": "1 = new face. Lower keeps more of the source and leaks its identity!",
                    },
                ),
            }
        }

    def sample(
        self, model: Any, vae: Any, positive: Any, negative: Any, latent: Any, guidance: Any, seed: int, steps: int,
        cfg: float, scheduler: str, denoise: float,
    ) -> tuple[Any, Any]:  # fmt: skip
        from . import comfy_bridge

        sampler = comfy_bridge.GuidedSampler(guidance, vae)
        sigmas = comfy_bridge.schedule(model, scheduler, steps, denoise)
        return comfy_bridge.sample(model, sampler, sigmas, positive, negative, latent, seed, cfg), sampler.readout


class GuidedSamplerObject:
    """A SAMPLER for the stock SamplerCustom and SamplerCustomAdvanced nodes."""

    TITLE = "Guided SAMPLER"
    CATEGORY = CATEGORY
    FUNCTION = "build"
    RETURN_TYPES = ("SAMPLER",)
    DESCRIPTION = (
        "Euler-ancestral with attribute guidance, as a SAMPLER for SamplerCustomAdvanced. "
        "All frames of a tracked person get the same noise at every step."
    )
    SEARCH_ALIASES = ("SamplerCustomAdvanced", "guided sampler", "euler_ancestral")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "guidance": ("GUIDANCE", {"tooltip": "From Attribute Guidance."}),
                "vae": ("VAE", {"tooltip": "The model's VAE; decodes the prediction for the guidance."}),
            }
        }

    def build(self, guidance: Any, vae: Any) -> tuple[Any]:
        from . import comfy_bridge

        return (comfy_bridge.GuidedSampler(guidance, vae),)


class ApplyGuidance:
    """Patch a MODEL so that any stock KSampler follows the guidance."""

    TITLE = "Apply Attribute Guidance"
    CATEGORY = CATEGORY
    FUNCTION = "apply"
    RETURN_TYPES = ("MODEL",)
    DESCRIPTION = (
        "For stock KSampler nodes. Exact with euler_ancestral; close with other samplers. "
        "Frames of a tracked person share the initial noise only; for video use the Attribute-Guided Sampler."
    )
    SEARCH_ALIASES = ("patch model", "KSampler", "model patch")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "model": ("MODEL", {"tooltip": "The model to patch."}),
                "vae": ("VAE", {"tooltip": "Its VAE; decodes the prediction for the guidance."}),
                "guidance": ("GUIDANCE", {"tooltip": "From Attribute Guidance."}),
            }
        }

    def apply(self, model: Any, vae: Any, guidance: Any) -> tuple[Any]:
        from . import comfy_bridge

        return (comfy_bridge.patch_model(model, vae, guidance),)


NODES = (InpaintFaces, AttributeGuidance, GuidedSampler, GuidedSamplerObject, ApplyGuidance)
