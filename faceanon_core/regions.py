"""From a label map to the mask that is regenerated: chosen regions, minus kept ones, grown and feathered."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import check_mask
from .errors import InputError, UnknownNameError
from .geometry import FloatArray, filled_polygon
from .parsing import INDEX, FaceParser, LabelMap, region_labels

KEEP_DILATION_PX = 7  # square at REFERENCE_PX, docs/METHOD.md "Mask"
REFERENCE_PX = 512
GUARD_PX = 3  # square around kept pixels that the seam leaves out: the stitch interpolates between neighbours
COMBINATIONS = ("add", "subtract", "intersect")


@dataclass(frozen=True)
class RegionChoice:
    """Which regions of a face are regenerated. Lengths are in pixels of a 512 px crop and scale with it.

    Eyeglasses, where the parser finds them, are kept unless `regenerate` names them: "face" does not, docs/METHOD.md "Mask".
    """

    regenerate: tuple[str, ...] = ("face",)
    keep: tuple[str, ...] = ()
    grow_px: float = 28.0  # outward growth of the regenerated area, before kept regions are cut out
    feather_px: float = 12.0  # width of the soft seam outside the mask


@dataclass(frozen=True)
class PaintedMask:
    """A hand-painted mask of a crop and what it does to the chosen regions. It is neither grown nor shrunk.

    add: also regenerate there, outside the face as well. subtract: keep there, like a kept region. intersect: regenerate
    only where both are. Kept regions win over add.
    """

    mask: Tensor  # (1, 1, H, W), 0..1; painted means at least 0.5
    combine: str = "add"  # one of COMBINATIONS

    def __post_init__(self) -> None:
        if self.combine not in COMBINATIONS:
            raise UnknownNameError(f"there is no way to combine masks named {self.combine!r}; use {', '.join(COMBINATIONS)}")


@dataclass(frozen=True)
class RegionMask:
    """`core` (1, 1, H, W) is exactly 0 or 1: what the model regenerates. `seam` (1, 1, H, W), 0..1, is the blend
    weight of the result: 1 on the core, falling to 0 outward, and 0 on every kept pixel."""

    core: Tensor
    seam: Tensor


def region_mask(
    labels: LabelMap, choice: RegionChoice, parser: FaceParser | None = None, painted: PaintedMask | None = None
) -> RegionMask:
    """Build the regenerate mask of one crop, docs/METHOD.md "Mask".

    Args:
        labels: (H, W) uint8 label map.
        parser: where given, regions it cannot deliver are refused by name.
        painted: a mask drawn by hand, of the crop's size, combined with the regions.
    Raises: UnknownNameError for an unknown region; ShapeError for a painted mask of another size; InputError if nothing
        is left to regenerate.
    """
    wanted = region_labels(choice.regenerate, parser)
    kept = region_labels(choice.keep, parser) | _glasses_to_keep(choice)
    scale = labels.shape[0] / REFERENCE_PX
    keep = labels_to_mask(labels, kept)
    # a region of the face that was not asked for stays, though growth would reach into it
    unasked = labels_to_mask(labels, region_labels(("face",)) - wanted - kept)
    # nor does growth reach into hair: it stays, and the new face comes to lie under it
    covered = labels_to_mask(labels, frozenset({"hair", "hat"}) - wanted - kept)
    # growth beyond the face would leave a ring to regenerate around a face that is kept whole
    regenerate = labels_to_mask(labels, wanted - kept)  # a kept region does not grow: around kept skin nothing changes
    regenerate = grow_mask(regenerate, choice.grow_px * scale) * (1 - unasked) * (1 - covered)
    if painted is not None:
        regenerate, keep = _combine(regenerate, keep, painted)
    core = regenerate * (1 - _dilate_square(keep, max(KEEP_DILATION_PX * scale, GUARD_PX)))
    if float(core.sum()) == 0:
        raise InputError(_why_empty(painted))
    seam = feather_mask(core, choice.feather_px * scale) * (1 - _dilate_square(keep, GUARD_PX))
    return RegionMask(core, seam * (1 - unasked * (1 - core)))


def share_left(core: Tensor, outline: FloatArray) -> float:
    """How much of a face the mask leaves as it is, 0..1.

    Args:
        core: (1, 1, H, W), see `RegionMask`.
        outline: (N, 2) xy of the face's outline, in pixels of the mask.
    """
    face = filled_polygon(core.shape[-2:], outline, hull=True)
    return float((core[0, 0].cpu().numpy()[face] == 0).mean())


def share_solid(seam: Tensor, outline: FloatArray) -> float:
    """Of what a seam touches of a face, the share that it replaces entirely, 0..1; the source shines through the rest.

    Args:
        seam: (1, 1, H, W), 0..1.
        outline: (N, 2) xy of the face's outline, in pixels of the seam.
    Returns: 1 where it touches nothing of the face.
    """
    weights = seam[0, 0].cpu().numpy()[filled_polygon(seam.shape[-2:], outline, hull=True)]
    touched = int((weights > 0).sum())
    return int((weights >= 1).sum()) / touched if touched else 1.0


def _glasses_to_keep(choice: RegionChoice) -> frozenset[str]:
    named = region_labels(tuple(name for name in choice.regenerate if name != "face"))
    return frozenset({"eyeglasses"} - named)


def _combine(regenerate: Tensor, keep: Tensor, painted: PaintedMask) -> tuple[Tensor, Tensor]:
    check_mask(painted.mask, like=keep, name="the painted mask")
    area = (painted.mask >= 0.5).to(keep)
    if painted.combine == "add":
        return torch.maximum(regenerate, area), keep
    if painted.combine == "subtract":
        return regenerate, torch.maximum(keep, area)
    return regenerate * area, keep


def _why_empty(painted: PaintedMask | None) -> str:
    if painted is None or painted.combine == "add":
        return "the mask excludes everything: every chosen region is also kept, so nothing can be regenerated"
    if painted.combine == "subtract":
        return "the mask excludes everything: every chosen region is kept or covered by the painted mask; erase some of it"
    return (
        "the mask excludes everything: the painted mask meets no chosen region that is not kept; "
        "paint on the face, choose more regions, or combine by add"
    )


def labels_to_mask(labels: LabelMap, names: frozenset[str]) -> Tensor:
    """1 where the label is one of `names`. Returns: (1, 1, H, W) float."""
    chosen = np.isin(labels, [INDEX[name] for name in names])
    return torch.from_numpy(chosen.astype(np.float32))[None, None]


def grow_mask(mask: Tensor, radius_px: float) -> Tensor:
    """Dilate (or, for a negative radius, erode) a mask by a disc.

    Args:
        mask: (B, 1, H, W), 0..1.
        radius_px: pixels; below half a pixel nothing changes.
    """
    check_mask(mask)
    radius = round(abs(radius_px))
    if radius == 0:
        return mask
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    change = cv2.dilate if radius_px > 0 else cv2.erode
    planes = [change(plane[0].float().cpu().numpy(), disc) for plane in mask]
    return torch.from_numpy(np.stack(planes))[:, None].to(mask)


def feather_mask(mask: Tensor, radius_px: float) -> Tensor:
    """Soften the mask's edge outward; what was 1 stays 1.

    Args:
        mask: (B, 1, H, W), 0..1, 1 = regenerate.
        radius_px: ramp width in pixels, >= 0; 0 returns `mask` unchanged.
    Returns: (B, 1, H, W), same dtype and device.
    """
    check_mask(mask)
    if radius_px <= 0:
        return mask
    planes = []
    for plane in mask:
        outside = (plane[0].float().cpu().numpy() < 0.5).astype(np.uint8)
        distance = cv2.distanceTransform(outside, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        ramp = np.clip(1 - distance / radius_px, 0, 1)
        planes.append(ramp * ramp * (3 - 2 * ramp))  # smoothstep: no visible line where the ramp begins
    soft = torch.from_numpy(np.stack(planes).astype(np.float32))[:, None].to(mask)
    return torch.maximum(soft, mask)


def latent_mask(core: Tensor, latent_side: int) -> Tensor:
    """Mask at latent size: 1 wherever any of its pixels is regenerated.

    Max-pooled, never averaged, so that no pixel of the source's face is encoded as "known".
    """
    return F.adaptive_max_pool2d(core, (latent_side, latent_side))


def _dilate_square(mask: Tensor, side_px: float) -> Tensor:
    side = max(1, round(side_px))
    side += 1 - side % 2
    return F.max_pool2d(mask, side, stride=1, padding=side // 2)
