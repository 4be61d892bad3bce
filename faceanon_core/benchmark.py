"""What guidance costs: unguided sampling, the reference's way and ours, side by side in one process.

Networks of the real architectures with random weights are fine for time and memory. A step's time does not depend on the
weights, and an image's is its steps'.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from .diffusion import DemoModel, InpaintCond, schedule_sigmas
from .encoder import AttributeEncoder, load_demo_encoder
from .errors import InputError
from .guidance import REUSE, AttributeTerm, CombinedGuidance, GuidanceSettings
from .sampling import Guidance, Step, sample_guided, seeded_noise
from .weights import ASSETS

CASES = ("demo", "sd15")
# as in the configuration of stable-diffusion-inpainting; the rest are diffusers' defaults, which are SD 1.x's
_SD15_UNET = {"sample_size": 64, "in_channels": 9, "cross_attention_dim": 768, "attention_head_dim": 8}
_SD15_VAE = {
    "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4, "norm_num_groups": 32,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
}  # fmt: skip
_VIT_B16 = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12, "image_size": 224,
    "patch_size": 16,
}  # fmt: skip

Decoder = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Networks:
    """What one case samples with. `rough_decode` is a cheaper decoder, for the guidance alone."""

    denoise: Callable[[Tensor, Tensor, Any], Tensor]
    decode: Decoder
    rough_decode: Decoder
    encoder: AttributeEncoder
    latent: Tensor  # (1, 4, h, w)
    size_px: int


@dataclass(frozen=True)
class Measured:
    """Seconds of every step of every run, of the runs as a whole, and the peak of memory above what was there before."""

    steps: list[float] = field(default_factory=list)
    runs: list[float] = field(default_factory=list)
    peak_mb: list[float] = field(default_factory=list)


class Recomputing:
    """The reference's way: the features of the target are computed again at each step."""

    def __init__(self, build: Callable[[], CombinedGuidance]) -> None:
        self._build = build

    def active(self, progress: float) -> bool:
        """See `sampling.Guidance`."""
        return True

    def gradient(self, denoised: Tensor, progress: float) -> tuple[Tensor, dict[str, float]]:
        """See `sampling.Guidance`."""
        return self._build().gradient(denoised, progress)


def benchmark(case: str, precision: str = "fp32", steps: int = 20, runs: int = 3, short: bool = False) -> list[str]:
    """Measure one case. Returns: the lines of a table in Markdown.

    Args:
        case: "demo", the shipped model at 256 px, or "sd15", SD-1.5-shaped networks at 512 px with random weights.
        precision: of U-Net and decoders, "fp32" or "bf16" (autocast); the reference's guidance is fp32 in the former.
        steps: of each image; 5 gives the same shares as 20 for a quarter of the time.
        short: the first and the last way alone, unguided and ours, without those that take long.
    Raises: InputError for an unknown case or precision.
    """
    if case not in CASES:
        raise InputError(f"there is no case {case!r}; it is one of {', '.join(CASES)}")
    if precision not in ("fp32", "bf16"):
        raise InputError(f"precision must be fp32 or bf16, got {precision!r}")
    networks = _demo() if case == "demo" else _sd15()
    ways = _ways(networks)
    if short:
        ways = dict([*ways.items()][:: len(ways) - 1])
    measured = {name: Measured() for name in ways}
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        for _ in range(runs):
            for name, build in ways.items():  # in turn, so that a slow spell of the machine meets all of them
                _run(networks, build(), steps, measured[name])
    return table(measured, f"{case}, {networks.size_px} px, {precision}, {steps} steps, {runs} runs, {_machine()}")


def table(measured: dict[str, Measured], title: str) -> list[str]:
    """Markdown rows: medians with the smallest and the largest in brackets; "unguided" is what the others are times of."""
    plain = median(measured["unguided"].runs)
    lines = [f"{title}", "", "| | s per step | s per image | times unguided | peak MB |", "|---|---|---|---|---|"]
    for name, found in measured.items():
        share = median(found.runs) / plain
        lines.append(f"| {name} | {_spread(found.steps)} | {_spread(found.runs)} | {share:.2f} | {max(found.peak_mb):.0f} |")
    return lines


def _machine() -> str:
    return f"{torch.get_num_threads()} threads, torch {torch.__version__}"


def _spread(values: list[float]) -> str:
    return f"{median(values):.2f} ({min(values):.2f}..{max(values):.2f})"


def _ways(networks: Networks) -> dict[str, Callable[[], Guidance | None]]:
    image = torch.rand(1, 3, networks.size_px, networks.size_px, generator=torch.Generator().manual_seed(1))

    def guidance(decode: Decoder, **changes: Any) -> CombinedGuidance:
        settings = GuidanceSettings(**changes)
        return CombinedGuidance(decode, [AttributeTerm(networks.encoder, settings, image)], settings.reuse)

    every = {"end": 1.0, "reuse": 1, "normalise": False}
    return {
        "unguided": lambda: None,
        "reference: full VAE, each step, target anew": lambda: Recomputing(lambda: guidance(networks.decode, **every)),
        "+ target features kept": lambda: guidance(networks.decode, **every),
        "+ first 40% of the steps": lambda: guidance(networks.decode, reuse=1),
        f"+ one gradient for {REUSE} steps": lambda: guidance(networks.decode),
        "+ rough decoder: bf16 (demo), TAESD (sd15)": lambda: guidance(networks.rough_decode),
    }


def _run(networks: Networks, guidance: Guidance | None, steps: int, measured: Measured) -> None:
    sigmas, noise = torch.from_numpy(schedule_sigmas(steps)), seeded_noise(0)
    moments = [time.perf_counter()]

    def tick(_: Step) -> None:
        moments.append(time.perf_counter())

    with watch_memory() as peak:
        x = networks.latent + sigmas[0] * noise(networks.latent)
        sample_guided(networks.denoise, x, sigmas, None, noise, guidance, callback=tick)
    measured.steps.extend(after - before for before, after in pairwise(moments))
    measured.runs.append(time.perf_counter() - moments[0])
    measured.peak_mb.append(peak[0])


@contextmanager
def watch_memory(every_s: float = 0.02) -> Iterator[list[float]]:
    """Resident memory's peak in a block above what it was at its start, MB, in a list of one number."""
    start, peak, ended = _resident_mb(), [0.0], threading.Event()

    def watch() -> None:
        while not ended.wait(every_s):
            peak[0] = max(peak[0], _resident_mb() - start)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        ended.set()
        thread.join()


def _resident_mb() -> float:
    path = Path("/proc/self/statm")
    if not path.is_file():
        raise InputError("memory is measured through /proc, which this system does not have; run the benchmark on Linux")
    return int(path.read_text(encoding="ascii").split()[1]) * 4096 / 1e6


def _demo() -> Networks:
    model = DemoModel(ASSETS)
    size = model.size_px // 8
    latent = torch.randn(1, 4, size, size, generator=torch.Generator().manual_seed(0))
    cond = InpaintCond(model.tokens.encode({}), torch.ones(1, 1, size, size), latent, None)
    encoder = load_demo_encoder(ASSETS / "encoder.safetensors")
    return Networks(
        lambda x, sigma, _: model.denoise(x, sigma, cond), model.decode, model.decode_rough, encoder, latent, model.size_px
    )


def _sd15() -> Networks:
    from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel

    try:
        from transformers import CLIPVisionConfig, CLIPVisionModel
    except ImportError as error:
        raise InputError("the case sd15 needs transformers; install it with pip install transformers") from error

    from .vision_encoders import VisionEncoder

    torch.manual_seed(0)
    unet, vae, tiny = UNet2DConditionModel(**_SD15_UNET), AutoencoderKL(**_SD15_VAE), AutoencoderTiny()
    vit = CLIPVisionModel(CLIPVisionConfig(**_VIT_B16))
    for network in (unet, vae, tiny, vit):
        nn.Module.eval(network).requires_grad_(False)
    latent, context = torch.randn(1, 4, 64, 64), torch.randn(1, 77, 768)
    surroundings = torch.cat([torch.ones(1, 1, 64, 64), torch.randn(1, 4, 64, 64)], dim=1)

    @torch.no_grad()
    def denoise(x: Tensor, sigma: Tensor, _: Any) -> Tensor:
        scaled = x / (sigma.view(-1, 1, 1, 1) ** 2 + 1).sqrt()
        eps = unet(torch.cat([scaled, surroundings], dim=1), torch.tensor(500), encoder_hidden_states=context).sample
        return x - sigma.view(-1, 1, 1, 1) * eps.float()

    encoder = VisionEncoder(vit, 224, ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)))
    return Networks(
        denoise, lambda z: (vae.decode(z / 0.18215).sample.float() + 1) / 2, lambda z: tiny.decode(z).sample.float(),
        encoder, latent, 512,
    )  # fmt: skip
