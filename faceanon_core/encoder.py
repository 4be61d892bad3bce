"""Attribute encoders: networks whose token features the guidance matches (phi in docs/METHOD.md).

Every encoder is differentiable with respect to its image. The demo model's own encoder is `DemoEncoder`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from . import geometry
from .attributes import LEARNED, Attributes
from .checks import check_image
from .errors import WeightsError
from .geometry import FloatArray

# The landmarks the demo encoder predicts: outline, eyes, irises, brows, lips, nose.
ENCODER_LANDMARKS = tuple(
    dict.fromkeys(
        geometry.FACE_OVAL + geometry.RIGHT_EYE + geometry.LEFT_EYE + geometry.RIGHT_BROW + geometry.LEFT_BROW
        + geometry.LIPS_OUTER + geometry.LIPS_INNER + geometry.NOSE + (geometry.RIGHT_IRIS[0], geometry.LEFT_IRIS[0])
    )
)  # fmt: skip


class AttributeEncoder(Protocol):
    """What the guidance needs of an encoder.

    `unit_strength` is w_opt of docs/METHOD.md at which this encoder's default guidance is neither too weak nor too strong;
    the user's strength 1 means this much. `large` says whether to compute in bfloat16 where the machine has it.
    """

    unit_strength: float
    large: bool

    def features(self, image: Tensor, normalise: bool = True) -> Tensor:
        """Token features.

        Args:
            image: (B, 3, H, W) float 0..1, any size; resized inside, differentiably.
            normalise: apply the encoder's own input scaling; False feeds -1..1, as docs/METHOD.md's reference does.
        Returns: (B, 1 + patches, D); token 0 is the class token.
        """
        ...


class DemoEncoder(nn.Module):
    """A small convolutional stem and three transformer layers over 8x8 patches of a 128 px face crop (2.9M weights).

    Trained on attributes, landmarks and instance discrimination, on clean, blurred and noisy crops, so that its
    gradient is of use on half-denoised images.
    """

    image_px = 128
    width = 192
    unit_strength = 10.0  # twice as much burns faces out
    large = False

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            _Down(3, 32), _Down(32, 64), _Residual(64), _Down(64, 128), _Residual(128), _Down(128, self.width),
            _Residual(self.width),
        )  # fmt: skip
        self.class_token = nn.Parameter(torch.randn(1, 1, self.width) * 0.02)
        self.position = nn.Parameter(torch.randn(1, 65, self.width) * 0.02)
        layer = nn.TransformerEncoderLayer(
            self.width, 6, 2 * self.width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(self.width)
        self.attribute_heads = nn.ModuleList(nn.Linear(self.width, len(a.values)) for a in LEARNED)
        self.where = nn.Linear(self.width, 32)  # what a patch says about where the landmarks are
        self.landmark_head = nn.Linear(64 * 32, 2 * len(ENCODER_LANDMARKS))
        self.instance_head = nn.Linear(self.width, 64)

    def features(self, image: Tensor, normalise: bool = True) -> Tensor:
        """(B, 3, H, W) float 0..1 -> (B, 65, 192), before the final norm as in docs/METHOD.md; see `AttributeEncoder`."""
        size = (self.image_px, self.image_px)
        if image.shape[-2:] != size:
            image = F.interpolate(image, size, mode="bilinear", antialias=True)
        patches = self.stem(image * 4 - 2 if normalise else image * 2 - 1).flatten(2).transpose(1, 2)  # (B, 64, width)
        tokens = torch.cat([self.class_token.expand(len(patches), -1, -1), patches], dim=1) + self.position
        features: Tensor = self.layers(tokens)
        return features

    def summary(self, features: Tensor) -> Tensor:
        """What the attribute heads read, class token and mean patch together: (B, 65, 192) -> (B, 192)."""
        normed: Tensor = self.norm(features[:, 0] + features[:, 1:].mean(1))
        return normed

    def landmarks(self, features: Tensor) -> Tensor:
        """Predicted landmarks, (B, len(ENCODER_LANDMARKS), 2) xy in units of the crop's side, 0..1."""
        points: Tensor = self.landmark_head(self.where(features[:, 1:]).flatten(1))
        return points.unflatten(1, (-1, 2)) + 0.5

    def find_landmarks(self, image: Tensor) -> Tensor:
        """`landmarks` of a picture (B, 3, H, W) float 0..1."""
        return self.landmarks(self.features(image))

    @torch.no_grad()
    def predict(self, image: Tensor) -> list[tuple[Attributes, dict[str, float]]]:
        """Most likely value of every attribute and its probability, per image of (B, 3, H, W) float 0..1."""
        check_image(image)
        summary = self.summary(self.features(image.to(self.class_token.device)))
        rows = [head(summary).softmax(1).max(1) for head in self.attribute_heads]
        return [
            (
                {a.name: a.values[int(row.indices[i])] for a, row in zip(LEARNED, rows, strict=True)},
                {a.name: float(row.values[i]) for a, row in zip(LEARNED, rows, strict=True)},
            )
            for i in range(len(image))
        ]


def load_demo_encoder(path: Path) -> DemoEncoder:
    """Read a `DemoEncoder` from safetensors, frozen, in float32.

    Raises: WeightsError if the file is missing, damaged or holds another network.
    """
    encoder = DemoEncoder()
    try:
        encoder.load_state_dict({name: value.float() for name, value in load_file(path).items()})
    except (OSError, SafetensorError, RuntimeError) as error:
        raise WeightsError(f"{path} is missing, damaged or holds another network; reinstall the pack") from error
    return encoder.eval().requires_grad_(False)


def landmark_targets(landmarks: FloatArray, size_px: int) -> Tensor:
    """The encoder's landmarks of (B, 478, 2) crop pixels, in units of the crop's side."""
    return torch.from_numpy(landmarks[:, list(ENCODER_LANDMARKS)].astype(np.float32) + 0.5) / size_px


class _Down(nn.Sequential):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.GroupNorm(8, outputs), nn.SiLU())


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1), nn.GroupNorm(8, channels), nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.body(x)
        return out
