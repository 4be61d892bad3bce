"""Workflows through a live ComfyUI server.

Run with ComfyUI's own Python: `COMFYUI_DIR=... /path/to/comfyui/python -m pytest -m comfyui tests`.
With another Python, name ComfyUI's in COMFYUI_PYTHON: the server then runs on that.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageSequence

sys.path.insert(0, str(Path(__file__).parent))
from comfyui_tools import need_requirements_of_comfyui
from make_checkpoints import write_vae_of_16_channels
from pack import ROOT
from workflow_tools import ui_to_api, write_twins

from faceanon_core.metadata import find_metadata
from faceanon_core.target import gallery_index

pytestmark = pytest.mark.comfyui
PYTHON = os.environ.get("COMFYUI_PYTHON", sys.executable)  # runs the server


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
        for name in ("vae", "faceanon"):
            (folder / "models" / name).mkdir(parents=True)
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
            return json.loads(answer.read() or "null")

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

    def queue(self, prompt: dict[str, Any]) -> str:
        """Queue a prompt. Returns: its number."""
        answer = self.request("/prompt", {"prompt": prompt})
        assert not answer["node_errors"], answer["node_errors"]
        return str(answer["prompt_id"])

    def run(self, prompt: dict[str, Any]) -> dict[str, Any]:
        """Queue a prompt and wait for its history entry."""
        return self.wait(self.queue(prompt))

    def wait(self, number: str, limit_s: float = 400) -> dict[str, Any]:
        """The history entry of a prompt, once it has ended."""
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
        need_requirements_of_comfyui()
    running = Server(comfyui, tmp_path_factory.mktemp("comfyui"))
    try:
        astronaut = data.astronaut()
        Image.fromarray(astronaut).save(running.folder / "input" / "portrait.png")
        Image.fromarray(np.hstack([astronaut[:, :400], astronaut[:, 390::-1]])).save(running.folder / "input" / "two.png")
        Image.fromarray(np.full((128, 128, 3), 90, np.uint8)).save(running.folder / "input" / "no_face.png")
        Image.fromarray(_three_faces(astronaut)).save(running.folder / "input" / "three.png")
        first, *others = [Image.fromarray(frame) for frame in _film(astronaut, data.coffee())]
        first.save(running.folder / "input" / "film.tiff", save_all=True, append_images=others)
        write_vae_of_16_channels(running.folder / "models" / "vae" / "wide.safetensors")
        running.wait_until_up()
        yield running
    finally:
        running.process.terminate()
        running.process.wait(30)


@pytest.fixture(scope="module")
def portrait_prompt(server: Server) -> dict[str, Any]:
    """A whole face made by single nodes: workflow 3, but nothing is kept or held, and only the result is shown."""
    prompt = _prompt(server, "3_keep")
    _node(prompt, "RegionMask")["keep"] = _node(prompt, "DemoConditioning")["keep"] = ""
    _node(prompt, "GuidedSampler").update(steps=3, guidance=_node(prompt, "HoldPose")["guidance"])
    return {number: prompt[number] for number in _needed_by(prompt, _id(prompt, "SaveImage"))}


def _prompt(server: Server, name: str) -> dict[str, Any]:
    """The workflow whose file begins with `name`, in the API's form."""
    (file,) = (ROOT / "workflows").glob(f"{name}*.json")
    return ui_to_api(json.loads(file.read_text()), server.request("/object_info"))


def _needed_by(prompt: dict[str, Any], node: str) -> set[str]:
    links = [value[0] for value in prompt[node]["inputs"].values() if isinstance(value, list)]
    return {node}.union(*(_needed_by(prompt, link) for link in links))


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


def test_the_portrait_workflow_runs_and_a_new_strength_reruns_the_sampler_only(server: Server) -> None:
    prompt = _prompt(server, "1_anonymize")
    _node(prompt, "RetrySampler")["steps"] = 3
    entry = server.run(prompt)
    assert entry["status"]["status_str"] == "success", _error(entry)
    (picture,) = (server.folder / "output").glob("*.png")
    new, old = _pixels(picture), _pixels(server.folder / "input" / "portrait.png")
    difference = np.abs(new - old).max(-1)
    assert difference[80:150, 190:260].mean() > 10  # the middle of the face
    assert not difference[:, 320:].any() and not difference[220:].any()
    assert "dlib" in entry["outputs"][_id(prompt, "PreviewAny")]["text"][0]

    changed_prompt = json.loads(json.dumps(prompt))
    _node(changed_prompt, "AttributeGuidance")["strength"] = 0.5
    entry = server.run(changed_prompt)
    rerun = {prompt[n]["class_type"] for n in set(prompt) - _cached(entry)}
    assert rerun <= {"FaceAnon_AttributeGuidance", "FaceAnon_RetrySampler", "PreviewAny", "SaveImage"}


def test_a_face_that_the_recogniser_of_the_portrait_workflow_still_knows_is_not_saved(server: Server) -> None:
    prompt, before = _prompt(server, "1_anonymize"), _outputs(server)
    _node(prompt, "RetrySampler").update(steps=1, tries=1)
    _node(prompt, "LoadRecogniser")["max_similarity"] = -0.99
    assert "it still looks like the source (dlib: similarity" in _error(server.run(prompt))
    assert _outputs(server) == before


@dataclass(frozen=True)
class Linked:
    """A node in front of an input. Its own inputs may be Linked, too, or (node of the graph, slot)."""

    name: str
    inputs: dict[str, Any]
    slot: int = 0


def _put(prompt: dict[str, Any], node: str, values: dict[str, Any]) -> None:
    """Set a node's inputs, None leaves one unconnected; what they are linked to is added to the graph."""
    inputs = _node(prompt, node)
    inputs.update({name: _value(prompt, value) for name, value in values.items() if value is not None})
    for name in (name for name, value in values.items() if value is None):
        del inputs[name]


def _value(prompt: dict[str, Any], value: Any) -> Any:
    if isinstance(value, tuple):
        return [_id(prompt, value[0]), value[1]]
    if not isinstance(value, Linked):
        return value
    inputs = {name: _value(prompt, inner) for name, inner in value.inputs.items()}
    number = f"added {len(prompt)}"
    prompt[number] = {"class_type": value.name, "inputs": inputs}
    return [number, value.slot]


def _repeated(kind: str, name: str, source: tuple[str, int]) -> Linked:
    return Linked(f"Repeat{kind}Batch", {name: source, "amount": 2})


_WIDE_VAE = Linked("VAELoader", {"vae_name": "wide.safetensors"})
_FLOW = Linked("ModelSamplingSD3", {"model": ("LoadDemoModel", 0), "shift": 3.0})
_SMALL_MASK = Linked("SolidMask", {"value": 1.0, "width": 128, "height": 96})
_FACELESS = Linked("LoadImage", {"image": "no_face.png"})


@pytest.mark.parametrize(
    ("node", "values", "message"),
    [
        ("LoadImage", {"image": "no_face.png"}, "no face was found"),
        ("RegionMask", {"keep": "ear lobe"}, "no region named 'ear lobe'"),
        ("RegionMask", {"keep": "face"}, "excludes everything"),
        ("RegionMask", {"painted": _SMALL_MASK}, "128x96"),
        ("AttributeGuidance", {"strength": float("nan")}, "must be a number"),
        ("AttributeGuidance", {"crops": None, "away": 1.0}, "connect crops"),
        ("AttributeGuidance", {"decoder": _WIDE_VAE}, "the VAE has 16 latent channels but the model has 4"),
        (
            "AttributeGuidance",
            {"target": Linked("FaceAnon_TargetFromImage", {"image": _FACELESS, "encoder": ("LoadDemoModel", 2)})},
            "shows no face",
        ),
        ("DemoConditioning", {"attributes": "mood=grumpy"}, "no attribute named 'mood'"),
        ("CropFaces", {"image": _repeated("Image", "image", ("LoadImage", 0))}, "the image has a batch of 2"),
        ("InpaintFaces", {"mask": _SMALL_MASK}, "mask is 128x96 but the crops are 256x256"),
        ("InpaintFaces", {"vae": _WIDE_VAE}, "the latent has 16 channels but the model takes 4"),
        ("GuidedSampler", {"model": _FLOW}, "this is a flow or DiT model"),
        ("GuidedSampler", {"latent": _repeated("Latent", "samples", ("InpaintFaces", 2))}, "2 results but 1 crops"),
        (
            "GuidedSampler",
            {"latent": Linked("EmptyLatentImage", {"width": 64, "height": 64, "batch_size": 1})},
            "result is 64x64 but the crops are 256x256",
        ),
        ("StitchFaces", {"image": _repeated("Image", "image", ("LoadImage", 0))}, "but the image is a batch of 2"),
        ("StitchFaces", {"seam": _SMALL_MASK}, "seam is 128x96 but the crops are 256x256"),
    ],
)
def test_bad_input_is_told_on_the_node_and_the_server_stays_up(
    server: Server, portrait_prompt: dict[str, Any], node: str, values: dict[str, Any], message: str
) -> None:
    prompt, before = json.loads(json.dumps(portrait_prompt)), _outputs(server)
    _node(prompt, "GuidedSampler")["steps"] = 1
    _put(prompt, node, values)
    told = _error(server.run(prompt))
    assert message in told and told.strip().count("\n") == 0
    assert _outputs(server) == before
    assert server.request("/system_stats")


def _with_route(prompt: dict[str, Any], route: str, steps: int) -> dict[str, Any]:
    """The prompt with its Attribute-Guided Sampler replaced by the nodes of another route."""
    prompt = json.loads(json.dumps(prompt))
    inputs = _node(prompt, "GuidedSampler")
    cond = {name: inputs[name] for name in ("positive", "negative")}
    model, vae, guidance = (inputs[name] for name in ("model", "vae", "guidance"))
    schedule = {"scheduler": inputs["scheduler"], "steps": steps, "denoise": 1.0}
    if route == "FaceAnon_GuidedSampler":
        inputs["steps"] = steps
        return prompt
    if route == "KSampler":
        guided = Linked("FaceAnon_ApplyGuidance", {"model": model, "vae": vae, "guidance": guidance})
        more = {"model": guided, "latent_image": inputs["latent"], "seed": 0, "cfg": 1.0, "sampler_name": "euler_ancestral"}
        values = {**cond, **schedule, **more}
    else:
        values = {
            "noise": Linked("RandomNoise", {"noise_seed": 0}),
            "guider": Linked("CFGGuider", {"model": model, "cfg": 1.0, **cond}),
            "sampler": Linked("FaceAnon_GuidedSamplerObject", {"guidance": guidance, "vae": vae}),
            "sigmas": Linked("BasicScheduler", {"model": model, **schedule}),
            "latent_image": inputs["latent"],
        }
    made = {name: _value(prompt, value) for name, value in values.items()}
    prompt[_id(prompt, "GuidedSampler")] = {"class_type": route, "inputs": made}
    return prompt


@pytest.mark.parametrize("route", ["FaceAnon_GuidedSampler", "SamplerCustomAdvanced", "KSampler"])
def test_a_cancelled_sampler_stops_and_the_next_run_works(
    server: Server, portrait_prompt: dict[str, Any], route: str
) -> None:
    assert server.run(_with_route(portrait_prompt, route, 1))["status"]["status_str"] == "success"
    before = _outputs(server)
    number = server.queue(_with_route(portrait_prompt, route, 1000))
    time.sleep(4)  # all before the sampler is cached, so this is within its steps
    server.request("/interrupt", {})
    messages = dict(server.wait(number)["status"]["messages"])
    assert messages["execution_interrupted"]["node_type"] == route
    assert _outputs(server) == before
    assert server.run(_with_route(portrait_prompt, route, 2))["status"]["status_str"] == "success"
    assert len(_outputs(server)) == len(before) + 1


def test_every_face_of_a_picture_is_replaced(server: Server, portrait_prompt: dict[str, Any]) -> None:
    prompt, before = json.loads(json.dumps(portrait_prompt)), _outputs(server)
    _node(prompt, "LoadImage")["image"] = "two.png"
    _node(prompt, "GuidedSampler").update(steps=2, cfg=2.0)
    entry = server.run(prompt)
    assert entry["status"]["status_str"] == "success", _error(entry)
    (name,) = _outputs(server) - before
    new, old = (_pixels(server.folder / part) for part in (f"output/{name}", "input/two.png"))
    changed = np.abs(new - old).max(-1) > 0
    assert changed[:, :400].any() and changed[:, 400:].any() and not changed[300:].any()


def test_a_target_of_another_gallery_is_told_before_anything_runs(server: Server, portrait_prompt: dict[str, Any]) -> None:
    prompt = json.loads(json.dumps(portrait_prompt))
    _node(prompt, "TargetFace")["name"] = "nobody"
    with pytest.raises(urllib.error.HTTPError, match="400") as refused:
        server.request("/prompt", {"prompt": prompt})
    (errors,) = [entry["errors"] for entry in json.load(refused.value)["node_errors"].values()]
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


@pytest.mark.parametrize("name", ["3_keep", "4_group", "5_synthesize", "6_video", "8_contact"])
def test_every_workflow_for_the_demo_model_runs(server: Server, name: str) -> None:
    prompt = _prompt(server, name)
    for node in prompt.values():
        quick = {"LoadImage": {"image": "portrait.png"}, "LoadVideo": {"file": "clip.mp4"}}.get(node["class_type"], {})
        node["inputs"] |= quick | {key: value for key, value in {"steps": 2, "seeds": 1}.items() if key in node["inputs"]}
    if name == "6_video":
        _write_clip(server.folder / "input" / "clip.mp4", _pixels(server.folder / "input" / "portrait.png"))
    entry = server.run(prompt)
    assert entry["status"]["status_str"] == "success", _error(entry)


def test_the_checked_workflow_saves_pixels_alone_leaves_no_copy_and_saves_nothing_when_the_check_fails(
    server: Server,
) -> None:
    prompt = _prompt(server, "9_check")
    _node(prompt, "LoadRecogniser")["max_similarity"] = 0.9
    _node(prompt, "RetrySampler").update(steps=2, tries=2)
    for left in (server.folder / "temp").rglob("*.*"):  # of other tests
        left.unlink()
    inputs, outputs = _files(server.folder / "input"), _files(server.folder / "output")
    entry = server.run(prompt)
    assert entry["status"]["status_str"] == "success", _error(entry)
    assert "1 of 1 faces passed\npicture 1, face near" in entry["outputs"][_id(prompt, "PreviewAny")]["text"][0]
    (saved,) = _files(server.folder / "output") - outputs
    assert find_metadata(saved) == [] and re.fullmatch(r"faceanon_[0-9a-f]{32}\.png", saved.name)
    (table,) = _files(server.folder / "temp")  # the verdicts, which show no source
    assert Image.open(table).height < 200 and _files(server.folder / "input") == inputs
    table.unlink()
    _node(prompt, "LoadRecogniser")["max_similarity"] = -0.99
    assert "after 2 tries it still looks like the source" in _error(server.run(prompt))
    assert _files(server.folder / "output") - outputs == {saved} and _files(server.folder / "temp") == set()


def test_a_target_that_is_the_source_again_is_refused_in_the_graph(server: Server, network: Path) -> None:
    _install(network, server, 0.5)
    workflow = _prompt(server, "5_synthesize")
    wanted = {_id(workflow, "PickTarget"), _id(workflow, "CropFaces")}
    prompt = {number: workflow[number] for node in wanted for number in _needed_by(workflow, node)}
    _node(prompt, "LoadImage")["image"] = "portrait.png"
    _node(prompt, "SynthesizeTarget")["count"] = 2
    prompt["80"] = {
        "class_type": "FaceAnon_LoadRecogniser",
        "inputs": {"network": "faceanon/MobileFaceNet.onnx", "max_similarity": -1.0},
    }
    prompt["81"] = {"class_type": "PreviewAny", "inputs": {"source": [_id(prompt, "PickTarget"), 3]}}
    pick = _node(prompt, "PickTarget")
    pick |= {"crops": [_id(prompt, "CropFaces"), 0], "recogniser": ["80", 0]}
    entry = server.run(prompt)
    assert entry["status"]["status_str"] == "success", _error(entry)
    (report,) = entry["outputs"]["81"]["text"]
    assert "\n2: " in report and "looks like the source" not in report
    pick["candidates"] = [_id(prompt, "LoadImage"), 0]
    assert "looks like the source" in _error(server.run(prompt))
    del pick["crops"]
    assert "connect both crops and recogniser, or neither" in _error(server.run(prompt))


def _install(network: Path, server: Server, limit: float) -> None:
    """Put a recogniser with its card into the server's models."""
    folder = server.folder / "models" / "faceanon"
    for name in (network.name, network.name + ".data"):
        shutil.copy(network.with_name(name), folder / name)
    card = {"layout": "mobilefacenet", "thresholds": {"0.01": limit}}
    (folder / "MobileFaceNet.json").write_text(json.dumps(card))


def test_the_pictures_of_the_help_pages_are_served_where_the_editor_looks_for_them(server: Server) -> None:
    shown = {
        name
        for page in (ROOT / "web" / "docs").glob("*.md")
        for name in re.findall(r"!\[[^]]*\]\(([^)]+)\)", page.read_text())
    }
    assert shown
    for name in shown:
        with urllib.request.urlopen(
            f"http://127.0.0.1:{server.port}/extensions/face-anon/docs/{name}", timeout=30
        ) as answer:
            assert answer.read() == (ROOT / "web" / "docs" / name).read_bytes()


def _files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def test_the_api_twins_of_all_workflows_are_written(server: Server, tmp_path: Path) -> None:
    twins = write_twins(f"http://127.0.0.1:{server.port}", tmp_path)
    assert [twin.name[0] for twin in twins] == list("123456789")
    assert json.loads(twins[0].read_text())["2"] == {"class_type": "LoadImage", "inputs": {"image": "portrait.png"}}


def _write_clip(path: Path, picture: Any) -> None:
    """Four frames that pan over a picture."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as film:
        stream = film.add_stream("libx264", rate=8)
        stream.width = stream.height = 384
        for shift in range(0, 16, 4):
            view = np.ascontiguousarray(picture[:384, 40 + shift : 424 + shift], np.uint8)
            film.mux(stream.encode(av.VideoFrame.from_ndarray(view, format="rgb24").reformat(format="yuv420p")))
        film.mux(stream.encode())
