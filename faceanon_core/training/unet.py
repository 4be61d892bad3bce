"""Train the demo U-Net to inpaint faces, conditioned on attributes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..attributes import BY_NAME, LEARNED, Attributes, to_indices
from ..diffusion import LATENT_SCALE, AttributeTokens, build_schedule, build_unet, native_bfloat16
from ..eight_bits import in_8_bits, read_weights
from ..errors import InputError
from ..geometry import FloatArray
from ..image import pixels_to_tensor, tensor_to_pixels
from ..light import skin_light
from ..parsing import LandmarkParser
from ..regions import RegionChoice, latent_mask, region_mask
from ..sketch import face_sketch, hide_face
from ..skin import crop_skin_tone
from .data import FaceSet, batch_at, unpack
from .loop import Ema, Parts, Run, train
from .warp import bend_proportions

_SKIN = LEARNED.index(BY_NAME["skin"])
_COMPLETED = ("sex", "age", "ethnicity")
_AT_ONCE = 32  # faces a process draws, and the VAE encodes, at once
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
    no_lines: float = 0.5  # share of samples shown the skin's light alone, as in the later steps of an anonymized face
    bend_no_lines: float = 0.5  # how far these are bent, times the others: what is free should be as people have it
    no_light: float = 0.05  # share of samples whose sketch does not show the skin's light
    no_sketch: float = 0.1  # share of samples with plain grey in the hole, as ComfyUI's stock node gives
    outside_weight: float = 0.15  # loss weight of pixels outside the mask
    images_per_view: int = 1600  # encoding a face costs more than a step on it, so a view holds a part of them ...
    passes_per_view: int = 10  # ... used this often before others are drawn
    checkpoint_every: int = 150

    @property
    def steps_per_view(self) -> int:
        return self.images_per_view // self.batch * self.passes_per_view


@dataclass(frozen=True)
class View:
    """One face as a step sees it: other light, other proportions, a random mask."""

    pixels: NDArray[np.uint8]  # (256, 256, 3)
    hidden: NDArray[np.uint8]  # the same with a drawing, or grey, where the mask is
    mask: NDArray[np.bool_]  # (32, 32), 1 = regenerate
    skin: int  # index of the skin tone it shows, as of `to_indices`


def draw_view(pixels: NDArray[np.uint8], landmarks: FloatArray, settings: UnetSettings, view: int, i: int) -> View:
    """Draw view number `view` of face `i`; the same numbers always draw the same.

    Args:
        pixels: (256, 256, 3) uint8 RGB.
        landmarks: (478, 2) xy in it.
    """
    rng = np.random.default_rng([settings.seed, view, i])
    lines = rng.random() >= settings.no_lines
    if rng.random() < settings.exposure:
        pixels = _other_light(pixels, rng)
    if rng.random() < settings.bend:
        amount = rng.uniform(0.3, 1.2) * (1.0 if lines else settings.bend_no_lines)
        pixels, landmarks = bend_proportions(pixels, landmarks, int(rng.integers(1 << 31)), amount)
    skin = 1 + BY_NAME["skin"].values.index(crop_skin_tone(pixels, landmarks))
    blank = rng.random() < settings.no_hair
    core = _random_mask(np.zeros_like(pixels) if blank else pixels, landmarks, rng)
    light = None if lines and rng.random() < settings.no_light else skin_light(pixels, landmarks)
    filling = 0.5 if rng.random() < settings.no_sketch else face_sketch(landmarks, 256, light, lines)
    hidden = tensor_to_pixels(hide_face(pixels_to_tensor(pixels), core, filling))[0]
    mask = latent_mask(core, 32)[0, 0].numpy() > 0
    if rng.random() < 0.5:
        pixels, hidden, mask = (np.ascontiguousarray(x[:, ::-1]) for x in (pixels, hidden, mask))
    return View(pixels, hidden, mask, skin)


class LatentCache:
    """Latents of the crops and of their masked versions, made when first asked for; masks and light drawn once per view.

    `targets` (N, attributes), indices as of `to_indices`, follow the light: a darker picture shows a darker skin.

    Args:
        upcoming: the faces of a view; with `workers`, the next view is drawn by that many processes beside the training.
    """

    def __init__(
        self, faces: FaceSet, labels: list[Attributes], vae: Any, settings: UnetSettings,
        upcoming: Callable[[int], list[int]] | None = None, workers: int = 0,
    ) -> None:  # fmt: skip
        self.faces, self.vae, self.settings, self._upcoming = faces, vae, settings, upcoming
        self.device = next(vae.parameters()).device
        count = len(faces)
        self.targets = torch.tensor([to_indices(known) for known in labels], device=self.device)
        self.latents = torch.zeros(count, 4, 32, 32, dtype=torch.float16, device=self.device)
        self.masked = torch.zeros_like(self.latents)
        self.masks = torch.zeros(count, 1, 32, 32, dtype=torch.float16, device=self.device)
        self.view = [-1] * count
        spawn = partial(ProcessPoolExecutor, mp_context=get_context("spawn"), initializer=_one_thread)
        self._pool = spawn(workers) if workers else None
        self._drawn: dict[tuple[int, int], Future[list[View]]] = {}  # by view and first face of a part

    def close(self) -> None:
        """Stop the processes that draw."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def get(self, indices: list[int], view: int) -> tuple[Tensor, Tensor, Tensor]:
        """Scaled latents (B, 4, 32, 32), masked latents and masks (B, 1, 32, 32) of one view."""
        if any(self.view[i] != view for i in indices):
            self._fill(indices, view)
        return self.latents[indices].float(), self.masked[indices].float(), self.masks[indices].float()

    def _fill(self, indices: list[int], view: int) -> None:
        if self._pool is None or self._upcoming is None:
            missing = [i for i in indices if self.view[i] != view]
            self._store(missing, [self._draw(i, view) for i in missing], view)
            return
        self._order(view)
        self._order(view + 1)
        for part in _parts(self._upcoming(view)):
            self._store(part, self._drawn.pop((view, part[0])).result(), view)

    def _order(self, view: int) -> None:
        """Have the processes draw a view, unless they do already."""
        assert self._pool is not None and self._upcoming is not None
        for part in _parts(self._upcoming(view)):
            if (view, part[0]) not in self._drawn:
                packed = [(self.faces.packed(i), self.faces.landmarks[i], i) for i in part]
                self._drawn[view, part[0]] = self._pool.submit(_draw_part, packed, self.settings, view)

    def _draw(self, i: int, view: int) -> View:
        return draw_view(self.faces.image(i), self.faces.landmarks[i], self.settings, view, i)

    @torch.no_grad()
    def _store(self, indices: list[int], views: list[View], view: int) -> None:
        pixels = np.stack([drawn.pixels for drawn in views] + [drawn.hidden for drawn in views])
        images = torch.from_numpy(pixels).to(self.device).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
        with native_bfloat16(self.device):
            encoded = self.vae.encode(images.contiguous(memory_format=torch.channels_last)).latents
        latents, masked = (encoded.float() * LATENT_SCALE).half().chunk(2)
        self.latents[indices], self.masked[indices] = latents, masked
        masks = np.stack([drawn.mask for drawn in views])[:, None]
        self.masks[indices] = torch.from_numpy(masks).to(self.masks)
        self.targets[indices, _SKIN] = torch.tensor([drawn.skin for drawn in views], device=self.device)
        for i in indices:
            self.view[i] = view


def _parts(indices: list[int]) -> list[list[int]]:
    return [indices[first : first + _AT_ONCE] for first in range(0, len(indices), _AT_ONCE)]


def _one_thread() -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)


def _draw_part(packed: list[tuple[bytes, FloatArray, int]], settings: UnetSettings, view: int) -> list[View]:
    return [draw_view(unpack(data), landmarks, settings, view, i) for data, landmarks, i in packed]


def _random_mask(pixels: NDArray[np.uint8], landmarks: FloatArray, rng: np.random.Generator) -> Tensor:
    """The whole face, the whole face with random parts kept, random parts alone, or the whole picture.

    The last teaches the model to make a target face out of attributes and a sketch only.
    """
    labels = LandmarkParser().parse(pixels, landmarks)
    grow = float(rng.uniform(4, 44))
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


def _other_light(pixels: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """The picture (H, W, 3) brighter or darker, with another contrast and white balance; half of them darker to one side."""
    gamma, gain = rng.uniform(0.7, 1.4), rng.uniform(0.9, 1.15, 3)
    table = (np.arange(256)[:, None] / 255) ** gamma * gain  # by level and channel
    levels = np.clip(np.round(table * 255), 0, 255).astype(np.uint8)
    lit = np.asarray(cv2.LUT(pixels, levels[None]))
    if rng.random() < 0.5:
        return lit
    angle, dark, middle, width = rng.uniform((0, 0.35, -0.2, 0.05), (2 * np.pi, 0.9, 0.2, 0.3))
    rows, columns = np.mgrid[-0.5 : 0.5 : len(lit) * 1j, -0.5 : 0.5 : lit.shape[1] * 1j]
    side = np.cos(angle) * columns + np.sin(angle) * rows - middle
    shade = dark + (1 - dark) / (1 + np.exp(-side / width))
    return np.asarray(np.round(lit * shade[..., None]), np.uint8)


def train_unet(
    faces: FaceSet, labels: list[Attributes], vae: Any, start: Path, work: Path, settings: UnetSettings,
    minutes: float = 1e9, workers: int = 0,
) -> None:  # fmt: skip
    """Train and write `work/unet.safetensors` (8 bits) and `work/tokens.safetensors`; resumes from `work/unet.ckpt`.

    Args:
        vae: the trained demo VAE, frozen; the training runs on its device.
        start: U-Net weights to begin from; `tokens.safetensors` beside them, where there is one, goes on as well.
        minutes: stop early after this long, with weights and checkpoint written.
        workers: processes that draw the next view while one is trained on; 0 draws each face when it is first needed.
    """
    torch.manual_seed(settings.seed)
    torch.backends.cudnn.benchmark = True  # every step has the same shapes
    device = next(vae.parameters()).device
    model = torch.nn.ModuleDict({"unet": build_unet(), "tokens": AttributeTokens()})
    model["unet"].load_state_dict(read_weights(start))
    if (start_tokens := start.with_name("tokens.safetensors")).is_file():
        model["tokens"].load_state_dict(load_file(start_tokens))
    else:
        torch.nn.init.normal_(model["tokens"].table.weight, std=0.1)  # type: ignore[union-attr, arg-type]
    model.to(device).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    parts = [
        {"params": model["unet"].parameters(), "lr": settings.rate},
        {"params": model["tokens"].parameters(), "lr": settings.tokens_rate},
    ]
    optimizer = torch.optim.AdamW(parts, weight_decay=0.01, fused=device.type == "cuda")
    chosen = partial(_view_faces, len(faces), settings)
    cache = LatentCache(faces, labels, vae, settings, chosen, workers)
    schedule = build_schedule()
    average: list[Tensor] = []

    def loss_at(step: int) -> tuple[Tensor, Parts]:
        view, indices = _batch(len(faces), settings, step)
        generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
        data = cache.get(indices, view)
        context = model["tokens"](_drop(cache.targets[indices], settings, generator))
        loss = _loss(model["unet"], schedule, data, context, settings, generator)
        average[:] = [torch.lerp(average[0], loss.detach(), 0.02) if average else loss.detach()]
        return loss, {"loss": average[0]}

    run = Run("unet", work, settings.steps, settings.ema, settings.checkpoint_every, log_every=10, minutes=minutes)
    try:
        train(run, model, optimizer, loss_at, partial(_write, work=work))
    finally:
        cache.close()


def _view_faces(count: int, settings: UnetSettings, view: int) -> list[int]:
    """The faces of a view."""
    return [int(i) for i in np.random.default_rng([settings.seed, view]).permutation(count)[: settings.images_per_view]]


def _batch(count: int, settings: UnetSettings, step: int) -> tuple[int, list[int]]:
    """View number and face indices of a step; the same step always gives the same, so a run resumes exactly."""
    view, position = divmod(step, settings.steps_per_view)
    chosen = _view_faces(count, settings, view)
    return view, [chosen[place] for place in batch_at(len(chosen), settings.batch, settings.seed + view, position)]


def _drop(targets: Tensor, settings: UnetSettings, generator: torch.Generator) -> Tensor:
    keep = torch.rand(targets.shape, generator=generator) >= settings.drop_one
    keep &= torch.rand(len(targets), 1, generator=generator) >= settings.drop_all
    return targets * keep.to(targets.device)


def _loss(
    unet: Any, schedule: Any, data: tuple[Tensor, Tensor, Tensor], context: Tensor, settings: UnetSettings,
    generator: torch.Generator,
) -> Tensor:  # fmt: skip
    latents, masked, masks = data
    count, device = len(latents), latents.device
    # stratified: one timestep from each slice of the schedule lowers the variance of the loss
    timesteps = ((torch.rand(count, generator=generator) + torch.arange(count)) / count * 1000).long().clamp(0, 999)
    timesteps = timesteps[torch.randperm(count, generator=generator)].to(device)
    noise = torch.randn(latents.shape, generator=generator).to(device)
    noisy = schedule.add_noise(latents, noise, timesteps)
    wanted = schedule.get_velocity(latents, noise, timesteps)
    inputs = torch.cat([noisy, masks, masked], dim=1).contiguous(memory_format=torch.channels_last)
    with native_bfloat16(device):
        v = unet(inputs, timesteps, encoder_hidden_states=context).sample.float()
    weight = settings.outside_weight + (1 - settings.outside_weight) * masks
    loss: Tensor = ((v - wanted) ** 2 * weight).mean() / weight.mean()
    return loss


def _write(ema: Ema, work: Path) -> None:
    unet = in_8_bits({k[5:]: v for k, v in ema.values.items() if k.startswith("unet.")})
    tokens = {k[7:]: v.clone().contiguous() for k, v in ema.values.items() if k.startswith("tokens.")}
    save_file(unet, work / "unet.safetensors")
    save_file(tokens, work / "tokens.safetensors")


def complete_labels(encoder: Any, faces: FaceSet, labels: list[Attributes], certainty: float = 0.6) -> list[Attributes]:
    """Fill unknown attributes with the encoder's own predictions where it is certain enough.

    Only those whose every value it was shown often: of glasses and hair the data's captions name the rare ones alone.
    """
    completed = []
    for start in range(0, len(faces), 32):
        indices = list(range(start, min(start + 32, len(faces))))
        for i, (values, sure) in zip(indices, encoder.predict(faces.images(indices)), strict=True):
            guessed = {name: values[name] for name in _COMPLETED if sure[name] >= certainty}
            completed.append({**guessed, **labels[i]})
    return completed
