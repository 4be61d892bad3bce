"""Choose which regions of a face are regenerated."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .convert import CATEGORY

_TOGGLES = ("skin", "nose", "left_eye", "right_eye", "left_brow", "right_brow", "inner_mouth", "upper_lip", "lower_lip")


class RegionMask:
    """FACE_CROP -> MASK: one toggle per region, minus the kept ones."""

    TITLE = "Region Mask"
    CATEGORY = CATEGORY
    FUNCTION = "mask"
    RETURN_TYPES = ("MASK", "MASK", "IMAGE")
    RETURN_NAMES = ("mask", "seam", "preview")
    DESCRIPTION = (
        "The mask is what the model regenerates; the seam is the soft edge used by Stitch Faces. "
        "Left and right are the subject's own. Kept regions stay bit-identical."
    )
    SEARCH_ALIASES = ("inpaint mask", "keep eyes", "face parsing")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        def toggle(name: str) -> tuple[str, dict[str, Any]]:
            label = name.replace("_", " ")
            return (
                "BOOLEAN",
                {"default": True, "tooltip": f"On: the {label} is regenerated. Off: it stays as in the source."},
            )

        pixels = {"default": 12.0, "min": 0.0, "max": 128.0, "step": 1.0}
        return {
            "required": {
                "crops": ("FACE_CROP", {"tooltip": "From Crop Faces."}),
                **{name: toggle(name) for name in _TOGGLES},
                "keep": (
                    "STRING",
                    {
                        "default": "",
                        "tooltip": 'Regions to keep with a safety margin: "eyes, mouth", or brows, lips, nose, left_eye ...',
                    },
                ),
                "grow": ("FLOAT", {**pixels, "tooltip": "Pixels (at 512) the area grows outward. 0 = exactly the regions."}),
                "feather": ("FLOAT", {**pixels, "tooltip": "Width of the soft seam in pixels (at 512). 0 = hard edge."}),
            }
        }

    def mask(self, crops: Any, keep: str, grow: float, feather: float, **toggles: bool) -> tuple[Tensor, Tensor, Tensor]:
        from ..faceanon_core.parsing import LandmarkParser
        from ..faceanon_core.regions import RegionChoice, region_mask

        parser = LandmarkParser()
        wanted = tuple(name for name in _TOGGLES if toggles[name])
        kept = tuple(part.strip() for part in keep.split(",") if part.strip())
        choice = RegionChoice(wanted, kept, grow, feather)
        masks = [region_mask(parser.parse(crop.pixels, crop.landmarks), choice, parser) for _, crop in crops]
        core, seam = (torch.cat([getattr(mask, part) for mask in masks])[:, 0] for part in ("core", "seam"))
        pictures = torch.cat([crop.tensor for _, crop in crops]).permute(0, 2, 3, 1)  # BCHW -> BHWC
        red = torch.tensor([1.0, 0.2, 0.2])
        return core, seam, pictures * (1 - 0.5 * seam[..., None]) + 0.5 * seam[..., None] * red


NODES = (RegionMask,)
