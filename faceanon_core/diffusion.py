"""The demo model's networks and noise schedule. The only module that imports diffusers."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .attributes import LEARNED, Attributes, to_indices
from .eight_bits import read_weights
from .errors import WeightsError

log = logging.getLogger(__name__)

WORKING_PX = 256
LATENT_FACTOR = 8
LATENT_SCALE = 1 / 1.123  # s in docs/METHOD.md: gives the latents unit spread
CONTEXT_WIDTH = 64
UNET_CONFIG: dict[str, Any] = {
    "sample_size": WORKING_PX // LATENT_FACTOR,
    "in_channels": 9,
    "out_channels": 4,
    "block_out_channels": (128, 256, 384),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": CONTEXT_WIDTH,
    "attention_head_dim": 4,
    "norm_num_groups": 32,
}
SCHEDULE_CONFIG: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
}


@dataclass(frozen=True)
class InpaintCond:
    """Conditioning of a 9-channel inpainting U-Net.

    `context` (B, T, CONTEXT_WIDTH); `mask` (B, 1, h, w), 1 = regenerate; `masked_latent` (B, 4, h, w), the scaled latent
    of the image with the face hidden; `source_latent`, where given, is restored outside the mask at every step.
    `plain_latent`, where given, takes the place of `masked_latent` below the noise level `plain_below`: the same image
    without the lines of a drawing in the hole.
    `opposite`, a context where given, is what the result moves away from: classifier-free guidance by `emphasis` (1 = none).
    """

    context: Tensor
    mask: Tensor
    masked_latent: Tensor
    source_latent: Tensor | None = None
    opposite: Tensor | None = None
    emphasis: float = 1.0
    plain_latent: Tensor | None = None
    plain_below: float = 0.0


class AttributeTokens(nn.Module):
    """One learned token per attribute of the vocabulary and value, "unknown" included: the demo model's text encoder."""

    offsets: Tensor

    def __init__(self) -> None:
        super().__init__()
        sizes = [1 + len(attribute.values) for attribute in LEARNED]
        self.register_buffer("offsets", torch.tensor([0, *np.cumsum(sizes)[:-1]]), persistent=False)
        self.table = nn.Embedding(sum(sizes), CONTEXT_WIDTH)

    def forward(self, indices: Tensor) -> Tensor:
        """(B, attributes) integers of `attributes.to_indices` -> (B, attributes, CONTEXT_WIDTH)."""
        tokens: Tensor = self.table(indices + self.offsets)
        return tokens

    def encode(self, attributes: Attributes) -> Tensor:
        """Context of one set of attributes, (1, attributes, CONTEXT_WIDTH); missing ones are "unknown"."""
        return self(torch.tensor([to_indices(attributes)], device=self.table.weight.device))


class DemoModel:
    """The embedded inpainting model: VAE, 9-channel U-Net and attribute tokens, frozen.

    Args:
        assets: folder with `vae.safetensors`, `unet.safetensors` and `tokens.safetensors`.
    Raises: WeightsError if a file is missing or of another architecture.
    """

    size_px = WORKING_PX

    def __init__(self, assets: Path, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.vae = load_vae(assets / "vae.safetensors", self.device).to(memory_format=torch.channels_last)  # a fifth faster
        self.unet = _load(build_unet(), assets / "unet.safetensors", self.device)
        if has_native_bfloat16(self.device):
            nn.Module.to(self.unet, torch.bfloat16)  # else autocast would convert 42M weights at every step
        self.tokens = _load(AttributeTokens(), assets / "tokens.safetensors", self.device)
        self._log_sigmas = torch.from_numpy(_all_sigmas()).log().float()

    @torch.no_grad()
    def encode(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) float 0..1 -> scaled latent (B, 4, H/8, W/8)."""
        latent: Tensor = self.vae.encode(image.to(self.device) * 2 - 1).latents
        return latent * LATENT_SCALE

    def decode(self, latent: Tensor) -> Tensor:
        """Scaled latent -> (B, 3, H, W), about 0..1 but not clamped; differentiable."""
        image: Tensor = self.vae.decode(latent / LATENT_SCALE).sample
        return (image + 1) / 2

    def decode_rough(self, latent: Tensor) -> Tensor:
        """`decode` in bfloat16 where the hardware has it: for the guidance, which never shows its pixels."""
        with native_bfloat16(self.device):
            return self.decode(latent).float()

    @torch.no_grad()
    def denoise(self, x: Tensor, sigma: Tensor, cond: InpaintCond) -> Tensor:
        """Predicted clean latent for `x` (B, 4, h, w) = latent + sigma * noise; `sigma` (B,). v-prediction."""
        sigma_ = sigma.view(-1, 1, 1, 1)
        unit = (sigma_**2 + 1).sqrt()
        hidden = cond.masked_latent
        if cond.plain_latent is not None and float(sigma[0]) < cond.plain_below:
            hidden = cond.plain_latent
        inputs = torch.cat([x / unit, cond.mask, hidden], dim=1)
        v = self._velocity(inputs, sigma, cond.context)
        if cond.opposite is not None:
            away = self._velocity(inputs, sigma, cond.opposite)
            v = away + cond.emphasis * (v - away)
        denoised = x / unit**2 - v * sigma_ / unit
        if cond.source_latent is None:
            return denoised
        return denoised * cond.mask + cond.source_latent * (1 - cond.mask)

    def _velocity(self, inputs: Tensor, sigma: Tensor, context: Tensor) -> Tensor:
        with native_bfloat16(self.device):
            v: Tensor = self.unet(inputs, self._timestep(sigma), encoder_hidden_states=context).sample.float()
        return v

    def sigmas(self, steps: int) -> Tensor:
        """Decreasing noise levels of `steps` steps, (steps + 1,), the last one 0; uniform in training time."""
        return torch.from_numpy(schedule_sigmas(steps))

    def _timestep(self, sigma: Tensor) -> Tensor:
        distance = (sigma.log().cpu()[:, None] - self._log_sigmas).abs()
        return distance.argmin(dim=1).to(self.device)


def has_native_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is faster than float32 on this device, rather than emulated."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu" and hasattr(torch.cpu, "get_capabilities"):
        found = torch.cpu.get_capabilities()
        return bool(found.get("amx_bf16") or found.get("avx512_bf16"))
    return False


def native_bfloat16(device: torch.device) -> Any:
    """Autocast to bfloat16 on devices that compute in it natively: emulated, it takes far longer than float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=has_native_bfloat16(device))


def build_vae() -> nn.Module:
    """AutoencoderTiny at its defaults: TAESD's architecture, 8x, 4 channels."""
    from diffusers import AutoencoderTiny

    vae: nn.Module = AutoencoderTiny()
    return vae


def load_vae(path: Path, device: torch.device | str = "cpu") -> Any:
    """Read the demo VAE, frozen. Raises: WeightsError."""
    return _load(build_vae(), path, torch.device(device))


def build_unet() -> nn.Module:
    """The demo U-Net, 42.5M weights, uninitialised."""
    from diffusers import UNet2DConditionModel

    unet: nn.Module = UNet2DConditionModel(**UNET_CONFIG)
    return unet


def build_schedule() -> Any:
    """The training schedule as diffusers' DDPMScheduler (add_noise, get_velocity)."""
    from diffusers import DDPMScheduler

    return DDPMScheduler(**SCHEDULE_CONFIG)


def schedule_sigmas(steps: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """k-diffusion sigmas of `steps` uniformly spaced timesteps from the noisiest, with a final 0."""
    from diffusers import EulerAncestralDiscreteScheduler

    scheduler = EulerAncestralDiscreteScheduler(**SCHEDULE_CONFIG, timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    return np.asarray(scheduler.sigmas, np.float32)


def last_sigma(sigmas: Tensor, share: float) -> float:
    """Noise level of the last step that begins within the first `share` 0..1 of a schedule; infinite where none does.

    Args:
        sigmas: (steps + 1,), of the whole schedule.
    """
    steps = len(sigmas) - 1
    begun = math.ceil(share * steps - 1e-6)  # 0.28 of 25 steps are 7, though the product is a bit more
    return float(sigmas[begun - 1]) if begun else math.inf


def _all_sigmas() -> np.ndarray[Any, np.dtype[np.float64]]:
    alphas = build_schedule().alphas_cumprod.double().numpy()
    return np.sqrt((1 - alphas) / alphas)


def _load(module: Any, path: Path, device: torch.device) -> Any:
    state = read_weights(path)
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise WeightsError(f"{path} holds another architecture than the demo model's; reinstall the pack") from error
    return module.to(device).eval().requires_grad_(False)
