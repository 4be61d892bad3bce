"""Sampling on a real ComfyUI, in this process, with small random models in the real formats.

Run with ComfyUI's own Python: `COMFYUI_DIR=... /path/to/comfyui/python -m pytest tests/test_comfyui_sampling.py`.
"""

from __future__ import annotations

import gc
import math
import sys
import weakref
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from comfyui_tools import progress_hook, run_node, run_stock_node

from faceanon_core import diffusion
from faceanon_core.pipeline import Anonymizer, Settings
from faceanon_core.regions import RegionChoice, region_mask
from faceanon_core.target import gallery_index, gallery_target

pytestmark = pytest.mark.comfyui


@dataclass(frozen=True)
class Case:
    """A kind of model, and what ComfyUI must take it for, so that each case proves what its name says."""

    seen_as: str = "SD15 EPS"
    family: str = "sd15"
    channels: int = 9
    dtype: torch.dtype = torch.float32
    vae: str = "taesd"
    side: int = 64  # pixels of the sampled crops
    strength: float = 1.0
    extra: str = ""  # lora, controlnet, or taesd: a decoder of its own for the guidance


CASES = {
    "sd15-inpaint": Case(),
    "sd15": Case(channels=4),
    "sd15-fp16": Case(dtype=torch.float16),
    "sd15-bf16": Case(dtype=torch.bfloat16),
    "sd15-lora": Case(extra="lora"),
    "sd15-controlnet": Case(extra="controlnet"),
    "sd15-kl-vae": Case(vae="kl", side=32, strength=0.05),  # random decoders are steep
    "sd15-kl-vae-taesd": Case(vae="kl", side=32, strength=0.05, extra="taesd"),
    "sd2": Case("SD20 EPS", "sd2", 4),
    "sd2-v": Case("SD20 V_PREDICTION", "sd2-v", 4, torch.float16),
    "sdxl": Case("KOALA_700M EPS", "sdxl", 4, torch.float16),
    "sdxl-inpaint": Case("KOALA_700M EPS", "sdxl", 9, torch.float16),
}
_WIDTHS = {"sd15": 768, "sd2": 1024, "sd2-v": 1024, "sdxl": 2048}


@dataclass(frozen=True)
class Setting:
    """Everything a sampler takes, for one kind of model."""

    model: Any
    vae: Any
    positive: Any
    negative: Any
    latent: dict[str, Any]
    encoder: Any
    target: torch.Tensor
    strength: float = 1.0
    decoder: Any = None
    plain: Setting | None = None  # the same without LoRA or ControlNet


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture(scope="module")
def setting(case: Case, bridge: Any, tmp_path_factory: pytest.TempPathFactory) -> Setting:
    return _make_setting(bridge, case, tmp_path_factory.mktemp("models"))


def _make_setting(bridge: Any, case: Case, folder: Path) -> Setting:
    import comfy.sd
    from make_checkpoints import write_checkpoint

    path = write_checkpoint(folder / "model.safetensors", case.family, case.channels, case.dtype, case.vae)
    generator = torch.Generator().manual_seed(1)
    with torch.inference_mode():
        model, _, vae, _ = comfy.sd.load_checkpoint_guess_config(str(path), output_vae=True, output_clip=False)
        image, target = torch.rand(2, 1, 3, case.side, case.side, generator=generator)
        samples = bridge.vae_encode(vae, image)
        hole = torch.zeros(1, 1, *samples.shape[2:])
        hole[..., 1 : case.side // 16 + 1, 1 : case.side // 16 + 1] = 1
        extra = {"concat_latent_image": samples, "concat_mask": hole}
        if case.family == "sdxl":
            size = {"width": case.side, "height": case.side, "target_width": case.side, "target_height": case.side}
            extra |= {"pooled_output": torch.randn(1, 1280, generator=generator), "crop_w": 0, "crop_h": 0, **size}
        words = torch.randn(2, 1, 8, _WIDTHS[case.family], generator=generator)
        positive, negative = ([[tokens, extra]] for tokens in words)
    latent = {"samples": samples, "noise_mask": hole}
    plain = Setting(model, vae, positive, negative, latent, bridge.load_demo_encoder(), target, case.strength)
    return _extended(plain, case, folder, image)


def _extended(setting: Setting, case: Case, folder: Path, image: torch.Tensor) -> Setting:
    """The setting with the case's extra, loaded by ComfyUI's own nodes from `folder`."""
    import folder_paths
    from make_checkpoints import write_controlnet, write_lora, write_taesd

    for kind in ("loras", "controlnet", "vae_approx"):
        folder_paths.add_model_folder_path(kind, str(folder), is_default=True)
    if case.extra == "lora":
        name = write_lora(folder / "lora.safetensors").name
        (patched,) = run_stock_node("LoraLoaderModelOnly", model=setting.model, lora_name=name, strength_model=1.0)
        return replace(setting, model=patched, plain=setting)
    if case.extra == "controlnet":
        (net,) = run_stock_node("ControlNetLoader", control_net_name=write_controlnet(folder / "net.safetensors").name)
        cond = {"positive": setting.positive, "negative": setting.negative, "image": image.permute(0, 2, 3, 1)}
        whole = {"strength": 1.0, "start_percent": 0.0, "end_percent": 1.0}
        positive, negative = run_stock_node("ControlNetApplyAdvanced", control_net=net, **cond, **whole)
        return replace(setting, positive=positive, negative=negative, plain=setting)
    if case.extra == "taesd":
        write_taesd(folder)
        return replace(setting, decoder=run_stock_node("VAELoader", vae_name="taesd")[0])
    return setting


def _spec(bridge: Any, setting: Setting, strength: float) -> Any:
    # the decoders with random weights are steep: the pull changes at each step, and is long
    settings = bridge.GuidanceSettings(strength=strength, end=1.0, reuse=1, limit=None)
    return bridge.GuidanceSpec(setting.encoder, setting.target, None, settings, setting.decoder)


def _sample(bridge: Any, setting: Setting, sampler: Any, denoise: float) -> torch.Tensor:
    with torch.inference_mode():
        sigmas = bridge.schedule(setting.model, "sgm_uniform", 4, denoise)
        cond = setting.positive, setting.negative
        result = bridge.sample(setting.model, sampler, sigmas, *cond, setting.latent, seed=3, cfg=2.0)
    return result["samples"].clone()


def _stock(bridge: Any, setting: Setting, denoise: float = 1.0) -> torch.Tensor:
    import comfy.samplers

    return _sample(bridge, setting, comfy.samplers.sampler_object("euler_ancestral"), denoise)


def _guided(bridge: Any, setting: Setting, strength: float, denoise: float = 1.0) -> torch.Tensor:
    with torch.inference_mode():
        sampler = bridge.GuidedSampler(_spec(bridge, setting, strength), setting.vae)
    return _sample(bridge, setting, sampler, denoise)


def test_comfyui_sees_the_kind_that_is_meant(bridge: Any, case: Case, setting: Setting) -> None:
    model = setting.model.model
    assert f"{type(model.model_config).__name__} {model.model_type.name}" == case.seen_as
    assert model.diffusion_model.in_channels == case.channels
    assert type(setting.vae.first_stage_model).__name__ == {"kl": "AutoencoderKL", "taesd": "TAESD"}[case.vae]
    if setting.plain is not None:
        assert not torch.equal(_stock(bridge, setting.plain), _stock(bridge, setting))


def test_zero_strength_equals_the_stock_sampler(bridge: Any, setting: Setting) -> None:
    assert torch.equal(_guided(bridge, setting, 0.0), _stock(bridge, setting))


LITTLE = 0.3  # denoise; random weights do not denoise, so from pure noise nothing like a picture would come out


def test_guidance_lowers_the_loss_reproducibly_and_leaves_no_trace(bridge: Any, setting: Setting) -> None:
    before = _stock(bridge, setting, LITTLE)
    first, second = (_guided(bridge, setting, setting.strength, LITTLE) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(_stock(bridge, setting, LITTLE), before)
    assert _loss(bridge, setting, first) < _loss(bridge, setting, before)


def test_patched_model_follows_the_guidance_under_a_stock_sampler(bridge: Any, setting: Setting) -> None:
    with torch.inference_mode():
        spec = _spec(bridge, setting, setting.strength)
        patched = replace(setting, model=bridge.patch_model(setting.model, setting.vae, spec))
    plain, pulled = _stock(bridge, setting, LITTLE), _stock(bridge, patched, LITTLE)
    assert torch.equal(pulled, _stock(bridge, patched, LITTLE))
    assert torch.equal(_stock(bridge, setting, LITTLE), plain)
    assert _loss(bridge, setting, pulled) < _loss(bridge, setting, plain)


def _live_guidance(bridge: Any, setting: Setting) -> Any:
    import comfy.model_management

    spec = _spec(bridge, setting, 1.0)
    with torch.inference_mode():
        spec = bridge.with_decoder(spec, setting.vae, setting.model.model)
        comfy.model_management.load_models_gpu([setting.model, *bridge._helpers(spec)])
        with torch.inference_mode(False):
            return bridge._build_guidance(spec, setting.model.model)


def _loss(bridge: Any, setting: Setting, samples: torch.Tensor) -> float:
    """Distance of a LATENT's decoded picture from the target."""
    guidance, latent = _live_guidance(bridge, setting), setting.model.model.process_latent_in(samples)
    with torch.no_grad():
        return float(guidance.terms[0].losses(guidance.decode(latent))[0])


def test_gradient_agrees_with_finite_differences(bridge: Any, setting: Setting) -> None:
    guidance = _live_guidance(bridge, setting)
    latent = torch.randn(setting.latent["samples"].shape, generator=torch.Generator().manual_seed(2)) * 0.5
    gradient, _ = guidance.gradient(latent, 0.0)
    direction, step = gradient / gradient.norm(), 2e-2
    with torch.no_grad():
        losses = [float(guidance.terms[0].losses(guidance.decode(latent + sign * step * direction))[0]) for sign in (1, -1)]
    measured = (losses[0] - losses[1]) / (2 * step)
    expected = float((gradient * direction).sum()) / guidance.terms[0].weight
    assert measured == pytest.approx(expected, rel=0.05)


# ---- the three routes through the nodes ----

ROUTES = ("GuidedSampler", "SamplerCustomAdvanced", "KSampler")


@pytest.fixture(scope="module")
def demo_setting(bridge: Any, demo: dict[str, Any]) -> Setting:
    """What the sampler nodes take for the demo model."""
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        samples, hole = bridge.vae_encode(demo["vae"], image), torch.ones(1, 1, 8, 8)
        hole[..., 6:, :] = 0
        cond = bridge.extend(bridge.demo_conditioning([{}]), {"concat_latent_image": samples, "concat_mask": hole})
    latent = {"samples": samples, "noise_mask": hole}
    return Setting(demo["model"], demo["vae"], cond, cond, latent, demo["encoder"], image.flip(3))


def _run_route(bridge: Any, route: str, setting: Setting, steps: int = 4) -> torch.Tensor:
    """Sample with guidance as a graph does, by the nodes of one route. Returns: the LATENT's samples."""
    cond = {"positive": setting.positive, "negative": setting.negative}
    guidance = {"guidance": _spec(bridge, setting, setting.strength), "vae": setting.vae}
    if route == "GuidedSampler":
        inputs = {"model": setting.model, "latent": setting.latent, "seed": 3, "steps": steps}
        latent, _ = run_node("GuidedSampler", **inputs, **cond, **guidance)
    elif route == "SamplerCustomAdvanced":
        (sampler,) = run_node("GuidedSamplerObject", **guidance)
        (noise,) = run_stock_node("RandomNoise", noise_seed=3)
        (guider,) = run_stock_node("CFGGuider", model=setting.model, cfg=1.0, **cond)
        schedule = {"scheduler": "sgm_uniform", "steps": steps, "denoise": 1.0}
        (sigmas,) = run_stock_node("BasicScheduler", model=setting.model, **schedule)
        inputs = {"noise": noise, "guider": guider, "sampler": sampler, "sigmas": sigmas}
        latent, _ = run_stock_node("SamplerCustomAdvanced", latent_image=setting.latent, **inputs)
    else:
        (patched,) = run_node("ApplyGuidance", model=setting.model, **guidance)
        return _ksampler(replace(setting, model=patched), "euler_ancestral", steps)
    return latent["samples"].clone()


def _ksampler(setting: Setting, sampler: str, steps: int = 4) -> torch.Tensor:
    inputs = {"sampler_name": sampler, "scheduler": "sgm_uniform", "steps": steps, "cfg": 1.0, "denoise": 1.0, "seed": 3}
    cond = {"positive": setting.positive, "negative": setting.negative}
    (latent,) = run_stock_node("KSampler", model=setting.model, latent_image=setting.latent, **cond, **inputs)
    return latent["samples"].clone()


def test_the_three_routes_make_the_same_face(bridge: Any, demo_setting: Setting) -> None:
    gentle = replace(demo_setting, strength=0.03)  # the guidance multiplies rounding, by some hundred to thousand times
    one_box, advanced, stock = (_run_route(bridge, route, gentle) for route in ROUTES)
    assert torch.equal(one_box, advanced)
    assert torch.allclose(one_box, stock, atol=1e-3)
    assert not torch.allclose(one_box, _stock(bridge, demo_setting), atol=0.1)


@pytest.mark.filterwarnings("ignore:Should have tb<=t1")  # torchsde's rounding
@pytest.mark.parametrize("sampler", ["euler", "ddim", "heun", "dpm_2", "dpmpp_2m", "dpmpp_sde", "lcm", "uni_pc"])
def test_any_stock_sampler_follows_the_guidance(bridge: Any, demo_setting: Setting, sampler: str) -> None:
    guidance = {"guidance": _spec(bridge, demo_setting, 1.0), "vae": demo_setting.vae}
    (patched,) = run_node("ApplyGuidance", model=demo_setting.model, **guidance)
    pulled, plain = (_ksampler(replace(demo_setting, model=model), sampler, 8) for model in (patched, demo_setting.model))
    assert _loss(bridge, demo_setting, pulled) < _loss(bridge, demo_setting, plain)


@pytest.mark.parametrize("route", ROUTES)
def test_every_step_shows_progress_and_a_preview(
    bridge: Any, demo_setting: Setting, route: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from comfy.cli_args import LatentPreviewMethod, args

    seen: list[tuple[Any, ...]] = []
    monkeypatch.setattr(args, "preview_method", LatentPreviewMethod.Auto)
    with progress_hook(lambda value, total, preview: seen.append((value, total, preview[1].size))):
        _run_route(bridge, route, demo_setting)
    assert seen == [(step, 4, (8, 8)) for step in (1, 2, 3, 4)]


@pytest.mark.parametrize("route", ROUTES)
def test_cancel_stops_within_the_step_and_the_next_run_is_whole(bridge: Any, demo_setting: Setting, route: str) -> None:
    import comfy.model_management

    whole, seen = _run_route(bridge, route, demo_setting), []

    def cancel_after_two(value: int, *_: Any) -> None:
        seen.append(value)
        comfy.model_management.interrupt_current_processing(value == 2)

    with progress_hook(cancel_after_two), pytest.raises(comfy.model_management.InterruptProcessingException):
        _run_route(bridge, route, demo_setting)
    assert seen == [1, 2]
    assert torch.equal(_run_route(bridge, route, demo_setting), whole)


@pytest.mark.parametrize("route", ROUTES)
def test_out_of_memory_is_told_as_such_and_the_next_run_is_whole(
    bridge: Any, demo_setting: Setting, route: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.model_management

    whole, network = _run_route(bridge, route, demo_setting), demo_setting.vae.first_stage_model

    def decode(_: torch.Tensor) -> torch.Tensor:
        raise comfy.model_management.OOM_EXCEPTION("CUDA out of memory")

    with monkeypatch.context() as full, pytest.raises(comfy.model_management.OOM_EXCEPTION):  # ComfyUI adds its advice
        full.setattr(network, "decode", decode)
        _run_route(bridge, route, demo_setting)
    assert torch.equal(_run_route(bridge, route, demo_setting), whole)


@pytest.mark.parametrize("route", ROUTES)
def test_loading_the_guidance_keeps_the_room_that_a_step_was_given(
    bridge: Any, demo_setting: Setting, route: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.model_management

    asked, load = [], comfy.model_management.load_models_gpu

    def note(models: Any, **options: Any) -> None:
        asked.append((len(models), options.get("memory_required", 0), options.get("minimum_memory_required", 0)))
        load(models, **options)

    monkeypatch.setattr(comfy.model_management, "load_models_gpu", note)
    _run_route(bridge, route, demo_setting, steps=2)
    (_, *step), (models, *guided) = asked[:2]
    assert models >= 3 and all(later >= earlier > 0 for earlier, later in zip(step, guided, strict=True))


def test_room_for_a_gradient_is_that_of_the_faces_that_are_decoded_at_once(bridge: Any, demo_setting: Setting) -> None:
    """As measured: a full VAE takes 6.1 GB for 512 px in float32, a small one 0.7 GB (docs/BENCHMARK.md)."""
    small = SimpleNamespace(first_stage_model=demo_setting.vae.first_stage_model, vae_dtype=torch.float32)
    full = SimpleNamespace(first_stage_model=torch.nn.Module(), vae_dtype=torch.float32)
    for decoder, gigabytes in ((full, 6.1), (small, 0.7)):
        one, four = (bridge._gradient_bytes(decoder, torch.zeros(faces, 4, 64, 64)) for faces in (1, 4))
        assert one == pytest.approx(gigabytes * 1e9, rel=0.05) and four == one
        assert bridge._gradient_bytes(decoder, torch.zeros(4, 4, 32, 32)) == one  # of 256 px four go at once
        half = SimpleNamespace(first_stage_model=decoder.first_stage_model, vae_dtype=torch.float16)
        assert bridge._gradient_bytes(half, torch.zeros(1, 4, 64, 64)) == one / 2


def test_the_weights_of_a_gradient_lie_where_it_is_computed_and_those_of_comfyui_stay(bridge: Any) -> None:
    with torch.inference_mode():
        module = torch.nn.Linear(2, 2)
    with torch.inference_mode(False):
        clones = bridge._Differentiable(module, "forward", torch.device("meta"), torch.bfloat16).weights.values()
    assert all(clone.is_meta and clone.dtype == torch.bfloat16 and not clone.is_inference() for clone in clones)
    assert module.weight.device.type == "cpu" and module.weight.dtype == torch.float32


def _live_tensors() -> tuple[int, int]:
    """How many tensors there are, and their bytes."""
    tensors = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return len(tensors), sum(storages.values())


@pytest.mark.parametrize("route", ROUTES)
def test_memory_returns_to_where_it_was(bridge: Any, demo_setting: Setting, route: str) -> None:
    import comfy.model_management

    clones: list[Any] = []

    def note_the_clones(*_: Any) -> None:
        holders = [thing for thing in gc.get_objects() if type(thing) is bridge._Differentiable]
        clones.extend(weakref.ref(weight) for holder in holders for weight in holder.weights.values())

    _run_route(bridge, route, demo_setting, steps=2)
    counts = []
    for _ in range(3):
        comfy.model_management.unload_all_models()
        gc.collect()
        counts.append(_live_tensors())
        with progress_hook(note_the_clones):
            _run_route(bridge, route, demo_setting, steps=2)
    assert counts[0] == counts[1] == counts[2]
    assert clones and all(clone() is None for clone in clones)


# ---- the decoder of the gradient ----


@pytest.fixture(scope="module")
def full_vae(bridge: Any, tmp_path_factory: pytest.TempPathFactory) -> Setting:
    """What the sampler nodes take for a model whose VAE is a full one."""
    return _make_setting(bridge, CASES["sd15-kl-vae"], tmp_path_factory.mktemp("full"))


@pytest.fixture
def vae_approx(bridge: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """ComfyUI's folder of small decoders, empty."""
    import folder_paths

    _, suffixes = folder_paths.folder_names_and_paths["vae_approx"]
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "vae_approx", ([str(tmp_path)], suffixes))
    return tmp_path


@pytest.mark.parametrize("route", ROUTES)
def test_a_full_vae_gives_way_to_taesd_or_one_sentence_tells_of_it(
    bridge: Any, full_vae: Setting, demo_setting: Setting, vae_approx: Path, route: str, caplog, monkeypatch
) -> None:
    from make_checkpoints import write_taesd

    message = "attribute guidance decodes with the full VAE; with taesd_decoder.safetensors (or .pth) in models/vae_approx"
    slow = _run_route(bridge, route, full_vae, steps=2)
    assert caplog.text.count(message) == 1
    caplog.clear()
    _run_route(bridge, route, demo_setting, steps=2)  # its VAE is small
    write_taesd(vae_approx)
    (vae_approx / "taesd_encoder.safetensors").unlink()
    with monkeypatch.context() as unused:
        unused.setattr(full_vae.vae.first_stage_model, "decode", None)
        fast = _run_route(bridge, route, full_vae, steps=2)
    assert not torch.equal(slow, fast) and "decodes with the full VAE" not in caplog.text


def test_taesd_from_the_folder_decodes_as_the_one_that_comfyui_loads(
    bridge: Any, full_vae: Setting, vae_approx: Path
) -> None:
    from make_checkpoints import write_taesd

    write_taesd(vae_approx)
    connected = replace(full_vae, decoder=run_stock_node("VAELoader", vae_name="taesd")[0])
    found, expected = (_live_guidance(bridge, setting) for setting in (full_vae, connected))
    latent = torch.randn(full_vae.latent["samples"].shape, generator=torch.Generator().manual_seed(2))
    image = found.decode(latent)
    assert torch.equal(image, expected.decode(latent)) and -0.5 < image.min() < image.max() < 1.5
    with torch.inference_mode():
        shown = bridge.vae_decode(connected.decoder, full_vae.model.model.process_latent_out(latent))
    torch.testing.assert_close(image.clamp(0, 1), shown.cpu(), rtol=0, atol=1e-4)
    gradient, _ = found.gradient(latent, 0.0)
    assert gradient.isfinite().all() and gradient.norm() > 0


def test_a_decoder_on_another_device_is_handed_the_latent_there(bridge: Any) -> None:
    with torch.inference_mode():
        model, vae = bridge.load_demo_model()
    vae.device = torch.device("meta")  # as --cpu-vae has it on the CPU beside a model on the GPU
    vae.first_stage_model.to("meta")
    assert bridge._decode(vae, model.model)(torch.zeros(1, 4, 8, 8)).device.type == "meta"


# ---- the networks of the pack in ComfyUI's memory manager ----


def test_a_network_is_loaded_whole_however_little_memory_there_is(bridge: Any) -> None:
    with torch.inference_mode():
        encoder = bridge.load_demo_encoder()
        encoder.load_device = torch.device("meta")
        encoder.partially_load(encoder.load_device, 0.1)  # what --novram allows
        assert {weight.device.type for weight in encoder.model.parameters()} == {"meta"}
        assert encoder.partially_unload(encoder.offload_device, 1) == 0
        assert {weight.device.type for weight in encoder.model.parameters()} == {"meta"}


def test_guidance_applied_twice_keeps_the_helpers_of_both(bridge: Any, demo_setting: Setting) -> None:
    with torch.inference_mode():
        other = replace(demo_setting, encoder=bridge.load_demo_encoder())
    model, networks = demo_setting.model, [demo_setting.encoder.model, other.encoder.model]
    for setting in (demo_setting, other):
        (model,) = run_node("ApplyGuidance", model=model, vae=setting.vae, guidance=_spec(bridge, setting, 1.0))
    helpers = [helper.model for helper in model.get_additional_models()]
    assert all(any(network is helper for helper in helpers) for network in networks)


# ---- what the guidance cannot serve ----


@pytest.fixture(scope="module")
def sd3(bridge: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """MODEL and VAE of a flow model that is a diffusion transformer."""
    import comfy.sd
    from make_checkpoints import write_sd3_checkpoint

    path = write_sd3_checkpoint(tmp_path_factory.mktemp("models") / "sd3.safetensors")
    with torch.inference_mode():
        model, _, vae, _ = comfy.sd.load_checkpoint_guess_config(str(path), output_vae=True, output_clip=False)
    assert type(model.model.model_config).__name__ == "SD3" and vae.latent_channels == 16
    return {"model": model, "vae": vae}


@pytest.mark.parametrize("route", ROUTES)
def test_models_the_guidance_cannot_serve_are_refused(
    bridge: Any, demo_setting: Setting, sd3: dict[str, Any], route: str
) -> None:
    (flow,) = run_stock_node("ModelSamplingSD3", model=demo_setting.model, shift=3.0)
    samples = torch.ones(1, 16, 8, 8)
    text = [[torch.ones(1, 4, 4096), {"pooled_output": torch.ones(1, 2048)}]]
    for values, message in (
        ({"model": flow}, "this is a flow or DiT model"),
        ({**sd3, "positive": text, "negative": text, "latent": {"samples": samples}}, "this is a flow or DiT model"),
        ({"vae": sd3["vae"]}, "the VAE has 16 latent channels but the model has 4"),
        ({"decoder": sd3["vae"]}, "the VAE has 16 latent channels but the model has 4"),
        ({"latent": {"samples": samples}}, "the latent has 16 channels but the model takes 4"),
    ):
        with pytest.raises(Exception, match=message):
            _run_route(bridge, route, replace(demo_setting, **values))


# ---- the demo model ----


@pytest.mark.parametrize("sigma", [12.0, 1.0, 0.1])
def test_the_demo_model_predicts_what_it_predicts_in_the_core(
    bridge: Any, sigma: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bridge.diffusion, "has_native_bfloat16", lambda _: False)  # float32 on both sides
    core, generator = bridge.diffusion.DemoModel(bridge.ASSETS), torch.Generator().manual_seed(0)
    x, masked = torch.randn(2, 1, 4, 32, 32, generator=generator)
    hole = (torch.rand(1, 1, 32, 32, generator=generator) > 0.5).float()
    context, levels = core.tokens.encode({"sex": "female"}), torch.tensor([sigma])
    with torch.inference_mode():
        model = bridge.load_demo_model()[0].model
        expected = core.denoise(x * sigma, levels, bridge.diffusion.InpaintCond(context, hole, masked, None))
        found = model.apply_model(x * sigma, levels, c_concat=torch.cat([hole, masked], 1), c_crossattn=context)
    torch.testing.assert_close(found.float().cpu(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("steps", [20, 25])  # step 7 of 25 begins on the very border of the drawing's part
def test_the_graph_shows_the_demo_model_drawing_and_light_at_the_steps_the_core_does(
    bridge: Any, astronaut: Any, crop: Any, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (diffusion, bridge.diffusion):
        monkeypatch.setattr(module, "has_native_bfloat16", lambda _: False)  # float32 on both sides
    core, told = Anonymizer(), []
    core.sampler = lambda denoise, x, sigmas, cond, *_: told.append(cond) or x
    mask = region_mask(core.parser.parse(crop.pixels, crop.landmarks), RegionChoice())
    core.regenerate(crop, mask, gallery_target(min(gallery_index())), Settings(steps=steps, drawn=0.28), seed=5)

    image = torch.from_numpy(astronaut).float()[None] / 255
    crops, _ = run_node("CropFaces", image=image, faces=run_node("ParseFaces", image=image)[0], size=256)
    model, vae = bridge.load_demo_model()
    cond = {"positive": [[told[0].context, {}]], "negative": [[told[0].context, {}]]}
    positive, negative, latent = run_node(
        "InpaintFaces", **cond, vae=vae, crops=crops, mask=run_node("RegionMask", crops=crops)[0], seed=5, drawn=0.28
    )
    border = math.ceil(0.28 * steps - 1e-6)
    sigmas = bridge.schedule(model, "sgm_uniform", steps, 1.0)[[0, border - 1, border, steps]]
    seen: list[tuple[torch.Tensor, ...]] = []

    def probe(model: Any, x: torch.Tensor, sigmas: torch.Tensor, extra_args: Any, **_: Any) -> torch.Tensor:
        for sigma in sigmas[:-1]:
            noisy = model.latent_image + sigma * model.noise
            seen.append((noisy, sigma[None], model(noisy, sigma[None], **extra_args)))
        return x

    import comfy.samplers

    with torch.inference_mode():
        bridge.sample(model, comfy.samplers.KSAMPLER(probe), sigmas, positive, negative, latent, seed=3, cfg=1.0)
        for step in seen:
            noisy, sigma, found = (value.float().cpu() for value in step)
            torch.testing.assert_close(found, core.model.denoise(noisy, sigma, told[0]), rtol=0, atol=1e-3)
        noisy, sigma, found = (value.float().cpu() for value in seen[1])
        lit = replace(told[0], masked_latent=told[0].plain_latent)
        assert (core.model.denoise(noisy, sigma, lit) - found).abs().max() > 0.1


def test_the_demo_vae_is_the_cores(bridge: Any) -> None:
    core, image = bridge.diffusion.DemoModel(bridge.ASSETS), torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        model, vae = bridge.load_demo_model()
        latent = model.model.process_latent_in(bridge.vae_encode(vae, image))
        torch.testing.assert_close(latent.cpu(), core.encode(image), rtol=0, atol=1e-4)
        decoded = vae.decode(model.model.process_latent_out(latent)).permute(0, 3, 1, 2)
        torch.testing.assert_close(decoded.cpu(), core.decode(latent.cpu()).clamp(0, 1), rtol=0, atol=1e-4)


def test_the_preview_of_the_demo_model_resembles_the_picture(bridge: Any, demo: dict[str, Any]) -> None:
    from latent_preview import Latent2RGBPreviewer

    known = demo["model"].model.latent_format
    previewer = Latent2RGBPreviewer(known.latent_rgb_factors, known.latent_rgb_factors_bias)
    faces = [run_node("TargetFace", name=name)[1] for name in ("anna", "chidi", "goro")]
    with torch.inference_mode():
        for face in faces:
            picture = face.permute(0, 3, 1, 2)  # BHWC -> BCHW
            latent = demo["model"].model.process_latent_in(bridge.vae_encode(demo["vae"], picture))
            shown = torch.from_numpy(np.array(previewer.decode_latent_to_preview(latent))).float() / 255
            small = torch.nn.functional.avg_pool2d(picture, 8)[0].permute(1, 2, 0)
            assert (shown - small).abs().mean() < 0.06


# ---- people ----


def test_frames_without_initial_noise_are_not_taken_for_one_person(bridge: Any) -> None:
    assert bridge._equal_rows(torch.zeros(3, 4, 8, 8)) == [0, 1, 2]


@pytest.mark.parametrize("index", [None, [0, 1, 2], [5, 3, 4]])
def test_without_repeated_people_a_batch_equals_the_stock_sampler(bridge: Any, demo_setting: Setting, index: Any) -> None:
    setting = _batch(demo_setting, index)
    assert torch.equal(_guided(bridge, setting, 0.0), _stock(bridge, setting))


def test_a_person_gets_the_same_noise_in_every_frame_at_every_step(bridge: Any, demo_setting: Setting) -> None:
    """The three frames are one picture, so only the noise can tell them apart."""
    setting = _batch(demo_setting, [0, 1, 0])
    first, other, again = _guided(bridge, setting, 0.0)
    assert torch.allclose(first, again, atol=1e-4)
    assert not torch.allclose(first, other, atol=0.1)
    stock = _stock(bridge, setting)
    assert not torch.allclose(stock[0], stock[2], atol=0.1)  # it shares the initial noise only


def _batch(setting: Setting, index: Any) -> Setting:
    """One picture three times, with `index` as the LATENT's batch_index."""
    latent = {**setting.latent, "samples": setting.latent["samples"].repeat(3, 1, 1, 1)}
    return replace(setting, latent=latent if index is None else {**latent, "batch_index": index})
