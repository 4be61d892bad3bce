"""Adaptive attribute guidance: the gradient that pulls the predicted image towards what its terms want.

A guidance is a list of terms over one decoded image. The paper's is `AttributeTerm` alone.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .diffusion import has_native_bfloat16
from .encoder import AttributeEncoder
from .errors import AnonymizationError, InputError

Tokens = Literal["all", "class", "patches", "region"]
CHUNK_PX = 512 * 512  # decoded pixels that are differentiated at once; a large VAE needs gigabytes for these
REUSE = 5  # gradients of steps in a row hardly differ; docs/BENCHMARK.md has what longer and shorter gaps keep
LIMIT = 0.06  # root mean square of a pull, in shares of the noise its step adds; beyond, faces get stains and burn out
PX_PER_LATENT = 64  # the VAEs of SD 1.x, SD 2 and SDXL, and the demo model's: 8 by 8


@dataclass(frozen=True)
class TermSettings:
    """How strongly a term acts, in its own unit, and when."""

    strength: float = 1.0
    start: float = 0.0  # share of the schedule, 0..1, at which the term begins to act
    end: float = 1.0  # ... and ends; at 0.4 three quarters of the effect are lost

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, int | float) and not (math.isfinite(value) and value >= 0):
                raise InputError(f"guidance {name} must be a number of at least 0, got {value}")
        if self.start > self.end or self.end > 1:
            raise InputError(f"guidance must run from start to end within 0..1, got {self.start}..{self.end}")

    def active(self, progress: float) -> bool:
        """Whether `progress` 0..1 lies in the guided part of the schedule and the strength is not 0."""
        return self.strength > 0 and self.start <= progress < self.end


OFF = TermSettings(strength=0.0)


@dataclass(frozen=True)
class GuidanceSettings(TermSettings):
    """Settings of `AttributeTerm`. `strength` multiplies the encoder's own unit (w_opt in docs/METHOD.md)."""

    toward: float = 1.0  # w_sim: pull towards the target's features
    away: float = 0.0  # w_dis: push away from the source's features
    tokens: Tokens = "all"  # which of the encoder's tokens are compared; "region": patches in the regenerated region
    normalise: bool = True  # scale the encoder's input its own way; the reference does not
    reuse: int = REUSE  # guided steps that one gradient serves, of all terms together; 1 in the paper
    exact: bool = False  # the gradient in float32, as in the paper, where bfloat16 would be faster
    limit: float | None = LIMIT  # longest pull of all terms together; None sets none, as in the paper

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reuse < 1:
            raise InputError(f"guidance reuse must be at least 1, got {self.reuse}")
        if self.limit == 0:
            raise InputError("a guidance limit of 0 lets nothing through; use a strength of 0 to switch the guidance off")


class Term(ABC):
    """One wish about the predicted image. `unit` is the weight of its loss at strength 1.

    `rows` says of every per-face input how many faces it has; each must be one for all, or one for each face sampled.
    """

    def __init__(self, settings: TermSettings, unit: float) -> None:
        self.settings, self.weight = settings, settings.strength * unit
        self.rows: dict[str, int] = {}

    @abstractmethod
    def losses(self, image: Tensor, faces: slice = slice(None)) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and its parts for the readout, each (B,), of decoded images (B, 3, H, W): those of the batch's `faces`."""


class AttributeTerm(Term):
    """L of docs/METHOD.md for one batch of faces. Features of target and source are computed once, here.

    Args:
        encoder: phi.
        target: (B or 1, 3, H, W) float 0..1, T.
        source: (B or 1, 3, H, W) float 0..1, I; needed only where `settings.away` > 0.
        region: (B or 1, 1, H, W), 1 = regenerate; needed only for the tokens "region".
        chunk_px: pixels encoded at once, at least one face.
    Raises: InputError if `away` is asked for without a source, or tokens of a region without one.
    """

    def __init__(
        self, encoder: AttributeEncoder, settings: GuidanceSettings, target: Tensor, source: Tensor | None = None,
        region: Tensor | None = None, chunk_px: int = CHUNK_PX,
    ) -> None:  # fmt: skip
        super().__init__(settings, encoder.unit_strength)
        if settings.away > 0 and source is None:
            raise InputError("pushing away from the source needs the source image; set away to 0 or pass it")
        if settings.tokens == "region" and region is None:
            raise InputError("comparing the tokens of the region needs its mask; pass it or choose other tokens")
        self.encoder, self.toward, self.away, self.normalise = encoder, settings.toward, settings.away, settings.normalise
        self._reduced = encoder.large and not settings.exact
        self._target = self._features(target, chunk_px)
        self._source = self._features(source, chunk_px) if settings.away > 0 and source is not None else None
        self._chosen = token_weights(settings.tokens, self._target.shape[1], region).to(self._target)
        self.rows = {"target": len(self._target), "region": len(self._chosen)}
        if self._source is not None:
            self.rows["source"] = len(self._source)

    @torch.no_grad()
    def _features(self, images: Tensor, chunk_px: int) -> Tensor:
        faces = max(1, chunk_px // images[0, 0].numel())
        return torch.cat([self._encode(part) for part in images.split(faces)])

    def _encode(self, image: Tensor) -> Tensor:
        reduced = self._reduced and has_native_bfloat16(image.device)
        with torch.autocast(image.device.type, torch.bfloat16, enabled=reduced):
            return self.encoder.features(image, self.normalise).to(image.dtype)

    def losses(self, image: Tensor, faces: slice = slice(None)) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Term.losses`; "toward" and "away" are the distances from target and source."""
        features, chosen = self._encode(image), rows_of(self._chosen, faces)
        parts = {"toward": _distance(features, rows_of(self._target, faces), chosen)}
        total = self.toward * parts["toward"]
        if self._source is not None:
            parts["away"] = _distance(features, rows_of(self._source, faces), chosen)
            total = total - self.away * parts["away"]
        return total, parts


class CombinedGuidance:
    """The gradient of several terms together. The image is decoded once per step, whatever their number.

    Args:
        decode: D, latent (B, C, h, w) -> image (B, 3, H, W), about 0..1; differentiable.
        reuse: guided steps in a row that one gradient serves.
        limit: see `GuidanceSettings.limit`; a longer gradient of a face is shortened to it.
        chunk_px: decoded pixels handled at once, at least one face; memory grows with it, the result stays the same.
    """

    def __init__(
        self, decode: Callable[[Tensor], Tensor], terms: Sequence[Term], reuse: int = 1, limit: float | None = None,
        chunk_px: int = CHUNK_PX,
    ) -> None:  # fmt: skip
        self.decode, self.terms, self.reuse, self.limit, self.chunk_px = decode, terms, reuse, limit, chunk_px
        self._held: Tensor | None = None  # the last gradient
        self._acting: list[Term] = []  # the terms it is of
        self._served = 0  # how many steps it served
        self._progress = 0.0  # of the last of them

    def active(self, progress: float) -> bool:
        """Whether any term acts at this share 0..1 of the schedule."""
        return any(term.settings.active(progress) for term in self.terms)

    def gradient(self, denoised: Tensor, progress: float) -> tuple[Tensor, dict[str, float]]:
        """g = d(sum of weight * loss)/d(denoised), docs/METHOD.md; the model itself is not differentiated.

        Call it for the steps of one run in order: a gradient is computed for the first and for every `reuse`-th after it,
        the steps between get the last one; and anew where a term begins or ends. Faces do not depend on each other, so they
        are decoded and differentiated a few at a time.

        Args:
            denoised: (B, C, h, w) predicted clean latent.
            progress: share 0..1 of the schedule; at least one term must be active there.
        Returns: gradient of the same shape, and the mean losses for the readout, empty where a gradient served again.
        Raises: InputError if a term was made for neither one face nor B; AnonymizationError if the gradient is not finite.
        """
        readout: dict[str, float] = {}
        terms = [term for term in self.terms if term.settings.active(progress)]
        going_on = progress >= self._progress and terms == self._acting
        if self._held is None or not going_on or self._held.shape != denoised.shape or self._served >= self.reuse:
            self._held, readout = self._compute(denoised, terms)
            self._served, self._acting = 0, terms
        self._served, self._progress = self._served + 1, progress
        return self._held, readout

    def _compute(self, denoised: Tensor, terms: list[Term]) -> tuple[Tensor, dict[str, float]]:
        _check_counts(terms, len(denoised))
        scale = max(term.weight for term in terms)  # weighed only relative to each other: a half-precision decoder's range
        at_once = max(1, self.chunk_px // (denoised[0, 0].numel() * PX_PER_LATENT))
        gradients: list[Tensor] = []
        readouts: list[dict[str, Tensor]] = []
        for first in range(0, len(denoised), at_once):
            faces = slice(first, first + at_once)
            with torch.enable_grad():
                latent = denoised[faces].detach().requires_grad_(True)
                image = self.decode(latent)
                found = [term.losses(image, faces) for term in terms]
                weighed = [term.weight / scale * loss.sum() for term, (loss, _) in zip(terms, found, strict=True)]
                gradients += torch.autograd.grad(torch.stack(weighed).sum(), latent)
            readouts.append({name: value.detach() for _, parts in found for name, value in parts.items()})
        gradient = torch.cat(gradients)
        if not bool(torch.isfinite(gradient).all()):
            raise AnonymizationError("the guidance gradient is not finite; lower the strength or use float32 weights")
        readout = {name: float(torch.cat([parts[name] for parts in readouts]).mean()) for name in readouts[0]}
        return _shortened(gradient * scale, self.limit), readout


def _shortened(gradient: Tensor, limit: float | None) -> Tensor:
    """Each face's gradient (B, C, h, w), shortened where its root mean square exceeds `limit`."""
    if limit is None:
        return gradient
    length = gradient.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
    return gradient * (limit / length).clamp(max=1)


def _check_counts(terms: list[Term], count: int) -> None:
    for name, rows in ((name, rows) for term in terms for name, rows in term.rows.items()):
        check_rows(rows, name, count)


def check_rows(rows: int, name: str, count: int) -> None:
    """Raises: InputError unless there are as many rows as faces, or one for all of them."""
    if rows not in (1, count):
        raise InputError(
            f"the guidance has {rows} {name} faces but {count} faces are sampled; give one for all, or one "
            "for each (Attribute Guidance hands them out when crops are connected)"
        )


def rows_of(values: Tensor, faces: slice | list[int]) -> Tensor:
    """The rows of some of the batch's faces; a single row is everyone's."""
    return values if len(values) == 1 else values[faces]


def token_weights(tokens: Tokens, count: int, region: Tensor | None = None) -> Tensor:
    """1 for every token that is compared, else 0.

    Args:
        count: how many tokens there are, the class token first, then the patches of a square grid.
        region: (B, 1, H, W), 1 = regenerate; for "region", whose patches count when at least half of them lies inside. Where
            none does, the one of which most lies inside counts.
    Returns: (B, count) for "region", else (1, count).
    """
    if tokens == "region" and region is not None:
        shares = F.adaptive_avg_pool2d(region.float(), math.isqrt(count - 1)).flatten(1)
        return F.pad((shares >= shares.amax(1, keepdim=True).clamp(max=0.5)).float(), (1, 0))
    weights = torch.ones(1, count)
    if tokens == "class":
        weights[:, 1:] = 0
    elif tokens == "patches":
        weights[:, 0] = 0
    return weights


def _distance(features: Tensor, wanted: Tensor, weights: Tensor) -> Tensor:
    return (((features - wanted) ** 2).mean(-1) * weights).sum(-1)


def feature_distance(features: Tensor, wanted: Tensor, tokens: Tokens = "all", region: Tensor | None = None) -> Tensor:
    """Sum over tokens of the mean square difference over channels: sum_k MSE_k of docs/METHOD.md.

    Args:
        features, wanted: (B, 1 + patches, D); `wanted` may have batch 1.
        region: see `token_weights`.
    Returns: (B,).
    """
    return _distance(features, wanted, token_weights(tokens, features.shape[1], region).to(features))
