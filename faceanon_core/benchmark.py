"""What guidance costs: unguided sampling, the reference's way and ours, side by side in one process.

Networks of the real architectures with random weights are fine for time and memory. A step's time does not depend on the
weights, and an image's is its steps'.
"""

from __future__ import annotations

import copy
import ctypes
import gc
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .checks import usable_device
from .diffusion import DemoModel, InpaintCond, has_native_bfloat16, schedule_sigmas
from .encoder import AttributeEncoder, load_demo_encoder
from .errors import InputError
from .guidance import AttributeTerm, CombinedGuidance, GuidanceSettings
from .sampling import Guidance, Step, sample_guided, seeded_noise
from .weights import ASSETS

if TYPE_CHECKING:
    from .vision_encoders import VisionEncoder

CASES = ("demo", "sd15")
WAYS = ("unguided", "reference", "kept", "reduced", "seldom", "ours", "unguided-cfg", "ours-cfg")
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
EMPHASIS = 5.0  # of classifier-free guidance; the number itself costs nothing
# as in the configuration of stable-diffusion-inpainting; the rest are diffusers' defaults, which are SD 1.x's
_SD15_UNET = {"sample_size": 64, "in_channels": 9, "cross_attention_dim": 768, "attention_head_dim": 8}
_SD15_VAE = {
    "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4, "norm_num_groups": 32,
    "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
}  # fmt: skip
_SD15_SCALE = 0.18215
_VIT_B16 = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12, "image_size": 224,
    "patch_size": 16,
}  # fmt: skip

Decoder = Callable[[Tensor], Tensor]
Work = Callable[[], object]


@dataclass(frozen=True)
class Networks:
    """What one case samples with, all on one device."""

    denoise: Callable[[Tensor, Tensor, Any], Tensor]  # its third argument: whether with classifier-free guidance
    decode: Decoder  # the full VAE in float32, as the reference guides
    own_decode: Decoder  # ... in the case's precision
    small_decode: Decoder  # the one our guidance uses: TAESD, or the demo VAE in bfloat16 where the machine has it
    encoder: AttributeEncoder
    latent: Tensor  # (1, 4, h, w)
    size_px: int
    precision: str  # in words
    weights_mb: dict[str, float]  # what lies in memory all the time, by name

    @property
    def device(self) -> torch.device:
        """Where everything lies."""
        return self.latent.device


@dataclass(frozen=True)
class Way:
    """One way to sample: `build` makes the guidance of a run; `than` is the `key` of the way it is compared with."""

    key: str
    name: str  # in the table
    build: Callable[[], Guidance | None]
    emphasis: bool = False  # classifier-free guidance
    than: str = "unguided"


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


def benchmark(
    case: str, precision: str | None = None, steps: int = 20, runs: int = 3, ways: Sequence[str] = WAYS, device: str = "cpu",
    longest_s: float = 600,
) -> list[str]:  # fmt: skip
    """Measure one case. Returns: the lines of a table in Markdown.

    Args:
        case: "demo", the shipped model at 256 px, or "sd15", SD-1.5-shaped networks at 512 px with random weights.
        precision: of sd15's weights, fp32 (the default), bf16 or fp16; the reference's guidance is fp32 in any case. The
            demo model has its own: U-Net and guidance in bf16 where the machine has it, the rest in fp32.
        steps: of each image; with 6 the reference's share is a tenth too small, since the last step has no guidance.
        ways: which of `WAYS` to measure. Some are the same as the one before in some cases, and left out.
        device: torch device, cpu or a CUDA one.
        longest_s: a way whose first image took longer is not run again.
    Raises: InputError for an unknown case, precision, way or device.
    """
    place = usable_device(device)
    if place.type not in ("cpu", "cuda"):
        raise InputError(f"time and memory are measured on the CPU and on CUDA GPUs, not on {device!r}")
    if unknown := [key for key in ways if key not in WAYS]:
        raise InputError(f"there is no way {unknown[0]!r} to sample; it is one of {', '.join(WAYS)}")
    networks = open_networks(case, precision, place)
    chosen = [way for way in sampling_ways(networks) if way.key in ways]
    _warm_up(networks, chosen)
    measured = {way.key: Measured() for way in chosen}
    for _ in range(runs):
        for way in chosen:  # in turn, so that a slow spell of the machine meets all of them
            if all(took <= longest_s for took in measured[way.key].runs[:1]):
                _run(networks, way, steps, measured[way.key])
    counted = _counted(runs, "run")
    if any(len(found.runs) < runs for found in measured.values()):
        counted += f" (1 where it took over {longest_s:g} s)"
    title = f"{case}, {networks.size_px} px, {networks.precision}, {steps} steps, {counted}, {machine(place)}"
    stored = ", ".join(f"{name} {size:.0f}" for name, size in networks.weights_mb.items())
    return [title, "", *table(chosen, measured), "", f"Weights in memory, MB: {stored}."]


def table(ways: Sequence[Way], measured: dict[str, Measured]) -> list[str]:
    """Markdown rows: medians with the smallest and the largest in brackets."""
    lines = ["| | s per step | s per image | times unguided | peak MB |", "|---|---|---|---|---|"]
    for way in ways:
        found = measured[way.key]
        share = f"{median(found.runs) / median(measured[way.than].runs):.2f}" if way.than in measured else "-"
        lines.append(f"| {way.name} | {spread(found.steps)} | {spread(found.runs)} | {share} | {max(found.peak_mb):.0f} |")
    return lines


def machine(device: torch.device) -> str:
    """What is measured on, for a heading."""
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else _counted(torch.get_num_threads(), "thread")
    return f"{where}, torch {torch.__version__}"


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Median with the smallest and the largest in brackets."""
    return f"{median(values):.{digits}f} ({min(values):.{digits}f}..{max(values):.{digits}f})"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def sampling_ways(networks: Networks) -> list[Way]:
    """Unguided; the reference's way, then one lever after the other down to ours; then classifier-free guidance as well."""
    generator = torch.Generator().manual_seed(1)
    image = torch.rand(1, 3, networks.size_px, networks.size_px, generator=generator).to(networks.device)

    def guidance(decode: Decoder, **changes: Any) -> CombinedGuidance:
        settings = GuidanceSettings(**changes)
        return CombinedGuidance(decode, [AttributeTerm(networks.encoder, settings, image)], settings.reuse, settings.limit)

    def full() -> CombinedGuidance:
        return guidance(networks.decode, reuse=1, normalise=False, exact=True)

    def ours() -> CombinedGuidance:
        return guidance(networks.small_decode)

    ways = [
        Way("unguided", "unguided", lambda: None),
        Way("reference", "reference: full VAE in fp32, each step, target anew", lambda: Recomputing(full)),
        Way("kept", "+ target features kept", full),
    ]
    if networks.own_decode is not networks.decode:
        reduced = partial(guidance, networks.own_decode, reuse=1)
        ways.append(Way("reduced", f"+ guidance in {networks.precision}", reduced))
    seldom = f"+ one gradient for {GuidanceSettings.reuse} steps"
    if networks.small_decode is networks.own_decode:
        ways.append(Way("ours", f"ours: {seldom}", ours))
    else:
        ways.append(Way("seldom", seldom, partial(guidance, networks.own_decode)))
        ways.append(Way("ours", "ours: + small decoder: TAESD (sd15), bf16 (demo)", ours))
    return [
        *ways,
        Way("unguided-cfg", "unguided, classifier-free guidance", lambda: None, emphasis=True),
        Way("ours-cfg", "ours, classifier-free guidance", ours, emphasis=True, than="unguided-cfg"),
    ]


def _warm_up(networks: Networks, ways: Sequence[Way]) -> None:
    """Load kernels and choose algorithms before time is taken; on the CPU, where guidance is slow, the U-Net's alone."""
    for way in ways:
        if networks.device.type == "cuda" or way.key == "unguided":
            _run(networks, way, 2, Measured())  # the second step has no guidance: no noise follows it


def _run(networks: Networks, way: Way, steps: int, measured: Measured) -> None:
    sigmas, noise = torch.from_numpy(schedule_sigmas(steps)).to(networks.device), seeded_noise(0)
    guidance, moments = way.build(), [now(networks.device)]

    def tick(_: Step) -> None:
        moments.append(now(networks.device))

    with watch_memory(networks.device) as peak:
        x = networks.latent + sigmas[0] * noise(networks.latent)
        sample_guided(networks.denoise, x, sigmas, way.emphasis, noise, guidance, callback=tick)
        ended = now(networks.device)
    measured.steps.extend(after - before for before, after in pairwise(moments))
    measured.runs.append(ended - moments[0])
    measured.peak_mb.append(peak[0])


def now(device: torch.device) -> float:
    """Seconds, once everything that was asked of the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def timed(work: Work, device: torch.device) -> float:
    """Seconds that `work` takes on the device."""
    began = now(device)
    work()
    return now(device) - began


@contextmanager
def watch_memory(device: torch.device, every_s: float = 0.02) -> Iterator[list[float]]:
    """Peak of memory in a block above what was in use at its start, MB, in a list of one number.

    On a GPU what tensors take, by torch's own count; on the CPU the process's resident memory, looked at every `every_s`.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        peak = [0.0]
        try:
            yield peak
        finally:
            peak[0] = (torch.cuda.max_memory_allocated(device) - before) / 1e6
    else:
        with _watch_process(every_s) as peak:
            yield peak


@contextmanager
def _watch_process(every_s: float) -> Iterator[list[float]]:
    start, peak, ended = settled_mb(), [0.0], threading.Event()

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


def settled_mb() -> float:
    """Resident memory of this process, MB, once what was freed is given back to the system, which glibc alone can.

    Else the next run would use it again and seem to need nothing.

    Raises: InputError where the system does not tell.
    """
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    return _resident_mb()


def _resident_mb() -> float:
    path = Path("/proc/self/statm")
    if not path.is_file():
        raise InputError("memory is measured through /proc, which this system does not have; run the benchmark on Linux")
    return int(path.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def _size_mb(*modules: nn.Module) -> float:
    return sum(weight.numel() * weight.element_size() for module in modules for weight in module.parameters()) / 1e6


def open_networks(case: str, precision: str | None, device: torch.device) -> Networks:
    """Networks of one case; see `benchmark`. Raises: InputError."""
    if case not in CASES:
        raise InputError(f"there is no case {case!r}; it is one of {', '.join(CASES)}")
    if case == "demo":
        if precision is not None:
            raise InputError("the demo model has a precision of its own, which the heading names; leave --precision out")
        return _demo(device)
    return _sd15(usable_precision(precision, device), device)


def usable_precision(precision: str | None, device: torch.device) -> str:
    """`precision`, fp32 for None. Raises: InputError if there is none of that name, or the device only emulates it."""
    precision = precision or "fp32"
    if precision not in PRECISIONS:
        raise InputError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    if precision == "fp16" and device.type == "cpu":
        raise InputError("fp16 is for GPUs; on the CPU choose bf16 or fp32")
    if precision == "bf16" and not has_native_bfloat16(device):
        raise InputError(f"this {device.type} only emulates bf16, so it would take hours and say nothing; choose fp32")
    return precision


def _demo(device: torch.device) -> Networks:
    model = DemoModel(ASSETS, device)
    encoder = load_demo_encoder(ASSETS / "encoder.safetensors").to(device)
    size = model.size_px // 8
    latent = torch.randn(1, 4, size, size, generator=torch.Generator().manual_seed(0)).to(device)
    plain = InpaintCond(model.tokens.encode({}), torch.ones(1, 1, size, size, device=device), latent)
    emphasised = replace(plain, opposite=plain.context, emphasis=EMPHASIS)
    decode = model.decode
    own, rough = ("bf16", model.decode_rough) if has_native_bfloat16(device) else ("fp32", decode)
    return Networks(
        lambda x, sigma, emphasis: model.denoise(x, sigma, emphasised if emphasis else plain),
        decode, decode, rough, encoder, latent, model.size_px, f"U-Net and guidance {own}",
        {"U-Net": _size_mb(model.unet), "VAE": _size_mb(model.vae), "encoder of the guidance": _size_mb(encoder)},
    )  # fmt: skip


@dataclass(frozen=True)
class Sd15:
    """SD-1.5-shaped networks with random weights, frozen, on one device."""

    unet: Any
    vae: Any
    tiny: Any  # TAESD
    exact_vae: Any  # in float32
    encoder: VisionEncoder  # in float32; the guidance has it compute in bf16 where the machine has it


def build_sd15(precision: str, device: torch.device) -> Sd15:
    """Raises: InputError without transformers."""
    from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel

    try:
        from transformers import CLIPVisionConfig, CLIPVisionModel
    except ImportError as error:
        raise InputError("the case sd15 needs transformers; install it with pip install transformers") from error

    from .vision_encoders import VisionEncoder

    torch.manual_seed(0)
    dtype = PRECISIONS[precision]
    with device:  # a GPU draws a billion random weights in no time
        unet, vae, tiny = UNet2DConditionModel(**_SD15_UNET), AutoencoderKL(**_SD15_VAE), AutoencoderTiny()
    vit = CLIPVisionModel(CLIPVisionConfig(**_VIT_B16))  # on the CPU, where its strength is found
    encoder = VisionEncoder(vit, 224, ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)))
    for network in (unet, vae, tiny, encoder):
        nn.Module.to(network.eval().requires_grad_(False), device)
    exact_vae = vae if dtype == torch.float32 else copy.deepcopy(vae)
    for network in (unet, vae, tiny):
        nn.Module.to(network, dtype)
    return Sd15(unet, vae, tiny, exact_vae, encoder)


def _sd15(precision: str, device: torch.device) -> Networks:
    built = build_sd15(precision, device)
    decode = sd15_decoder(built.exact_vae)
    own_decode = decode if built.vae is built.exact_vae else sd15_decoder(built.vae)
    weights = {
        "U-Net": _size_mb(built.unet), "VAE": _size_mb(built.vae), "TAESD": _size_mb(built.tiny),
        "encoder of the guidance": _size_mb(built.encoder),
    }  # fmt: skip
    return Networks(
        sd15_denoiser(built.unet, device), decode, own_decode, tiny_decoder(built.tiny), built.encoder,
        torch.randn(1, 4, 64, 64).to(device), 512, precision, weights,
    )  # fmt: skip


def sd15_decoder(vae: Any) -> Decoder:
    """Scaled latent -> image about 0..1, in float32 whatever the weights are."""
    return tiny_decoder(vae, _SD15_SCALE)


def tiny_decoder(vae: Any, scale: float = 1.0) -> Decoder:
    """The same for TAESD, which takes latents as they are."""

    def decode(latent: Tensor) -> Tensor:
        image: Tensor = vae.decode((latent / scale).to(vae.dtype)).sample.float()
        return (image + 1) / 2

    return decode


def sd15_denoiser(unet: Any, device: torch.device) -> Callable[[Tensor, Tensor, Any], Tensor]:
    """eps-prediction; with emphasis both contexts go through the U-Net as one batch, as ComfyUI does."""
    context = torch.randn(2, 77, 768).to(device, unet.dtype)
    surroundings = torch.cat([torch.ones(1, 1, 64, 64), torch.randn(1, 4, 64, 64)], dim=1).to(device)
    timestep = torch.tensor(500, device=device)

    @torch.no_grad()
    def denoise(x: Tensor, sigma: Tensor, emphasis: Any) -> Tensor:
        sigma_ = sigma.view(-1, 1, 1, 1)
        inputs = torch.cat([x / (sigma_**2 + 1).sqrt(), surroundings.expand(len(x), -1, -1, -1)], dim=1).to(unet.dtype)
        if not emphasis:
            contexts = context[:1].expand(len(x), -1, -1)
            return x - sigma_ * unet(inputs, timestep, encoder_hidden_states=contexts).sample.float()
        contexts = context.repeat_interleave(len(x), 0)
        toward, away = unet(inputs.repeat(2, 1, 1, 1), timestep, encoder_hidden_states=contexts).sample.float().chunk(2)
        return x - sigma_ * (away + EMPHASIS * (toward - away))

    return denoise
