"""Cut an upright square around a face and put the changed pixels back.

The stitch writes the model's pixels, never a difference on top of the source: detail of the source's face finer than the
crop would survive a difference.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .checks import check_image, check_mask
from .errors import AnonymizationError, ShapeError
from .faces import Face
from .geometry import FloatArray, UprightFrame, fraction_outside, upright_frame, warp_square
from .image import pixels_to_tensor, tensor_to_pixels

MAX_OUTSIDE = 0.25  # share of the face outline beyond the border above which nothing sensible can be regenerated


@dataclass(frozen=True)
class FaceCrop:
    """An upright square crop of one face. `pixels` is (S, S, 3) uint8 RGB, `landmarks` (478, 2) in crop pixels."""

    frame: UprightFrame
    pixels: NDArray[np.uint8]
    landmarks: FloatArray
    picture_size: tuple[int, int] | None = None  # (width, height) of the picture it was cut from; None: it is no cutting
    person: int | None = None  # as in its Face

    @property
    def tensor(self) -> Tensor:
        """The crop as (1, 3, S, S) float 0..1."""
        return pixels_to_tensor(self.pixels)


def crop_face(image: NDArray[np.uint8], face: Face, size_px: int) -> FaceCrop:
    """Cut the upright square around a face, reflecting the picture at its borders.

    Args:
        image: (H, W, 3) uint8 RGB.
        size_px: side of the crop, the model's working size.
    Raises: AnonymizationError if too much of the face lies outside the picture.
    """
    height, width = image.shape[:2]
    outside = fraction_outside(face.landmarks, width, height)
    if outside > MAX_OUTSIDE:
        raise AnonymizationError(
            f"the face is cut by the picture's border ({outside:.0%} of it lies outside, at most {MAX_OUTSIDE:.0%} works)"
        )
    frame = upright_frame(face.landmarks, size_px)
    pixels = warp_square(image, frame.matrix, size_px)
    return FaceCrop(frame, pixels, frame.to_crop(face.landmarks), (width, height), face.person)


def stitch_face(image: NDArray[np.uint8], crop: FaceCrop, result: Tensor, seam: Tensor) -> NDArray[np.uint8]:
    """Blend a regenerated crop into a copy of the image.

    Args:
        image: (H, W, 3) uint8 RGB, the picture `crop` was cut from (or an earlier stitch into it).
        result: (1, 3, S, S) float 0..1, the regenerated crop.
        seam: (1, 1, S, S) float 0..1, blend weight; 0 leaves the picture's pixel bit-identical.
    Returns: (H, W, 3) uint8; equal to `image` wherever `seam` is 0, and everywhere if `result` is the crop itself.
    Raises: ShapeError if `result` or `seam` is not the crop's size.
    """
    check_image(result, "result")
    check_mask(seam, like=result, name="seam")
    size = crop.frame.size_px
    if result.shape[-2:] != (size, size):
        raise ShapeError(f"the result is {result.shape[-1]}x{result.shape[-2]} but the crop is {size}x{size}")
    new = tensor_to_pixels(result)[0]
    if np.array_equal(new, crop.pixels):
        return image.copy()
    left, top, right, bottom = _window(crop.frame, image)
    if left >= right or top >= bottom:
        return image.copy()
    matrix = crop.frame.matrix.copy()
    matrix[:, 2] += matrix[:, :2] @ np.array([left, top], np.float32)
    area = (right - left, bottom - top)
    inverse = cv2.WARP_INVERSE_MAP
    placed = cv2.warpAffine(
        new.astype(np.float32), matrix, area, flags=cv2.INTER_CUBIC | inverse, borderMode=cv2.BORDER_REPLICATE
    )
    weight = cv2.warpAffine(seam[0, 0].float().cpu().numpy(), matrix, area, flags=cv2.INTER_LINEAR | inverse)[..., None]
    output = image.copy()
    window = output[top:bottom, left:right]
    mixed = np.clip(np.round(window + weight * (placed - window)), 0, 255).astype(np.uint8)
    output[top:bottom, left:right] = np.where(weight > 0, mixed, window)
    return output


def seam_in_image(crop: FaceCrop, seam: Tensor, width: int, height: int) -> NDArray[np.float32]:
    """The blend weight of `stitch_face` in image pixels. Returns: (height, width) float 0..1."""
    return cv2.warpAffine(
        seam[0, 0].float().cpu().numpy(), crop.frame.matrix, (width, height),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
    )  # fmt: skip


def mask_in_crop(crop: FaceCrop, mask: Tensor) -> Tensor:
    """Bring a mask painted on the whole picture into the crop; one of the crop's own size is taken as it is.

    Where both have the same size, the mask is the picture's.

    Args:
        mask: (1, 1, H, W) float 0..1; painted means at least 0.5.
    Returns: (1, 1, S, S). Out of the picture: exactly 0 or 1, and 1 wherever a painted pixel of the picture falls, so
        that thin strokes survive and what was painted to be kept is kept to the pixel.
    Raises: ShapeError naming the sizes if the mask is as large as neither.
    """
    check_mask(mask, name="the painted mask")
    height, width = mask.shape[-2:]
    side = crop.frame.size_px
    if (width, height) != crop.picture_size:
        if (width, height) == (side, side):
            return mask
        picture = "" if crop.picture_size is None else f"the picture is {crop.picture_size[0]}x{crop.picture_size[1]} and "
        raise ShapeError(
            f"the painted mask is {width}x{height} but {picture}the crop is {side}x{side}; paint on the same picture "
            "(Load Image gives a 64x64 mask when nothing was painted)"
        )
    painted = (mask[0, 0] >= 0.5).float().cpu().numpy()
    # half a crop pixel's diagonal and a little for rounding, in picture pixels; interpolation reaches one further
    reach = int(0.75 / crop.frame.scale)
    if reach:
        painted = cv2.dilate(painted, np.ones((2 * reach + 1, 2 * reach + 1), np.uint8))
    # the crop shows the picture mirrored beyond its borders, so the mask is mirrored as well
    warped = cv2.warpAffine(painted, crop.frame.matrix, (side, side), borderMode=cv2.BORDER_REFLECT_101)
    return torch.from_numpy((warped > 0).astype(np.float32))[None, None]


def _window(frame: UprightFrame, image: NDArray[np.uint8]) -> tuple[int, int, int, int]:
    size = frame.size_px
    corners = frame.to_image(np.array([[0, 0], [size, 0], [size, size], [0, size]], np.float32))
    left, top = np.floor(corners.min(0)).astype(int)
    right, bottom = np.ceil(corners.max(0)).astype(int) + 1
    height, width = image.shape[:2]
    return max(0, int(left)), max(0, int(top)), min(width, int(right)), min(height, int(bottom))
