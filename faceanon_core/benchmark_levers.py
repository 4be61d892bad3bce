"""What each lever on the guidance's cost does alone: time and memory on SD-1.5-shaped networks, truth on the demo model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F

from .benchmark import (
    Decoder,
    Sd15,
    Work,
    build_sd15,
    machine,
    sd15_decoder,
    sd15_denoiser,
    timed,
    tiny_decoder,
    usable_precision,
    watch_memory,
)
from .checks import usable_device
from .diffusion import DemoModel
from .encoder import load_demo_encoder
from .guidance import AttributeTerm, CombinedGuidance, GuidanceSettings
from .target import gallery_index, gallery_target
from .weights import ASSETS

FACES = 4  # what "several faces at once" means
_ENOUGH_S = 20.0  # after which a line is not repeated
_ENCODER_PX = 224


@dataclass(frozen=True)
class Line:
    """One lever: what is timed, with which line it is compared, and how many faces it serves."""

    name: str
    work: Work
    than: str = ""
    faces: int = 1
    compiles: bool = False  # at its first run, which is told apart


def benchmark_levers(precision: str | None = None, runs: int = 3, device: str = "cpu") -> list[str]:
    """Measure every lever by itself. Returns: the lines of two tables in Markdown.

    Args:
        precision: of the weights, see `benchmark.usable_precision`.
        runs: of each line, unless it is slow.
    Raises: InputError for a precision or device that cannot be measured.
    """
    place = usable_device(device)
    precision = usable_precision(precision, place)
    rows = ["| | seconds | times the line it changes | peak MB |", "|---|---|---|---|"]
    seconds: dict[str, float] = {}
    for line in _lines(build_sd15(precision, place), precision, place):
        rows.append(_row(line, seconds, place, runs))
    title = f"sd15, 512 px, {precision}, one step or gradient, per face, {machine(place)}"
    return [title, "", *rows, "", *_agreement(place)]


def _row(line: Line, seconds: dict[str, float], device: torch.device, runs: int) -> str:
    name = line.name
    try:
        if line.compiles:
            name += f", after {timed(line.work, device):.0f} s of compiling"
        found, peak = repeat(line.work, device, runs)
    except Exception as error:  # a compiler that is missing or gives up raises whatever it likes
        return f"| {line.name} | fails: {type(error).__name__} | | |"
    seconds[line.name] = median(found) / line.faces
    share = f"{seconds[line.name] / seconds[line.than]:.2f}" if line.than in seconds else ""
    return f"| {name} | {seconds[line.name]:.3f} | {share} | {peak:.0f} |"


def repeat(work: Work, device: torch.device, runs: int) -> tuple[list[float], float]:
    """Seconds of every run, and the peak of memory in MB of one. The first run is left out unless it was a slow one."""
    seconds: list[float] = []
    with watch_memory(device) as peak:
        seconds.append(timed(work, device))
    if seconds[0] > _ENOUGH_S:
        return seconds, peak[0]
    repeated: list[float] = []
    while len(repeated) < runs and sum(repeated) < _ENOUGH_S:
        with watch_memory(device) as peak:
            repeated.append(timed(work, device))
    return repeated, peak[0]


def _lines(built: Sd15, precision: str, device: torch.device) -> Iterator[Line]:
    """Each is measured before the next is asked for, so that one may change the networks for itself."""
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(FACES, 4, 64, 64, generator=generator).to(device)
    image = torch.rand(1, 3, 512, 512, generator=generator).to(device)
    term, exact = (AttributeTerm(built.encoder, GuidanceSettings(exact=exact), image) for exact in (False, True))

    def step(denoise: Any, faces: int = 1) -> Work:
        return lambda: denoise(latents[:faces], latents.new_full((faces,), 2.0), False)

    def gradient(decode: Decoder, faces: int = 1, of: AttributeTerm = term) -> Work:
        guidance = CombinedGuidance(decode, [of], chunk_px=faces * 512 * 512)
        return lambda: guidance.gradient(latents[:faces], 0.0)

    denoise, full, tiny = sd15_denoiser(built.unet, device), sd15_decoder(built.vae), tiny_decoder(built.tiny)
    yield Line("U-Net step", step(denoise))
    yield Line(f"U-Net step of {FACES} faces at once", step(denoise, FACES), "U-Net step", FACES)
    yield Line("gradient, full VAE, fp32", gradient(sd15_decoder(built.exact_vae), of=exact))
    base = "gradient, full VAE, fp32"
    if precision != "fp32":
        yield Line(f"gradient, full VAE, {precision}", gradient(full), base)
        base = f"gradient, full VAE, {precision}"
    built.vae.enable_gradient_checkpointing()
    yield Line("... checkpointed", gradient(full), base)
    built.vae.disable_gradient_checkpointing()
    yield Line(f"... decoded at {_ENCODER_PX} px", gradient(at_size(full, _ENCODER_PX // 8)), base)
    yield Line("gradient, TAESD", gradient(tiny), base)
    yield Line(f"... decoded at {_ENCODER_PX} px, TAESD", gradient(at_size(tiny, _ENCODER_PX // 8)), "gradient, TAESD")
    yield Line(f"... of {FACES} faces at once, TAESD", gradient(tiny, faces=FACES), "gradient, TAESD", FACES)
    with _compiled(built.tiny.decoder):
        yield Line("... compiled, TAESD", gradient(tiny), "gradient, TAESD", compiles=True)
    with _compiled(built.unet):
        yield Line("U-Net step, compiled", step(denoise), "U-Net step", compiles=True)
    for network in (built.unet, built.vae, built.tiny):
        network.to(memory_format=torch.channels_last)
    yield Line("U-Net step, channels_last", step(denoise), "U-Net step")
    yield Line("... channels_last", gradient(full), base)
    yield Line("... channels_last, TAESD", gradient(tiny), "gradient, TAESD")


@contextmanager
def _compiled(network: Any) -> Iterator[None]:
    """torch.compile in place, for a while."""
    plain = network.forward
    network.forward = torch.compile(plain)
    try:
        yield
    finally:
        network.forward = plain


def at_size(decode: Decoder, side: int) -> Decoder:
    """A decoder whose latents are made smaller first, to `side`."""
    return lambda latent: decode(F.interpolate(latent, (side, side), mode="bilinear", antialias=True))


def _agreement(device: torch.device) -> list[str]:
    """Cosines of cheap gradients with the full one, over pairs of gallery faces in the demo model."""
    model, encoder = DemoModel(ASSETS, device), load_demo_encoder(ASSETS / "encoder.safetensors").to(device)
    faces = [gallery_target(name).image.to(device) for name in sorted(gallery_index())]
    half = encoder.image_px // 8
    ways = {"in bf16, where the machine has it": model.decode_rough, f"at {half * 8} px": at_size(model.decode, half)}
    cosines: dict[str, list[float]] = {name: [] for name in ways}
    for face, target in zip(faces[::2], faces[1::2], strict=True):
        term, latent = AttributeTerm(encoder, GuidanceSettings(), target), model.encode(face)
        full = CombinedGuidance(model.decode, [term]).gradient(latent, 0.0)[0]
        for name, decode in ways.items():
            found = CombinedGuidance(decode, [term]).gradient(latent, 0.0)[0]
            cosines[name].append(float(F.cosine_similarity(found.flatten(), full.flatten(), dim=0)))
    rows = [f"| {name} | {median(found):.3f} ({min(found):.3f}..{max(found):.3f}) |" for name, found in cosines.items()]
    title = f"demo model, {len(faces) // 2} pairs of gallery faces: cosine of the gradient with the one decoded in full"
    return [title, "", "| decoded | cosine |", "|---|---|", *rows]
