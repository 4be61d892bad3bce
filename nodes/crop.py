"""Cut faces out of pictures and put them back."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..faceanon_core.errors import InputError, NoFaceError
from ..faceanon_core.geometry import FACE_OVAL
from .convert import (
    CATEGORY,
    FaceCrops,
    check_found_in,
    check_side,
    from_image,
    from_mask,
    match_batch,
    one_by_one,
    to_image,
    to_pixels,
)

_MOSTLY = 0.5  # of what a seam touches of a face


class CropFaces:
    """IMAGE + FACES -> FACE_CROP: upright square crops with context, at the model's working size."""

    TITLE = "Crop Faces"
    CATEGORY = CATEGORY
    FUNCTION = "crop"
    RETURN_TYPES = ("FACE_CROP", "IMAGE")
    RETURN_NAMES = ("crops", "image")
    DESCRIPTION = "Cuts an upright square around every face. The image output is a batch with one crop per face."
    SEARCH_ALIASES = ("align face", "face crop")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        size = {
            "default": 256, "min": 64, "max": 2048, "step": 64,
            "tooltip": "Side of the crop in pixels: 256 for the demo model, 512 for SD 1.5 and SD 2, 1024 for SDXL.",
        }  # fmt: skip
        return {
            "required": {
                "image": ("IMAGE", {"tooltip": "The pictures the faces were found in."}),
                "faces": ("FACES", {"tooltip": "From Parse Faces, Select Faces or Track Faces."}),
                "size": ("INT", size),
            }
        }

    def crop(self, image: Tensor, faces: Any, size: int) -> tuple[Any, Tensor]:
        from ..faceanon_core.crop import crop_face

        pictures = to_pixels(image)
        if not any(faces):
            raise NoFaceError("there is no face to crop in any picture")
        check_found_in(pictures, faces)
        crops = [
            (index, crop_face(pixels, face, size))
            for index, (pixels, found) in enumerate(zip(pictures, faces, strict=True))
            for face in found
        ]
        return FaceCrops(crops, len(pictures)), to_image(torch.cat([crop.tensor for _, crop in crops]))


class StitchFaces:
    """Put regenerated crops back; pixels outside the seam stay bit-identical."""

    TITLE = "Stitch Faces"
    CATEGORY = CATEGORY
    FUNCTION = "stitch"
    RETURN_TYPES = ("IMAGE",)
    DESCRIPTION = "Blends the regenerated crops into the pictures. Stops if a face came out unchanged or as a copy."
    SEARCH_ALIASES = ("paste face", "composite", "uncrop")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                # first, since a bypassed node hands on the input beside its output: never the source
                "result": ("IMAGE", {"tooltip": "One regenerated crop per face, for example from VAE Decode."}),
                "image": ("IMAGE", {"tooltip": "The pictures the crops were cut from."}),
                "crops": ("FACE_CROP", {"tooltip": "From Crop Faces."}),
                "seam": ("MASK", {"tooltip": "Blend weight per crop: 1 takes the result, 0 leaves the picture untouched."}),
            }
        }

    def stitch(self, result: Tensor, image: Tensor, crops: Any, seam: Tensor) -> tuple[Tensor]:
        from ..faceanon_core.judge import check_changed

        results, seams = from_image(result, "result"), seams_of(crops, seam)
        if len(results) != len(crops):
            raise InputError(f"there are {len(results)} results but {len(crops)} crops; every face needs its own result")
        check_side(results, crops, "result")
        check_cut_from(image, crops)
        for (_, crop), new, weight in one_by_one(list(zip(crops, results.split(1), seams.split(1), strict=True))):
            check_changed(crop, new, solid_part(weight))
        return (stitch_all(image, crops, results, seams),)


def seams_of(crops: FaceCrops, seam: Tensor) -> Tensor:
    """The blend weight of every crop, (faces, 1, S, S).

    Raises: ShapeError; InputError where the source's face would shine through most of what a seam replaces.
    """
    from ..faceanon_core.regions import share_solid

    seams = match_batch(from_mask(seam, "seam"), len(crops), "seam")
    check_side(seams, crops, "seam")
    for (_, crop), weight in zip(crops, seams.split(1), strict=True):
        if not bool(solid_part(weight).any()):
            raise InputError(
                "the seam reaches 1 nowhere, so the source's face would show; use the seam output of Region Mask"
            )
        if share_solid(weight, crop.landmarks[list(FACE_OVAL)]) < _MOSTLY:
            raise InputError(
                "the seam is translucent over most of the face it touches, so the source's face would show; "
                "use the seam output of Region Mask, or less feather"
            )
    return seams


def solid_part(seam: Tensor) -> Tensor:
    """1 where the result replaces the picture entirely."""
    return (seam >= 1).float()


def check_cut_from(image: Tensor, crops: FaceCrops) -> None:
    """Refuse an IMAGE that the crops do not come from.

    Raises: InputError.
    """
    if len(image) != crops.pictures:  # a picture too many would pass with the faces it shows
        raise InputError(
            f"the crops come from {crops.pictures} pictures but the image is a batch of {len(image)}; "
            "connect the image they were cut from"
        )
    width, height = crops[0][1].picture_size
    if (image.shape[2], image.shape[1]) != (width, height):
        raise InputError(
            f"the crops come from a picture of {width}x{height} but the image is {image.shape[2]}x{image.shape[1]}; "
            "connect the image they were cut from"
        )


def stitch_all(image: Tensor, crops: FaceCrops, results: Tensor, seams: Tensor) -> Tensor:
    """IMAGE with every result (faces, 3, S, S) in its place, whatever it shows; the caller judges that."""
    from ..faceanon_core.crop import seam_in_image, stitch_face

    outputs, touched = to_pixels(image), [np.zeros(image.shape[1:3], bool) for _ in image]
    for (index, crop), new, weight in zip(crops, results.split(1), seams.split(1), strict=True):
        outputs[index] = stitch_face(outputs[index], crop, new, weight)
        touched[index] |= seam_in_image(crop, weight, image.shape[2], image.shape[1]) > 0
    changed = torch.from_numpy(np.stack(touched))[:, None]
    stitched = torch.from_numpy(np.stack(outputs)).permute(0, 3, 1, 2).float() / 255
    # untouched pixels come from the float input, so that they are bit-identical and not rounded to 8 bits
    return to_image(torch.where(changed, stitched, from_image(image)))


NODES = (CropFaces, StitchFaces)
