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
from .geometry import Box, warp_square
from .identity import FaceRecogniser, Verdict

MIN_CHANGE = 2 / 255  # mean absolute change of the regenerated pixels below which a face counts as unchanged
SURE = 0.85  # detector's confidence from which it is a face; ruined ones reach 0.84 by hair and outline alone (PRIVACY.md)
NO_FACE = "no face is recognisable in the result"


@dataclass(frozen=True)
class Judgement:
    """What was found about a result: whether it shows a face, and one verdict per recogniser."""

    is_face: bool
    verdicts: list[Verdict] = field(default_factory=list)

    @property
    def too_alike(self) -> list[Verdict]:
        """Verdicts of the recognisers that know the source in it."""
        return [verdict for verdict in self.verdicts if not verdict.passed]

    @property
    def problem(self) -> str:
        """Why the result may not be emitted, for the user; "" if it may."""
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
    max_similarity: float | None = None,
) -> Judgement:  # fmt: skip
    """Judge what became of one face of a picture.

    Each recogniser takes the worse of two readings: at the source's landmarks, and at those found anew in the result.

    Args:
        source: the face, cut from the original picture.
        result: (H, W, 3) uint8 RGB, the whole picture after.
        max_similarity: in place of every network's own limit.
    """
    after = warp_square(result, source.frame.matrix, source.frame.size_px)
    found = face_at(Box.around(source.landmarks), detector.detect(after))
    places = [source.landmarks] if found is None else [source.landmarks, found.landmarks]
    verdicts = []
    for recogniser in recognisers:
        before = recogniser.embed(source.pixels, source.landmarks)
        similarities = [float(before @ recogniser.embed(after, place)) for place in places]
        verdicts.append(Verdict(recogniser.name, max(similarities), recogniser.limit(max_similarity)))
    return Judgement(_is_face(found, source, detector), verdicts)


def _is_face(found: Face | None, source: FaceCrop, detector: FaceDetector) -> bool:
    """Whether a face is seen surely, or as surely as the source is where that is hard to see itself."""
    if found is None or found.score >= SURE:
        return found is not None
    known = face_at(Box.around(source.landmarks), detector.detect(source.pixels))
    return known is None or found.score >= known.score


def check_changed(source: Tensor, result: Tensor, core: Tensor) -> None:
    """Fail closed if the regenerated pixels hardly differ from the source's.

    Raises: AnonymizationError.
    """
    if not bool(result.isfinite().all()):
        raise AnonymizationError("the model returned pixels that are not numbers")
    change = float(((result - source).abs() * core).sum() / (3 * core.sum()))
    if not change >= MIN_CHANGE:  # an empty core gives NaN, which must not pass
        raise AnonymizationError(f"the face came out nearly unchanged (mean change {change * 255:.2f} of 255)")
