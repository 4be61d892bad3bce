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
    Raises: InputError if `away` is asked for without a source.
    """

    def __init__(
        self, encoder: AttributeEncoder, decode: Callable[[Tensor], Tensor], settings: GuidanceSettings,
        target: Tensor, source: Tensor | None = None,
    ) -> None:  # fmt: skip
        if settings.away > 0 and source is None:
            raise InputError("pushing away from the source needs the source image; set away to 0 or pass it")
        self.encoder, self.decode, self.settings = encoder, decode, settings
        with torch.no_grad():
            self._target = encoder.features(target, settings.normalise)
            self._source = encoder.features(source, settings.normalise) if settings.away > 0 and source is not None else None

    def active(self, progress: float) -> bool:
        """Whether `progress` 0..1 lies in the guided part of the schedule and the strength is not 0."""
        return self.settings.strength > 0 and self.settings.start <= progress < self.settings.end

    def losses(self, image: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted loss and its parts, each (B,), for a decoded image (B, 3, H, W)."""
        features = self.encoder.features(image, self.settings.normalise)
        parts = {"toward": feature_distance(features, self._target, self.settings.tokens)}
        total = self.settings.toward * parts["toward"]
        if self._source is not None:
            parts["away"] = feature_distance(features, self._source, self.settings.tokens)
            total = total - self.settings.away * parts["away"]
        return total, parts

    def gradient(self, denoised: Tensor) -> tuple[Tensor, dict[str, float]]:
        """g = w_opt * dL/d(denoised), METHOD.md; the model itself is not differentiated.

        Args:
            denoised: (B, C, h, w) predicted clean latent.
        Returns: gradient of the same shape, and the mean losses for the readout.
        Raises: AnonymizationError if the gradient is not finite.
        """
        with torch.enable_grad():
            latent = denoised.detach().requires_grad_(True)
            total, parts = self.losses(self.decode(latent))
            (gradient,) = torch.autograd.grad(total.sum(), latent)
        if not bool(torch.isfinite(gradient).all()):
            raise AnonymizationError("the guidance gradient is not finite; lower the strength or use float32 weights")
        readout = {name: float(value.detach().mean()) for name, value in parts.items()}
        return gradient.detach() * (self.settings.strength * self.encoder.unit_strength), readout


def feature_distance(features: Tensor, wanted: Tensor, tokens: Tokens = "all") -> Tensor:
    """Sum over tokens of the mean square difference over channels: sum_k MSE_k of METHOD.md.

    Args:
        features, wanted: (B, 1 + patches, D); `wanted` may have batch 1.
    Returns: (B,).
    """
    chosen = {"all": slice(None), "class": slice(0, 1), "patches": slice(1, None)}[tokens]
    return ((features[:, chosen] - wanted[:, chosen]) ** 2).mean(-1).sum(-1)
