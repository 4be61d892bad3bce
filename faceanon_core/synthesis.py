"""Target faces made by the demo model from attributes, a sketch and noise: no photograph goes in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file
from torch import Tensor

from .attributes import LEARNED, Attributes, check_learned, describe
from .crop import FaceCrop, crop_face
from .diffusion import DemoModel, InpaintCond, last_sigma
from .encoder import DemoEncoder
from .errors import InputError
from .faces import FaceDetector
from .geometry import FloatArray
from .image import tensor_to_pixels
from .light import in_tone
from .parsing import LandmarkParser
from .proportions import change_proportions
from .regions import RegionChoice, latent_mask, region_mask
from .sampling import sample_guided, seeded_noise
from .sketch import face_sketch, hide_face
from .target import Target, source_attributes
from .weights import ASSETS

FRONTAL = 0.12  # how far the nose's tip may lie from the middle between the eyes, in distances between their outer corners
_DRAWN = 0.28  # of the steps show the drawing: afterwards the features are nobody's mean
_EVEN = np.array([[196, 150, 126], [0, 0, 0], [0, 0, 0]], np.float32)  # skin in even light, see `light.Plane`


@dataclass(frozen=True)
class Candidate:
    """A picture that may become a target. `target` is None where no single face was found; `faults` say what is wrong."""

    pixels: NDArray[np.uint8]
    target: Target | None
    agreement: float  # share of the asked attributes it shows, as far as they can be judged, 0..1; -1: it is the source
    faults: tuple[str, ...]


def random_pose(attributes: Attributes, seed: int) -> FloatArray:
    """Landmarks (478, 2) of a frontal face that belongs to nobody, in pixels of a 256 px crop.

    The mean of many faces (of children where a child is asked for, of smiling adults where a smile is) with other
    proportions and another outline.
    """
    kind = "smile" if attributes.get("expression") in ("smile", "open-mouth") else "adult"
    pose = _mean_poses()["child" if attributes.get("age") in ("baby", "child") else kind]
    middle = pose.mean(0)
    stretch = 1 + np.random.default_rng([seed, 1]).uniform(-0.05, 0.05, 2)
    stretched = ((pose - middle) * stretch + middle).astype(np.float32)
    return change_proportions(stretched, torch.ones(1, 1, 256, 256), seed, amount=0.5)


@cache
def _mean_poses() -> dict[str, FloatArray]:
    """Mean landmarks (478, 2) of frontal training faces: "adult", "child" and "smile"; `... training poses` makes them."""
    return load_file(ASSETS / "poses.safetensors")


def judge_candidate(
    pixels: NDArray[np.uint8], asked: Attributes, detector: FaceDetector, encoder: DemoEncoder,
    excess: Callable[[FaceCrop], float] | None = None,
) -> Candidate:  # fmt: skip
    """Whether a picture can serve as a target: one face, frontal enough, as asked, and not the source again.

    Args:
        pixels: (H, W, 3) uint8 RGB.
        asked: attributes it should show; those the encoder does not know are not judged.
        excess: crop -> how far its similarity to the source, by a face-recognition network, lies above what may pass;
            None: not compared.
    """
    faces = detector.detect(pixels)
    if len(faces) != 1:
        return Candidate(pixels, None, 0.0, (f"shows {len(faces)} faces, not one",))
    crop = crop_face(pixels, faces[0], 256)
    shown = source_attributes(crop, encoder, tuple(attribute.name for attribute in LEARNED))
    faults = [f"shows {name}={shown[name]}, not {value}" for name, value in asked.items() if shown.get(name, value) != value]
    judged = [name for name in asked if name in shown]
    agreement = 1 - len(faults) / len(judged) if judged else 1.0
    if _turn(crop.landmarks) > FRONTAL:
        faults.append("is turned aside")
    if excess is not None and not excess(crop) <= 0:  # NaN does not pass
        faults.append("looks like the source")
        agreement = -1.0
    return Candidate(pixels, Target("synthesized", crop.tensor, shown), agreement, tuple(faults))


def best_candidate(candidates: list[Candidate]) -> Candidate:
    """The one with the highest agreement, those with faults other than attributes last.

    Raises: InputError saying what is wrong with each if none shows a single face that is not the source's.
    """
    usable = [candidate for candidate in candidates if candidate.target is not None and candidate.agreement >= 0]
    if not usable:
        reasons = "; ".join(f"{number} {', '.join(c.faults)}" for number, c in enumerate(candidates, 1))
        raise InputError(f"none of the {len(candidates)} candidates can be a target: {reasons}. Try another seed or more")
    return max(usable, key=lambda candidate: (candidate.agreement, -len(candidate.faults)))


def candidate_sheet(candidates: list[Candidate], columns: int = 4) -> NDArray[np.uint8]:
    """All candidates with their numbers from 1, framed green where they have no fault and red else, (H, W, 3) uint8 RGB."""
    tiles = [_tile(candidate, number) for number, candidate in enumerate(candidates, 1)]
    columns = min(columns, len(tiles))
    tiles += [np.full_like(tiles[0], 255)] * (-len(tiles) % columns)
    return np.vstack([np.hstack(tiles[row : row + columns]) for row in range(0, len(tiles), columns)])


def _tile(candidate: Candidate, number: int, size_px: int = 256) -> NDArray[np.uint8]:
    tile: NDArray[np.uint8] = cv2.resize(candidate.pixels, (size_px, size_px), interpolation=cv2.INTER_AREA)
    colour = (200, 40, 40) if candidate.faults else (30, 150, 60)
    cv2.rectangle(tile, (0, 0), (size_px - 1, size_px - 1), colour, max(2, size_px // 64))
    cv2.putText(tile, str(number), (size_px // 32, size_px // 8), cv2.FONT_HERSHEY_SIMPLEX, size_px / 256, colour, 2)
    return tile


def synthesize_picture(model: DemoModel, attributes: Attributes, seed: int) -> NDArray[np.uint8]:
    """One portrait (256, 256, 3) uint8 RGB by the demo model.

    Raises: InputError for attributes it does not know.
    """
    check_learned(attributes)
    image = synthesize(model, attributes, [random_pose(attributes, seed)], [seed])
    return tensor_to_pixels(image)[0]


def describe_candidates(candidates: list[Candidate], asked: Attributes) -> str:
    """One line per candidate for people to read."""
    lines = [f"asked: {describe(asked) or 'nothing'}"]
    for number, candidate in enumerate(candidates, 1):
        lines.append(f"{number}: {', '.join(candidate.faults) or 'as asked'}")
    return "\n".join(lines)


def _turn(landmarks: FloatArray) -> float:
    """How far a head is turned aside, 0 = frontal: the nose's tip from the middle between the eyes' outer corners."""
    right, left = landmarks[33], landmarks[263]
    across = (left - right) / float(np.linalg.norm(left - right))
    return abs(float((landmarks[1] - (right + left) / 2) @ across)) / float(np.linalg.norm(left - right))


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
    light = in_tone(_EVEN, attributes["skin"]) if "skin" in attributes else None
    drawn, lit = (
        model.encode(hide_face(image, core, torch.cat([face_sketch(pose, model.size_px, light, lines) for pose in poses])))
        for lines in (True, False)
    )
    source = model.encode(image)
    hole = latent_mask(core, source.shape[-1])
    context = torch.cat([model.tokens.encode(said).expand(len(poses), -1, -1) for said in ({}, attributes)])

    def twice(x: Tensor) -> Tensor:
        return x.repeat(2, 1, 1, 1)

    sigmas = model.sigmas(20)
    both = InpaintCond(
        context, twice(hole), twice(drawn), twice(source), plain_latent=twice(lit), plain_below=last_sigma(sigmas, _DRAWN)
    )

    def denoise(x: Tensor, sigma: Tensor, _: object) -> Tensor:
        plain, asked = model.denoise(twice(x), sigma.repeat(2), both).chunk(2)
        return plain + scale * (asked - plain)

    samplers = [seeded_noise(seed) for seed in seeds]

    def noise(x: Tensor) -> Tensor:
        return torch.cat([draw(x[:1]) for draw in samplers])

    latent = sample_guided(denoise, source + noise(source) * sigmas[0], sigmas, None, noise)
    with torch.no_grad():
        return model.decode(latent).clamp(0, 1)
