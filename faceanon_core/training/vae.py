"""Train the demo VAE (diffusers AutoencoderTiny, TAESD's shape): first for plain reconstruction, then the decoder alone for
crispness, against a small discriminator.

Plain reconstruction leads: the guidance decodes half-denoised latents, where a faithful decoder serves better than a sharp
one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..diffusion import build_vae
from .data import FaceSet, batch_at
from .loop import Parts, Run, train

Crops = Callable[[int], Tensor]  # step -> (B, 3, S, S) float -1..1


@dataclass(frozen=True)
class VaeSettings:
    steps: int = 700
    batch: int = 8
    crop_px: int = 128
    rate: float = 4e-4
    encoder_rate: float = 1e-4  # small: the U-Net was trained on the latents of the starting encoder
    latent_noise: float = 0.02  # share of the latent's own spread
    ema: float = 0.99
    seed: int = 0
    checkpoint_every: int = 100
    sharpen_steps: int = 0  # of the decoder against a discriminator, after the others
    sharpen_rate: float = 1e-4
    critic_rate: float = 2e-4
    sharpness: float = 0.3  # gradient of the discriminator's loss at the decoder's last layer, over the reconstruction's


def train_vae(faces: FaceSet, start: Path, work: Path, settings: VaeSettings, device: str = "cpu") -> None:
    """Train and write `work/vae.safetensors` (fp16, diffusers keys); resumes from `work/vae.ckpt`.

    With `sharpen_steps`, the weights before sharpening are left as `work/vae-plain.safetensors`.

    Args:
        start: safetensors file with AutoencoderTiny weights to begin from.
    """
    torch.manual_seed(settings.seed)
    vae: Any = build_vae()
    vae.load_state_dict({k: v.float() for k, v in load_file(start).items()})
    vae.to(device).to(memory_format=torch.channels_last).train()
    parts = [
        {"params": vae.decoder.parameters(), "lr": settings.rate},
        {"params": vae.encoder.parameters(), "lr": settings.encoder_rate},
    ]
    optimizer = torch.optim.AdamW(parts, weight_decay=0.0, betas=(0.9, 0.99))
    crops = _random_crops(faces, settings, device)

    def loss_at(step: int) -> tuple[Tensor, Parts]:
        generator = torch.Generator(device).manual_seed(settings.seed * 1_000_003 + step)
        loss = _reconstruction_loss(vae, crops(step), settings.latent_noise, generator)
        return loss, {"loss": loss.detach()}

    run = Run("vae", work, settings.steps, settings.ema, settings.checkpoint_every, log_every=20)
    train(run, vae, optimizer, loss_at).copy_to(vae)
    if settings.sharpen_steps:
        _save(vae, work / "vae-plain.safetensors")
        sharpen(vae, crops, work, settings)
    _save(vae, work / "vae.safetensors")


def _save(vae: Any, path: Path) -> None:
    save_file({k: v.half().cpu().contiguous() for k, v in vae.state_dict().items()}, path)


def sharpen(vae: Any, crops: Crops, work: Path, settings: VaeSettings) -> None:
    """Train the decoder on in place, with a discriminator's loss beside the reconstruction's; the latents stay as they are.

    The discriminator's share is scaled as in VQGAN (Esser et al. 2021, eq. 7), so that it never outgrows reconstruction.
    Not resumable: it is short.
    """
    vae.encoder.requires_grad_(False)
    device = next(vae.parameters()).device
    critic = build_critic().to(device)
    judge = torch.optim.AdamW(critic.parameters(), lr=settings.critic_rate, betas=(0.5, 0.9), weight_decay=0.0)
    optimizer = torch.optim.AdamW(vae.decoder.parameters(), lr=settings.sharpen_rate, betas=(0.5, 0.9), weight_decay=0.0)

    def loss_at(step: int) -> tuple[Tensor, Parts]:
        real = crops(settings.steps + step)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            with torch.no_grad():
                latent = vae.encode(real).latents
            made = vae.decode(latent).sample.float()
        judge_loss = F.relu(1 - critic(real)).mean() + F.relu(1 + critic(made.detach())).mean()
        judge.zero_grad(set_to_none=True)
        judge_loss.backward()
        judge.step()
        plain, fooled = _pixel_loss(made, real), -critic(made).mean()
        share = _balance(plain, fooled, vae.decoder.layers[-1].weight) * settings.sharpness
        begin = min(1.0, step / 200)  # the discriminator has to learn something first
        loss = plain + begin * share * fooled
        return loss, {"plain": plain.detach(), "critic": judge_loss.detach()}

    run = Run("sharpen", work, settings.sharpen_steps, settings.ema, settings.sharpen_steps, log_every=50)
    train(run, vae, optimizer, loss_at).copy_to(vae)


def _balance(plain: Tensor, fooled: Tensor, last: Tensor) -> Tensor:
    """How much larger the reconstruction's gradient is than the discriminator's, at the decoder's last layer."""
    ours, theirs = (torch.autograd.grad(loss, last, retain_graph=True)[0].norm() for loss in (plain, fooled))
    return (ours / (theirs + 1e-6)).clamp(0, 1e4).detach()


def build_critic() -> nn.Module:
    """A discriminator of overlapping 34 px patches, (B, 3, H, W) -> (B, 1, H / 8, W / 8)."""
    layers: list[nn.Module] = []
    widths = (3, 64, 128, 256)
    for inputs, outputs in pairwise(widths):
        convolution = nn.Conv2d(inputs, outputs, 4, stride=2, padding=1)
        layers += [nn.utils.parametrizations.spectral_norm(convolution), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, nn.utils.parametrizations.spectral_norm(nn.Conv2d(widths[-1], 1, 3, padding=1)))


def _reconstruction_loss(vae: Any, target: Tensor, latent_noise: float, generator: torch.Generator) -> Tensor:
    with torch.autocast(target.device.type, torch.bfloat16, enabled=target.device.type == "cuda"):
        latent = vae.encode(target).latents
        noise = torch.randn(latent.shape, generator=generator, device=latent.device)
        result = vae.decode(latent + latent_noise * noise * latent.detach().std()).sample
    return _pixel_loss(result.float(), target)


def _pixel_loss(result: Tensor, target: Tensor) -> Tensor:
    """Mean square error plus a share of L1, on -1..1 pixels."""
    return F.mse_loss(result, target) + 0.1 * F.l1_loss(result, target)


def _random_crops(faces: FaceSet, settings: VaeSettings, device: str) -> Crops:
    """Random square crops, flipped at random, of pictures that are decoded once and lie on the device."""
    pictures, side = faces.pixels(range(len(faces))).to(device), settings.crop_px

    def crops(step: int) -> Tensor:
        rng = np.random.default_rng([settings.seed, step])
        cut = []
        for i in batch_at(len(faces), settings.batch, settings.seed, step):
            top, left = rng.integers(0, pictures.shape[-1] - side + 1, 2)
            crop = pictures[i, :, top : top + side, left : left + side]
            cut.append(crop.flip(-1) if rng.random() < 0.5 else crop)
        return (torch.stack(cut).float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)

    return crops


@torch.no_grad()
def reconstruction_psnr(vae: Any, faces: FaceSet, count: int) -> float:
    """Mean PSNR in dB of decode(encode(image)) over the first `count` faces, on clamped 0..1 pixels."""
    values = []
    for i in range(min(count, len(faces))):
        image = faces.images([i]).to(vae.device)
        result = vae.decode(vae.encode(image * 2 - 1).latents).sample.add(1).div(2).clamp(0, 1)
        values.append(-10 * torch.log10(F.mse_loss(result, image)).item())
    return float(np.mean(values))
