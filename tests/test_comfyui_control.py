"""Encoders, guidance terms and parsers the user brings, on a real ComfyUI in this process.

Run with ComfyUI's own Python: `COMFYUI_DIR=... /path/to/comfyui/python -m pytest -m comfyui tests`.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from comfyui_tools import run_node
from make_parser import draw_glasses
from test_semantic_parser import FOLDER as FACE_PARSER
from test_vision_encoders import small_clip, small_dinov2

pytestmark = pytest.mark.comfyui
SIDE = 64  # pixels of the sampled crops


@pytest.fixture(scope="module")
def models(bridge: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder that ComfyUI searches as models/faceanon and models/clip_vision."""
    import folder_paths

    folder = tmp_path_factory.mktemp("models")
    for kind in ("faceanon", "clip_vision"):
        (folder / kind).mkdir()
        folder_paths.add_model_folder_path(kind, str(folder / kind), is_default=True)
    yield folder
    for kind in ("faceanon", "clip_vision"):
        folder_paths.folder_names_and_paths[kind][0].remove(str(folder / kind))


@pytest.fixture(scope="module")
def inputs(bridge: Any, demo: dict[str, Any]) -> dict[str, Any]:
    """What the Attribute-Guided Sampler and Attribute Guidance take, for a portrait."""
    data = pytest.importorskip("skimage.data")
    picture = torch.from_numpy(data.astronaut()).float()[None] / 255
    faces, _, _ = run_node("ParseFaces", image=picture)
    crops, _ = run_node("CropFaces", image=picture, faces=faces, size=SIDE)
    mask, _, _ = run_node("RegionMask", crops=crops)
    target, _ = run_node("TargetFace", name="anna")
    positive, negative = run_node("DemoConditioning", target=target, crops=crops)
    cond = {"positive": positive, "negative": negative, "vae": demo["vae"]}
    positive, negative, latent = run_node("InpaintFaces", crops=crops, mask=mask, **cond)
    sampler = {"model": demo["model"], "vae": demo["vae"], "positive": positive, "negative": negative, "latent": latent}
    guidance = {"encoder": demo["encoder"], "target": target, "crops": crops, "mask": mask}
    return {"sampler": {**sampler, "steps": 4}, "guidance": guidance}


def sampled(inputs: dict[str, Any], **guidance: Any) -> torch.Tensor:
    (spec,) = run_node("AttributeGuidance", **{**inputs["guidance"], "end": 1.0, **guidance})
    latent, *_ = run_node("GuidedSampler", guidance=spec, **inputs["sampler"])
    return latent["samples"].clone()


@pytest.mark.parametrize(("kind", "make"), [("clip_vision", small_clip), ("faceanon", small_dinov2)])
def test_an_encoder_of_ones_own_guides_and_leaves_no_trace(models: Path, inputs: Any, kind: str, make: Any) -> None:
    name = f"{kind}/{make.__name__}/model.safetensors"
    make(models / kind / make.__name__)
    from pack import load_pack

    choices, _ = load_pack().NODE_CLASS_MAPPINGS["FaceAnon_LoadEncoder"].INPUT_TYPES()["required"]["file"]
    assert name in choices
    (encoder,) = run_node("LoadEncoder", file=name)
    first, second = (sampled(inputs, encoder=encoder) for _ in range(2))
    assert torch.equal(first, second)
    plain, demo = sampled(inputs, strength=0.0), sampled(inputs)
    assert not torch.allclose(first, plain, atol=0.05) and not torch.allclose(first, demo, atol=0.05)


def test_an_encoder_without_attributes_is_refused_where_they_are_estimated(models: Path, inputs: Any) -> None:
    small_clip(models / "faceanon" / "clip")
    (encoder,) = run_node("LoadEncoder", file="faceanon/clip/model.safetensors")
    with pytest.raises(Exception, match="estimates no attributes; connect the encoder of Load Demo Model"):
        run_node("TargetFace", crops=inputs["guidance"]["crops"], encoder=encoder)


def test_a_weights_file_that_is_gone_is_told(models: Path) -> None:
    with pytest.raises(Exception, match=r"no weights file 'faceanon/gone\.safetensors' any more; press R"):
        run_node("LoadEncoder", file="faceanon/gone.safetensors")


def test_tokens_of_the_region_need_the_mask_and_change_the_pull(inputs: Any) -> None:
    with pytest.raises(Exception, match="so connect mask, or choose other tokens"):
        sampled(inputs, tokens="region", mask=None)
    assert not torch.allclose(sampled(inputs, tokens="region"), sampled(inputs), atol=0.05)
    everywhere = sampled(inputs, tokens="region", mask=torch.ones_like(inputs["guidance"]["mask"]))
    assert torch.allclose(everywhere, sampled(inputs, tokens="patches"), atol=1e-4)


def test_a_parser_in_the_graph_gives_more_regions_and_keeps_glasses(models: Path, inputs: Any) -> None:
    shutil.copytree(FACE_PARSER, models / "faceanon" / "face-parsing")
    (parser,) = run_node("LoadFaceParser", file="faceanon/face-parsing/model.safetensors")
    (index, crop), *_ = inputs["guidance"]["crops"]
    pixels = crop.pixels.copy()
    where = draw_glasses(pixels, crop.landmarks, 20)
    crops = [(index, replace(crop, pixels=pixels))]
    by_default, _, _ = run_node("RegionMask", crops=crops, parser=parser)
    asked, _, _ = run_node("RegionMask", crops=crops, parser=parser, also="glasses")
    assert by_default[0].numpy()[where].mean() < 0.3 and asked[0].numpy()[where].mean() > 0.9
    assert torch.equal(by_default, run_node("RegionMask", crops=crops, parser=parser)[0])
    for regions in ({"also": "hair"}, {"keep": "hair"}):
        with pytest.raises(Exception, match="the active face parser cannot find hair; it finds eyeglasses"):
            run_node("RegionMask", crops=crops, parser=parser, **regions)
    with pytest.raises(Exception, match="cannot find eyeglasses"):
        run_node("RegionMask", crops=crops, also="glasses")
