"""Whether what became of a face may stand: it changed, it still is a face, and no recogniser takes it for the source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from .crop import FaceCrop
from .errors import AnonymizationError
from .faces import Face, FaceDetector, face_at
from .geometry import FACE_OVAL, Box, filled_polygon, warp_square
from .identity import FaceRecogniser, Verdict
from .image import tensor_to_pixels
from .likeness import replaced_likeness

MIN_CHANGE = 2.0  # of 255, mean absolute change of the regenerated pixels below which a face counts as unchanged
# Likeness of the regenerated pixels from which they count as copied. New faces reached 0.88 (121 of the demo model); the
# source has 0.97 and more after a VAE's round trip, and 0.93 sampled at a denoise of 0.05.
COPIED = 0.9
# Share of the regenerated pixels inside the outline up to which the mask lies beside the face. Of 101 faces, inverted masks
# have up to 0.03, right ones 0.5 and more, all pixels of a crop 0.2.
_BESIDE = 0.05
SURE = 0.85  # detector's confidence from which it is a face; ruined ones reach 0.84 by hair and outline alone (PRIVACY.md)
NO_FACE = "no face is recognisable in the result"


@dataclass(frozen=True)
class Judgement:
    """What was found about a result: whether it shows a face, one verdict per recogniser, and why it is no new face."""

    is_face: bool
    verdicts: list[Verdict] = field(default_factory=list)
    unchanged: str = ""  # see `unchanged_reason`

    @property
    def shows_source(self) -> bool:
        """Whether it is a face, and the source's."""
        return self.is_face and bool(self.unchanged or self.too_alike)

    @property
    def too_alike(self) -> list[Verdict]:
        """Verdicts of the recognisers that know the source in it."""
        return [verdict for verdict in self.verdicts if not verdict.passed]

    @property
    def problem(self) -> str:
        """Why the result may not be emitted, for the user; "" if it may."""
        if self.unchanged:
            return self.unchanged
        if not self.is_face:
            return NO_FACE
        said = ", ".join(
            f"{verdict.recogniser}: similarity {verdict.similarity:.2f}, at most {verdict.limit:.2f} was asked"
            for verdict in self.too_alike
        )
        return f"it still looks like the source ({said})" if said else ""

    @property
    def passed(self) -> bool:
        return not self.problem


def judge_face(
    source: FaceCrop, result: NDArray[np.uint8], recognisers: Sequence[FaceRecogniser], detector: FaceDetector,
    max_similarity: float | None = None, replaced: Tensor | None = None,
) -> Judgement:  # fmt: skip
    """Judge what became of one face of a picture.

    Each recogniser takes the worse of two readings: at the source's landmarks, and at those found anew in the result.

    Args:
        source: the face, cut from the original picture.
        result: (H, W, 3) uint8 RGB, the whole picture after.
        max_similarity: in place of every network's own limit.
        replaced: see `unchanged_reason`; None: not asked whether a new face took the old one's place.
    """
    after = warp_square(result, source.frame.matrix, source.frame.size_px)
    unchanged = "" if replaced is None else unchanged_reason(source, after, replaced)
    found = face_at(Box.around(source.landmarks), detector.detect(after))
    places = [source.landmarks] if found is None else [source.landmarks, found.landmarks]
    verdicts = []
    for recogniser in recognisers:
        before = recogniser.embed(source.pixels, source.landmarks)
        similarities = [float(before @ recogniser.embed(after, place)) for place in places]
        verdicts.append(Verdict(recogniser.name, float(np.max(similarities)), recogniser.limit(max_similarity)))
    return Judgement(_is_face(found, source, detector), verdicts, unchanged)


def _is_face(found: Face | None, source: FaceCrop, detector: FaceDetector) -> bool:
    """Whether a face is seen surely, or as surely as the source is where that is hard to see itself."""
    if found is None or found.score >= SURE:
        return found is not None
    known = face_at(Box.around(source.landmarks), detector.detect(source.pixels))
    return known is None or found.score >= known.score


def unchanged_reason(source: FaceCrop, after: NDArray[np.uint8], replaced: Tensor) -> str:
    """Why a result is not a new face but the source's own, for the user; "" if it is a new one.

    Args:
        after: (S, S, 3) uint8 RGB, what became of the crop.
        replaced: (1, 1, S, S), 1 where a new face was to take the old one's place.
    """
    outline = source.landmarks[list(FACE_OVAL)]
    new = replaced[0, 0].cpu().numpy() > 0
    inside = new & filled_polygon(after.shape, outline, hull=True)
    if inside.sum() <= _BESIDE * new.sum():
        return "the mask lies beside the face, which stays"
    change = float(np.abs(after[inside].astype(np.float32) - source.pixels[inside]).mean())
    if change < MIN_CHANGE:
        return f"the face came out nearly unchanged (mean change {change:.2f} of 255)"
    alike = replaced_likeness(source.pixels, after, outline, replaced)
    return f"the face came out as a copy of the source's (likeness {alike:.2f})" if alike >= COPIED else ""


def check_changed(source: FaceCrop, result: Tensor, replaced: Tensor) -> None:
    """Fail closed if a regenerated crop shows the source's face; `replaced` as in `unchanged_reason`.

    Args:
        result: (1, 3, S, S) float 0..1.
    Raises: AnonymizationError.
    """
    check_finite(result)
    if reason := unchanged_reason(source, tensor_to_pixels(result)[0], replaced):
        raise AnonymizationError(reason)


def check_finite(result: Tensor) -> None:
    """Raises: AnonymizationError if a model returned NaN or infinite pixels."""
    if not bool(result.isfinite().all()):
        raise AnonymizationError("the model returned pixels that are not numbers")
