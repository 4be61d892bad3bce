"""What is measured on a face and its replacement, and on many of them: one function per measure, without any network.

Landmarks are (478, 2) xy of mediapipe's mesh, both of the same picture's pixels.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ..attributes import Attributes
from ..geometry import LEFT_EYE, LEFT_IRIS, RIGHT_EYE, RIGHT_IRIS, FloatArray, eye_centers, inter_ocular

# A head: the mean of mediapipe's meshes of 400 training faces, made symmetric. Landmarks on the subject's right and left and
# the place of the right one, then those in the middle, x = 0. Thousandths of the inter-ocular distance; y down, z away.
_HEAD_SIDES = (
    (234, 454, -1089, -128, 1027), (104, 333, -719, -1049, 122), (169, 394, -621, 912, 233), (36, 266, -481, 11, -67),
    (58, 288, -957, 594, 848), (143, 372, -976, -412, 417), (147, 376, -965, 201, 350), (157, 384, -360, -552, 76),
    (89, 319, -286, 579, -114), (109, 338, -300, -1347, 5), (21, 251, -1037, -826, 642), (218, 438, -213, 61, -403),
)  # fmt: skip
_HEAD_MIDDLE = ((10, -1357, -22), (152, 1256, -11), (4, -30, -561), (14, 583, -203), (168, -595, -154))
_HEAD_POINTS = [*(side for row in _HEAD_SIDES for side in row[:2]), *(row[0] for row in _HEAD_MIDDLE)]
_HEAD = np.array(
    [*((sign * x, y, z) for _, _, x, y, z in _HEAD_SIDES for sign in (1, -1)), *((0, y, z) for _, y, z in _HEAD_MIDDLE)],
    np.float64,
)
_EYES = (  # outline, outer corner, inner corner, upper and lower lid, iris
    (RIGHT_EYE, 33, 133, 159, 145, RIGHT_IRIS[0]),
    (LEFT_EYE, 263, 362, 386, 374, LEFT_IRIS[0]),
)


def impostor_scores(embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
    """Cosines of all pairs of (N, D) unit-norm embeddings of different people, (N (N - 1) / 2,)."""
    scores: NDArray[np.float32] = (embeddings @ embeddings.T)[np.triu_indices(len(embeddings), 1)]
    return scores


def share_with_interval(hits: int, count: int) -> dict[str, float]:
    """A share and its 95% confidence interval after Wilson (1927): {"share", "low", "high", "hits", "of"}."""
    from scipy.stats import binomtest

    if count == 0:
        return {"share": float("nan"), "low": 0.0, "high": 1.0, "hits": 0, "of": 0}
    interval = binomtest(hits, count).proportion_ci(0.95, "wilson")
    return {"share": hits / count, "low": float(interval.low), "high": float(interval.high), "hits": hits, "of": count}


def landmark_distance(source: FloatArray, result: FloatArray) -> float:
    """Mean distance of corresponding landmarks over the source's inter-ocular distance."""
    return float(np.linalg.norm(result - source, axis=1).mean()) / inter_ocular(source)


def pose_error(source: FloatArray, result: FloatArray) -> float:
    """Angle in degrees between the two heads' orientations, see `head_rotation`."""
    cosine = (np.trace(head_rotation(source).T @ head_rotation(result)) - 1) / 2
    return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))


def head_rotation(landmarks: FloatArray) -> NDArray[np.float64]:
    """How a head is turned, (3, 3): rotation of a generic head, x right, y down, z away.

    The affine map that brings the generic head's points onto the landmarks takes up a face's width and height; what is left
    of it is the rotation. Points all over the head are used, so that other proportions of the features turn it little.
    """
    points = landmarks[_HEAD_POINTS].astype(np.float64)
    affine = np.linalg.lstsq(_HEAD - _HEAD.mean(0), points - points.mean(0), rcond=None)[0].T  # (2, 3)
    left, _, right = np.linalg.svd(affine, full_matrices=False)
    across, down = left @ right
    return np.stack([across, down, np.cross(across, down)])


def expression_error(source: FloatArray, result: FloatArray) -> float:
    """Mean difference of how far eyes and mouth are open and the mouth's corners raised, over their own widths.

    Independent of the features' sizes and places, which an anonymizer may change on purpose.
    """
    return float(np.abs(_expression(source) - _expression(result)).mean())


def _expression(landmarks: FloatArray) -> NDArray[np.float64]:
    def distance(a: int, b: int) -> float:
        return float(np.linalg.norm(landmarks[a] - landmarks[b]))

    eyes = [distance(upper, lower) / distance(outer, inner) for _, outer, inner, upper, lower, _ in _EYES]
    width = distance(61, 291)
    right, left = eye_centers(landmarks)
    down = np.array([right[1] - left[1], left[0] - right[0]]) / inter_ocular(landmarks)
    corners = (landmarks[61] + landmarks[291]) / 2
    raised = float((landmarks[[13, 14]].mean(0) - corners) @ down) / width
    return np.array([*eyes, distance(13, 14) / width, raised])


def gaze_error(source: FloatArray, result: FloatArray) -> float:
    """Mean shift of the irises between the eyes' corners, in eye widths, along the eyes' own axes."""
    return float(np.linalg.norm(_gaze(source) - _gaze(result), axis=1).mean())


def _gaze(landmarks: FloatArray) -> NDArray[np.float64]:
    places = []
    for _, outer, inner, _, _, iris in _EYES:
        across = landmarks[inner] - landmarks[outer]
        offset = landmarks[iris] - (landmarks[outer] + landmarks[inner]) / 2
        squared = float(across @ across)
        places.append([float(offset @ across) / squared, float(across[0] * offset[1] - across[1] * offset[0]) / squared])
    return np.array(places)


def detail(crop: NDArray[np.uint8]) -> float:
    """Sharpness of (S, S, 3) uint8 RGB: variance of the Laplacian (Pech-Pacheco et al. 2000)."""
    return float(cv2.Laplacian(cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY), cv2.CV_64F).var())


def attribute_agreement(source: Attributes, result: Attributes) -> float:
    """Share of the source's attributes that the result has as well."""
    return float(np.mean([result.get(name) == value for name, value in source.items()]))


def visual_dna_distance(sources: NDArray[np.float32], results: NDArray[np.float32]) -> float:
    """Earth mover's distance of each neuron's activations, in its standard deviations among sources, averaged.

    After Visual DNA (Ramtoula et al. 2023); exact, without their bins.

    Args:
        sources, results: (N, D) and (M, D) features.
    """
    from scipy.stats import wasserstein_distance

    spread = np.maximum(sources.std(0), 1e-6)
    pairs = zip((sources / spread).T, (results / spread).T, strict=True)
    return float(np.mean([wasserstein_distance(before, after) for before, after in pairs]))


def frechet_distance(sources: NDArray[np.float32], results: NDArray[np.float32]) -> float:
    """Fréchet distance (Heusel et al. 2017) of two sets of features (N, D) and (M, D), N and M >= 2, by torchmetrics.

    Raises: ImportError if torchmetrics is missing.
    """
    import torch
    from torchmetrics.image.fid import FrechetInceptionDistance

    class Given(torch.nn.Identity):
        num_features = sources.shape[1]

    metric: Any = FrechetInceptionDistance(feature=Given())
    metric.update(torch.from_numpy(sources), real=True)
    metric.update(torch.from_numpy(results), real=False)
    return float(metric.compute())
