"""Cover a face with a solid shape, and tell whether one is covered."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from .crop import FaceCrop
from .faces import Face, Unfitted
from .geometry import Box, FloatArray, filled_polygon

_ONE_COLOUR = 4.0  # standard deviation, of 255, that compression leaves in a solid fill


def redact_face(image: NDArray[np.uint8], face: Face | Unfitted, grow: float = 1.35) -> NDArray[np.uint8]:
    """Cover a face with a solid grey shape in a copy of the image; nothing of it can be recovered.

    Args:
        grow: size of the shape over the hull of the landmarks (or over twice the detector's box), about its centre.
    """
    if isinstance(face, Unfitted):
        x, y = face.box.center
        reach = max(face.box.width, face.box.height)  # detectors box eyes to mouth, not hair to chin
        corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], np.float32)
        hull = np.array([x, y], np.float32) + reach * corners
    else:
        hull = cv2.convexHull(face.landmarks.astype(np.float32))[:, 0]
    center = hull.mean(0)
    polygon = np.round((hull - center) * grow + center).astype(np.int32)
    output = image.copy()
    cv2.fillPoly(output, [polygon.reshape(-1, 1, 2)], (128, 128, 128))
    return output


def redact_crop(image: NDArray[np.uint8], crop: FaceCrop) -> NDArray[np.uint8]:
    """`redact_face` for a face known by its crop; `image` is the picture it was cut from."""
    landmarks = crop.frame.to_image(crop.landmarks)
    return redact_face(image, Face(Box.around(landmarks), 1.0, landmarks))


def is_covered(pixels: NDArray[np.uint8], landmarks: FloatArray) -> bool:
    """Whether there is one colour where the face was, as after `redact_face`, also when it was compressed.

    Args:
        landmarks: (N, 2) xy of points around the face, in pixels of the crop or picture.
    """
    inside = pixels[filled_polygon(pixels.shape, landmarks, hull=True)]
    return len(inside) > 0 and float(inside.std(0).max()) < _ONE_COLOUR
