"""The guided sampler in k-diffusion form: Euler-ancestral steps, each pulled by the guidance's gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from .errors import AnonymizationError, InputError

Denoiser = Callable[[Tensor, Tensor, Any], Tensor]
NoiseSampler = Callable[[Tensor], Tensor]


class Guidance(Protocol):
    """What the sampler asks of a guidance; `guidance.AttributeGuidance` is the one we ship."""

    def active(self, progress: float) -> bool:
        """Whether to guide at this share 0..1 of the schedule."""
        ...

    def gradient(self, denoised: Tensor) -> tuple[Tensor, dict[str, float]]:
        """g of METHOD.md for `denoised` (B, C, h, w), weights included, and the losses it came from."""
        ...


@dataclass(frozen=True)
class Step:
    """What a callback sees after a model call. `losses` is empty where the step was not guided."""

    index: int
    count: int
    sigma: float
    denoised: Tensor
    losses: dict[str, float] = field(default_factory=dict)


def ancestral_step(sigma: float, sigma_next: float, eta: float = 1.0) -> tuple[float, float]:
    """Split a step into its deterministic end sigma_down and the noise sigma_up added after it (k-diffusion).

    With eta = 1 this is DDIM at eta = 1; sigma_up is DDIM's sigma_t over sqrt(alpha_bar_prev), METHOD.md.
    """
    if sigma_next <= 0 or eta <= 0:
        return sigma_next, 0.0
    sigma_up = min(sigma_next, eta * (sigma_next**2 * (sigma**2 - sigma_next**2) / sigma**2) ** 0.5)
    return (sigma_next**2 - sigma_up**2) ** 0.5, sigma_up


@torch.no_grad()
def sample_guided(
    denoiser: Denoiser, x: Tensor, sigmas: Tensor, cond: Any, noise_sampler: NoiseSampler,
    guidance: Guidance | None = None, eta: float = 1.0, callback: Callable[[Step], None] | None = None,
) -> Tensor:  # fmt: skip
    """Denoise `x` with ancestral Euler steps; after each, x = x - sigma_up * g (METHOD.md, adaptive guidance).

    Args:
        denoiser: (x, sigma (B,), cond) -> predicted clean latent, of x's shape.
        x: (B, C, h, w), clean latent plus sigmas[0] * noise.
        sigmas: (N + 1,) decreasing; the last may be 0.
        noise_sampler: x -> unit normal noise of x's shape; called once per step that adds noise.
        guidance: None samples without guidance, bit for bit the same as a guidance that is never active.
        callback: called after each step; raising in it stops the run.
    Returns: (B, C, h, w), the clean latent.
    Raises: InputError for a schedule that does not decrease; AnonymizationError if the model returns NaN.
    """
    levels = [float(sigma) for sigma in sigmas]
    if len(levels) < 2 or any(a <= b for a, b in zip(levels[:-1], levels[1:], strict=True)):
        raise InputError("the noise schedule must have at least one step and decrease at each")
    count = len(levels) - 1
    for index in range(count):
        sigma, sigma_next = levels[index], levels[index + 1]
        denoised = denoiser(x, x.new_full((len(x),), sigma), cond)
        if not bool(torch.isfinite(denoised).all()):
            raise AnonymizationError(f"the model returned NaN at step {index + 1} of {count}; nothing was made")
        sigma_down, sigma_up = ancestral_step(sigma, sigma_next, eta)
        losses: dict[str, float] = {}
        pull = None
        if guidance is not None and sigma_up > 0 and guidance.active(index / count):
            gradient, losses = guidance.gradient(denoised)
            pull = sigma_up * gradient
        x = x + (x - denoised) / sigma * (sigma_down - sigma)
        if sigma_up > 0:
            x = x + noise_sampler(x) * sigma_up
        if pull is not None:
            x = x - pull
        if callback is not None:
            callback(Step(index, count, sigma, denoised, losses))
    return x


def seeded_noise(seed: int) -> NoiseSampler:
    """Noise that depends on the seed only, not on the device or on what ran before."""
    generator = torch.Generator().manual_seed(seed)

    def sample(x: Tensor) -> Tensor:
        return torch.randn(x.shape, generator=generator, dtype=torch.float32).to(x)

    return sample
