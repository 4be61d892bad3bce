"""A drawing of pose, expression and light, put in place of the removed face.

The inpainting model sees the source with the face cut out; where the eyes look, whether the mouth is open and how light
the skin is are then lost. The demo model was trained with this drawing in the hole, which carries these but no texture.
"""

from __future__ import annotations

import cv2
import numpy as np
from torch import Tensor

from . import geometry
from .geometry import FloatArray
from .image import pixels_to_tensor
from .light import Plane, paint_light

# Share of the schedule, from the noisiest step, in which the model is shown the features' lines; then their light alone. The
# model draws features where people have them once the lines are gone, in the second half of the steps at the latest: faces
# look natural, and more like their sources.
DRAWN = 1.0
_SHIFT = 4  # sub-pixel bits of OpenCV's drawing calls
_LINES: tuple[tuple[tuple[int, ...], bool, tuple[int, int, int]], ...] = (
    (geometry.FACE_OVAL, True, (150, 110, 110)),
    (geometry.RIGHT_BROW[:5], False, (40, 40, 160)),
    (geometry.LEFT_BROW[:5], False, (40, 40, 160)),
    (geometry.NOSE_RIDGE, False, (200, 200, 60)),
    (geometry.NOSE_BASE, False, (200, 200, 60)),
    (geometry.LIPS_OUTER, True, (220, 50, 50)),
    (geometry.LIPS_INNER, True, (255, 255, 255)),
    (geometry.RIGHT_EYE, True, (40, 220, 40)),
    (geometry.LEFT_EYE, True, (40, 220, 40)),
)


def face_sketch(landmarks: FloatArray, size_px: int, light: Plane | None = None, lines: bool = True) -> Tensor:
    """Draw the face's outline, brows, eyes, irises, nose and lips on mid grey, the face itself filled with its light.

    Args:
        landmarks: (478, 2) xy in pixels of a square crop.
        size_px: side of that crop.
        light: of `skin_light`; None leaves the face grey.
        lines: draw the features; without them only the light is shown.
    Returns: (1, 3, size_px, size_px) float 0..1.
    """
    canvas = np.full((size_px, size_px, 3), 128, np.uint8)
    width = max(1, round(size_px / 128))
    points = np.round(landmarks * (1 << _SHIFT)).astype(np.int32)
    if light is not None:
        face = geometry.face_area(canvas.shape, landmarks)
        canvas[face] = paint_light(light, canvas.shape)[face]
    if not lines:
        return pixels_to_tensor(canvas)
    for indices, closed, colour in _LINES:
        line = points[list(indices)].reshape(-1, 1, 2)
        cv2.polylines(canvas, [line], closed, colour, width, cv2.LINE_AA, _SHIFT)
    for iris in (geometry.RIGHT_IRIS, geometry.LEFT_IRIS):
        x, y = points[iris[0]]
        rim = landmarks[list(iris[1:])] - landmarks[iris[0]]
        radius = round(float(np.linalg.norm(rim, axis=1).mean()) * 0.6 * (1 << _SHIFT))
        cv2.circle(canvas, (int(x), int(y)), max(1, radius), (20, 120, 20), -1, cv2.LINE_AA, _SHIFT)
    return pixels_to_tensor(canvas)


def hide_face(image: Tensor, core: Tensor, filling: Tensor | float = 0.5) -> Tensor:
    """Replace what will be regenerated, so that the model never sees the source's face.

    Args:
        image: (B, 3, H, W) float 0..1.
        core: (B, 1, H, W), 1 = regenerate.
        filling: grey level, or an image such as `face_sketch`.
    """
    return image * (1 - core) + core * filling
