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
    """What the sampler asks of a guidance; `guidance.CombinedGuidance` is the one we ship."""

    def active(self, progress: float) -> bool:
        """Whether to guide at this share 0..1 of the schedule."""
        ...

    def gradient(self, denoised: Tensor, progress: float) -> tuple[Tensor, dict[str, float]]:
        """g of docs/METHOD.md for `denoised` (B, C, h, w) there, weights included, and the losses it came from."""
        ...


@dataclass(frozen=True)
class Step:
    """What a callback sees after a model call. `losses` is empty where the step was not guided."""

    index: int
    count: int
    sigma: float
    denoised: Tensor
    losses: dict[str, float] = field(default_factory=dict)


def ancestral_step(sigma: Tensor, sigma_next: Tensor, eta: float = 1.0) -> tuple[Tensor, Tensor]:
    """Split a step into its deterministic end sigma_down and the noise sigma_up added after it (k-diffusion).

    With eta = 1 this is DDIM at eta = 1; sigma_up is DDIM's sigma_t over sqrt(alpha_bar_prev), docs/METHOD.md.
    """
    if eta == 0:
        return sigma_next, torch.zeros_like(sigma_next)
    spread = eta * (sigma_next**2 * (sigma**2 - sigma_next**2) / sigma**2) ** 0.5
    sigma_up = torch.minimum(sigma_next, spread)
    return (sigma_next**2 - sigma_up**2) ** 0.5, sigma_up


@torch.no_grad()
def sample_guided(
    denoiser: Denoiser, x: Tensor, sigmas: Tensor, cond: Any, noise_sampler: NoiseSampler,
    guidance: Guidance | None = None, eta: float = 1.0, callback: Callable[[Step], None] | None = None,
) -> Tensor:  # fmt: skip
    """Denoise `x` with ancestral Euler steps; after each, x = x - sigma_up * g (docs/METHOD.md, adaptive guidance).

    Args:
        denoiser: (x, sigma (B,), cond) -> predicted clean latent, of x's shape.
        x: (B, C, h, w), clean latent plus sigmas[0] * noise.
        sigmas: (N + 1,) decreasing; the last may be 0.
        noise_sampler: x -> unit normal noise of x's shape; called once per step that adds noise.
        guidance: None samples without guidance, bit for bit the same as a guidance that is never active.
        callback: called once per step with the model's prediction; raising in it stops the run.
    Returns: (B, C, h, w), the clean latent.
    Raises: InputError for a schedule that does not decrease; AnonymizationError if the model returns NaN.
    """
    count = len(sigmas) - 1
    if count < 1 or bool((sigmas[1:] >= sigmas[:-1]).any()):
        raise InputError("the noise schedule must have at least one step and decrease at each")
    for index in range(count):
        sigma = sigmas[index]
        denoised = denoiser(x, sigma * x.new_ones(len(x)), cond)
        if not bool(torch.isfinite(denoised).all()):
            raise AnonymizationError(f"the model returned NaN at step {index + 1} of {count}; nothing was made")
        sigma_down, sigma_up = ancestral_step(sigma, sigmas[index + 1], eta)
        losses: dict[str, float] = {}
        pull = None
        if guidance is not None and sigma_up > 0 and guidance.active(index / count):
            pull, losses = guidance.gradient(denoised, index / count)
        if callback is not None:
            callback(Step(index, count, float(sigma), denoised, losses))
        if sigma_down == 0:
            x = denoised
            continue
        # the order of these operations is k-diffusion's, so that an unguided run equals sample_euler_ancestral bit for bit
        x = x + (x - denoised) / sigma * (sigma_down - sigma) + noise_sampler(x) * sigma_up
        if pull is not None:
            x = x - sigma_up * pull
    return x


def seeded_noise(seed: int) -> NoiseSampler:
    """Noise that depends on the seed only, not on the device or on what ran before."""
    generator = torch.Generator().manual_seed(seed)

    def sample(x: Tensor) -> Tensor:
        return torch.randn(x.shape, generator=generator, dtype=torch.float32).to(x)

    return sample
