"""Guidance terms beside the paper's: away from the source's identity, and its pose and expression held.

`guidance.CombinedGuidance` takes any number of them.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from . import geometry
from .encoder import ENCODER_LANDMARKS
from .guidance import Term, TermSettings, rows_of

IDENTITY_UNIT = 20.0  # gradients about as long as the attribute term's
POSE_UNIT = 400.0


class Recognition(Protocol):
    """What `IdentityTerm` needs of `recognition.RecognitionNetwork`."""

    def embed(self, images: Tensor, matrices: Tensor) -> Tensor:
        """Unit-norm embeddings (B, D), differentiable."""
        ...


class LandmarkNetwork(Protocol):
    """What `PoseTerm` needs of `encoder.DemoEncoder`."""

    def find_landmarks(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) float 0..1 -> (B, len(ENCODER_LANDMARKS), 2), in units of the crop's side; differentiable."""
        ...


class IdentityTerm(Term):
    """Away from the source's identity: the cosine of the two embeddings, as far as it is above 0.

    What fools the network it is made with need not fool another: check results with a second network.

    Args:
        source: (B or 1, 3, H, W) float 0..1, of the decoded images' size.
        matrices: (B or 1, 2, 3), `geometry.arcface_alignment` of the source's landmarks.
    """

    def __init__(self, network: Recognition, settings: TermSettings, source: Tensor, matrices: Tensor) -> None:
        super().__init__(settings, IDENTITY_UNIT)
        self._network, self._matrices = network, matrices
        with torch.no_grad():
            self._source = network.embed(source, matrices)
        self.rows = {"source": len(self._source)}

    def losses(self, image: Tensor, faces: slice = slice(None)) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Term.losses`; "identity" is the cosine, -1..1."""
        embedded = self._network.embed(image, rows_of(self._matrices, faces))
        cosine = (embedded * rows_of(self._source, faces)).sum(1)
        return cosine.clamp(min=0), {"identity": cosine}


class PoseTerm(Term):
    """Pose, expression and gaze as in the source: the shapes of its eyes with irises, brows, nose and mouth.

    Their places and sizes are left free, because other proportions are what hides a person.

    Args:
        source: (B or 1, 3, H, W) float 0..1.
    """

    def __init__(self, network: LandmarkNetwork, settings: TermSettings, source: Tensor) -> None:
        super().__init__(settings, POSE_UNIT)
        self._network = network
        with torch.no_grad():
            self._wanted = feature_shapes(network.find_landmarks(source))
        self.rows = {"source": len(self._wanted)}

    def losses(self, image: Tensor, faces: slice = slice(None)) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Term.losses`; "pose" is the mean square distance of a feature's points, in units of the feature's size."""
        shapes = feature_shapes(self._network.find_landmarks(image))
        distance = ((shapes - rows_of(self._wanted, faces)) ** 2).sum(-1).mean(1)
        return distance, {"pose": distance}


# Numbers, not tensors: ComfyUI imports this module in inference mode, where autograd could not use a tensor made here.
_FEATURES = tuple(
    [ENCODER_LANDMARKS.index(point) for point in dict.fromkeys(points)]
    for points in (
        (*geometry.RIGHT_EYE, geometry.RIGHT_IRIS[0]), (*geometry.LEFT_EYE, geometry.LEFT_IRIS[0]), geometry.RIGHT_BROW,
        geometry.LEFT_BROW, geometry.NOSE, (*geometry.LIPS_OUTER, *geometry.LIPS_INNER),
    )
)  # fmt: skip


def feature_shapes(points: Tensor) -> Tensor:
    """Every feature's points without its place and size: (B, len(ENCODER_LANDMARKS), 2) -> (B, M, 2)."""
    shapes = []
    for indices in _FEATURES:
        feature = points[:, indices]
        feature = feature - feature.mean(1, keepdim=True)
        shapes.append(feature / feature.norm(dim=-1).mean(1)[:, None, None].clamp(min=1e-6))
    return torch.cat(shapes, 1)
