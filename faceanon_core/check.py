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
from .geometry import FACE_OVAL, Box, FloatArray, is_same_face
from .identity import FaceRecogniser, Verdict
from .judge import judge_face
from .likeness import BLURRED_COPY, NEAR_COPY, blurred_likeness, likeness
from .redact import is_covered

_CROP_PX = 256  # side of a face's crop


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
    detector: FaceDetector, known: Scan | None = None,
) -> list[FaceCheck]:  # fmt: skip
    """Check faces of the source, largest first.

    Args:
        source, result: (H, W, 3) uint8 RGB of one size.
        scan: the faces to check, of those that `detector` found in the source.
        known: all that it found there, where `scan` is a choice of them; the others may stay.
        recognisers: each must take source and result for different people, by its own limit.
    Returns: also the faces that were found in the result alone, where nothing was seen to be changed in the source.
    Raises: ShapeError if the sizes differ.
    """
    if source.shape != result.shape:
        (height, width), (new_height, new_width) = source.shape[:2], result.shape[:2]
        raise ShapeError(f"the result is {new_width}x{new_height} but its source is {width}x{height}")
    boxes = [box for found in (scan, known or scan) for box in found.boxes]
    after = detector.scan(result)
    faces = [*scan.faces, *(face for face in after.faces if not any(is_same_face(face.box, box) for box in boxes))]
    lost = [*scan.unfitted, *(one for one in after.unfitted if not any(is_same_face(one.box, box) for box in boxes))]
    fitted = [_check_face(source, result, face, recognisers, detector) for face in faces]
    return fitted + [_check_box(source, result, one) for one in lost]


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
    elif not is_covered(after, crop.landmarks):
        blurred = blurred_likeness(crop.pixels, after, outline) >= BLURRED_COPY
        problem = "it is the source's face, blurred" if blurred else judgement.problem
    return FaceCheck(face, alike, judgement.verdicts, problem)


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
    elif not is_covered(result, _corners(box) if isinstance(face, Unfitted) else face.landmarks):
        problem = "nothing can replace it, and no solid shape covers it"
    return FaceCheck(face, alike, problem=problem)


def _corners(box: Box) -> FloatArray:
    return np.array([[x, y] for x in (box.left, box.right) for y in (box.top, box.bottom)], np.float32)
