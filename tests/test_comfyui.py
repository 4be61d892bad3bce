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
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
from pack import NAME, ROOT, load_pack
from workflow_tools import ui_to_api

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
