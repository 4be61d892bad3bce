"""Train the demo attribute encoder: attributes, landmarks, and telling one face from another."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from ..attributes import LEARNED, Attributes, to_indices
from ..diffusion import native_bfloat16
from ..encoder import DemoEncoder, landmark_targets
from .data import FaceSet, batch_at
from .loop import Parts, Run, train


@dataclass(frozen=True)
class EncoderSettings:
    steps: int = 1800
    batch: int = 24  # two views of each face
    rate: float = 1e-3
    ema: float = 0.995
    seed: int = 0
    temperature: float = 0.15


def train_encoder(
    faces: FaceSet, labels: list[Attributes], work: Path, settings: EncoderSettings, device: str = "cpu"
) -> Path:
    """Train and write `work/encoder.safetensors` (fp16); resumes from `work/encoder.ckpt`."""
    torch.manual_seed(settings.seed)
    encoder = DemoEncoder().to(device).train()
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=settings.rate, weight_decay=0.05)
    small = faces.pixels(range(len(faces)), 160).contiguous().to(device)
    places = landmark_targets(faces.landmarks, 256).to(device)
    targets = torch.tensor([to_indices(known) for known in labels])
    weights = [weight.to(device) for weight in _class_weights(targets)]
    targets = targets.to(device)

    def loss_at(step: int) -> tuple[Tensor, Parts]:
        indices = batch_at(len(faces), settings.batch, settings.seed, step)
        generator = torch.Generator(device).manual_seed(settings.seed * 1_000_003 + step)
        views = [augment(small[indices].float() / 255, places[indices], generator) for _ in range(2)]
        return _loss(encoder, views, targets[indices].repeat(2, 1), weights, settings)

    run = Run("encoder", work, settings.steps, settings.ema, checkpoint_every=200, log_every=25)
    ema = train(run, encoder, optimizer, loss_at)
    ema.copy_to(encoder)
    out = work / "encoder.safetensors"
    save_file({k: v.half().cpu().contiguous() for k, v in encoder.state_dict().items()}, out)
    return out


def augment(images: Tensor, points: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random shift, scale, turn, light, blur and noise, as half-denoised pictures show them.

    Args:
        images: (B, 3, H, W) float 0..1.
        points: (B, N, 2) xy in units of the side.
    Returns: (B, 3, 128, 128) float, and the moved points.
    """
    count, device = len(images), images.device

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=generator, device=device)

    angle, scale = uniform(-0.2, 0.2), uniform(0.85, 1.12)
    cos, sin = scale * angle.cos(), scale * angle.sin()
    matrix = torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)  # output xy -> input xy
    shift = uniform(-0.1, 0.1, 2)
    grid = F.affine_grid(torch.cat([matrix, shift[:, :, None]], 2), [count, 3, 128, 128], align_corners=False)
    out = F.grid_sample(images, grid, align_corners=False, padding_mode="reflection")
    moved = torch.linalg.solve(matrix, (points * 2 - 1 - shift[:, None]).transpose(1, 2)).transpose(1, 2)
    # little change of light and colour: skin tone is one of the attributes
    out = (out - 0.5) * uniform(0.88, 1.1, 1, 1, 1) + 0.5 + uniform(-0.02, 0.02, 3, 1, 1)
    strength = float(torch.rand((), generator=generator, device=device))
    if strength > 0.4:  # one blur radius per batch keeps this a single convolution
        out = _blur(out, 0.5 + 3.5 * (strength - 0.4))
    noise_px = int(2 ** torch.randint(0, 4, (), generator=generator, device=device))
    noise = torch.randn(count, 3, 128 // noise_px, 128 // noise_px, generator=generator, device=device)
    noise = F.interpolate(noise, (128, 128), mode="bilinear")
    out = out + noise * uniform(0, 0.12, 1, 1, 1) * (uniform(0, 1, 1, 1, 1) < 0.6)
    return out.clamp(0, 1), (moved + 1) / 2


def _blur(images: Tensor, sigma: float) -> Tensor:
    radius = math.ceil(2 * sigma)
    kernel = torch.exp(-(torch.arange(-radius, radius + 1, device=images.device).float() ** 2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).repeat(3, 1)
    out = F.conv2d(F.pad(images, [radius] * 4, mode="reflect"), kernel[:, None, :, None], groups=3)
    return F.conv2d(out, kernel[:, None, None, :], groups=3)


def _loss(
    encoder: DemoEncoder, views: list[tuple[Tensor, Tensor]], targets: Tensor, weights: list[Tensor],
    settings: EncoderSettings,
) -> tuple[Tensor, Parts]:  # fmt: skip
    with native_bfloat16(targets.device):
        features = encoder.features(torch.cat([image for image, _ in views]))
    summary = encoder.summary(features.float())
    attribute_loss = summary.new_zeros(())
    for column, head in enumerate(encoder.attribute_heads):
        known = targets[:, column] > 0
        if bool(known.any()):
            logits, wanted = head(summary[known]), targets[known, column] - 1
            attribute_loss = attribute_loss + F.cross_entropy(logits, wanted, weights[column], label_smoothing=0.05)
    points = torch.cat([moved for _, moved in views])
    landmark_loss = F.smooth_l1_loss(encoder.landmarks(features.float()), points, beta=0.02)
    embedding = F.normalize(encoder.instance_head(summary), dim=1)
    first, second = embedding.chunk(2)
    similarity = first @ second.T / settings.temperature
    same = torch.arange(len(first), device=first.device)
    instance_loss = (F.cross_entropy(similarity, same) + F.cross_entropy(similarity.T, same)) / 2
    loss = 0.5 * attribute_loss + 20 * landmark_loss + 0.3 * instance_loss
    parts = {"attributes": attribute_loss, "landmarks": landmark_loss, "instance": instance_loss}
    return loss, {name: part.detach() for name, part in parts.items()}


def _class_weights(targets: Tensor) -> list[Tensor]:
    """Rare values count more, by the square root of their rarity."""
    weights = []
    for column, attribute in enumerate(LEARNED):
        counts = torch.bincount(targets[:, column], minlength=len(attribute.values) + 1)[1:].float()
        rarity = (counts.sum() / counts.clamp_min(1)).sqrt() * (counts > 0)
        weights.append(rarity / rarity.mean().clamp_min(1e-6))
    return weights


@torch.no_grad()
def attribute_accuracy(encoder: DemoEncoder, faces: FaceSet, labels: list[Attributes]) -> dict[str, tuple[float, int]]:
    """Share of right predictions per attribute among the faces where it is known, and their number."""
    right = {a.name: 0 for a in LEARNED}
    seen = {a.name: 0 for a in LEARNED}
    for start in range(0, len(faces), 32):
        indices = list(range(start, min(start + 32, len(faces))))
        for i, (predicted, _) in zip(indices, encoder.predict(faces.images(indices)), strict=True):
            for name, value in labels[i].items():
                seen[name] += 1
                right[name] += predicted[name] == value
    return {name: (right[name] / seen[name], seen[name]) for name in right if seen[name]}
