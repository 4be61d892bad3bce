"""The test faces as a face-recognition network knows them, and how like its source a result is among them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..evaluation.measures import impostor_scores
from ..geometry import FloatArray
from ..identity import CHECK_FAR, Recogniser, threshold_at
from .data import FaceSet


@dataclass(frozen=True)
class Likeness:
    """How like its source a result is."""

    similarity: float
    same_person: bool
    first: bool  # of all sources, its own is the most alike


class Crowd:
    """The test faces as a recogniser knows them. One counts as the same person above its source set's 1% false accepts."""

    def __init__(self, faces: FaceSet, recogniser: Recogniser) -> None:
        self.faces, self._recogniser = faces, recogniser
        self._sources = np.stack([recogniser.embed(faces.image(i), faces.landmarks[i]) for i in range(len(faces))])
        self.groups = self.group_of(faces)
        parts = {group: self._sources[np.array(self.groups) == group] for group in sorted(set(self.groups))}
        self.thresholds = {group: threshold_at(impostor_scores(part), CHECK_FAR) for group, part in parts.items()}

    @staticmethod
    def group_of(faces: FaceSet) -> list[str]:
        """The source set of each face."""
        return ["SFHQ" if "SFHQ" in record.source else "generated-faces" for record in faces.records]

    def compare(self, i: int, pixels: NDArray[np.uint8], landmarks: FloatArray) -> Likeness:
        """Compare a result of face `i`, (256, 256, 3) uint8 RGB with its (478, 2) landmarks, with all sources."""
        scores = self._sources @ self._recogniser.embed(pixels, landmarks)
        similarity = float(scores[i])
        return Likeness(similarity, similarity > self.thresholds[self.groups[i]], int(scores.argmax()) == i)


def rates(likenesses: Sequence[Likeness]) -> dict[str, float]:
    """{"same_person_rate", "rank1_rate", "mean_similarity"}; NaN without any likeness."""
    return {
        "same_person_rate": share([likeness.same_person for likeness in likenesses]),
        "rank1_rate": share([likeness.first for likeness in likenesses]),
        "mean_similarity": round(float(np.mean([likeness.similarity for likeness in likenesses])), 3),
    }


def share(values: Sequence[bool]) -> float:
    """Share of the true ones, to four places; NaN without any."""
    return round(float(np.mean(values)), 4) if values else float("nan")
