"""Other proportions for the new face: where eyes, brows, nose and mouth sit in the outline, and how large they are.

The sketch would otherwise hand the source's proportions on, and face recognition knows people by them. What is peculiar
to the source is drawn towards the average (the idea of k-same, Newton et al. 2005), and a change is added that goes
together as it does among people, so that the result is a plausible face. Pose, expression and gaze stay: each feature is
moved and stretched as a whole, along the face's own axes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file
from torch import Tensor

from . import geometry
from .geometry import FloatArray, eye_centers
from .weights import ASSETS

NAMES = ("eyes_apart", "eyes_down", "eye_size", "brows_down", "nose_down", "nose_width", "mouth_down", "mouth_width")
_TOWARDS_AVERAGE = 0.5  # share of what is peculiar to the source that amount 1 takes away
# size of the added change at amount 1, in standard deviations among people: sizes hide a person at little cost to pose
_SPREAD = np.array([2.2, 1.5, 3.5, 1.7, 1.5, 3.5, 1.5, 1.8])
_LARGEST = 1.5  # ... and that of any one proportion among independent ones

_FOREHEAD, _CHIN, _RIGHT_SIDE, _LEFT_SIDE = 10, 152, 234, 454


@dataclass(frozen=True)
class Population:
    """Statistics of `measure_proportions` over the frontal training faces: `mean` (8,), `factor` (8, 8) of the covariance.

    `adult` and `child` (478, 2) are mean landmarks in pixels of a 256 px crop.
    """

    mean: NDArray[np.float64]
    factor: NDArray[np.float64]
    adult: FloatArray
    child: FloatArray


@cache
def population() -> Population:
    """The shipped statistics, made by `python -m faceanon_core.training proportions`."""
    stored = load_file(ASSETS / "proportions.safetensors")
    factor = np.linalg.cholesky(stored["covariance"])
    return Population(stored["mean"], factor, stored["adult"], stored["child"])


def measure_proportions(landmarks: FloatArray) -> NDArray[np.float64]:
    """The proportions `NAMES` of one face, (8,): downs as a share of its height from the forehead, the others of its width.

    Args:
        landmarks: (478, 2) xy in pixels.
    """
    frame = _FaceFrame(landmarks)
    right, left = (frame.place(landmarks[list(eye)]) for eye in (geometry.RIGHT_EYE, geometry.LEFT_EYE))
    nose, mouth = (frame.place(landmarks[list(points)]) for points in (geometry.NOSE_BASE, geometry.LIPS_OUTER))
    brows = frame.place(landmarks[list(geometry.RIGHT_BROW + geometry.LEFT_BROW)])
    middle = np.stack([right.mean(0), left.mean(0)])
    values = (
        middle[1, 0] - middle[0, 0], middle[:, 1].mean(), (np.ptp(right[:, 0]) + np.ptp(left[:, 0])) / 2, brows[:, 1].mean(),
        nose[:, 1].mean(), np.ptp(nose[:, 0]), mouth[:, 1].mean(), np.ptp(mouth[:, 0]),
    )  # fmt: skip
    return np.array(values, np.float64)


def change_proportions(landmarks: FloatArray, core: Tensor, seed: int, amount: float = 1.0) -> FloatArray:
    """Move and stretch the features that are regenerated; kept ones stay.

    Args:
        landmarks: (478, 2) xy in pixels of a square crop.
        core: (1, 1, S, S), 1 = regenerate. A feature is changed only if it lies in there before and after.
        seed: the same seed changes every face alike, so that a person looks the same in every frame.
        amount: 1 moves the features by about 6% of the inter-ocular distance on average; 0 changes nothing.
    """
    if amount == 0:
        return landmarks
    before = measure_proportions(landmarks)
    people = population()
    change = _SPREAD * (people.factor @ _draw(seed)) - _TOWARDS_AVERAGE * (before - people.mean)
    after = before + amount * change
    apart, eyes, _, brows, nose, _, mouth, _ = map(float, after - before)
    _, _, eye_ratio, _, _, nose_ratio, _, mouth_ratio = map(float, after / before)
    groups = (
        (
            _Move(geometry.RIGHT_EYE + geometry.RIGHT_IRIS, -apart / 2, eyes, eye_ratio, eye_ratio),
            _Move(geometry.LEFT_EYE + geometry.LEFT_IRIS, apart / 2, eyes, eye_ratio, eye_ratio),
        ),
        (_Move(geometry.RIGHT_BROW, -apart / 2, brows), _Move(geometry.LEFT_BROW, apart / 2, brows)),
        (
            _Move(geometry.NOSE_RIDGE, 0, (eyes + nose) / 2, 1, float((after[4] - after[1]) / (before[4] - before[1]))),
            _Move(geometry.NOSE_BASE, 0, nose, nose_ratio),
        ),
        (_Move(geometry.LIPS_OUTER + geometry.LIPS_INNER, 0, mouth, mouth_ratio),),
    )
    frame, changed = _FaceFrame(landmarks), landmarks.copy()
    for group in groups:
        moved = [(list(move.points), frame.apply(landmarks[list(move.points)], move)) for move in group]
        if all(_inside(landmarks[points], core) and _inside(places, core) for points, places in moved):
            for points, places in moved:
                changed[points] = places
    return changed


@dataclass(frozen=True)
class _Move:
    points: tuple[int, ...]
    aside: float  # towards the subject's left, as a share of the face's width
    down: float  # share of the face's height
    wide: float = 1.0  # ratio of the widths after and before
    high: float = 1.0


class _FaceFrame:
    """`axes` rows point to the subject's left and down; `size` is the face's width and height in pixels."""

    def __init__(self, landmarks: FloatArray) -> None:
        right, left = eye_centers(landmarks)
        across = (left - right) / max(float(np.linalg.norm(left - right)), 1e-6)
        self.axes = np.stack([across, np.array([-across[1], across[0]])])
        self.origin = landmarks[_FOREHEAD]
        width = abs((landmarks[_LEFT_SIDE] - landmarks[_RIGHT_SIDE]) @ self.axes[0])
        height = abs((landmarks[_CHIN] - landmarks[_FOREHEAD]) @ self.axes[1])
        self.size = np.maximum(np.array([width, height]), 1e-6)

    def place(self, points: FloatArray) -> NDArray[np.float64]:
        """(N, 2) pixels -> shares of width and height, from the top of the forehead."""
        placed: NDArray[np.float64] = (points - self.origin) @ self.axes.T / self.size
        return placed

    def apply(self, points: FloatArray, move: _Move) -> FloatArray:
        middle = points.mean(0)
        stretched = (points - middle) @ self.axes.T * np.array([move.wide, move.high])
        moved = (stretched + self.size * np.array([move.aside, move.down])) @ self.axes + middle
        return moved.astype(np.float32)


def _draw(seed: int) -> NDArray[np.float64]:
    """(8,) of length sqrt(8): no seed may leave a face as it was, and none may turn one feature into a caricature."""
    rng, count = np.random.default_rng(seed), len(NAMES)
    while True:
        direction = rng.normal(size=count)
        draw: NDArray[np.float64] = direction * np.sqrt(count) / np.linalg.norm(direction)
        if np.abs(draw).max() <= _LARGEST:
            return draw


def _inside(points: FloatArray, core: Tensor) -> bool:
    side = core.shape[-1]
    x, y = np.round(points).astype(int).T
    if x.min() < 0 or y.min() < 0 or x.max() >= side or y.max() >= side:
        return False
    return bool((core[0, 0].cpu().numpy()[y, x] > 0).all())
