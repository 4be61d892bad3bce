"""On a real ComfyUI: sampling proofs in its own process, and workflows through a live server.

Run with ComfyUI's own Python: `COMFYUI_DIR=... /path/to/comfyui/python -m pytest -m comfyui tests/test_comfyui.py`.
With another Python, name ComfyUI's in COMFYUI_PYTHON: the live server then runs on that, the sampling proofs are skipped.
"""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

sys.path.insert(0, str(Path(__file__).parent))
from pack import NAME, ROOT, load_pack
from workflow_tools import ui_to_api

from faceanon_core.target import gallery_index

pytestmark = pytest.mark.comfyui
SIDE = 64  # pixels of the sampled crops
PYTHON = os.environ.get("COMFYUI_PYTHON", sys.executable)  # runs the live server


def _comfyui_dir() -> Path:
    places = [os.environ.get("COMFYUI_DIR"), ROOT.parent.parent, ROOT.parent / "ComfyUI"]
    for place in filter(None, places):
        if (Path(place) / "comfy" / "samplers.py").is_file():
            return Path(place).resolve()
    pytest.skip("no ComfyUI found; name its folder in COMFYUI_DIR")


@pytest.fixture(scope="module")
def comfyui() -> Path:
    return _comfyui_dir()


def _needs_requirements_of_comfyui() -> None:
    if importlib.util.find_spec("torchsde") is None or importlib.util.find_spec("einops") is None:
        pytest.skip("this Python lacks ComfyUI's requirements; run the tests with ComfyUI's own Python")


# ---- sampling, in this process ----


@pytest.fixture(scope="module")
def bridge(comfyui: Path) -> Any:
    _needs_requirements_of_comfyui()
    sys.path.insert(0, str(comfyui))
    from comfy.cli_args import args

    args.cpu = not torch.cuda.is_available()
    load_pack()
    return importlib.import_module(f"{NAME}.nodes.comfy_bridge")


CASES = {
    "sd15-inpaint": (9, 768, torch.float32),
    "sd15": (4, 768, torch.float32),
    "sd15-fp16": (9, 768, torch.float16),
    "sd15-bf16": (9, 768, torch.bfloat16),
    "sd2": (4, 1024, torch.float32),
}


@pytest.fixture(scope="module", params=CASES)
def setting(request: pytest.FixtureRequest, bridge: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Everything a sampler takes, for one kind of checkpoint."""
    import comfy.sd
    from make_checkpoints import write_checkpoint

    channels, context, dtype = CASES[request.param]
    path = write_checkpoint(tmp_path_factory.mktemp("models") / f"{request.param}.safetensors", channels, context, dtype)
    generator = torch.Generator().manual_seed(1)
    with torch.inference_mode():
        model, _, vae, _ = comfy.sd.load_checkpoint_guess_config(str(path), output_vae=True, output_clip=False)
        image = torch.rand(1, 3, SIDE, SIDE, generator=generator)
        hole = torch.zeros(1, 1, SIDE // 8, SIDE // 8)
        hole[..., 2:6, 2:6] = 1
        samples = bridge.vae_encode(vae, image)
        cond = [[torch.randn(1, 8, context, generator=generator), {"concat_latent_image": samples, "concat_mask": hole}]]
        encoder = bridge.load_demo_encoder()
    latent = {"samples": samples, "noise_mask": hole}
    target = torch.rand(1, 3, SIDE, SIDE, generator=generator)
    return {"model": model, "vae": vae, "cond": cond, "latent": latent, "encoder": encoder, "target": target}


def _spec(bridge: Any, setting: dict[str, Any], strength: float) -> Any:
    settings = bridge.GuidanceSettings(strength=strength)
    return bridge.GuidanceSpec(setting["encoder"], setting["target"], None, settings)


def _sample(bridge: Any, setting: dict[str, Any], sampler: Any, model: Any = None, steps: int = 4) -> torch.Tensor:
    model = model or setting["model"]
    with torch.inference_mode():
        sigmas = bridge.schedule(model, "sgm_uniform", steps, 1.0)
        result = bridge.sample(model, sampler, sigmas, setting["cond"], setting["cond"], setting["latent"], 3, 1.0)
    return result["samples"].clone()


def _stock(bridge: Any, setting: dict[str, Any], model: Any = None) -> torch.Tensor:
    import comfy.samplers

    return _sample(bridge, setting, comfy.samplers.sampler_object("euler_ancestral"), model)


def _guided(bridge: Any, setting: dict[str, Any], strength: float) -> torch.Tensor:
    with torch.inference_mode():
        sampler = bridge.guided_sampler(_spec(bridge, setting, strength), setting["vae"])
    return _sample(bridge, setting, sampler)


def test_zero_strength_equals_the_stock_sampler(bridge: Any, setting: dict[str, Any]) -> None:
    assert torch.equal(_guided(bridge, setting, 0.0), _stock(bridge, setting))


def test_guidance_changes_the_result_reproducibly_and_leaves_no_trace(bridge: Any, setting: dict[str, Any]) -> None:
    before = _stock(bridge, setting)
    first, second = _guided(bridge, setting, 1.0), _guided(bridge, setting, 1.0)
    assert torch.isfinite(first).all() and torch.equal(first, second)
    assert not torch.equal(first, before)
    assert torch.equal(_stock(bridge, setting), before)


def test_patched_model_follows_the_guidance_under_a_stock_sampler(bridge: Any, setting: dict[str, Any]) -> None:
    with torch.inference_mode():
        patched = bridge.patch_model(setting["model"], setting["vae"], _spec(bridge, setting, 1.0))
    plain, pulled = _stock(bridge, setting), _stock(bridge, setting, patched)
    assert torch.isfinite(pulled).all() and not torch.equal(pulled, plain)
    assert torch.equal(pulled, _stock(bridge, setting, patched))
    assert torch.equal(_stock(bridge, setting), plain)


def _live_guidance(bridge: Any, setting: dict[str, Any]) -> Any:
    import comfy.model_management

    spec = _spec(bridge, setting, 1.0)
    with torch.inference_mode():
        comfy.model_management.load_models_gpu([setting["model"], *bridge._helpers(spec, setting["vae"])])
        with torch.inference_mode(False):
            return bridge._build_guidance(spec, setting["vae"], setting["model"].model)


def test_gradient_agrees_with_finite_differences(bridge: Any, setting: dict[str, Any]) -> None:
    guidance = _live_guidance(bridge, setting)
    latent = torch.randn(1, 4, SIDE // 8, SIDE // 8, generator=torch.Generator().manual_seed(2)) * 0.5
    gradient, _ = guidance.gradient(latent)
    direction, step = gradient / gradient.norm(), 2e-2
    with torch.no_grad():
        losses = [float(guidance.losses(guidance.decode(latent + sign * step * direction))[0]) for sign in (1, -1)]
    measured = (losses[0] - losses[1]) / (2 * step)
    expected = float((gradient * direction).sum()) / guidance.encoder.unit_strength
    assert measured == pytest.approx(expected, rel=0.05)


def test_following_the_gradient_lowers_the_loss(bridge: Any, setting: dict[str, Any]) -> None:
    guidance = _live_guidance(bridge, setting)
    latent = torch.randn(1, 4, SIDE // 8, SIDE // 8, generator=torch.Generator().manual_seed(2)) * 0.5
    losses = []
    for _ in range(6):
        gradient, readout = guidance.gradient(latent)
        losses.append(readout["toward"])
        latent = latent - 0.1 * gradient / gradient.norm()
    assert losses[-1] < losses[0]


def test_a_vae_of_another_family_is_refused(bridge: Any, setting: dict[str, Any]) -> None:
    class SixteenChannels:
        latent_channels = 16

    with pytest.raises(Exception, match="the VAE has 16 latent channels but the model has 4"):
        bridge._check_served(setting["model"].model, SixteenChannels())


def test_a_flow_model_is_refused(bridge: Any, setting: dict[str, Any]) -> None:
    import comfy.model_sampling

    class Flow(comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST):
        pass

    model = setting["model"].clone()
    model.add_object_patch("model_sampling", Flow())
    for strength in (0.0, 1.0):
        with torch.inference_mode():
            sampler = bridge.guided_sampler(_spec(bridge, setting, strength), setting["vae"])
        with pytest.raises(Exception, match="this is a flow or DiT model"):
            _sample(bridge, setting, sampler, model)


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


def test_the_demo_vae_is_the_cores(bridge: Any) -> None:
    core, image = bridge.diffusion.DemoModel(bridge.ASSETS), torch.rand(1, 3, SIDE, SIDE)
    with torch.inference_mode():
        model, vae = bridge.load_demo_model()
        latent = model.model.process_latent_in(bridge.vae_encode(vae, image))
        torch.testing.assert_close(latent.cpu(), core.encode(image), rtol=0, atol=1e-4)
        decoded = vae.decode(model.model.process_latent_out(latent)).permute(0, 3, 1, 2)
        torch.testing.assert_close(decoded.cpu(), core.decode(latent.cpu()).clamp(0, 1), rtol=0, atol=1e-4)


# ---- people, in this process ----


def _run_node(name: str, **inputs: Any) -> Any:
    node = load_pack().NODE_CLASS_MAPPINGS[f"FaceAnon_{name}"]
    declared = node.INPUT_TYPES()
    options = {key: spec[1] for part in declared.values() for key, spec in part.items()}
    values = {key: spec["default"] for key, spec in options.items() if "default" in spec}
    with torch.inference_mode():
        return getattr(node(), node.FUNCTION)(**{**values, **inputs})


@pytest.fixture(scope="module")
def demo(bridge: Any) -> dict[str, Any]:
    with torch.inference_mode():
        model, vae = bridge.load_demo_model()
        return {"model": model, "vae": vae, "encoder": bridge.load_demo_encoder()}


@pytest.fixture(scope="module")
def film_crops(bridge: Any) -> Any:
    """Two people in two frames, listed from left to right in the first and from right to left in the second; tracked."""
    data = pytest.importorskip("skimage.data")
    half = torch.from_numpy(data.astronaut()).float()[None, :, :400] / 255
    frames = torch.cat([torch.cat([half, half.flip(2)], 2), torch.cat([half, half.flip(2)], 2).roll(5, 2)])
    faces, _, _ = _run_node("ParseFaces", image=frames)
    ordered = [sorted(faces[0], key=lambda face: face.box.left), sorted(faces[1], key=lambda face: -face.box.left)]
    faces, _, people = _run_node("TrackFaces", image=frames, faces=ordered)
    assert people == 2
    return _run_node("CropFaces", image=frames, faces=faces)[0]


def test_each_person_has_one_target_in_guidance_and_one_noise_in_the_latent(
    bridge: Any, demo: dict[str, Any], film_crops: Any
) -> None:
    targets, shown = _run_node("TargetFace", crops=film_crops, encoder=demo["encoder"])
    assert len({target.name for target in targets}) == len(targets) == len(shown) == 2
    (spec,) = _run_node("AttributeGuidance", encoder=demo["encoder"], target=targets, crops=film_crops)
    assert [next(i for i in (0, 1) if torch.equal(row, targets[i].image[0])) for row in spec.target] == [0, 1, 1, 0]
    positive, negative = _run_node("DemoConditioning", target=targets, crops=film_crops)
    assert torch.equal(positive[0][0][0], positive[0][0][3]) and not torch.equal(positive[0][0][0], positive[0][0][1])
    mask, _, _ = _run_node("RegionMask", crops=film_crops)
    inputs = {"positive": positive, "negative": negative, "vae": demo["vae"], "mask": mask}
    *_, latent = _run_node("InpaintFaces", crops=film_crops, **inputs)
    assert latent["batch_index"] == [0, 1, 1, 0]


def test_targets_that_fit_neither_faces_nor_people_are_told(demo: dict[str, Any], film_crops: Any) -> None:
    (target,), _ = _run_node("TargetFace")
    for node, more in (("DemoConditioning", {}), ("AttributeGuidance", {"encoder": demo["encoder"]})):
        with pytest.raises(Exception, match="there are 3 targets for 2 people in 4 crops"):
            _run_node(node, target=[target] * 3, crops=film_crops, **more)


@pytest.mark.parametrize("index", [None, [0, 1, 2], [5, 3, 4]])
def test_without_repeated_people_a_batch_equals_the_stock_sampler(bridge: Any, demo: dict[str, Any], index: Any) -> None:
    setting = _batch(bridge, demo, index)
    assert torch.equal(_guided(bridge, setting, 0.0), _stock(bridge, setting))


def test_a_person_gets_the_same_noise_in_every_frame_at_every_step(bridge: Any, demo: dict[str, Any]) -> None:
    """The three frames are one picture, so only the noise can tell them apart."""
    setting = _batch(bridge, demo, [0, 1, 0])
    first, other, again = _guided(bridge, setting, 0.0)
    assert torch.allclose(first, again, atol=1e-4)
    assert not torch.allclose(first, other, atol=0.1)
    stock = _stock(bridge, setting)
    assert not torch.allclose(stock[0], stock[2], atol=0.1)  # it shares the initial noise only


def test_frames_without_initial_noise_are_not_taken_for_one_person(bridge: Any) -> None:
    assert bridge._equal_rows(torch.zeros(3, 4, 8, 8)) == [0, 1, 2]


def _batch(bridge: Any, demo: dict[str, Any], index: Any) -> dict[str, Any]:
    """One picture three times, with `index` as the LATENT's batch_index."""
    image, hole = torch.rand(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)), torch.ones(1, 1, 8, 8)
    with torch.inference_mode():
        samples = bridge.vae_encode(demo["vae"], image)
        extra = {"concat_latent_image": samples, "concat_mask": hole}
        cond = bridge.extend(bridge.demo_conditioning([{}]), extra)
    latent = {"samples": samples.repeat(3, 1, 1, 1), "noise_mask": hole}
    if index is not None:
        latent["batch_index"] = index
    return {**demo, "cond": cond, "latent": latent, "target": image}


# ---- contact sheet, in this process ----


@pytest.fixture(scope="module")
def sheet_inputs(bridge: Any, demo: dict[str, Any]) -> dict[str, Any]:
    """What the contact sheet takes, for a picture with two faces."""
    data = pytest.importorskip("skimage.data")
    half = torch.from_numpy(data.astronaut()).float()[None, :, :400] / 255
    picture = torch.cat([half, half.flip(2)], 2)
    faces, _, _ = _run_node("ParseFaces", image=picture)
    crops, _ = _run_node("CropFaces", image=picture, faces=faces, size=SIDE)
    mask, seam, _ = _run_node("RegionMask", crops=crops)
    target, _ = _run_node("TargetFace", crops=crops, encoder=demo["encoder"])
    positive, negative = _run_node("DemoConditioning", target=target, crops=crops)
    cond = {"positive": positive, "negative": negative, "vae": demo["vae"], "mask": mask}
    positive, negative, latent = _run_node("InpaintFaces", crops=crops, **cond)
    (guidance,) = _run_node("AttributeGuidance", encoder=demo["encoder"], target=target, crops=crops, away=0.1, end=1.0)
    return {
        "model": demo["model"], "vae": demo["vae"], "positive": positive, "negative": negative, "latent": latent,
        "guidance": guidance, "steps": 3, "cfg": 1.5, "crops": crops, "seam": seam,
    }  # fmt: skip


def _alone(inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs of a graph in which only the first of two faces was selected."""
    first: dict[str, Any] = {**inputs, "crops": inputs["crops"][:1], "seam": inputs["seam"][:1]}
    first["latent"] = {name: value[:1] for name, value in inputs["latent"].items()}
    for name in ("positive", "negative"):
        ((tensor, extra),) = inputs[name]
        first[name] = [[tensor[:1], {key: value[:1] for key, value in extra.items()}]]
    spec = inputs["guidance"]
    first["guidance"] = replace(spec, target=spec.target[:1], source=spec.source[:1])
    return first


def _cell(sheet: torch.Tensor, row: int, column: int, rows: int, columns: int) -> torch.Tensor:
    """A picture of a sheet, counted from its lower right corner, where nothing but pictures and gaps is."""
    top = 4 + sheet.shape[1] - (rows - row) * (SIDE + 4)
    left = 4 + sheet.shape[2] - (columns - column) * (SIDE + 4)
    return sheet[0, top : top + SIDE, left : left + SIDE]


def test_the_sheet_shows_what_the_sampler_would_make_of_the_first_face(bridge: Any, sheet_inputs: dict[str, Any]) -> None:
    sheet_of_two = _run_node("SeedStrengthSheet", **sheet_inputs, seed=7, seeds=2, strengths="0, 1.5")[0]
    alone = _alone(sheet_inputs)
    assert torch.equal(sheet_of_two, _run_node("SeedStrengthSheet", **alone, seed=7, seeds=2, strengths="0, 1.5")[0])

    crops, seam, source = alone.pop("crops"), alone.pop("seam")[..., None], sheet_inputs["crops"][0][1].tensor
    source, settings = source.permute(0, 2, 3, 1), alone["guidance"].settings
    cells = []
    for row in (0, 1):
        for column, strength in enumerate((0.0, 1.5)):
            alone["guidance"] = replace(alone["guidance"], settings=replace(settings, strength=strength))
            latent = _run_node("GuidedSampler", **alone, seed=7 + row)[0]
            with torch.inference_mode():
                expected = (source + seam * (alone["vae"].decode(latent["samples"]) - source))[0]
            cells.append(_cell(sheet_of_two, row, column, 2, 2))
            assert torch.allclose(cells[-1], expected, atol=0.5 / 255 + 1e-6)
    assert len(crops) == 1 and all((a - b).abs().max() > 0.02 for a, b in combinations(cells, 2))


def test_strength_0_on_the_sheet_is_the_stock_sample(bridge: Any, sheet_inputs: dict[str, Any]) -> None:
    import comfy.samplers

    sheet = _run_node("SeedStrengthSheet", **sheet_inputs, seed=3, seeds=1, strengths="0")[0]
    first, seam = _alone(sheet_inputs), sheet_inputs["seam"][:1, ..., None]
    source = first["crops"][0][1].tensor.permute(0, 2, 3, 1)
    with torch.inference_mode():
        sigmas = bridge.schedule(first["model"], "sgm_uniform", 3, 1.0)
        sampler = comfy.samplers.sampler_object("euler_ancestral")
        cond = first["positive"], first["negative"], first["latent"]
        stock = bridge.sample(first["model"], sampler, sigmas, *cond, 3, 1.5)
        expected = (source + seam * (first["vae"].decode(stock["samples"]) - source))[0]
    assert torch.allclose(_cell(sheet, 0, 0, 1, 1), expected, atol=0.5 / 255 + 1e-6)


def test_the_last_seed_is_followed_by_the_first(bridge: Any, sheet_inputs: dict[str, Any]) -> None:
    high = _run_node("SeedStrengthSheet", **sheet_inputs, seed=2**64 - 1, seeds=2, strengths="0")[0]
    low = _run_node("SeedStrengthSheet", **sheet_inputs, seed=0, seeds=1, strengths="0")[0]
    assert torch.equal(_cell(high, 1, 0, 2, 1), _cell(low, 0, 0, 1, 1))


def test_one_progress_bar_covers_all_combinations(bridge: Any, sheet_inputs: dict[str, Any]) -> None:
    import comfy.utils

    seen: list[tuple[int, int]] = []
    comfy.utils.set_progress_bar_global_hook(lambda value, total, *_, **__: seen.append((value, total)))
    try:
        _run_node("SeedStrengthSheet", **sheet_inputs, seeds=2, strengths="0, 1")
    finally:
        comfy.utils.set_progress_bar_global_hook(None)
    assert seen == [(value, 12) for value in range(1, 13)]  # 4 combinations of 3 steps


def test_the_sheet_can_be_cancelled_in_the_middle(bridge: Any, sheet_inputs: dict[str, Any]) -> None:
    import comfy.model_management
    import comfy.utils

    seen: list[int] = []

    def cancel_in_the_second_run(value: int, *_: Any, **__: Any) -> None:
        seen.append(value)
        comfy.model_management.interrupt_current_processing(value >= 4)

    comfy.utils.set_progress_bar_global_hook(cancel_in_the_second_run)
    try:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            _run_node("SeedStrengthSheet", **sheet_inputs, seeds=2, strengths="0, 1")
    finally:
        comfy.utils.set_progress_bar_global_hook(None)
        comfy.model_management.interrupt_current_processing(False)
    assert seen == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"strengths": "0, high"}, 'strengths must be numbers such as "0, 0.5, 1, 2", got'),
        ({"strengths": " , "}, "strengths must hold 1 to 16 numbers, got 0"),
        ({"strengths": ",".join(["1"] * 17)}, "strengths must hold 1 to 16 numbers, got 17"),
        ({"strengths": "1, -1"}, "guidance strength must be a number of at least 0, got -1.0"),
        ({"strengths": "nan"}, "guidance strength must be a number of at least 0, got nan"),
        ({"seam": torch.ones(2, 32, 32)}, "seam is 32x32 but the crops are 64x64"),
        ({"latent": {"samples": torch.zeros(1, 4, 8, 8)}}, "the latent holds 1 faces but there are 2 crops"),
    ],
)
def test_a_sheet_that_cannot_be_made_is_refused_before_anything_is_sampled(
    bridge: Any, sheet_inputs: dict[str, Any], values: dict[str, Any], message: str
) -> None:
    with pytest.raises(Exception, match=message):
        _run_node("SeedStrengthSheet", **{**sheet_inputs, "model": None, **values})


# ---- a live server ----


class Server:
    """A ComfyUI with only this pack, in folders of its own."""

    def __init__(self, comfyui: Path, folder: Path) -> None:
        self.folder, self.log = folder, folder / "server.log"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        for name in ("input", "output", "temp", "user", "custom_nodes"):
            (folder / name).mkdir()
        (folder / "custom_nodes" / "face-anon").symlink_to(ROOT)
        command = [
            PYTHON, "main.py", "--cpu", "--listen", "127.0.0.1", "--port", str(self.port), "--disable-auto-launch",
            "--base-directory", str(folder),
            "--database-url", "sqlite:///:memory:",
        ]  # fmt: skip
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, cwd=comfyui, stdout=log, stderr=subprocess.STDOUT)

    def request(self, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", data, timeout=30) as answer:
            return json.load(answer)

    def wait_until_up(self) -> None:
        for _ in range(240):
            try:
                self.request("/system_stats")
            except OSError:
                assert self.process.poll() is None, self.log.read_text()[-3000:]
                time.sleep(0.5)
            else:
                return
        raise AssertionError(f"ComfyUI did not start: {self.log.read_text()[-3000:]}")

    def run(self, prompt: dict[str, Any], limit_s: float = 400) -> dict[str, Any]:
        """Queue a prompt and wait for its history entry."""
        answer = self.request("/prompt", {"prompt": prompt})
        assert not answer["node_errors"], answer["node_errors"]
        number = answer["prompt_id"]
        end = time.monotonic() + limit_s
        while time.monotonic() < end:
            history = self.request(f"/history/{number}")
            if number in history:
                entry: dict[str, Any] = history[number]
                return entry
            time.sleep(0.3)
        raise AssertionError("the prompt did not finish")


def _three_faces(astronaut: Any) -> Any:
    small = np.asarray(Image.fromarray(astronaut).resize((460, 460)))
    return np.hstack([astronaut[:320, 80:360], astronaut[:320, 360:80:-1], small[:320, 60:340]])


FRAMES, ENTERS = 16, 12  # a second person is there from frame 12 on


def _film(astronaut: Any, coffee: Any) -> list[Any]:
    """A person moving right; later a smaller one at the right, moving left."""
    person = astronaut[10:230, 115:335]
    second = np.asarray(Image.fromarray(person[:, ::-1]).resize((180, 180)))
    frames = []
    for index in range(FRAMES):
        frame = np.asarray(Image.fromarray(coffee).resize((480, 240))).copy()
        frame[10:230, 2 + 3 * index : 222 + 3 * index] = person
        if index >= ENTERS:
            left = 290 - 3 * (index - ENTERS)
            frame[30:210, left : left + 180] = second
        frames.append(frame)
    return frames


@pytest.fixture(scope="module")
def server(comfyui: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    data = pytest.importorskip("skimage.data")
    if sys.executable == PYTHON:
        _needs_requirements_of_comfyui()
    running = Server(comfyui, tmp_path_factory.mktemp("comfyui"))
    try:
        astronaut = data.astronaut()
        Image.fromarray(astronaut).save(running.folder / "input" / "portrait.png")
        Image.fromarray(np.hstack([astronaut[:, :400], astronaut[:, 390::-1]])).save(running.folder / "input" / "two.png")
        Image.fromarray(np.full((128, 128, 3), 90, np.uint8)).save(running.folder / "input" / "no_face.png")
        Image.fromarray(_three_faces(astronaut)).save(running.folder / "input" / "three.png")
        first, *others = [Image.fromarray(frame) for frame in _film(astronaut, data.coffee())]
        first.save(running.folder / "input" / "film.tiff", save_all=True, append_images=others)
        running.wait_until_up()
        yield running
    finally:
        running.process.terminate()
        running.process.wait(30)


@pytest.fixture(scope="module")
def portrait_prompt(server: Server) -> dict[str, Any]:
    workflow = json.loads((ROOT / "workflows" / "1_anonymize_portrait.json").read_text())
    prompt = ui_to_api(workflow, server.request("/object_info"))
    _node(prompt, "GuidedSampler")["steps"] = 3
    return prompt


def _node(prompt: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = [node["inputs"] for node in prompt.values() if node["class_type"].removeprefix("FaceAnon_") == name]
    return found


def _outputs(server: Server) -> set[str]:
    return {path.name for path in (server.folder / "output").glob("*.png")}


def _pixels(path: Path) -> Any:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def _cached(entry: dict[str, Any]) -> set[str]:
    return {node for kind, message in entry["status"]["messages"] if kind == "execution_cached" for node in message["nodes"]}


def _error(entry: dict[str, Any]) -> str:
    return next(message["exception_message"] for kind, message in entry["status"]["messages"] if kind == "execution_error")


def test_the_portrait_workflow_runs_and_a_new_strength_reruns_the_sampler_only(
    server: Server, portrait_prompt: dict[str, Any]
) -> None:
    assert server.run(portrait_prompt)["status"]["status_str"] == "success"
    (picture,) = (server.folder / "output").glob("*.png")
    new, old = _pixels(picture), _pixels(server.folder / "input" / "portrait.png")
    difference = np.abs(new - old).max(-1)
    assert difference[80:150, 190:260].mean() > 10  # the middle of the face
    assert not difference[:, 320:].any() and not difference[220:].any()

    changed_prompt = json.loads(json.dumps(portrait_prompt))
    _node(changed_prompt, "AttributeGuidance")["strength"] = 0.5
    entry = server.run(changed_prompt)
    rerun = {portrait_prompt[n]["class_type"] for n in set(portrait_prompt) - _cached(entry)}
    assert rerun <= {
        "FaceAnon_AttributeGuidance", "FaceAnon_GuidedSampler", "VAEDecode", "FaceAnon_StitchFaces", "SaveImage",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("node", "values", "message"),
    [
        ("LoadImage", {"image": "no_face.png"}, "no face was found"),
        ("RegionMask", {"keep": "ear lobe"}, "no region named 'ear lobe'"),
        ("RegionMask", {"keep": "face"}, "excludes everything"),
        ("AttributeGuidance", {"strength": float("nan")}, "must be a number"),
        ("AttributeGuidance", {"away": 1.0}, "connect crops"),
        ("DemoConditioning", {"attributes": "mood=grumpy"}, "no attribute named 'mood'"),
    ],
)
def test_bad_input_is_told_on_the_node_and_the_server_stays_up(
    server: Server, portrait_prompt: dict[str, Any], node: str, values: dict[str, Any], message: str
) -> None:
    prompt, before = json.loads(json.dumps(portrait_prompt)), _outputs(server)
    _node(prompt, node).update(values)
    assert message in _error(server.run(prompt))
    assert _outputs(server) == before
    assert server.request("/system_stats")


def test_every_face_of_a_picture_is_replaced(server: Server, portrait_prompt: dict[str, Any]) -> None:
    prompt, before = json.loads(json.dumps(portrait_prompt)), _outputs(server)
    _node(prompt, "LoadImage")["image"] = "two.png"
    _node(prompt, "GuidedSampler").update(steps=2, cfg=2.0)
    assert server.run(prompt)["status"]["status_str"] == "success"
    (name,) = _outputs(server) - before
    new, old = (_pixels(server.folder / part) for part in (f"output/{name}", "input/two.png"))
    changed = np.abs(new - old).max(-1) > 0
    assert changed[:, :400].any() and changed[:, 400:].any() and not changed[300:].any()


def test_a_target_of_another_gallery_is_told_before_anything_runs(server: Server, portrait_prompt: dict[str, Any]) -> None:
    prompt = json.loads(json.dumps(portrait_prompt))
    _node(prompt, "TargetFace")["name"] = "nobody"
    answer = server.request("/prompt", {"prompt": prompt})
    (errors,) = [entry["errors"] for entry in answer["node_errors"].values()]
    assert "there is no target named 'nobody'; choose automatic or one of" in errors[0]["details"]


def _shown(server: Server, entry: dict[str, Any], node: str) -> list[Any]:
    """The pictures an image node of the graph showed or saved."""
    return [
        _pixels(server.folder / image["type"] / image["subfolder"] / image["filename"])
        for image in entry["outputs"][node]["images"]
    ]


def _id(prompt: dict[str, Any], name: str) -> str:
    (found,) = [number for number, node in prompt.items() if node["class_type"].removeprefix("FaceAnon_") == name]
    return found


def _show(prompt: dict[str, Any], name: str, node: str, slot: int = 0) -> None:
    prompt[name] = {"class_type": "PreviewImage", "inputs": {"images": [_id(prompt, node), slot]}}


def _outside_of_all_seams(picture: Any, size: int) -> Any:
    """Where the default Region Mask of no face of the picture reaches."""
    from faceanon_core.crop import crop_face, seam_in_image
    from faceanon_core.faces import FaceDetector
    from faceanon_core.parsing import LandmarkParser
    from faceanon_core.regions import RegionChoice, region_mask

    pixels, parser = picture.astype(np.uint8), LandmarkParser()
    height, width = pixels.shape[:2]
    with FaceDetector() as detector:
        crops = [crop_face(pixels, face, size) for face in detector.detect(pixels)]
    assert crops
    masks = [region_mask(parser.parse(crop.pixels, crop.landmarks), RegionChoice()) for crop in crops]
    return sum(seam_in_image(crop, mask.seam, width, height) for crop, mask in zip(crops, masks, strict=True)) == 0


def test_three_faces_of_one_picture_get_three_targets(server: Server, portrait_prompt: dict[str, Any]) -> None:
    prompt = json.loads(json.dumps(portrait_prompt))
    _node(prompt, "LoadImage")["image"] = "three.png"
    _show(prompt, "targets", "TargetFace", 1)
    entry = server.run(prompt)
    assert entry["status"]["status_str"] == "success", _error(entry)
    targets = _shown(server, entry, "targets")
    assert len(targets) == 3 and all((a != b).any() for a, b in combinations(targets, 2))
    (new,), old = _shown(server, entry, _id(prompt, "SaveImage")), _pixels(server.folder / "input" / "three.png")
    difference, outside = np.abs(new - old).max(-1), _outside_of_all_seams(old, 256)
    assert not difference[outside].any()
    for columns in (slice(0, 280), slice(280, 560), slice(560, None)):
        changed = difference[:, columns][~outside[:, columns]]
        assert changed.size and changed.mean() > 10


def test_targets_chosen_by_hand_go_to_the_faces_in_order(server: Server, portrait_prompt: dict[str, Any]) -> None:
    prompt = json.loads(json.dumps(portrait_prompt))
    _node(prompt, "LoadImage")["image"] = "three.png"
    _node(prompt, "GuidedSampler")["steps"] = 1
    names, chosen = sorted(gallery_index())[:3], _id(prompt, "TargetFace")
    for name in names:
        prompt[name] = {"class_type": "FaceAnon_TargetFace", "inputs": {"name": name, "attributes": "", "seed": 0}}
    inputs = {f"target_{i}": [name, 0] for i, name in enumerate(names[:2], 1)}
    prompt[chosen] = {"class_type": "FaceAnon_CombineTargets", "inputs": inputs}
    del prompt[next(n for n, node in prompt.items() if node["inputs"].get("images") == [chosen, 1])]
    assert "there are 2 targets for 3 faces; give one target for all, or one for each" in _error(server.run(prompt))
    inputs["target_3"] = [names[2], 0]
    entry = server.run(prompt)
    assert entry["status"]["status_str"] == "success", _error(entry)


def test_a_film_keeps_one_target_and_one_noise_per_person(server: Server, portrait_prompt: dict[str, Any]) -> None:
    prompt = json.loads(json.dumps(portrait_prompt))
    _node(prompt, "LoadImage")["image"] = "film.tiff"
    source = _node(prompt, "CropFaces")
    tracking = {"image": source["image"], "faces": source["faces"], "max_gap": 12, "fill_gaps": True}
    prompt["track"] = {"class_type": "FaceAnon_TrackFaces", "inputs": tracking}
    source.update(faces=["track", 0], size=128)  # a quarter of the work
    _node(prompt, "AttributeGuidance")["crops"] = [_id(prompt, "CropFaces"), 0]
    _node(prompt, "GuidedSampler")["steps"] = 2
    _show(prompt, "targets", "TargetFace", 1)
    _show(prompt, "faces", "VAEDecode")
    entry = server.run(prompt)
    assert entry["status"]["status_str"] == "success", _error(entry)
    targets = _shown(server, entry, "targets")
    assert len(targets) == 2 and (targets[0] != targets[1]).any()

    frames = _shown(server, entry, _id(prompt, "SaveImage"))
    with Image.open(server.folder / "input" / "film.tiff") as film:
        sources = [np.asarray(frame.convert("RGB")).astype(int) for frame in ImageSequence.Iterator(film)]
    assert len(frames) == len(sources) == FRAMES
    for new, old in zip(frames, sources, strict=True):
        outside = _outside_of_all_seams(old, 128)
        assert not (new != old)[outside].any() and np.abs(new - old)[~outside].mean() > 5

    _node(prompt, "GuidedSampler")["seed"] = 1
    elsewhere = server.run(prompt)
    first, second = (_by_person(_shown(server, run, "faces")) for run in (entry, elsewhere))
    for person in (0, 1):
        steady = _change(first[person][1:], first[person][:-1])
        assert steady < 0.2 * _change(first[person], second[person]), person


def _by_person(faces: list[Any]) -> tuple[list[Any], list[Any]]:
    """Of the crops, frame after frame and the larger face first, those of each person."""
    both = faces[ENTERS:]
    return [*faces[:ENTERS], *both[::2]], both[1::2]


def _change(faces: list[Any], others: list[Any]) -> float:
    """Mean difference in the middle of the faces, which the crops align."""
    return float(np.mean([np.abs(a - b)[35:100, 35:95] for a, b in zip(faces, others, strict=True)]))


def test_the_contact_sheet_and_before_and_after_run_in_a_graph(server: Server, portrait_prompt: dict[str, Any]) -> None:
    prompt = json.loads(json.dumps(portrait_prompt))
    sampled = {name: value for name, value in _node(prompt, "GuidedSampler").items() if name != "steps"}
    more = {"crops": [_id(prompt, "CropFaces"), 0], "seam": [_id(prompt, "RegionMask"), 1]}
    sheet = {**sampled, **more, "steps": 1, "seeds": 2, "strengths": "0, 1, 2"}
    prompt["sheet"] = {"class_type": "FaceAnon_SeedStrengthSheet", "inputs": sheet}
    pair = {"before": [_id(prompt, "LoadImage"), 0], "after": [_id(prompt, "StitchFaces"), 0]}
    prompt["pair"] = {"class_type": "FaceAnon_BeforeAfter", "inputs": pair}
    for name in ("SeedStrengthSheet", "BeforeAfter"):
        _show(prompt, name, name)
    entry = server.run(prompt)
    assert entry["status"]["status_str"] == "success", _error(entry)
    (cells,), (both,) = _shown(server, entry, "SeedStrengthSheet"), _shown(server, entry, "BeforeAfter")
    assert cells.shape[0] == 24 + 2 * (4 + 256) and cells.shape[1] > 3 * (4 + 256)
    (new,), old = _shown(server, entry, _id(prompt, "SaveImage")), _pixels(server.folder / "input" / "portrait.png")
    assert (both[-512:, :512] == old).all() and (both[-512:, -512:] == new).all()


def test_a_mask_painted_in_load_image_keeps_what_it_covers(server: Server, portrait_prompt: dict[str, Any]) -> None:
    prompt, old = json.loads(json.dumps(portrait_prompt)), _pixels(server.folder / "input" / "portrait.png")
    painted = np.zeros((512, 512), bool)
    painted[120:130, 190:260] = True  # a stroke across the cheeks
    layers = np.dstack([old, np.where(painted, 0, 255)]).astype(np.uint8)  # as the mask editor saves it
    Image.fromarray(layers).save(server.folder / "input" / "painted.png")
    _node(prompt, "GuidedSampler")["steps"] = 1
    _node(prompt, "RegionMask").update(painted=[_id(prompt, "LoadImage"), 1], combine="subtract")
    assert "gives a 64x64 mask when nothing was painted" in _error(server.run(prompt))
    _node(prompt, "LoadImage")["image"] = "painted.png"
    entry = server.run(prompt)
    assert entry["status"]["status_str"] == "success", _error(entry)
    (new,) = _shown(server, entry, _id(prompt, "SaveImage"))
    assert (new[painted] == old[painted]).all() and (new != old)[140:150, 210:240].any()
