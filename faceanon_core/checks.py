"""Shape and value checks with one clear sentence each; called at every public border of the core."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import InputError, ShapeError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

MAX_PIXELS = 80_000_000  # 8k by 8k holds 67 million; beyond that memory, not the method, is the limit
MAX_SIDE_PX = 30_000  # with the margin that detectors see; the OpenCV inside mediapipe ends the process above 32,766
MIN_SIDE_PX = 64


def check_image(image: Tensor, name: str = "image") -> None:
    """Accept a (B, 3, H, W) float tensor in 0..1 only.

    Raises: ShapeError for another shape; InputError for NaN, infinity or values outside 0..1.
    """
    if image.ndim != 4 or image.shape[1] != 3:
        raise ShapeError(f"{name} must be (batch, 3, height, width), got {tuple(image.shape)}")
    _check_values(image, name)


def check_mask(mask: Tensor, like: Tensor | None = None, name: str = "mask") -> None:
    """Accept a (B, 1, H, W) float tensor in 0..1, of the same height and width as `like` where given.

    Raises: ShapeError for another shape or size; InputError for NaN, infinity or values outside 0..1.
    """
    if mask.ndim != 4 or mask.shape[1] != 1:
        raise ShapeError(f"{name} must be (batch, 1, height, width), got {tuple(mask.shape)}")
    if like is not None and mask.shape[-2:] != like.shape[-2:]:
        height, width = mask.shape[-2:]
        raise ShapeError(
            f"{name} is {width}x{height} but the image is {like.shape[-1]}x{like.shape[-2]}; "
            "resize the mask or make it from the same picture"
        )
    _check_values(mask, name)


def check_size(width: int, height: int) -> None:
    """Refuse pictures too small to hold a face or too large for the memory of an ordinary machine.

    Raises: InputError naming the limit.
    """
    if min(width, height) < MIN_SIDE_PX:
        raise InputError(f"the picture is {width}x{height}; the shorter side must be at least {MIN_SIDE_PX} pixels")
    if max(width, height) > MAX_SIDE_PX:
        raise InputError(f"the picture is {width}x{height}; a side may have {MAX_SIDE_PX} pixels, cut it into parts first")
    if width * height > MAX_PIXELS:
        megapixels = width * height / 1e6
        raise InputError(
            f"the picture has {megapixels:.0f} megapixels and the limit is {MAX_PIXELS / 1e6:.0f}; make it smaller first"
        )


def usable_device(name: str) -> torch.device:
    """The torch device of that name. Raises: InputError where there is none here."""
    import torch  # not at the top, so that the command line starts without it

    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"there is no device {name!r} here; use cpu, or cuda with a CUDA build of torch") from error


def _check_values(tensor: Tensor, name: str) -> None:
    if not tensor.is_floating_point():
        raise InputError(f"{name} must hold floats in 0..1, got {tensor.dtype}")
    if tensor.numel() == 0:
        raise InputError(f"{name} is empty: its shape is {tuple(tensor.shape)}")
    if not bool(tensor.isfinite().all()):
        raise InputError(f"{name} holds NaN or infinite values; find the node that made them")
    low, high = float(tensor.min()), float(tensor.max())
    if low < -1e-3 or high > 1 + 1e-3:
        raise InputError(f"{name} must lie in 0..1, but its values run from {low:.3g} to {high:.3g}")
