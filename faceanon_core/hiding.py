"""What the model sees in place of the faces that are removed, over the noise schedule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .crop import FaceCrop
from .geometry import FloatArray
from .light import new_face_light
from .proportions import change_proportions
from .sketch import face_sketch, hide_face


@dataclass(frozen=True)
class Hidden:
    """Crops without their faces, `image` (B, 3, S, S) float 0..1, shown from `start` to `end` of the schedule, 0..1."""

    image: Tensor
    start: float = 0.0
    end: float = 1.0


def hide_faces(
    crops: Sequence[FaceCrop], core: Tensor, seeds: Sequence[int], proportions: float, drawn: float | None,
    skin: str | None = None,
) -> list[Hidden]:  # fmt: skip
    """Cut the faces out and draw pose, expression and light in the hole, first with the features' lines, then without.

    Args:
        core: (B, 1, S, S), 1 = regenerate.
        seeds: of the proportions of each face.
        proportions: how far the features move from the source's places, see `change_proportions`.
        drawn: share of the schedule with the lines; None: nothing is drawn, the hole is grey.
        skin: see `new_face_light`.
    Returns: one or two parts of the schedule, in their order.
    """
    images = torch.cat([crop.tensor for crop in crops])
    if drawn is None:
        return [Hidden(hide_face(images, core))]
    lights = [new_face_light(crop, skin) for crop in crops]

    def draw(poses: list[FloatArray], lines: bool) -> Tensor:
        pairs = zip(poses, lights, strict=True)
        return hide_face(
            images, core, torch.cat([face_sketch(pose, images.shape[-1], light, lines) for pose, light in pairs])
        )

    parts = []
    if drawn > 0:
        faces = zip(crops, core.split(1), seeds, strict=True)
        moved = [change_proportions(crop.landmarks, hole, seed, proportions) for crop, hole, seed in faces]
        parts.append(Hidden(draw(moved, lines=True), 0.0, drawn))
    if drawn < 1:
        parts.append(Hidden(draw([crop.landmarks for crop in crops], lines=False), drawn, 1.0))
    return parts
