"""The only file that imports ComfyUI, model folders aside. Imported inside node functions, never at load time.

ComfyUI runs nodes under torch.inference_mode(), where every weight is an inference tensor and autograd cannot save it.
The guidance therefore runs on clones of the weights made outside inference mode (`_Differentiable`), made anew for each
run, because moving a module inside inference mode taints it again. The clones lie on the device that computes: for weights
that lie elsewhere newer versions take what they hold in a cache of their own. ComfyUI's own weights are never touched.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.model_sampling
import comfy.patcher_extension
import comfy.sample
import comfy.sampler_helpers
import comfy.samplers
import comfy.sd
import comfy.supported_models_base
import comfy.taesd.taesd
import comfy.utils
import latent_preview
import node_helpers
import torch
from safetensors.torch import load_file
from torch import Tensor

from ..faceanon_core import diffusion
from ..faceanon_core.attributes import Attributes
from ..faceanon_core.eight_bits import read_weights
from ..faceanon_core.encoder import load_demo_encoder as read_demo_encoder
from ..faceanon_core.errors import InputError
from ..faceanon_core.guidance import (
    CHUNK_PX,
    PX_PER_LATENT,
    AttributeTerm,
    CombinedGuidance,
    GuidanceSettings,
    Term,
    TermSettings,
    check_rows,
    rows_of,
)
from ..faceanon_core.leakage import late_start_warning
from ..faceanon_core.recognition import load_recognition as read_recognition
from ..faceanon_core.sampling import Step, ancestral_step, sample_guided
from ..faceanon_core.semantic_parser import SemanticParser, load_semantic_parser
from ..faceanon_core.terms import IdentityTerm, PoseTerm
from ..faceanon_core.vision_encoders import load_vision_encoder as read_vision_encoder
from ..faceanon_core.weights import ASSETS
from .folders import approximate_vae

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TermSpec:
    """A term that travels through a GUIDANCE socket beside the attributes'. `inputs` have a row for each source face."""

    kind: type[IdentityTerm | PoseTerm]
    network: Any  # ModelPatcher
    method: str  # of the network, that the term calls
    settings: TermSettings
    inputs: tuple[Tensor, ...]

    def of(self, faces: list[int], count: int) -> TermSpec:
        """The term for these of `count` faces."""
        return replace(self, inputs=tuple(_rows(values, "source", faces, count) for values in self.inputs))

    def build(self) -> Term:
        """Must be called outside inference mode, after the network is loaded."""
        device = self.network.load_device
        method = _Differentiable(self.network.model, self.method, device)

        def call(*images: Tensor) -> Tensor:
            return method(*(image.to(device, torch.float32) for image in images))

        return self.kind(SimpleNamespace(**{self.method: call}), self.settings, *(rows.clone() for rows in self.inputs))


@dataclass(frozen=True)
class GuidanceSpec:
    """What travels through a GUIDANCE socket. `target` (1 or faces,3,H,W) and `source` (faces,3,H,W) are float 0..1."""

    encoder: Any  # ModelPatcher of an AttributeEncoder
    target: Tensor
    source: Tensor | None
    settings: GuidanceSettings
    decoder: Any = None  # a VAE other than the sampler's; None: as `with_decoder` finds
    region: Tensor | None = None  # (1 or faces,1,H,W), 1 = regenerate; for the tokens "region"
    more: tuple[TermSpec, ...] = ()

    @property
    def guided(self) -> bool:
        """Whether any term has a strength."""
        return self.settings.strength > 0 or any(term.settings.strength > 0 for term in self.more)

    def of(self, faces: list[int], count: int) -> GuidanceSpec:
        """The guidance of these of `count` faces. Raises: InputError if it was made for another number of them."""
        given = {name: getattr(self, name) for name in ("target", "source", "region")}
        chosen = {name: _rows(values, name, faces, count) for name, values in given.items() if values is not None}
        return replace(self, **chosen, more=tuple(term.of(faces, count) for term in self.more))


def _rows(values: Tensor, name: str, faces: list[int], count: int) -> Any:
    check_rows(len(values), name, count)
    return rows_of(values, faces)


# ---- the demo model ----


class _DemoLatent(comfy.latent_formats.LatentFormat):
    scale_factor = diffusion.LATENT_SCALE
    # the sampler's preview; least squares over the gallery, pixels -1..1
    latent_rgb_factors = (  # R, G, B
        (0.2697, 0.0845, 0.0015),
        (-0.0119, 0.2102, 0.3353),
        (-0.3665, -0.1661, -0.0632),
        (-0.0100, -0.1145, -0.1485),
    )
    latent_rgb_factors_bias = (0.1992, -0.1599, -0.3423)


class _DemoConfig(comfy.supported_models_base.BASE):
    """The demo U-Net in ComfyUI's terms (`diffusion.UNET_CONFIG` is the same network in diffusers' terms)."""

    latent_format = _DemoLatent
    sampling_settings = {"linear_start": 0.00085, "linear_end": 0.012}  # noqa: RUF012
    unet_extra_config = {"num_heads": 4, "num_head_channels": -1}  # noqa: RUF012

    def model_type(self, state_dict: Any, prefix: str = "") -> Any:
        return comfy.model_base.ModelType.V_PREDICTION


_DEMO_UNET: dict[str, Any] = {
    "image_size": diffusion.UNET_CONFIG["sample_size"],
    "in_channels": 9,
    "out_channels": 4,
    "model_channels": 128,
    "num_res_blocks": [1, 1, 1],
    "channel_mult": [1, 2, 3],
    "transformer_depth": [0, 1, 1],
    "transformer_depth_output": [0, 0, 1, 1, 1, 1],
    "transformer_depth_middle": 1,
    "context_dim": diffusion.CONTEXT_WIDTH,
    "use_spatial_transformer": True,
    "use_linear_in_transformer": False,
    "legacy": False,
}


def load_demo_model() -> tuple[Any, Any]:
    """The demo model as (MODEL, VAE)."""
    return _demo_unet(), _demo_vae()


def demo_synthesizer() -> diffusion.DemoModel:
    """The demo model as the core samples with it, on ComfyUI's device; small enough to live outside its memory manager."""
    return diffusion.DemoModel(ASSETS, comfy.model_management.get_torch_device())


def _demo_unet() -> Any:
    state = _to_ldm_keys(read_weights(ASSETS / "unet.safetensors"))
    device, offload = comfy.model_management.get_torch_device(), comfy.model_management.unet_offload_device()
    size = comfy.utils.calculate_parameters(state)
    dtype = comfy.model_management.unet_dtype(model_params=size, supported_dtypes=[torch.float16, torch.float32])
    config = _DemoConfig({**_DEMO_UNET, "dtype": dtype})
    manual_cast = comfy.model_management.unet_manual_cast(dtype, device, [torch.float16, torch.float32])
    config.set_inference_dtype(dtype, manual_cast)
    model = config.get_model({}, "", device=offload)
    model.diffusion_model.load_state_dict({name: value.to(dtype) for name, value in state.items()})
    return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=offload)


def _to_ldm_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
    names = comfy.utils.unet_to_diffusers(_DEMO_UNET)
    return {names[name]: value for name, value in state.items()}


def _demo_vae() -> Any:
    """TAESD's format: the decoder's first layer is the clamp, which diffusers keeps outside its layer list."""
    state = {}
    for name, value in load_file(ASSETS / "vae.safetensors").items():
        part, _, number, rest = name.split(".", 3)
        index = int(number) + (part == "decoder")
        state[f"taesd_{part}.{index}.{rest}"] = value
    state["vae_scale"], state["vae_shift"] = torch.tensor(1.0), torch.tensor(0.0)
    return comfy.sd.VAE(sd=state)


def load_demo_encoder() -> Any:
    """The demo encoder inside a ModelPatcher, so that ComfyUI's memory management moves it."""
    with torch.inference_mode(False):
        network = read_demo_encoder(ASSETS / "encoder.safetensors")
    return _patcher(network)


def load_vision_encoder(path: Path) -> Any:
    """An encoder the user brings, like `load_demo_encoder`. Raises: WeightsError."""
    with torch.inference_mode(False):
        network = read_vision_encoder(path)
    return _patcher(network)


def load_recognition(path: Path) -> Any:
    """A RECOGNITION_NETWORK. Raises: WeightsError."""
    with torch.inference_mode(False):
        network = read_recognition(path)
    return _patcher(network)


class _ComfyParser:
    """A FaceParser whose network ComfyUI's memory management moves."""

    def __init__(self, parser: SemanticParser) -> None:
        self.delivers = parser.delivers
        self._parser, self._patcher = parser, _patcher(parser)

    def parse(self, crop: Any, landmarks: Any) -> Any:
        comfy.model_management.load_models_gpu([self._patcher])
        return self._parser.parse(crop, landmarks)


def load_face_parser(path: Path) -> Any:
    """A FACE_PARSER. Raises: WeightsError."""
    return _ComfyParser(load_semantic_parser(path))


class _WholePatcher(comfy.model_patcher.ModelPatcher):
    """Of a network made of plain torch modules, which cannot compute where some of its weights stay on the CPU."""

    def partially_load(self, device_to: Any, extra_memory: float = 0, force_patch_weights: bool = False) -> Any:
        return super().partially_load(device_to, 1e32, force_patch_weights)

    def partially_unload(self, *_: Any, **__: Any) -> int:
        return 0  # too little for the memory manager, which then unloads it whole


def _patcher(network: torch.nn.Module) -> Any:
    return _WholePatcher(network, comfy.model_management.get_torch_device(), comfy.model_management.unet_offload_device())


def demo_conditioning(faces: list[Attributes]) -> Any:
    """CONDITIONING [[tensor (faces, tokens, width), {}]] for the demo model; one row per face, or one for all."""
    rows = [_demo_tokens().encode(attributes) for attributes in faces]
    return [[torch.cat(rows).detach().clone(), {}]]


@cache
def _demo_tokens() -> diffusion.AttributeTokens:
    tokens = diffusion.AttributeTokens()
    tokens.load_state_dict(load_file(ASSETS / "tokens.safetensors"))
    return tokens.eval().requires_grad_(False)


# ---- small helpers the nodes use ----


def vae_encode(vae: Any, images: Tensor) -> Tensor:
    """(B,3,H,W) float 0..1 -> LATENT samples of this VAE."""
    return vae.encode(images.permute(0, 2, 3, 1))  # BCHW -> BHWC


def vae_decode(vae: Any, samples: Tensor) -> Tensor:
    """LATENT samples of this VAE -> (B,3,H,W) float 0..1."""
    return vae.decode(samples).permute(0, 3, 1, 2)  # BHWC -> BCHW


def report_progress(items: Sequence[Any]) -> Iterator[Any]:
    """Iterate with the node's progress bar; Cancel takes effect before each item."""
    bar = comfy.utils.ProgressBar(len(items))
    for item in items:
        comfy.model_management.throw_exception_if_processing_interrupted()
        yield item
        bar.update(1)


def extend(conditioning: Any, values: dict[str, Any]) -> Any:
    """CONDITIONING with more values on every entry."""
    return node_helpers.conditioning_set_values(conditioning, values)


def narrow(conditioning: Any, start: float, end: float) -> Any:
    """CONDITIONING whose entries act in a part 0..1 of the schedule alone; those that never act in it are left out."""
    narrowed = []
    for tokens, values in conditioning:
        begins, ends = max(start, values.get("start_percent", 0.0)), min(end, values.get("end_percent", 1.0))
        if begins < ends:
            narrowed.append([tokens, {**values, "start_percent": begins, "end_percent": ends}])
    return narrowed


def of_faces(model: Any, conditionings: Sequence[Any], faces: list[int], count: int) -> tuple[list[Any], list[int]]:
    """Every CONDITIONING for these of `count` faces alone, and which they are.

    All faces, where a conditioning holds more than tokens and numbers or the model is patched with functions: nobody knows
    which rows of a ControlNet's hints or of another pack's references are a face's.
    """
    options = dict(model.model_options)
    patches = [*options.pop("transformer_options", {}).values(), *options.values()]
    chosen = [[_entry_of(entry, faces, count) for entry in conditioning] for conditioning in conditionings]
    if any(patches) or any(entry is None for conditioning in chosen for entry in conditioning):
        return list(conditionings), list(range(count))
    return chosen, faces


def _entry_of(entry: Any, faces: list[int], count: int) -> Any:
    told = {"tokens": entry[0], **entry[1]}
    tensors = {name: value for name, value in told.items() if isinstance(value, Tensor)}
    others = [value for name, value in told.items() if name not in tensors]
    if any(len(value) not in (1, count) for value in tensors.values()):
        return None
    if not all(value is None or isinstance(value, (bool, int, float, str)) for value in others):
        return None
    told |= {name: rows_of(value, faces) for name, value in tensors.items()}
    return [told.pop("tokens"), told]


@contextlib.contextmanager
def ready_encoder(encoder: Any) -> Iterator[Any]:
    """The encoder's network, loaded; only for calls without gradient.

    Raises: InputError for an encoder that estimates no attributes.
    """
    if not hasattr(encoder.model, "predict"):
        raise InputError("this encoder estimates no attributes; connect the encoder of Load Demo Model here")
    comfy.model_management.load_models_gpu([encoder])
    yield encoder.model


def schedule(model: Any, scheduler: str, steps: int, denoise: float) -> Tensor:
    """Sigmas as KSampler makes them, `denoise` included."""
    warning = late_start_warning(denoise)
    if warning is not None:
        log.warning("%s", warning)
    device = comfy.model_management.get_torch_device()
    return comfy.samplers.KSampler(model, steps, device, "euler_ancestral", scheduler, denoise, model.model_options).sigmas


def sample(
    model: Any, sampler: Any, sigmas: Tensor, positive: Any, negative: Any, latent: dict[str, Any], seed: int, cfg: float,
    callback: Any = None,
) -> dict[str, Any]:  # fmt: skip
    """Run a SAMPLER the way SamplerCustom does. Returns: a LATENT.

    Args:
        callback: shows progress; None: a progress bar and preview of this run alone.
    """
    samples = comfy.sample.fix_empty_latent_channels(model, latent["samples"])
    noise = comfy.sample.prepare_noise(samples, seed, latent.get("batch_index"))
    callback = callback or latent_preview.prepare_callback(model, len(sigmas) - 1)
    result = comfy.sample.sample_custom(
        model, noise, cfg, sampler, sigmas, positive, negative, samples, noise_mask=latent.get("noise_mask"),
        callback=callback, disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED, seed=seed,
    )  # fmt: skip
    return {**latent, "samples": result}


def run_callbacks(model: Any, steps: int, runs: int) -> Iterator[Any]:
    """A `sample` callback for each of several runs, which together fill one progress bar; Cancel works between them too."""
    show = latent_preview.prepare_callback(model, runs * steps)
    for done in range(0, runs * steps, steps):
        comfy.model_management.throw_exception_if_processing_interrupted()
        yield lambda step, x0, x, _, done=done: show(done + step, x0, x, runs * steps)


# ---- guidance ----


class _Differentiable:
    """Calls a method of a module on clones of its weights that autograd accepts. Make it outside inference mode.

    Args:
        device: where it computes.
        dtype: of the clones; None: as they are.
        skip: names of parts that the method does not need.
    """

    class _Method(torch.nn.Module):
        def __init__(self, module: torch.nn.Module, method: str) -> None:
            super().__init__()
            self.module, self.method = module, method

        def forward(self, *values: Any) -> Tensor:
            return getattr(self.module, self.method)(*values)

    def __init__(
        self, module: torch.nn.Module, method: str, device: Any, dtype: Any = None, skip: tuple[str, ...] = ()
    ) -> None:
        self.holder = self._Method(module, method)
        tensors = [*self.holder.named_parameters(), *self.holder.named_buffers()]
        self.weights = {
            name: tensor.detach().to(device, dtype if tensor.is_floating_point() else None, copy=True)
            for name, tensor in tensors
            if not name.removeprefix("module.").startswith(skip or ("\0",))
        }

    def __call__(self, *values: Any) -> Tensor:
        return torch.func.functional_call(self.holder, self.weights, values)


class _ComfyEncoder:
    """An AttributeEncoder that works inside ComfyUI's inference mode."""

    def __init__(self, patcher: Any) -> None:
        self.unit_strength, self.large = patcher.model.unit_strength, patcher.model.large
        self._device = patcher.load_device
        self._features = _Differentiable(patcher.model, "features", self._device)

    def features(self, image: Tensor, normalise: bool = True) -> Tensor:
        return self._features(image.to(self._device, torch.float32), normalise)


def _decode(vae: Any, model: Any) -> Any:
    """latent as the sampler sees it -> image (B,3,H,W) about 0..1, differentiable."""
    unused = ("encoder", "quant_conv", "taesd_encoder")
    network = _Differentiable(vae.first_stage_model, "decode", vae.device, vae.vae_dtype, unused)

    def decode(latent: Tensor) -> Tensor:
        comfy.model_management.throw_exception_if_processing_interrupted()  # a step decodes many chunks of a long video
        pixels = network(model.process_latent_out(latent).to(vae.device, vae.vae_dtype))
        return (pixels.float() + 1) / 2

    return decode


def _check_served(model: Any, vae: Any, noise: Tensor) -> None:
    """Refuse models, VAEs and latents (as large as `noise`) the guidance cannot serve, in one sentence.

    Raises: InputError.
    """
    if not _is_served(model):
        raise InputError("attribute guidance serves SD 1.5, SD 2 and SDXL models; this is a flow or DiT model")
    channels = model.latent_format.latent_channels
    if noise.shape[1] != channels:
        raise InputError(
            f"the latent has {noise.shape[1]} channels but the model takes {channels}; encode with the model's own VAE"
        )
    if vae.latent_channels != channels:
        raise InputError(
            f"the VAE has {vae.latent_channels} latent channels but the model has {channels}; use the model's own VAE"
        )


def _is_served(model: Any) -> bool:
    flow = isinstance(model.model_sampling, comfy.model_sampling.CONST)
    return not flow and hasattr(model.diffusion_model, "input_blocks")


_TAESD_SCALES = {"taesd_decoder": 0.18215, "taesdxl_decoder": 0.13025}  # of the full VAE's latents, by the file's name


def with_decoder(spec: GuidanceSpec, vae: Any, model: Any) -> GuidanceSpec:
    """`spec` with a decoder for the gradient: its own, else TAESD from ComfyUI's vae_approx folder, else `vae`.

    Call it once for all the samplings of a run: it loads the file, or says that there is none.

    Args:
        vae: the sampled model's own; where that is small itself it is the decoder.
        model: what is sampled, a BaseModel.
    """
    if spec.decoder is not None or not spec.guided:
        return spec
    small = _find_taesd(vae, model.latent_format.taesd_decoder_name) if _is_served(model) else None
    return replace(spec, decoder=small or vae)


def _find_taesd(vae: Any, name: str | None) -> Any:
    if name not in _TAESD_SCALES or isinstance(vae.first_stage_model, comfy.taesd.taesd.TAESD):
        return None
    file = approximate_vae(name)
    if file is None:
        log.warning(
            "attribute guidance decodes with the full VAE; with %s.safetensors (or .pth) in models/vae_approx it is several "
            "times faster and, in float32, needs 6 GB less for a face of 512 px and 22 GB less for one of 1024 px", name,
        )  # fmt: skip
        return None
    network = comfy.taesd.taesd.TAESD(None, str(file))
    return comfy.sd.VAE(sd={**network.state_dict(), "vae_scale": torch.tensor(_TAESD_SCALES[name])})


def add_identity(spec: GuidanceSpec, network: Any, settings: TermSettings, inputs: tuple[Tensor, ...]) -> GuidanceSpec:
    """`spec` and a push away from the identity of the source faces; `inputs` as `IdentityTerm` takes them."""
    return replace(spec, more=(*spec.more, TermSpec(IdentityTerm, network, "embed", settings, inputs)))


def add_pose(spec: GuidanceSpec, encoder: Any, settings: TermSettings, inputs: tuple[Tensor, ...]) -> GuidanceSpec:
    """`spec` and a hold on the pose of the source faces; `inputs` as `PoseTerm` takes them."""
    return replace(spec, more=(*spec.more, TermSpec(PoseTerm, encoder, "find_landmarks", settings, inputs)))


def _build_guidance(spec: GuidanceSpec, model: Any) -> CombinedGuidance:
    """`spec` has its decoder. Must be called outside inference mode, after every model is loaded."""
    images = [None if value is None else value.clone() for value in (spec.target, spec.source, spec.region)]
    attributes = AttributeTerm(_ComfyEncoder(spec.encoder), spec.settings, *images)
    terms = [attributes, *(term.build() for term in spec.more)]
    return CombinedGuidance(_decode(spec.decoder, model), terms, spec.settings.reuse, spec.settings.limit)


def _helpers(spec: GuidanceSpec) -> list[Any]:
    """The models that must be loaded beside the U-Net, of a `spec` that has its decoder."""
    return [spec.encoder, spec.decoder.patcher, *(term.network for term in spec.more)]


class GuidedSampler(comfy.samplers.Sampler):
    """A SAMPLER: `sampling.sample_guided` over ComfyUI's denoiser, mask merging and callbacks included.

    Args:
        vae: the sampled model's own.
    """

    def __init__(self, spec: GuidanceSpec, vae: Any) -> None:
        self.spec, self.vae = spec, vae
        self.readout: list[dict[str, float]] = []  # sigma and losses of the last run's steps

    def sample(
        self, model_wrap: Any, sigmas: Tensor, extra_args: Any, callback: Any, noise: Tensor,
        latent_image: Tensor | None = None, denoise_mask: Tensor | None = None, disable_pbar: bool = False,
    ) -> Tensor:  # fmt: skip
        base = model_wrap.inner_model
        _check_served(base, self.spec.decoder or self.vae, noise)  # at strength 0 as well: a flow model needs another step
        spec = with_decoder(self.spec, self.vae, base)
        if spec.guided:
            _load(spec, model_wrap, noise)
        with torch.inference_mode(False), torch.no_grad():
            copies = [None if value is None else value.clone() for value in (sigmas, noise, latent_image, denoise_mask)]
            sigmas, noise, latent_image, denoise_mask = copies
            sampler = comfy.samplers.KSAMPLER(partial(self._run, spec))
            return sampler.sample(model_wrap, sigmas, extra_args, callback, noise, latent_image, denoise_mask, disable_pbar)

    def _run(
        self, spec: GuidanceSpec, model: Any, x: Tensor, sigmas: Tensor, extra_args: Any, callback: Any, disable: bool
    ) -> Tensor:
        guidance = _build_guidance(spec, model.inner_model.inner_model) if spec.guided else None
        self.readout = []
        people = _equal_rows(model.noise)
        noise = comfy.samplers.k_diffusion_sampling.default_noise_sampler(x[: max(people) + 1], seed=extra_args.get("seed"))

        def on_step(step: Step) -> None:
            comfy.model_management.throw_exception_if_processing_interrupted()
            self.readout.append({"sigma": step.sigma, **step.losses})
            if callback is not None:
                callback({"i": step.index, "denoised": step.denoised, "x": x})

        return sample_guided(
            lambda x, sigma, cond: model(x, sigma, **cond), x, sigmas, extra_args,
            lambda _: noise(None, None)[people], guidance, eta=1.0, callback=on_step,
        )  # fmt: skip


def _equal_rows(noise: Tensor) -> list[int]:
    """Number the different rows of the initial noise (B,C,h,w), in order of first appearance; 0..B-1 if all differ.

    Rows are equal where the LATENT's batch_index repeats: for the frames of one tracked person. A SAMPLER is not given the
    LATENT, so this is how it learns who shares the noise of its steps. No noise at all says nothing about people.
    """
    if not bool(noise.any()):
        return list(range(len(noise)))
    seen: dict[bytes, int] = {}
    return [seen.setdefault(row.numpy().tobytes(), len(seen)) for row in noise.float().cpu()]


# Bytes that a gradient takes for each decoded pixel in float32, a large encoder's included (docs/BENCHMARK.md)
_FULL_VAE_BYTES, _SMALL_VAE_BYTES = 23_300, 2_700


def _load(spec: GuidanceSpec, model_wrap: Any, noise: Tensor) -> None:
    """Load the guidance's models and the sampled one, and make room for a step or a gradient beside them.

    All at once, so that none of them, ControlNets included, pushes another out of a small card.
    """
    base = model_wrap.inner_model
    models = [*_helpers(spec), *getattr(model_wrap, "loaded_models", [])]
    if getattr(base, "current_patcher", None) is not None:
        models.append(base.current_patcher)
    _, controls = comfy.sampler_helpers.get_additional_models(getattr(model_wrap, "conds", {}), base.get_dtype())
    most, least = (base.memory_required([rows * len(noise), *noise.shape[1:]]) + controls for rows in (2, 1))
    gradient = _gradient_bytes(spec.decoder, noise)
    comfy.model_management.load_models_gpu(
        models, memory_required=max(most, gradient), minimum_memory_required=max(least, gradient)
    )


def _gradient_bytes(decoder: Any, noise: Tensor) -> int:
    face_px = noise[0, 0].numel() * PX_PER_LATENT
    faces = min(len(noise), max(1, CHUNK_PX // face_px))
    full = not isinstance(decoder.first_stage_model, comfy.taesd.taesd.TAESD)
    in_float32 = faces * face_px * (_FULL_VAE_BYTES if full else _SMALL_VAE_BYTES)
    return in_float32 * decoder.vae_dtype.itemsize // 4


_KEY = "faceanon_guidance"  # of what a patched MODEL carries


def patch_model(model: Any, vae: Any, spec: GuidanceSpec) -> Any:
    """A MODEL clone whose predictions carry the guidance, exact for euler_ancestral.

    x_next = ... - sigma_up * g equals changing `denoised` by sigma_up * g / (1 - sigma_down / sigma).
    """
    if not spec.guided:
        return model
    patched, spec = model.clone(), with_decoder(spec, vae, model.model)
    patched.set_additional_models(_KEY, [*patched.get_additional_models_with_key(_KEY), *_helpers(spec)])
    state: dict[str, Any] = {}

    def guide(arguments: dict[str, Any]) -> Tensor:
        denoised, sigma = arguments["denoised"], arguments["sigma"]
        sigmas = arguments["model_options"]["transformer_options"].get("sample_sigmas")
        if sigmas is None:
            return denoised
        index = int((sigmas - sigma.max()).abs().argmin())
        if index + 1 >= len(sigmas) or sigmas[index + 1] <= 0:
            return denoised
        with torch.inference_mode(False), torch.no_grad():
            if "guidance" not in state:
                state["guidance"] = _build_guidance(spec, arguments["model"])
            guidance = state["guidance"]
            progress = index / (len(sigmas) - 1)
            if not guidance.active(progress):
                return denoised
            gradient, _ = guidance.gradient(_with_surroundings(denoised.clone(), **state["surroundings"]), progress)
            now, following = sigmas[index].clone(), sigmas[index + 1].clone()
            sigma_down, sigma_up = ancestral_step(now, following)
            return denoised.clone() - (sigma_up / (1 - sigma_down / now)).to(gradient) * gradient

    def run(executor: Any, *arguments: Any, **options: Any) -> Tensor:
        model_wrap, _, _, _, noise, latent_image, denoise_mask, *_ = arguments
        _check_served(model_wrap.inner_model, spec.decoder or vae, noise)
        _load(spec, model_wrap, noise)
        state["surroundings"] = {"latent": latent_image, "mask": denoise_mask}
        try:
            return executor(*arguments, **options)
        finally:
            state.clear()  # frees the clones of the weights

    patched.set_model_sampler_post_cfg_function(guide)
    patched.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.SAMPLER_SAMPLE, _KEY, run)
    return patched


def _with_surroundings(denoised: Tensor, latent: Tensor | None, mask: Tensor | None) -> Tensor:
    """`denoised` with the latent put back outside the noise mask, which ComfyUI does only after the patches."""
    return denoised if latent is None or mask is None else denoised * mask + latent * (1 - mask)
