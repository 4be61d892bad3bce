"""Adaptive attribute guidance: the gradient that pulls the predicted image towards a target face's features."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .encoder import AttributeEncoder
from .errors import AnonymizationError, InputError

Tokens = Literal["all", "class", "patches"]
CHUNK_PX = 512 * 512  # decoded pixels that are differentiated at once; a large VAE needs gigabytes for these
_PX_PER_LATENT = 64  # the VAEs of SD 1.x, SD 2 and SDXL, and the demo model's: 8 by 8


@dataclass(frozen=True)
class GuidanceSettings:
    """Weights and schedule. `strength` multiplies the encoder's own unit (w_opt in METHOD.md)."""

    strength: float = 1.0
    toward: float = 1.0  # w_sim: pull towards the target's features
    away: float = 0.0  # w_dis: push away from the source's features
    start: float = 0.0  # share of the schedule, 0..1, at which guidance begins
    end: float = 0.4  # ... and ends; a guided step costs several plain ones (1 in the paper)
    tokens: Tokens = "all"  # which of the encoder's tokens are compared
    normalise: bool = True  # scale the encoder's input its own way; the reference does not

    def __post_init__(self) -> None:
        for name in ("strength", "toward", "away", "start", "end"):
            value = getattr(self, name)
            if not math.isfinite(value) or value < 0:
                raise InputError(f"guidance {name} must be a number of at least 0, got {value}")
        if self.start > self.end or self.end > 1:
            raise InputError(f"guidance must run from start to end within 0..1, got {self.start}..{self.end}")


class AttributeGuidance:
    """L and g of METHOD.md for one batch of faces. Features of target and source are computed once, here.

    Args:
        encoder: phi.
        decode: D, latent (B, C, h, w) -> image (B, 3, H, W), about 0..1; differentiable.
        target: (B or 1, 3, H, W) float 0..1, T.
        source: (B or 1, 3, H, W) float 0..1, I; needed only where `settings.away` > 0.
        chunk_px: decoded pixels handled at once, at least one face; memory grows with it, the result stays the same.
    Raises: InputError if `away` is asked for without a source.
    """

    def __init__(
        self, encoder: AttributeEncoder, decode: Callable[[Tensor], Tensor], settings: GuidanceSettings,
        target: Tensor, source: Tensor | None = None, chunk_px: int = CHUNK_PX,
    ) -> None:  # fmt: skip
        if settings.away > 0 and source is None:
            raise InputError("pushing away from the source needs the source image; set away to 0 or pass it")
        self.encoder, self.decode, self.settings, self.chunk_px = encoder, decode, settings, chunk_px
        self._target = self._features(target)
        self._source = self._features(source) if settings.away > 0 and source is not None else None

    @torch.no_grad()
    def _features(self, images: Tensor) -> Tensor:
        faces = max(1, self.chunk_px // images[0, 0].numel())
        return torch.cat([self.encoder.features(part, self.settings.normalise) for part in images.split(faces)])

    def active(self, progress: float) -> bool:
        """Whether `progress` 0..1 lies in the guided part of the schedule and the strength is not 0."""
        return self.settings.strength > 0 and self.settings.start <= progress < self.settings.end

    def losses(self, image: Tensor, faces: slice = slice(None)) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted loss and its parts, each (B,), for decoded images (B, 3, H, W): those of the batch's `faces`."""
        features = self.encoder.features(image, self.settings.normalise)
        parts = {"toward": feature_distance(features, _rows(self._target, faces), self.settings.tokens)}
        total = self.settings.toward * parts["toward"]
        if self._source is not None:
            parts["away"] = feature_distance(features, _rows(self._source, faces), self.settings.tokens)
            total = total - self.settings.away * parts["away"]
        return total, parts

    def gradient(self, denoised: Tensor) -> tuple[Tensor, dict[str, float]]:
        """g = w_opt * dL/d(denoised), METHOD.md; the model itself is not differentiated.

        Faces do not depend on each other, so they are decoded and differentiated a few at a time.

        Args:
            denoised: (B, C, h, w) predicted clean latent.
        Returns: gradient of the same shape, and the mean losses for the readout.
        Raises: InputError if the targets or sources are neither one nor B; AnonymizationError if the gradient is not finite.
        """
        self._check_counts(len(denoised))
        at_once = max(1, self.chunk_px // (denoised[0, 0].numel() * _PX_PER_LATENT))
        gradients: list[Tensor] = []
        readouts: list[dict[str, Tensor]] = []
        for first in range(0, len(denoised), at_once):
            faces = slice(first, first + at_once)
            with torch.enable_grad():
                latent = denoised[faces].detach().requires_grad_(True)
                total, parts = self.losses(self.decode(latent), faces)
                gradients += torch.autograd.grad(total.sum(), latent)
            readouts.append({name: value.detach() for name, value in parts.items()})
        gradient = torch.cat(gradients)
        if not bool(torch.isfinite(gradient).all()):
            raise AnonymizationError("the guidance gradient is not finite; lower the strength or use float32 weights")
        readout = {name: float(torch.cat([parts[name] for parts in readouts]).mean()) for name in readouts[0]}
        return gradient * (self.settings.strength * self.encoder.unit_strength), readout

    def _check_counts(self, count: int) -> None:
        for name, features in (("target", self._target), ("source", self._source)):
            if features is not None and len(features) not in (1, count):
                raise InputError(
                    f"the guidance has {len(features)} {name} faces but {count} faces are sampled; give one for all, or one "
                    "for each (Attribute Guidance hands them out when crops are connected)"
                )


def _rows(features: Tensor, faces: slice) -> Tensor:
    return features if len(features) == 1 else features[faces]


def feature_distance(features: Tensor, wanted: Tensor, tokens: Tokens = "all") -> Tensor:
    """Sum over tokens of the mean square difference over channels: sum_k MSE_k of METHOD.md.

    Args:
        features, wanted: (B, 1 + patches, D); `wanted` may have batch 1.
    Returns: (B,).
    """
    chosen = {"all": slice(None), "class": slice(0, 1), "patches": slice(1, None)}[tokens]
    return ((features[:, chosen] - wanted[:, chosen]) ** 2).mean(-1).sum(-1)
