"""Check a finished picture against its source, face by face; trusts nothing that made it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from .crop import crop_face
from .errors import AnonymizationError, ShapeError
from .faces import Face, FaceDetector, Scan, Unfitted
from .geometry import FACE_OVAL, Box, FloatArray, filled_polygon, is_same_face
from .identity import FaceRecogniser, Verdict
from .judge import judge_face

NEAR_COPY = 0.8  # likeness from which a face counts as a copy of the original; measured in docs/PRIVACY.md
BLURRED_COPY = 0.9  # the same for the likeness to a blurred original
_CROP_PX, _FINE_PX = 256, 64  # side of a face's crop, and of what is left of it for `likeness`
_ONE_COLOUR = 4.0  # standard deviation, of 255, that compression leaves in a solid fill
_BLURS = (0.7, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # standard deviations, of `_FINE_PX`, that the source is blurred with
_DETAIL_SIGMA = 2.0  # of `_FINE_PX`: coarser structure is light and skin, which a new face shares with the old one


@dataclass(frozen=True)
class FaceCheck:
    """What was found about one face of the source; `problem` is "" if it is gone from the result."""

    face: Face | Unfitted
    likeness: float
    verdicts: list[Verdict] = field(default_factory=list)
    problem: str = ""

    @property
    def passed(self) -> bool:
        """Whether the result may be emitted as far as this face goes."""
        return not self.problem

    def __str__(self) -> str:
        x, y = self.face.box.center
        said = "".join(f", {v.recogniser} {v.similarity:.2f} (at most {v.limit:.2f})" for v in self.verdicts)
        outcome = f"FAILED, {self.problem}" if self.problem else "passed"
        return f"near x {x:.0f}, y {y:.0f}: {outcome}; likeness {self.likeness:.2f}{said}"


def check_picture(
    source: NDArray[np.uint8], result: NDArray[np.uint8], scan: Scan, recognisers: Sequence[FaceRecogniser],
    detector: FaceDetector,
) -> list[FaceCheck]:  # fmt: skip
    """Check every face that was found in the source, largest first.

    Args:
        source, result: (H, W, 3) uint8 RGB of one size.
        scan: what `detector` found in the source.
        recognisers: each must take source and result for different people, by its own limit.
    Returns: also the faces that were found in the result alone, where nothing was seen to be changed in the source.
    Raises: ShapeError if the sizes differ.
    """
    if source.shape != result.shape:
        (height, width), (new_height, new_width) = source.shape[:2], result.shape[:2]
        raise ShapeError(f"the result is {new_width}x{new_height} but its source is {width}x{height}")
    known = [face.box for face in scan.faces] + [lost.box for lost in scan.unfitted]
    after = detector.scan(result)
    faces = [*scan.faces, *(face for face in after.faces if not any(is_same_face(face.box, box) for box in known))]
    lost = [*scan.unfitted, *(one for one in after.unfitted if not any(is_same_face(one.box, box) for box in known))]
    fitted = [_check_face(source, result, face, recognisers, detector) for face in faces]
    return fitted + [_check_box(source, result, one) for one in lost]


def likeness(before: NDArray[np.uint8], after: NDArray[np.uint8], outline: FloatArray) -> float:
    """How far one crop is a copy of the other inside an outline: correlation of their fine structure, -1..1.

    A copy keeps it when it is compressed, blurred, brightened or recoloured. A flat area is like nothing: 0.

    Args:
        before, after: (S, S, 3) uint8 RGB.
        outline: (N, 2) xy in pixels of the crops.
    """
    inside = _inside(before, outline)
    return _correlation(_fine_structure(before)[inside], _fine_structure(after)[inside])


def blurred_likeness(before: NDArray[np.uint8], after: NDArray[np.uint8], outline: FloatArray) -> float:
    """`likeness` to the blurred original: the highest over several strengths of blur."""
    inside = _inside(before, outline)
    new = _fine_structure(after)[inside]
    return max(_correlation(_fine_structure(before, blur)[inside], new) for blur in _BLURS)


def _inside(crop: NDArray[np.uint8], outline: FloatArray) -> NDArray[np.bool_]:
    scale = _FINE_PX / crop.shape[0]
    inside = np.zeros((_FINE_PX, _FINE_PX), np.uint8)
    cv2.fillConvexPoly(inside, cv2.convexHull(np.round(outline * scale).astype(np.int32)), 1)
    return inside > 0


def _correlation(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    first, second = first - first.mean(), second - second.mean()
    lengths = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float(first @ second) / lengths if lengths > 1e-3 else 0.0


def _fine_structure(pixels: NDArray[np.uint8], blur: float = 0.0) -> NDArray[np.float32]:
    gray = cv2.cvtColor(cv2.resize(pixels, (_FINE_PX, _FINE_PX), interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
    values = gray.astype(np.float32)
    if blur:
        values = np.asarray(cv2.GaussianBlur(values, (0, 0), blur), np.float32)
    detail: NDArray[np.float32] = values - cv2.GaussianBlur(values, (0, 0), _DETAIL_SIGMA)
    return detail


def _check_face(
    source: NDArray[np.uint8], result: NDArray[np.uint8], face: Face, recognisers: Sequence[FaceRecogniser],
    detector: FaceDetector,
) -> FaceCheck:  # fmt: skip
    try:
        crop = crop_face(source, face, _CROP_PX)
    except AnonymizationError:  # too much of it lies beyond the border for a crop
        return _check_box(source, result, face)
    after = crop_face(result, face, _CROP_PX).pixels
    outline = crop.landmarks[list(FACE_OVAL)]
    alike = likeness(crop.pixels, after, outline)
    judgement = judge_face(crop, result, recognisers, detector)
    problem = ""
    if alike >= NEAR_COPY:
        problem = "it is a near copy of the source's"
    elif judgement.too_alike:
        problem = f"{judgement.too_alike[0].recogniser} takes it for the same person"
    elif not _is_covered(after, crop.landmarks):
        blurred = blurred_likeness(crop.pixels, after, outline) >= BLURRED_COPY
        problem = "it is the source's face, blurred" if blurred else judgement.problem
    return FaceCheck(face, alike, judgement.verdicts, problem)


def _is_covered(pixels: NDArray[np.uint8], landmarks: FloatArray) -> bool:
    """Whether there is one colour where the face was, as after `pipeline.redact_face`, also when it was compressed.

    Args:
        landmarks: (N, 2) xy of points around the face, in pixels of the crop or picture.
    """
    inside = pixels[filled_polygon(pixels.shape, landmarks, hull=True)]
    return len(inside) > 0 and float(inside.std(0).max()) < _ONE_COLOUR


def _check_box(source: NDArray[np.uint8], result: NDArray[np.uint8], face: Face | Unfitted) -> FaceCheck:
    """A face no mesh fits, or cut by the border: nothing could replace it, so it must be covered.

    How much of it is left is measured in its box alone.
    """
    height, width = source.shape[:2]
    box = face.box
    left, top = max(0, int(box.left)), max(0, int(box.top))
    right, bottom = min(width, int(np.ceil(box.right))), min(height, int(np.ceil(box.bottom)))
    before, after = (
        cv2.resize(pixels[top:bottom, left:right], (_CROP_PX, _CROP_PX), interpolation=cv2.INTER_AREA)
        for pixels in (source, result)
    )
    corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float32) * (_CROP_PX - 1)
    alike = likeness(np.asarray(before, np.uint8), np.asarray(after, np.uint8), corners)
    problem = ""
    if alike >= NEAR_COPY:
        problem = "it is a near copy of the source's"
    elif not _is_covered(result, _corners(box) if isinstance(face, Unfitted) else face.landmarks):
        problem = "nothing can replace it, and no solid shape covers it"
    return FaceCheck(face, alike, problem=problem)


def _corners(box: Box) -> FloatArray:
    return np.array([[x, y] for x in (box.left, box.right) for y in (box.top, box.bottom)], np.float32)
