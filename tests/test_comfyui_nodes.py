"""Nodes for several people and the contact sheet, on a real ComfyUI in this process.

Run with ComfyUI's own Python: `COMFYUI_DIR=... /path/to/comfyui/python -m pytest -m comfyui tests`.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from comfyui_tools import progress_hook, run_node

pytestmark = pytest.mark.comfyui
SIDE = 64  # pixels of the sampled crops


# ---- people ----


@pytest.fixture(scope="module")
def film_crops(bridge: Any) -> Any:
    """Two people in two frames, listed from left to right in the first and from right to left in the second; tracked."""
    data = pytest.importorskip("skimage.data")
    half = torch.from_numpy(data.astronaut()).float()[None, :, :400] / 255
    frames = torch.cat([torch.cat([half, half.flip(2)], 2), torch.cat([half, half.flip(2)], 2).roll(5, 2)])
    faces, _, _ = run_node("ParseFaces", image=frames)
    ordered = [sorted(faces[0], key=lambda face: face.box.left), sorted(faces[1], key=lambda face: -face.box.left)]
    faces, _, people = run_node("TrackFaces", image=frames, faces=type(faces)(ordered, faces.size))
    assert people == 2
    return run_node("CropFaces", image=frames, faces=faces)[0]


def test_each_person_has_one_target_in_guidance_and_one_noise_in_the_latent(
    bridge: Any, demo: dict[str, Any], film_crops: Any
) -> None:
    targets, shown, _ = run_node("TargetFace", crops=film_crops, encoder=demo["encoder"])
    assert len({target.name for target in targets}) == len(targets) == len(shown) == 2
    (spec,) = run_node("AttributeGuidance", encoder=demo["encoder"], target=targets, crops=film_crops)
    assert [next(i for i in (0, 1) if torch.equal(row, targets[i].image[0])) for row in spec.target] == [0, 1, 1, 0]
    positive, negative = run_node("DemoConditioning", target=targets, crops=film_crops)
    assert torch.equal(positive[0][0][0], positive[0][0][3]) and not torch.equal(positive[0][0][0], positive[0][0][1])
    mask, _, _ = run_node("RegionMask", crops=film_crops)
    inputs = {"positive": positive, "negative": negative, "vae": demo["vae"], "mask": mask}
    *_, latent = run_node("InpaintFaces", crops=film_crops, **inputs)
    assert latent["batch_index"] == [0, 1, 1, 0]


def test_targets_that_fit_neither_faces_nor_people_are_told(demo: dict[str, Any], film_crops: Any) -> None:
    (target,), *_ = run_node("TargetFace")
    for node, more in (("DemoConditioning", {}), ("AttributeGuidance", {"encoder": demo["encoder"]})):
        with pytest.raises(Exception, match="there are 3 targets for 2 people in 4 crops"):
            run_node(node, target=[target] * 3, crops=film_crops, **more)


def test_an_attribute_to_keep_that_is_none_is_told_with_and_without_an_encoder(demo: dict[str, Any], astronaut: Any) -> None:
    image, (target, *_) = torch.from_numpy(astronaut).float()[None] / 255, run_node("TargetFace")
    crops, _ = run_node("CropFaces", image=image, faces=run_node("ParseFaces", image=image)[0])
    for encoder in ({}, {"encoder": demo["encoder"]}):
        with pytest.raises(Exception, match=r"there is no attribute named 'exprssion' \(did you mean expression\?\)"):
            run_node("DemoConditioning", target=target, crops=crops, keep="exprssion", **encoder)


def _parts(conditioning: Any) -> list[tuple[float, float]]:
    return [(round(values["start_percent"], 3), round(values["end_percent"], 3)) for _, values in conditioning]


def test_drawing_and_light_share_the_schedule_without_a_gap_and_keep_the_parts_that_were_set(
    bridge: Any, demo: dict[str, Any], film_crops: Any
) -> None:
    def told(positive: Any, **settings: Any) -> Any:
        return run_node("InpaintFaces", positive=positive, negative=plain, crops=crops, mask=mask, **vae, **settings)[0]

    crops, vae = film_crops[:1], {"vae": demo["vae"]}
    mask, _, _ = run_node("RegionMask", crops=crops)
    plain = bridge.demo_conditioning([{}])
    early, late = told(plain, drawn=0.4)
    assert _parts([early, late]) == [(0, 0.4), (0.4, 1)] and early[1]["end_percent"] == late[1]["start_percent"]
    for entry, settings in ((early, {"drawn": 1.0}), (late, {"drawn": 0.0})):
        (alone,) = told(plain, **settings)
        assert _parts([alone]) == [(0, 1)]
        assert torch.equal(alone[1]["concat_latent_image"], entry[1]["concat_latent_image"])
    (grey,) = told(plain, sketch=False)
    shown = [entry[1]["concat_latent_image"] for entry in (early, late, grey)]
    assert not any(torch.equal(a, b) for a, b in combinations(shown, 2))
    first, second = (bridge.narrow(plain, *part) for part in ((0.0, 0.3), (0.3, 1.0)))
    assert _parts(told(first + second, drawn=0.4)) == [(0, 0.3), (0.3, 0.4), (0.4, 1)]


# ---- contact sheet ----


@pytest.fixture(scope="module")
def sheet_inputs(bridge: Any, demo: dict[str, Any]) -> dict[str, Any]:
    """What the contact sheet takes, for a picture with two faces."""
    data = pytest.importorskip("skimage.data")
    half = torch.from_numpy(data.astronaut()).float()[None, :, :400] / 255
    picture = torch.cat([half, half.flip(2)], 2)
    faces, _, _ = run_node("ParseFaces", image=picture)
    crops, _ = run_node("CropFaces", image=picture, faces=faces, size=SIDE)
    mask, seam, _ = run_node("RegionMask", crops=crops)
    target, *_ = run_node("TargetFace", crops=crops, encoder=demo["encoder"])
    positive, negative = run_node("DemoConditioning", target=target, crops=crops)
    cond = {"positive": positive, "negative": negative, "vae": demo["vae"], "mask": mask}
    positive, negative, latent = run_node("InpaintFaces", crops=crops, **cond)
    (guidance,) = run_node("AttributeGuidance", encoder=demo["encoder"], target=target, crops=crops, away=0.1, end=1.0)
    return {
        "model": demo["model"], "vae": demo["vae"], "positive": positive, "negative": negative, "latent": latent,
        "guidance": guidance, "steps": 3, "cfg": 1.5, "crops": crops, "seam": seam,
    }  # fmt: skip


def _alone(inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs of a graph in which only the first of two faces was selected."""
    first: dict[str, Any] = {**inputs, "crops": inputs["crops"][:1], "seam": inputs["seam"][:1]}
    first["latent"] = {name: value[:1] for name, value in inputs["latent"].items()}
    for name in ("positive", "negative"):
        first[name] = [
            [tensor[:1], {key: value[:1] if isinstance(value, torch.Tensor) else value for key, value in extra.items()}]
            for tensor, extra in inputs[name]
        ]
    spec = inputs["guidance"]
    first["guidance"] = replace(spec, target=spec.target[:1], source=spec.source[:1])
    return first


def _cell(sheet: torch.Tensor, row: int, column: int, rows: int, columns: int) -> torch.Tensor:
    """A picture of a sheet, counted from its lower right corner, where nothing but pictures and gaps is."""
    top = 4 + sheet.shape[1] - (rows - row) * (SIDE + 4)
    left = 4 + sheet.shape[2] - (columns - column) * (SIDE + 4)
    return sheet[0, top : top + SIDE, left : left + SIDE]


def test_the_sheet_shows_what_the_sampler_would_make_of_the_first_face(bridge: Any, sheet_inputs: dict[str, Any]) -> None:
    sheet_of_two = run_node("SeedStrengthSheet", **sheet_inputs, seed=7, seeds=2, strengths="0, 1.5")[0]
    alone = _alone(sheet_inputs)
    assert torch.equal(sheet_of_two, run_node("SeedStrengthSheet", **alone, seed=7, seeds=2, strengths="0, 1.5")[0])

    crops, seam, source = alone.pop("crops"), alone.pop("seam")[..., None], sheet_inputs["crops"][0][1].tensor
    source, settings = source.permute(0, 2, 3, 1), alone["guidance"].settings
    cells = []
    for row in (0, 1):
        for column, strength in enumerate((0.0, 1.5)):
            alone["guidance"] = replace(alone["guidance"], settings=replace(settings, strength=strength))
            latent = run_node("GuidedSampler", **alone, seed=7 + row)[0]
            with torch.inference_mode():
                expected = (source + seam * (alone["vae"].decode(latent["samples"]) - source))[0]
            cells.append(_cell(sheet_of_two, row, column, 2, 2))
            assert torch.allclose(cells[-1], expected, atol=0.5 / 255 + 1e-6)
    assert len(crops) == 1 and all((a - b).abs().max() > 0.02 for a, b in combinations(cells, 2))


def test_strength_0_on_the_sheet_is_the_stock_sample(bridge: Any, sheet_inputs: dict[str, Any]) -> None:
    import comfy.samplers

    sheet = run_node("SeedStrengthSheet", **sheet_inputs, seed=3, seeds=1, strengths="0")[0]
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
    high = run_node("SeedStrengthSheet", **sheet_inputs, seed=2**64 - 1, seeds=2, strengths="0")[0]
    low = run_node("SeedStrengthSheet", **sheet_inputs, seed=0, seeds=1, strengths="0")[0]
    assert torch.equal(_cell(high, 1, 0, 2, 1), _cell(low, 0, 0, 1, 1))


def test_one_progress_bar_covers_all_combinations(bridge: Any, sheet_inputs: dict[str, Any]) -> None:
    seen: list[tuple[int, int]] = []
    with progress_hook(lambda value, total, _: seen.append((value, total))):
        run_node("SeedStrengthSheet", **sheet_inputs, seeds=2, strengths="0, 1")
    assert seen == [(value, 12) for value in range(1, 13)]  # 4 combinations of 3 steps


def test_the_sheet_can_be_cancelled_in_the_middle(bridge: Any, sheet_inputs: dict[str, Any]) -> None:
    import comfy.model_management

    seen: list[int] = []

    def cancel_in_the_second_run(value: int, *_: Any) -> None:
        seen.append(value)
        comfy.model_management.interrupt_current_processing(value >= 4)

    with progress_hook(cancel_in_the_second_run), pytest.raises(comfy.model_management.InterruptProcessingException):
        run_node("SeedStrengthSheet", **sheet_inputs, seeds=2, strengths="0, 1")
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
        run_node("SeedStrengthSheet", **{**sheet_inputs, "model": None, **values})


def test_parsing_a_batch_shows_progress_and_can_be_cancelled(bridge: Any, astronaut: Any) -> None:
    import comfy.model_management

    batch = torch.from_numpy(astronaut).float()[None].repeat(3, 1, 1, 1) / 255
    seen: list[int] = []

    def cancel_after_two(value: int, total: int, _: Any) -> None:
        seen.append(value)
        comfy.model_management.interrupt_current_processing(total == 3 and value == 2)

    with progress_hook(cancel_after_two), pytest.raises(comfy.model_management.InterruptProcessingException):
        run_node("ParseFaces", image=batch, min_score=0.5)
    assert seen == [1, 2]
    _, _, count = run_node("ParseFaces", image=batch, min_score=0.5)
    assert count == 3
