"""Target faces made by the demo model from attributes, a sketch and noise: no photograph goes in."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .attributes import Attributes
from .diffusion import DemoModel, InpaintCond
from .geometry import FloatArray
from .parsing import LandmarkParser
from .regions import RegionChoice, latent_mask, region_mask
from .sampling import sample_guided, seeded_noise
from .sketch import face_sketch, hide_face


def synthesize(model: DemoModel, attributes: Attributes, poses: list[FloatArray], seeds: list[int]) -> Tensor:
    """Whole pictures from attributes, a sketch of each pose and noise; no photograph goes in.

    First the whole picture is made, then the face once more inside it: the model is best at a face with surroundings.

    Args:
        poses: landmarks (478, 2) in crop pixels, one per picture.
    Returns: (B, 3, 256, 256) float 0..1.
    """
    size = model.size_px
    grey, whole = torch.full((len(poses), 3, size, size), 0.5), torch.ones(len(poses), 1, size, size)
    picture = inpaint(model, grey, whole, attributes, poses, seeds, scale=1.0)
    parser, blank, choice = LandmarkParser(), np.zeros((size, size, 3), np.uint8), RegionChoice(grow_px=20.0)
    face = torch.cat([region_mask(parser.parse(blank, pose), choice).core for pose in poses])
    return inpaint(model, picture, face, attributes, poses, seeds, scale=2.0)


def inpaint(
    model: DemoModel, image: Tensor, core: Tensor, attributes: Attributes, poses: list[FloatArray], seeds: list[int],
    scale: float,
) -> Tensor:  # fmt: skip
    """Regenerate `core` (B, 1, H, W) of `image` (B, 3, H, W) with classifier-free guidance towards the attributes."""
    hidden = hide_face(image, core, torch.cat([face_sketch(pose, model.size_px) for pose in poses]))
    source, masked = model.encode(image), model.encode(hidden)
    hole = latent_mask(core, source.shape[-1])
    context = torch.cat([model.tokens.encode(said).expand(len(poses), -1, -1) for said in ({}, attributes)])

    def twice(x: Tensor) -> Tensor:
        return x.repeat(2, 1, 1, 1)

    both = InpaintCond(context, twice(hole), twice(masked), twice(source))

    def denoise(x: Tensor, sigma: Tensor, _: object) -> Tensor:
        plain, asked = model.denoise(twice(x), sigma.repeat(2), both).chunk(2)
        return plain + scale * (asked - plain)

    samplers = [seeded_noise(seed) for seed in seeds]

    def noise(x: Tensor) -> Tensor:
        return torch.cat([draw(x[:1]) for draw in samplers])

    sigmas = model.sigmas(20)
    latent = sample_guided(denoise, source + noise(source) * sigmas[0], sigmas, None, noise)
    with torch.no_grad():
        return model.decode(latent).clamp(0, 1)
