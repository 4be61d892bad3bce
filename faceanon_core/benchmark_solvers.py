"""Whether another solver makes faces as good in fewer steps: unguided results of the demo model on the gallery's faces."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from statistics import mean, median
from typing import Any

import torch
from torch import Tensor

from .benchmark import machine, now
from .checks import usable_device
from .crop import crop_face
from .evaluation.measures import detail, landmark_distance
from .image import tensor_to_pixels
from .pipeline import Anonymizer, Settings
from .regions import region_mask
from .sampling import Denoiser, Guidance, NoiseSampler, Step, sample_guided
from .target import gallery_index, gallery_target


@torch.no_grad()
def sample_dpmpp_2m_sde(
    denoiser: Denoiser, x: Tensor, sigmas: Tensor, cond: Any, noise_sampler: NoiseSampler,
    guidance: Guidance | None = None, eta: float = 1.0, callback: Callable[[Step], None] | None = None,
) -> Tensor:  # fmt: skip
    """DPM-Solver++(2M) SDE, midpoint (Lu et al. 2022), as `sampling.sample_guided` but without guidance."""
    last, last_h = None, x.new_ones(())
    for sigma, sigma_next in pairwise(sigmas):
        denoised = denoiser(x, sigma * x.new_ones(len(x)), cond)
        if sigma_next == 0:
            return denoised
        h = sigma.log() - sigma_next.log()
        toward = -torch.expm1(-h - eta * h)
        x = sigma_next / sigma * torch.exp(-eta * h) * x + toward * denoised
        if last is not None:
            x = x + 0.5 * toward * (h / last_h) * (denoised - last)
        x = x + noise_sampler(x) * sigma_next * torch.sqrt(-torch.expm1(-2 * eta * h))
        last, last_h = denoised, h
    return x


_WAYS = (("Euler-ancestral", sample_guided), ("DPM++ 2M SDE", sample_dpmpp_2m_sde))
_STEPS = (20, 12, 10, 6)


def benchmark_solvers(device: str = "cpu", limit: int | None = None) -> list[str]:
    """Measure both solvers at several numbers of steps. Returns: the lines of a table in Markdown.

    Args:
        limit: how many of the gallery's faces, None for all.
    Raises: InputError for an unknown device.
    """
    place, anonymizer = usable_device(device), Anonymizer(device=device)
    names = sorted(gallery_index())[:limit]
    rows = [
        "| | steps | seconds | landmark error | detail, times the source's | a face is found |",
        "|---|---|---|---|---|---|",
    ]
    for name, sampler in _WAYS:
        for steps in _STEPS:
            anonymizer.sampler = sampler
            seconds, errors, details = _measure(anonymizer, names, steps, place)
            cells = f"{median(seconds):.2f} | {mean(errors):.4f} | {mean(details):.2f} | {len(errors)} of {len(names)}"
            rows.append(f"| {name} | {steps} | {cells} |")
    return [f"demo model, unguided, {len(names)} gallery faces, {machine(place)}", "", *rows]


def _measure(
    anonymizer: Anonymizer, names: list[str], steps: int, device: torch.device
) -> tuple[list[float], list[float], list[float]]:
    """Seconds of every face; landmark error and detail of those in which a face is found."""
    seconds, errors, details = [], [], []
    plain = Settings()
    settings = replace(plain, steps=steps, proportions=0.0, guidance=replace(plain.guidance, strength=0.0))
    for seed, name in enumerate(names):
        pixels = tensor_to_pixels(gallery_target(name).image)[0]
        crop = crop_face(pixels, anonymizer.detector.detect(pixels)[0], anonymizer.model.size_px)
        labels = anonymizer.parser.parse(crop.pixels, crop.landmarks)
        mask = region_mask(labels, settings.regions, anonymizer.parser)
        target = anonymizer.find_target(settings, crop, seed, frozenset([name]))
        began = now(device)
        made = tensor_to_pixels(anonymizer.regenerate(crop, mask, target, settings, seed))[0]
        seconds.append(now(device) - began)
        if found := anonymizer.detector.detect(made):
            errors.append(landmark_distance(crop.landmarks, found[0].landmarks))
            details.append(detail(made) / detail(crop.pixels))
    return seconds, errors, details
