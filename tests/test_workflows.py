"""Every shipped workflow against the node definitions, without a server."""

from __future__ import annotations

import json
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from faceanon_core.pipeline import AWAY

sys.path.insert(0, str(Path(__file__).parent))
from pack import ROOT, definitions
from workflow_tools import ui_to_api

FILES = sorted((ROOT / "workflows").glob("*.json"))
TITLE_PX = 30  # the title bar, drawn above a node's position
PICTURE = ("COMBO", {"image_upload": True})
# ComfyUI's own nodes that the workflows use, v0.3.64
SEED = ("INT", {"control_after_generate": True, "min": 0, "max": 2**64 - 1})
STOCK: dict[str, dict[str, Any]] = {
    "CheckpointLoaderSimple": {
        "input": {"required": {"ckpt_name": ("COMBO",)}},
        "output": ["MODEL", "CLIP", "VAE"],
    },
    "CLIPTextEncode": {"input": {"required": {"text": ("STRING",), "clip": ("CLIP",)}}, "output": ["CONDITIONING"]},
    "CreateVideo": {
        "input": {
            "required": {"images": ("IMAGE",), "fps": ("FLOAT", {"min": 1, "max": 120})},
            "optional": {"audio": ("AUDIO",)},
        },
        "output": ["VIDEO"],
    },
    "GetVideoComponents": {"input": {"required": {"video": ("VIDEO",)}}, "output": ["IMAGE", "AUDIO", "FLOAT"]},
    "KSampler": {
        "input": {
            "required": {
                "model": ("MODEL",),
                "seed": SEED,
                "steps": ("INT", {"min": 1, "max": 10000}),
                "cfg": ("FLOAT", {"min": 0, "max": 100}),
                "sampler_name": ("COMBO",),
                "scheduler": ("COMBO",),
                "positive": ("CONDITIONING",),
                "negative": ("CONDITIONING",),
                "latent_image": ("LATENT",),
                "denoise": ("FLOAT", {"min": 0, "max": 1}),
            }
        },
        "output": ["LATENT"],
    },
    "LoadVideo": {"input": {"required": {"file": ("COMBO", {"video_upload": True})}}, "output": ["VIDEO"]},
    "SaveVideo": {
        "input": {
            "required": {
                "video": ("VIDEO",),
                "filename_prefix": ("STRING",),
                "format": ("COMBO",),
                "codec": ("COMBO",),
            }
        },
        "output": [],
    },
    "LoadImage": {"input": {"required": {"image": PICTURE}}, "output": ["IMAGE", "MASK"]},
    "PreviewAny": {"input": {"required": {"source": ("*",)}}, "output": []},
    "PreviewImage": {"input": {"required": {"images": ("IMAGE",)}}, "output": []},
    "SaveImage": {"input": {"required": {"images": ("IMAGE",), "filename_prefix": ("STRING",)}}, "output": []},
    "VAEDecode": {"input": {"required": {"samples": ("LATENT",), "vae": ("VAE",)}}, "output": ["IMAGE"]},
}
DEFINITIONS: dict[str, Any] = {**definitions(), **STOCK}


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def workflow(request: pytest.FixtureRequest) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(request.param.read_text(encoding="utf-8"))
    return loaded


def test_every_workflow_has_a_thumbnail() -> None:
    """ComfyUI shows them in its template browser."""
    assert [file.stem for file in FILES if not file.with_suffix(".jpg").is_file()] == [] and len(FILES) == 9


def test_links_join_sockets_of_one_type(workflow: dict[str, Any]) -> None:
    nodes = {node["id"]: node for node in workflow["nodes"]}
    for link, source, slot, target, entry, kind in workflow["links"]:
        output, socket = nodes[source]["outputs"][slot], nodes[target]["inputs"][entry]
        assert link in output["links"] and socket["link"] == link
        assert DEFINITIONS[nodes[source]["type"]]["output"][slot] == kind and socket["type"] in (kind, "*")


def test_every_input_is_given_and_in_range(workflow: dict[str, Any]) -> None:
    for node in ui_to_api(workflow, DEFINITIONS).values():
        for name, spec in DEFINITIONS[node["class_type"]]["input"].get("required", {}).items():
            assert name in node["inputs"], f"{node['class_type']} lacks {name}"
            _check_value(f"{node['class_type']}.{name}", node["inputs"][name], spec[0], spec[1] if len(spec) > 1 else {})


def _check_value(where: str, value: Any, kind: Any, options: dict[str, Any]) -> None:
    if isinstance(value, list):
        return  # linked
    if isinstance(kind, list):
        assert value in kind, where
    elif kind in ("INT", "FLOAT"):
        assert isinstance(value, int if kind == "INT" else (int, float)), where
        assert options["min"] <= value <= options["max"], where
    elif kind in ("STRING", "BOOLEAN"):
        assert isinstance(value, str if kind == "STRING" else bool), where


def test_boxes_do_not_overlap(workflow: dict[str, Any]) -> None:
    boxes = [
        (n["type"], n["pos"][0], n["pos"][1] - TITLE_PX, n["size"][0], n["size"][1] + TITLE_PX) for n in workflow["nodes"]
    ]
    for (a, ax, ay, aw, ah), (b, bx, by, bw, bh) in combinations(boxes, 2):
        assert not (ax < bx + bw and bx < ax + aw and ay < by + bh and by < ay + ah), f"{a} overlaps {b}"


def test_a_note_and_groups_explain_the_steps(workflow: dict[str, Any]) -> None:
    assert any(node["type"] == "MarkdownNote" for node in workflow["nodes"]) and workflow["groups"]


def test_no_workflow_depends_on_a_gallery_name(workflow: dict[str, Any]) -> None:
    for node in ui_to_api(workflow, DEFINITIONS).values():
        if node["class_type"] == "FaceAnon_TargetFace":
            assert node["inputs"]["name"] == "automatic"


def test_the_first_workflow_shows_the_defaults() -> None:
    """The model card's figures were measured with them."""
    workflow = json.loads(FILES[0].read_text(encoding="utf-8"))
    for node in ui_to_api(workflow, DEFINITIONS).values():
        for part in DEFINITIONS[node["class_type"]]["input"].values():
            for name, (_, *options) in part.items():
                if options and "default" in options[0]:
                    # away needs the crops connected, which a node alone does not have
                    default = AWAY if name == "away" else options[0]["default"]
                    assert node["inputs"][name] == default, f"{node['class_type']}.{name}"
