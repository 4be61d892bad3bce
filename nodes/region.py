"""Choose which regions of a face are regenerated."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from ..faceanon_core.errors import InputError
from ..faceanon_core.geometry import FACE_OVAL
from ..faceanon_core.leakage import kept_region_warning
from ..faceanon_core.names import split_names
from ..faceanon_core.regions import COMBINATIONS, PaintedMask, RegionChoice, region_mask, share_left
from .convert import CATEGORY, from_mask, match_batch

log = logging.getLogger(__name__)
_MUCH = 0.25  # of a face; hair and glasses leave up to 0.1 of 101 test faces
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
        "Left and right are the subject's own. Kept regions stay bit-identical. A mask painted by hand adds to the regions, "
        "is subtracted from them, or limits them. With a parser, glasses, ears, hair, hat and neck can be chosen as well."
    )
    SEARCH_ALIASES = ("inpaint mask", "keep eyes", "face parsing", "paint", "combine masks")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        def toggle(name: str) -> tuple[str, dict[str, Any]]:
            label = name.replace("_", " ")
            return (
                "BOOLEAN",
                {"default": True, "tooltip": f"On: the {label} is regenerated. Off: it stays as in the source."},
            )

        pixels, defaults = {"min": 0.0, "max": 128.0, "step": 1.0}, RegionChoice()
        outward = "Pixels (at 512) the area grows outward. 0 = exactly the regions."
        soft = "Width of the soft seam in pixels (at 512). 0 = hard edge."
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
                "grow": ("FLOAT", {**pixels, "default": defaults.grow_px, "tooltip": outward}),
                "feather": ("FLOAT", {**pixels, "default": defaults.feather_px, "tooltip": soft}),
            },
            "optional": {
                "painted": (
                    "MASK",
                    {"tooltip": "Painted on the whole picture (Load Image, Open in MaskEditor), or of the crops' size."},
                ),
                # last: saved workflows store widget values by position
                "combine": (
                    list(COMBINATIONS),
                    {
                        "default": COMBINATIONS[0],
                        "tooltip": "add: also regenerate what is painted. subtract: keep it, bit-identical. "
                        "intersect: regenerate only painted parts of the regions.",
                    },
                ),
                "parser": (
                    "FACE_PARSER",
                    {"tooltip": "From Load Face Parser: finds glasses, ears, hair, hat, neck. Empty: landmarks."},
                ),
                "also": (
                    "STRING",
                    {
                        "default": "",
                        "tooltip": 'More regions to regenerate that the parser finds: "glasses, hair, ears, hat, neck". '
                        "Empty: none; glasses are kept.",
                    },
                ),
            },
        }

    def mask(
        self, crops: Any, keep: str, grow: float, feather: float, painted: Tensor | None = None,
        combine: str = COMBINATIONS[0], parser: Any = None, also: str = "", **toggles: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        from ..faceanon_core.parsing import LandmarkParser

        parser = parser or LandmarkParser()
        wanted = tuple(name for name in _TOGGLES if toggles[name])
        choice = RegionChoice((*wanted, *split_names(also)), split_names(keep), grow, feather)
        if (warning := kept_region_warning(choice)) is not None:
            log.warning("Region Mask: %s", warning)
        masks = []
        for number, ((_, crop), hand) in enumerate(zip(crops, _painted(painted, combine, crops), strict=True), 1):
            try:
                masks.append(region_mask(parser.parse(crop.pixels, crop.landmarks), choice, parser, hand))
            except InputError as error:
                if len(crops) == 1:
                    raise
                raise InputError(f"face {number} of {len(crops)}: {error}") from error
            left = share_left(masks[-1].core, crop.landmarks[list(FACE_OVAL)])
            if left > _MUCH and (hand is not None or warning is None):
                log.warning(
                    "Region Mask: %.0f%% of face %d stays as it is, and what stays can identify the person; "
                    "the painted mask or the parser leaves it out", 100 * left, number,
                )  # fmt: skip
        core, seam = (torch.cat([getattr(mask, part) for mask in masks])[:, 0] for part in ("core", "seam"))
        pictures = torch.cat([crop.tensor for _, crop in crops]).permute(0, 2, 3, 1)  # BCHW -> BHWC
        red = torch.tensor([1.0, 0.2, 0.2])
        return core, seam, pictures * (1 - 0.5 * seam[..., None]) + 0.5 * seam[..., None] * red


def _painted(painted: Tensor | None, combine: str, crops: Any) -> list[PaintedMask | None]:
    """The painted mask of every crop.

    Raises: ShapeError or InputError for a size or batch that fits neither the pictures nor the crops.
    """
    if painted is None:
        return [None] * len(crops)
    from ..faceanon_core.crop import mask_in_crop

    planes, pictures = from_mask(painted, "painted"), [index for index, _ in crops]
    on_pictures = (planes.shape[-1], planes.shape[-2]) == crops[0][1].picture_size
    if on_pictures and len(planes) > 1:  # one mask per picture: each crop takes its picture's
        if len(planes) != crops.pictures:
            raise InputError(
                f"painted has a batch of {len(planes)} but there are {crops.pictures} pictures; pass one for each"
            )
        planes = planes[pictures]
    planes = match_batch(planes, len(crops), "painted")
    return [PaintedMask(mask_in_crop(crop, plane[None]), combine) for (_, crop), plane in zip(crops, planes, strict=True)]


NODES = (RegionMask,)
