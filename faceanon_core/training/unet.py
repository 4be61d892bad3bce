"""Train the demo U-Net to inpaint faces, conditioned on attributes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..attributes import BY_NAME, LEARNED, Attributes, to_indices
from ..diffusion import LATENT_SCALE, AttributeTokens, build_schedule, build_unet
from ..errors import InputError
from ..geometry import FloatArray
from ..image import pixels_to_tensor, tensor_to_pixels
from ..light import skin_light
from ..parsing import LandmarkParser
from ..regions import RegionChoice, latent_mask, region_mask
from ..sketch import face_sketch, hide_face
from ..skin import crop_skin_tone
from .data import FaceSet, batch_at
from .loop import Ema, Run, train
from .warp import bend_proportions

_SKIN = LEARNED.index(BY_NAME["skin"])
_PARTS = ("left_eye", "right_eye", "brows", "nose", "mouth", "eyes", "inner_mouth", "lips")


@dataclass(frozen=True)
class UnetSettings:
    steps: int = 1500  # of one run; the shipped weights took several, see the model card
    batch: int = 16
    rate: float = 3e-4
    tokens_rate: float = 3e-3
    ema: float = 0.995
    seed: int = 0
    drop_all: float = 0.1  # share of samples with every attribute unknown
    drop_one: float = 0.25  # chance of each attribute to be unknown
    bend: float = 0.7  # share of samples bent to other proportions, as the drawing of an anonymized face has them
    no_hair: float = 0.15  # share of samples whose mask runs through hair that hangs over the face
    exposure: float = 0.5  # share of samples in other light: the data are evenly lit, photographs are not
    no_light: float = 0.1  # share of samples whose sketch does not show the skin's light
    no_sketch: float = 0.15  # share of samples with plain grey in the hole, as ComfyUI's stock node gives
    outside_weight: float = 0.15  # loss weight of pixels outside the mask
    images_per_view: int = 1600  # encoding a face costs more than a step on it, so a view holds a part of them ...
    passes_per_view: int = 10  # ... used this often before others are drawn, flipped every other time

    @property
    def steps_per_view(self) -> int:
        return self.images_per_view // self.batch * self.passes_per_view


class LatentCache:
    """Latents of the crops and of their masked versions, made when first asked for; masks and light drawn once per view.

    `targets` (N, attributes), indices as of `to_indices`, follow the light: a darker picture shows a darker skin.
    """

    def __init__(self, faces: FaceSet, labels: list[Attributes], vae: Any, settings: UnetSettings) -> None:
        self.faces, self.vae, self.settings = faces, vae, settings
        self.targets = torch.tensor([to_indices(known) for known in labels])
        count = len(faces)
        self.latents = torch.zeros(count, 4, 32, 32, dtype=torch.float16)
        self.masked = torch.zeros(count, 4, 32, 32, dtype=torch.float16)
        self.masks = torch.zeros(count, 1, 32, 32, dtype=torch.float16)
        self.view = torch.full((count,), -1)
        self.parser = LandmarkParser()

    def get(self, indices: list[int], view: int) -> tuple[Tensor, Tensor, Tensor]:
        """Scaled latents (B, 4, 32, 32), masked latents and masks (B, 1, 32, 32) of one view."""
        missing = [i for i in indices if int(self.view[i]) != view]
        if missing:
            self._fill(missing, view)
        return self.latents[indices].float(), self.masked[indices].float(), self.masks[indices].float()

    @torch.no_grad()
    def _fill(self, indices: list[int], view: int) -> None:
        images = self.faces.images(indices)
        hidden = torch.empty_like(images)
        for row, i in enumerate(indices):
            rng = np.random.default_rng([self.settings.seed, view, i])
            landmarks = self.faces.landmarks[i]
            if rng.random() < self.settings.exposure:
                images[row] = _other_light(images[row], rng)
            pixels = tensor_to_pixels(images[row : row + 1])[0]
            if rng.random() < self.settings.bend:
                pixels, landmarks = bend_proportions(pixels, landmarks, int(rng.integers(1 << 31)), rng.uniform(0.3, 1.2))
                images[row] = pixels_to_tensor(pixels)[0]
            self.targets[i, _SKIN] = 1 + BY_NAME["skin"].values.index(crop_skin_tone(pixels, landmarks))
            blank = rng.random() < self.settings.no_hair
            core = self._random_mask(np.zeros_like(pixels) if blank else pixels, landmarks, rng)
            light = None if rng.random() < self.settings.no_light else skin_light(pixels, landmarks)
            filling = 0.5 if rng.random() < self.settings.no_sketch else face_sketch(landmarks, 256, light)
            hidden[row] = hide_face(images[row : row + 1], core, filling)[0]
            if view % 2:
                images[row], hidden[row], core = images[row].flip(-1), hidden[row].flip(-1), core.flip(-1)
            self.masks[i] = latent_mask(core, 32)[0]
        both = torch.cat([images, hidden]).mul_(2).sub_(1).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            latents, masked = (self.vae.encode(both).latents.float() * LATENT_SCALE).chunk(2)
        self.latents[indices], self.masked[indices] = latents.half(), masked.half()
        self.view[indices] = view

    def _random_mask(self, pixels: NDArray[np.uint8], landmarks: FloatArray, rng: np.random.Generator) -> Tensor:
        """The whole face, the whole face with random parts kept, random parts alone, or the whole picture.

        The last teaches the model to make a target face out of attributes and a sketch only.
        """
        labels = self.parser.parse(pixels, landmarks)
        grow = float(rng.uniform(4, 30))
        kind = rng.random()
        if kind < 0.1:
            return torch.ones(1, 1, 256, 256)
        parts = tuple(rng.choice(_PARTS, rng.integers(1, 4), replace=False))
        choice = RegionChoice(grow_px=grow)
        if 0.7 < kind <= 0.9:
            choice = RegionChoice(keep=parts, grow_px=grow)
        elif kind > 0.9:
            choice = RegionChoice(regenerate=parts, grow_px=grow)
        try:
            return region_mask(labels, choice).core
        except InputError:  # parts too small to survive, e.g. a closed mouth
            return region_mask(labels, RegionChoice(grow_px=grow)).core


def _other_light(image: Tensor, rng: np.random.Generator) -> Tensor:
    """The picture (3, H, W) 0..1 brighter or darker, with another contrast and white balance."""
    gamma, gain = float(rng.uniform(0.7, 1.4)), torch.from_numpy(rng.uniform(0.9, 1.15, (3, 1, 1))).float()
    return ((image**gamma) * gain).clamp(0, 1)


def train_unet(
    faces: FaceSet, labels: list[Attributes], vae: Any, start: Path, work: Path, settings: UnetSettings,
    minutes: float = 1e9,
) -> None:  # fmt: skip
    """Train and write `work/unet.safetensors` (bf16) and `work/tokens.safetensors`; resumes from `work/unet.ckpt`.

    Args:
        vae: the trained demo VAE, frozen.
        start: U-Net weights to begin from; `tokens.safetensors` beside them, where there is one, goes on as well.
        minutes: stop early after this long, with weights and checkpoint written.
    """
    torch.manual_seed(settings.seed)
    model = torch.nn.ModuleDict({"unet": build_unet(), "tokens": AttributeTokens()})
    model["unet"].load_state_dict({k: v.float() for k, v in load_file(start).items()})
    if (start_tokens := start.with_name("tokens.safetensors")).is_file():
        model["tokens"].load_state_dict(load_file(start_tokens))
    else:
        torch.nn.init.normal_(model["tokens"].table.weight, std=0.1)  # type: ignore[union-attr, arg-type]
    model.train()
    parts = [
        {"params": model["unet"].parameters(), "lr": settings.rate},
        {"params": model["tokens"].parameters(), "lr": settings.tokens_rate},
    ]
    optimizer = torch.optim.AdamW(parts, weight_decay=0.01)
    cache = LatentCache(faces, labels, vae, settings)
    schedule = build_schedule()
    average: list[float] = []

    def loss_at(step: int) -> tuple[Tensor, str]:
        view, indices = _batch(len(faces), settings, step)
        generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
        data = cache.get(indices, view)
        context = model["tokens"](_drop(cache.targets[indices], settings, generator))
        loss = _loss(model["unet"], schedule, data, context, settings, generator)
        average[:] = [0.98 * average[0] + 0.02 * loss.item() if average else loss.item()]
        return loss, f"loss {average[0]:.4f}"

    run = Run("unet", work, settings.steps, settings.ema, checkpoint_every=150, log_every=10, minutes=minutes)
    train(run, model, optimizer, loss_at, partial(_write, work=work))


def _batch(count: int, settings: UnetSettings, step: int) -> tuple[int, list[int]]:
    """View number and face indices of a step; the same step always gives the same, so a run resumes exactly."""
    view, position = divmod(step, settings.steps_per_view)
    chosen = np.random.default_rng([settings.seed, view]).permutation(count)[: settings.images_per_view]
    order = batch_at(len(chosen), settings.batch, settings.seed + view, position)
    return view, [int(i) for i in chosen[order]]


def _drop(targets: Tensor, settings: UnetSettings, generator: torch.Generator) -> Tensor:
    keep = torch.rand(targets.shape, generator=generator) >= settings.drop_one
    keep &= torch.rand(len(targets), 1, generator=generator) >= settings.drop_all
    return targets * keep


def _loss(
    unet: Any, schedule: Any, data: tuple[Tensor, Tensor, Tensor], context: Tensor, settings: UnetSettings,
    generator: torch.Generator,
) -> Tensor:  # fmt: skip
    latents, masked, masks = data
    count = len(latents)
    # stratified: one timestep from each slice of the schedule lowers the variance of the loss
    timesteps = ((torch.rand(count, generator=generator) + torch.arange(count)) / count * 1000).long().clamp(0, 999)
    timesteps = timesteps[torch.randperm(count, generator=generator)]
    noise = torch.randn(latents.shape, generator=generator)
    noisy = schedule.add_noise(latents, noise, timesteps)
    wanted = schedule.get_velocity(latents, noise, timesteps)
    inputs = torch.cat([noisy, masks, masked], dim=1).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        v = unet(inputs, timesteps, encoder_hidden_states=context).sample.float()
    weight = settings.outside_weight + (1 - settings.outside_weight) * masks
    loss: Tensor = ((v - wanted) ** 2 * weight).mean() / weight.mean()
    return loss


def _write(ema: Ema, work: Path) -> None:
    unet = {k[5:]: v.bfloat16().contiguous() for k, v in ema.values.items() if k.startswith("unet.")}
    tokens = {k[7:]: v.clone().contiguous() for k, v in ema.values.items() if k.startswith("tokens.")}
    save_file(unet, work / "unet.safetensors")
    save_file(tokens, work / "tokens.safetensors")


def complete_labels(encoder: Any, faces: FaceSet, labels: list[Attributes], certainty: float = 0.6) -> list[Attributes]:
    """Fill unknown attributes with the encoder's own predictions where it is certain enough."""
    completed = []
    for start in range(0, len(faces), 32):
        indices = list(range(start, min(start + 32, len(faces))))
        for i, (values, sure) in zip(indices, encoder.predict(faces.images(indices)), strict=True):
            guessed = {a.name: values[a.name] for a in LEARNED if sure[a.name] >= certainty}
            completed.append({**guessed, **labels[i]})
    return completed
