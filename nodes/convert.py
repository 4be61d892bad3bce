"""Between ComfyUI's tensors and the core's: IMAGE (B,H,W,C) and MASK (B,H,W) at the edge, BCHW and B1HW inside."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..faceanon_core.checks import check_image, check_mask
from ..faceanon_core.errors import InputError, ShapeError
from ..faceanon_core.image import tensor_to_pixels

CATEGORY = "FaceAnon"
SEEDS = 2**64  # one more than the largest seed
_OVERSHOOT = 0.25  # bicubic interpolation reaches 0.2 beyond a sharp edge
ASKED_SKIN = "faceanon_skin"  # key in CONDITIONING: skin tone asked of the new face; missing where the source's stays


def seed_input(tooltip: str, renew: bool) -> tuple[str, dict[str, Any]]:
    """The declaration of a seed; `renew`: the editor offers another one after each run."""
    return "INT", {"default": 0, "min": 0, "max": SEEDS - 1, "control_after_generate": renew, "tooltip": tooltip}


class FoundFaces(list[list[Any]]):
    """What a FACES socket carries: per picture its Faces; `size`: (width, height) of the pictures they were found in."""

    def __init__(self, faces: Iterable[list[Any]], size: tuple[int, int]) -> None:
        super().__init__(faces)
        self.size = size


class FaceCrops(list[tuple[int, Any]]):
    """What a FACE_CROP socket carries: per face (picture number from 0, FaceCrop); `pictures`: how many there were."""

    def __init__(self, crops: Iterable[tuple[int, Any]], pictures: int) -> None:
        super().__init__(crops)
        self.pictures = pictures


def one_by_one(items: Sequence[Any]) -> Iterable[Any]:
    """Iterate over pictures or faces; inside ComfyUI with progress bar and Cancel."""
    if sys.modules.get("comfy.utils") is None:
        return items
    from . import comfy_bridge

    return comfy_bridge.report_progress(items)


def from_image(image: Tensor, name: str = "image") -> Tensor:
    """IMAGE (B,H,W,C) -> (B,3,H,W) float 0..1 on the CPU; gray is repeated, alpha dropped.

    Values are clipped where they overshoot a little, as sharp edges do after a bicubic resize.

    Raises: ShapeError or InputError for other shapes, NaN or values of another scale.
    """
    if image.ndim != 4 or image.shape[-1] not in (1, 3, 4):
        raise ShapeError(
            f"{name} must be (batch, height, width, channels) with 1, 3 or 4 channels, got {tuple(image.shape)}"
        )
    colour = image.expand(-1, -1, -1, 3) if image.shape[-1] == 1 else image[..., :3]
    planes = colour.permute(0, 3, 1, 2).float().cpu()  # BHWC -> BCHW
    if planes.numel() and planes.min() >= -_OVERSHOOT and planes.max() <= 1 + _OVERSHOOT:
        planes = planes.clamp(0, 1)
    check_image(planes, name)
    return planes


def to_image(planes: Tensor) -> Tensor:
    """(B,3,H,W) -> IMAGE (B,H,W,3) on the CPU."""
    return planes.permute(0, 2, 3, 1).float().cpu().contiguous()  # BCHW -> BHWC


def from_mask(mask: Tensor, name: str = "mask") -> Tensor:
    """MASK (B,H,W) or (H,W) -> (B,1,H,W) float 0..1 on the CPU."""
    if mask.ndim == 2:
        mask = mask[None]
    if mask.ndim != 3:
        raise ShapeError(f"{name} must be (batch, height, width), got {tuple(mask.shape)}")
    planes = mask[:, None].float().cpu()
    check_mask(planes, name=name)
    return planes.clamp(0, 1)


def to_pixels(image: Tensor, name: str = "image") -> list[NDArray[np.uint8]]:
    """IMAGE -> one (H,W,3) uint8 array per picture."""
    return list(tensor_to_pixels(from_image(image, name)))


def from_pixels(pictures: list[NDArray[np.uint8]]) -> Tensor:
    """(H,W,3) uint8 arrays of one size -> IMAGE."""
    return torch.from_numpy(np.stack(pictures)).float() / 255


def match_batch(tensor: Tensor, count: int, name: str) -> Tensor:
    """Repeat a batch of one to `count`; refuse any other mismatch.

    Raises: InputError.
    """
    if len(tensor) == count:
        return tensor
    if len(tensor) == 1:
        return tensor.expand(count, *tensor.shape[1:])
    raise InputError(f"{name} has a batch of {len(tensor)} but there are {count} faces; pass one, or one for each face")


def check_found_in(pictures: list[NDArray[np.uint8]], faces: FoundFaces) -> None:
    """Refuse FACES that were found in another batch, or in pictures of another size.

    Raises: InputError or ShapeError.
    """
    if len(pictures) != len(faces):
        raise InputError(f"the image has a batch of {len(pictures)} but the faces come from {len(faces)} pictures")
    height, width = pictures[0].shape[:2]
    if (width, height) != faces.size:
        raise ShapeError(
            f"the image is {width}x{height} but the faces were found in one of {faces.size[0]}x{faces.size[1]}; "
            "connect the image they were found in"
        )


def check_pair(before: list[NDArray[np.uint8]], after: list[NDArray[np.uint8]], old: str, new: str) -> None:
    """Refuse two batches that are not the same pictures before and after; `old` and `new` name the inputs.

    Raises: InputError or ShapeError.
    """
    if len(before) != len(after):
        raise InputError(f"{old} has a batch of {len(before)} but {new} one of {len(after)}; connect the same pictures")
    if before[0].shape != after[0].shape:
        (height, width), (new_height, new_width) = before[0].shape[:2], after[0].shape[:2]
        raise ShapeError(f"{old} is {width}x{height} but {new} is {new_width}x{new_height}; connect the same pictures")


def check_side(tensor: Tensor, crops: Any, name: str) -> None:
    """Refuse (B,C,H,W) that is not as large as the crops.

    Raises: ShapeError.
    """
    height, width, size = *tensor.shape[-2:], crops[0][1].frame.size_px
    if (height, width) != (size, size):
        raise ShapeError(f"{name} is {width}x{height} but the crops are {size}x{size}; make it from the crops")
