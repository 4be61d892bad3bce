"""Boxes, the 478 landmarks of mediapipe's face mesh, and the square upright frame put around a face."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]

# Indices into mediapipe's canonical face mesh with irises (478 points). "left" and "right" are the subject's own.
FACE_OVAL = (
    10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377,
    152, 148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109,
)  # fmt: skip
RIGHT_EYE = (33, 7, 163, 144, 145, 153, 154, 155, 133, 173, 157, 158, 159, 160, 161, 246)
LEFT_EYE = (362, 382, 381, 380, 374, 373, 390, 249, 263, 466, 388, 387, 386, 385, 384, 398)
RIGHT_BROW = (70, 63, 105, 66, 107, 55, 65, 52, 53, 46)
LEFT_BROW = (300, 293, 334, 296, 336, 285, 295, 282, 283, 276)
LIPS_OUTER = (61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 409, 270, 269, 267, 0, 37, 39, 40, 185)
LIPS_INNER = (78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308, 415, 310, 311, 312, 13, 82, 81, 80, 191)
NOSE = (168, 193, 417, 122, 351, 196, 419, 129, 358, 98, 327, 2, 64, 294, 48, 278, 219, 439, 1, 4)
NOSE_RIDGE = (168, 6, 197, 195, 5, 4)
NOSE_BASE = (64, 98, 97, 2, 326, 327, 294)
RIGHT_IRIS, LEFT_IRIS = (468, 469, 470, 471, 472), (473, 474, 475, 476, 477)
LANDMARK_COUNT = 478
ARCFACE_PX = 112  # side of the crop that face-recognition networks see
# in it: right eye, left eye, nose tip, mouth corners (subject's right first)
_ARCFACE = np.array([[38.29, 51.70], [73.53, 51.50], [56.03, 71.74], [41.55, 92.37], [70.73, 92.20]], np.float32)
SAME_FACE_OVERLAP = 0.45  # boxes of one face share at least this part of the smaller one
CONTEXT = 1.6  # side of the square crop over the longer side of the landmarks' box


# The mesh numbers the subject's right half before its left, both in the same order, so that the landmark in the place of
# each one in the mirror image follows from those in the middle. Tested against the mean of frontal faces.
_MIDLINE = (
    0, 1, 2, 4, 5, 6, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 94, 151, 152, 164, 168, 175, 195, 197, 199, 200,
)  # fmt: skip
_LEFT_START, _IRIS_START = 248, 468


def _mirrored() -> tuple[int, ...]:
    right = [i for i in range(_LEFT_START) if i not in _MIDLINE]
    left = list(range(_LEFT_START, _IRIS_START))
    left += [473, 476, 475, 474, 477]  # an iris is its centre and a round that starts at the same side of the picture
    partner = dict(zip([*right, *RIGHT_IRIS], left, strict=True))
    partner |= {other: own for own, other in partner.items()} | {i: i for i in _MIDLINE}
    return tuple(partner[i] for i in range(LANDMARK_COUNT))


MIRRORED = _mirrored()  # MIRRORED[i] lies in the mirror image of a face where i lies in the face


@dataclass(frozen=True)
class Box:
    """Axis-aligned box in pixels, half-open: left <= x < right."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def width(self) -> float:
        return self.right - self.left

    @property
    def height(self) -> float:
        return self.bottom - self.top

    @property
    def area(self) -> float:
        return max(0.0, self.width) * max(0.0, self.height)

    @property
    def center(self) -> tuple[float, float]:
        return (self.left + self.right) / 2, (self.top + self.bottom) / 2

    def holds(self, point: tuple[float, float]) -> bool:
        """Whether a point, xy in pixels, lies inside."""
        x, y = point
        return self.left <= x < self.right and self.top <= y < self.bottom

    def intersection(self, other: Box) -> float:
        """Area shared with `other`, in square pixels."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(0.0, width) * max(0.0, height)

    def iou(self, other: Box) -> float:
        """Intersection over union, 0..1."""
        shared = self.intersection(other)
        union = self.area + other.area - shared
        return shared / union if union > 0 else 0.0

    @staticmethod
    def around(points: FloatArray) -> Box:
        """Smallest box that holds `points`, (N, 2) xy in pixels."""
        (left, top), (right, bottom) = points.min(0), points.max(0)
        return Box(float(left), float(top), float(right), float(bottom))


def is_same_face(a: Box, b: Box) -> bool:
    """Whether two boxes hold one face: they share much, and the smaller one holds the middle of the larger.

    A small face at a large one's cheek or jaw shares as much, but not the middle.
    """
    smaller, larger = sorted((a, b), key=lambda box: box.area)
    return smaller.holds(larger.center) and a.intersection(b) > SAME_FACE_OVERLAP * smaller.area


@dataclass(frozen=True)
class UprightFrame:
    """Similarity transform between an image and an upright square crop of it.

    `matrix` (2, 3) maps image xy to crop xy (pixel centres at integers); `size_px` is the crop's side.
    """

    matrix: FloatArray
    size_px: int

    @property
    def scale(self) -> float:
        """Crop pixels per image pixel."""
        return float(np.hypot(self.matrix[0, 0], self.matrix[0, 1]))

    @property
    def inverse(self) -> FloatArray:
        """(2, 3) matrix that maps crop xy to image xy."""
        return cv2.invertAffineTransform(self.matrix).astype(np.float32)

    def to_crop(self, points: FloatArray) -> FloatArray:
        """Map (N, 2) image points to crop points."""
        return apply_affine(self.matrix, points)

    def to_image(self, points: FloatArray) -> FloatArray:
        """Map (N, 2) crop points to image points."""
        return apply_affine(self.inverse, points)


def apply_affine(matrix: FloatArray, points: FloatArray) -> FloatArray:
    """Apply a (2, 3) affine matrix to (N, 2) points."""
    return (points @ matrix[:, :2].T + matrix[:, 2]).astype(np.float32)


def mirror_landmarks(landmarks: FloatArray, width: int) -> FloatArray:
    """The landmarks that the mirror image of a picture of that width in pixels has: (478, 2) xy, of the same order."""
    mirrored = landmarks[list(MIRRORED)]
    return np.stack([width - 1 - mirrored[:, 0], mirrored[:, 1]], axis=1).astype(np.float32)


def inter_ocular(landmarks: FloatArray) -> float:
    """Distance in pixels between the two eyes' centres, the unit landmark errors are given in."""
    right, left = eye_centers(landmarks)
    return float(np.linalg.norm(left - right))


def eye_centers(landmarks: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Centres (xy) of the subject's right and left eye: the means of their outlines."""
    right: FloatArray = landmarks[list(RIGHT_EYE)].mean(0)
    left: FloatArray = landmarks[list(LEFT_EYE)].mean(0)
    return right, left


def arcface_alignment(landmarks: FloatArray) -> FloatArray:
    """Similarity (2, 3) that puts landmarks (478, 2) of a picture onto ArcFace's five points in an `ARCFACE_PX` crop."""
    right, left = eye_centers(landmarks)
    points = np.stack([right, left, landmarks[1], landmarks[61], landmarks[291]]).astype(np.float32)
    matrix, _ = cv2.estimateAffinePartial2D(points, _ARCFACE, method=cv2.LMEDS)
    return matrix.astype(np.float32)


def upright_frame(landmarks: FloatArray, size_px: int, context: float = CONTEXT) -> UprightFrame:
    """Frame with level eyes whose side is `context` times the longer side of the landmarks' box.

    Args:
        landmarks: (478, 2) xy in image pixels.
        size_px: side of the crop in pixels.
    """
    right, left = eye_centers(landmarks)
    angle = float(np.arctan2(left[1] - right[1], left[0] - right[0]))
    cos, sin = np.cos(-angle), np.sin(-angle)
    rotation = np.array([[cos, -sin], [sin, cos]], np.float32)
    box = Box.around((landmarks @ rotation.T).astype(np.float32))
    scale = size_px / (context * max(box.width, box.height, 1.0))
    # pixel centres sit at integers, so the crop's centre is (size - 1) / 2
    offset = (size_px - 1) / 2 - scale * np.array(box.center, np.float32)
    matrix = np.concatenate([scale * rotation, offset[:, None]], axis=1)
    return UprightFrame(matrix.astype(np.float32), size_px)


def warp_square(image: NDArray[np.uint8], matrix: FloatArray, size_px: int) -> NDArray[np.uint8]:
    """Sample a square from an image, averaging areas where it shrinks, reflecting the picture at its borders.

    Args:
        image: (H, W, 3) uint8.
        matrix: (2, 3) similarity that maps image xy to xy of the square.
    """
    shrink = 2 * float(np.hypot(matrix[0, 0], matrix[0, 1]))
    interpolation = cv2.INTER_CUBIC
    if shrink < 1:  # sampling directly would alias
        height, width = image.shape[:2]
        size = (max(1, round(width * shrink)), max(1, round(height * shrink)))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        scale = np.array([width / size[0], height / size[1]], np.float32)
        # pixel centres: x_image = (x_small + 0.5) * scale - 0.5
        offset = matrix[:, 2] + matrix[:, :2] @ ((scale - 1) / 2)
        matrix = np.concatenate([matrix[:, :2] * scale, offset[:, None]], axis=1).astype(np.float32)
        interpolation = cv2.INTER_LINEAR
    return cv2.warpAffine(image, matrix, (size_px, size_px), flags=interpolation, borderMode=cv2.BORDER_REFLECT_101)


def fraction_outside(landmarks: FloatArray, width: int, height: int) -> float:
    """Share 0..1 of the face outline's area that lies outside a picture of the given size."""
    oval = landmarks[list(FACE_OVAL)].astype(np.float32)
    frame = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float32)
    hull = cv2.convexHull(oval)
    whole = cv2.contourArea(hull)
    if whole <= 0:
        return 1.0
    inside, _ = cv2.intersectConvexConvex(hull, frame)
    return float(np.clip(1 - inside / whole, 0, 1))


def face_area(shape: tuple[int, ...], landmarks: FloatArray) -> NDArray[np.bool_]:
    """The inside of the whole mesh's convex hull: on a turned face nose and lips lie beyond the face's oval.

    Args:
        shape: height and width of the picture, first of more.
        landmarks: (478, 2) xy in pixels.
    Returns: (H, W) bool.
    """
    return filled_polygon(shape, landmarks, hull=True)


def filled_polygon(shape: tuple[int, ...], points: FloatArray, hull: bool = False) -> NDArray[np.bool_]:
    """The inside of a polygon, drawn with sub-pixel corners.

    Args:
        shape: height and width of the picture, first of more.
        points: (N, 2) xy in pixels.
        hull: take the convex hull of the points instead of their order.
    Returns: (H, W) bool.
    """
    shift = 4  # sub-pixel bits of cv2.fillPoly
    polygon = np.round(points * (1 << shift)).astype(np.int32)
    if hull:
        polygon = cv2.convexHull(polygon)
    canvas = np.zeros(shape[:2], np.uint8)
    cv2.fillPoly(canvas, [polygon.reshape(-1, 1, 2)], 1, lineType=cv2.LINE_8, shift=shift)
    return canvas > 0
