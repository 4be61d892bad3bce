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
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parent))
from comfyui_tools import run_node, run_stock_node
from make_parser import draw_glasses
from test_recognition import random_iresnet
from test_semantic_parser import FOLDER as FACE_PARSER
from test_vision_encoders import small_clip, small_dinov2

from faceanon_core.target import gallery_target, save_target

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


def test_a_lost_picture_of_ones_own_gallery_stops_nobody(models: Path) -> None:
    folder = models / "faceanon" / "gallery"
    for name in ("aaa", "aab"):
        save_target(gallery_target("anna"), name, folder)
    (folder / "aaa.png").unlink()
    try:
        names = {run_node("TargetFace", seed=seed)[0][0].name for seed in range(60)}
        _, _, sheet = run_node("TargetFace", name="anna")
        with pytest.raises(Exception, match="the picture of the target 'aaa' is gone"):
            run_node("TargetFace", name="aaa")
    finally:
        shutil.rmtree(folder)
    assert "aaa" not in names and "aab" in names
    lost, kept, shipped = (sheet[0, :192, 196 * i : 196 * i + 192] for i in range(3))
    assert lost.unique().numel() == 1 and torch.equal(kept, shipped)


@pytest.fixture(scope="module")
def inputs(bridge: Any, demo: dict[str, Any]) -> dict[str, Any]:
    """What the Attribute-Guided Sampler and Attribute Guidance take, for a portrait."""
    data = pytest.importorskip("skimage.data")
    picture = torch.from_numpy(data.astronaut()).float()[None] / 255
    faces, _, _ = run_node("ParseFaces", image=picture)
    crops, _ = run_node("CropFaces", image=picture, faces=faces, size=SIDE)
    mask, _, _ = run_node("RegionMask", crops=crops)
    target, *_ = run_node("TargetFace", name="anna")
    positive, negative = run_node("DemoConditioning", target=target, crops=crops)
    cond = {"positive": positive, "negative": negative, "vae": demo["vae"]}
    positive, negative, latent = run_node("InpaintFaces", crops=crops, mask=mask, **cond)
    sampler = {"model": demo["model"], "vae": demo["vae"], "positive": positive, "negative": negative, "latent": latent}
    guidance = {"encoder": demo["encoder"], "target": target, "crops": crops, "mask": mask}
    return {"sampler": {**sampler, "steps": 4}, "guidance": guidance}


def sampled(inputs: dict[str, Any], **guidance: Any) -> torch.Tensor:
    (spec,) = run_node("AttributeGuidance", **{**inputs["guidance"], "end": 1.0, "reuse": 1, **guidance})
    return run_sampler(inputs, spec)[0]


def run_sampler(inputs: dict[str, Any], spec: Any) -> tuple[torch.Tensor, Any]:
    """The LATENT's samples, and the readout."""
    latent, readout = run_node("GuidedSampler", guidance=spec, **inputs["sampler"])
    return latent["samples"].clone(), readout


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


def test_more_of_the_source_is_kept_with_an_encoder_and_cfg_lays_emphasis_on_what_is_asked(inputs: Any, demo: Any) -> None:
    shown = {"sex": "male", "age": "baby", "skin": "brown", "expression": "open-mouth"}
    target = [replace(inputs["guidance"]["target"][0], attributes=shown)]
    faces = {"crops": inputs["guidance"]["crops"], "target": target}
    plain, nothing = run_node("DemoConditioning", **faces)
    kept, _ = run_node("DemoConditioning", **faces, keep="sex, age, expression, skin", encoder=demo["encoder"])
    none, _ = run_node("DemoConditioning", **faces, keep="")
    assert not torch.equal(kept[0][0], plain[0][0]) and not torch.equal(none[0][0], plain[0][0])
    with pytest.raises(Exception, match="sex, age of the source cannot be measured; connect the demo model's encoder"):
        run_node("DemoConditioning", **faces, keep="sex, age")
    asked, opposite = run_node("DemoConditioning", **faces, attributes="sex=male", encoder=demo["encoder"])
    differs = (asked[0][0] != opposite[0][0]).any(-1)[0]
    assert differs.sum() == 1 and not torch.equal(opposite[0][0], nothing[0][0])  # in nothing but what was asked
    cond = {"vae": demo["vae"], "crops": faces["crops"], "mask": inputs["guidance"]["mask"]}
    positive, negative, latent = run_node("InpaintFaces", positive=asked, negative=opposite, **cond)
    sampler = inputs["sampler"] | {"positive": positive, "negative": negative, "latent": latent}
    (spec,) = run_node("AttributeGuidance", **inputs["guidance"], strength=0.0)
    once, pressed = (run_node("GuidedSampler", guidance=spec, **sampler, cfg=cfg)[0]["samples"] for cfg in (1.0, 6.0))
    assert not torch.allclose(once, pressed, atol=0.05)


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


@pytest.fixture(scope="module")
def terms(models: Path, demo: dict[str, Any]) -> dict[str, Any]:
    """A term of each kind as its node's inputs, with a recognition network of random weights."""
    torch.manual_seed(0)
    save_file(random_iresnet((1, 1, 1, 1)), models / "faceanon" / "r.safetensors")
    (network,) = run_node("LoadRecognition", file="faceanon/r.safetensors")
    return {"AwayFromIdentity": {"network": network}, "HoldPose": {"encoder": demo["encoder"]}}


@pytest.mark.parametrize(("node", "loss"), [("AwayFromIdentity", "identity"), ("HoldPose", "pose")])
def test_a_term_acts_in_its_time_at_its_strength_and_leaves_no_trace(inputs: Any, terms: Any, node: str, loss: str) -> None:
    (off,) = run_node("AttributeGuidance", **{**inputs["guidance"], "strength": 0.0, "reuse": 1})
    plain, _ = run_sampler(inputs, off)

    def with_term(**schedule: float) -> tuple[torch.Tensor, Any]:
        (spec,) = run_node(node, guidance=off, crops=inputs["guidance"]["crops"], **terms[node], **schedule)
        return run_sampler(inputs, spec)

    first, readout = with_term(end=0.5)
    assert [loss in step for step in readout] == [True, True, False, False]
    assert not torch.allclose(first, plain, atol=0.02)
    assert torch.equal(first, with_term(end=0.5)[0])
    assert torch.equal(with_term(strength=0.0)[0], plain) and torch.equal(run_sampler(inputs, off)[0], plain)


def test_terms_combine_and_the_chart_shows_them(inputs: Any, terms: Any) -> None:
    (spec,) = run_node("AttributeGuidance", **{**inputs["guidance"], "end": 1.0, "away": 0.1, "reuse": 1})
    alone = run_sampler(inputs, spec)[0]
    for node, more in terms.items():
        (spec,) = run_node(node, guidance=spec, crops=inputs["guidance"]["crops"], end=1.0, **more)
    together, readout = run_sampler(inputs, spec)
    assert not torch.allclose(alone, together, atol=0.02)
    assert [set(step) for step in readout] == [{"sigma", "toward", "away", "identity", "pose"}] * 3 + [{"sigma"}]
    (chart,) = run_node("GuidanceChart", readout=readout)
    assert chart.shape == (1, 750, 768, 3)


def test_a_stock_ksampler_follows_terms_as_well(inputs: Any, terms: Any) -> None:
    (spec,) = run_node("AttributeGuidance", **{**inputs["guidance"], "strength": 0.0, "reuse": 1})
    (spec,) = run_node("HoldPose", guidance=spec, crops=inputs["guidance"]["crops"], end=1.0, **terms["HoldPose"])
    sampler = dict(inputs["sampler"])
    (patched,) = run_node("ApplyGuidance", model=sampler["model"], vae=sampler.pop("vae"), guidance=spec)
    settings = {"seed": 0, "cfg": 1.0, "sampler_name": "euler_ancestral", "scheduler": "sgm_uniform", "denoise": 1.0}
    latent = {"latent_image": sampler.pop("latent")}
    (stock,) = run_stock_node("KSampler", **{**sampler, "model": patched}, **latent, **settings)
    assert torch.allclose(stock["samples"], run_sampler(inputs, spec)[0], atol=1e-2)


def test_a_term_needs_the_network_and_the_faces_it_is_for(models: Path, inputs: Any, terms: Any) -> None:
    small_clip(models / "faceanon" / "for_pose")
    (encoder,) = run_node("LoadEncoder", file="faceanon/for_pose/model.safetensors")
    (spec,) = run_node("AttributeGuidance", **inputs["guidance"])
    crops = inputs["guidance"]["crops"]
    with pytest.raises(Exception, match="finds no landmarks; connect the encoder of Load Demo Model"):
        run_node("HoldPose", guidance=spec, crops=crops, encoder=encoder)
    (two,) = run_node("HoldPose", guidance=spec, crops=[*crops, *crops], **terms["HoldPose"])
    with pytest.raises(Exception, match="2 source faces but 1"):
        run_sampler(inputs, two)
