"""Fine-tune the demo VAE (diffusers AutoencoderTiny, TAESD's shape) for plain reconstruction.

No adversarial loss: the guidance decodes half-denoised latents, where a faithful decoder serves better than a sharp one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from safetensors.torch import load_file, save_file
from torch import Tensor

from .data import FaceSet, batch_at
from .loop import Run, train


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


def train_vae(faces: FaceSet, start: Path, work: Path, settings: VaeSettings) -> Path:
    """Train and write `work/vae.safetensors` (fp16, diffusers keys); resumes from `work/vae.ckpt`.

    Args:
        start: safetensors file with AutoencoderTiny weights to begin from.
    Returns: path of the weights file.
    """
    torch.manual_seed(settings.seed)
    vae = AutoencoderTiny()
    vae.load_state_dict({k: v.float() for k, v in load_file(start).items()})
    vae.to(memory_format=torch.channels_last).train()
    parts = [
        {"params": vae.decoder.parameters(), "lr": settings.rate},
        {"params": vae.encoder.parameters(), "lr": settings.encoder_rate},
    ]
    optimizer = torch.optim.AdamW(parts, weight_decay=0.0, betas=(0.9, 0.99))

    def loss_at(step: int) -> tuple[Tensor, str]:
        crops = _random_crops(faces, batch_at(len(faces), settings.batch, settings.seed, step), settings, step)
        generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
        loss = _reconstruction_loss(vae, crops, settings.latent_noise, generator)
        return loss, f"loss {loss.item():.5f}"

    run = Run("vae", work, settings.steps, settings.ema, settings.checkpoint_every, log_every=20)
    ema = train(run, vae, optimizer, loss_at)
    ema.copy_to(vae)
    out = work / "vae.safetensors"
    save_file({k: v.half().contiguous() for k, v in vae.state_dict().items()}, out)
    return out


def _reconstruction_loss(vae: AutoencoderTiny, crops: Tensor, latent_noise: float, generator: torch.Generator) -> Tensor:
    """Mean square error plus a share of L1, on -1..1 pixels."""
    target = crops * 2 - 1
    latent = vae.encode(target).latents
    latent = latent + latent_noise * torch.randn(latent.shape, generator=generator) * latent.detach().std()
    result = vae.decode(latent).sample
    return F.mse_loss(result, target) + 0.1 * F.l1_loss(result, target)


def _random_crops(faces: FaceSet, indices: list[int], settings: VaeSettings, step: int) -> Tensor:
    """Random square crops, flipped at random. Returns: (B, 3, crop_px, crop_px) float 0..1, channels last."""
    rng = np.random.default_rng([settings.seed, step])
    side = settings.crop_px
    crops = []
    for i in indices:
        image = faces.image(i)
        top, left = rng.integers(0, image.shape[0] - side + 1, 2)
        crop = image[top : top + side, left : left + side]
        crops.append(crop[:, ::-1] if rng.random() < 0.5 else crop)
    batch = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 255
    return batch.contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def reconstruction_psnr(vae: AutoencoderTiny, faces: FaceSet, count: int) -> float:
    """Mean PSNR in dB of decode(encode(image)) over the first `count` faces, on clamped 0..1 pixels."""
    values = []
    for i in range(min(count, len(faces))):
        image = faces.images([i])
        result = vae.decode(vae.encode(image * 2 - 1).latents).sample.add(1).div(2).clamp(0, 1)
        values.append(-10 * torch.log10(F.mse_loss(result, image)).item())
    return float(np.mean(values))
