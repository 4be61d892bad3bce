"""Recognisers, the identity check, the retry sampler and the private save, on a real ComfyUI in this process.

Run with ComfyUI's own Python: `COMFYUI_DIR=... /path/to/comfyui/python -m pytest -m comfyui tests`.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
from comfyui_tools import progress_hook, run_node

pytestmark = pytest.mark.comfyui


@pytest.fixture
def places(bridge: Any, tmp_path: Path) -> Iterator[Path]:
    """ComfyUI's output and temp folders in a folder of the test's own; temp and input stay empty."""
    import folder_paths

    before = folder_paths.get_output_directory(), folder_paths.get_temp_directory()
    folder_paths.set_output_directory(str(tmp_path / "output"))
    folder_paths.set_temp_directory(str(tmp_path / "temp"))
    yield tmp_path
    folder_paths.set_output_directory(before[0])
    folder_paths.set_temp_directory(before[1])


@pytest.fixture
def listed(bridge: Any, network: Path, tmp_path: Path) -> Iterator[Path]:
    """A model folder of ours with a network and its card."""
    import folder_paths

    folder = tmp_path / "networks"
    folder.mkdir()
    for name in (network.name, network.name + ".data"):
        shutil.copy(network.with_name(name), folder / name)
    (folder / "MobileFaceNet.json").write_text('{"layout": "mobilefacenet", "thresholds": {"0.01": 0.56}}')
    run_node_folders = sys.modules["faceanon_pack_under_test.nodes"].folders
    run_node_folders.model_folders()
    folder_paths.add_model_folder_path("faceanon", str(folder))
    yield folder
    folder_paths.folder_names_and_paths["faceanon"][0].remove(str(folder))


@pytest.fixture(scope="module")
def portrait(bridge: Any) -> torch.Tensor:
    data = pytest.importorskip("skimage.data")
    return torch.from_numpy(data.astronaut()).float()[None] / 255


@pytest.fixture(scope="module")
def retry_inputs(bridge: Any, demo: dict[str, Any], portrait: torch.Tensor) -> dict[str, Any]:
    """What the retry sampler takes for a portrait, at few steps."""
    faces, _, _ = run_node("ParseFaces", image=portrait)
    crops, _ = run_node("CropFaces", image=portrait, faces=faces, size=256)
    mask, seam, _ = run_node("RegionMask", crops=crops)
    target, *_ = run_node("TargetFace")
    positive, negative = run_node("DemoConditioning", target=target, crops=crops)
    (guidance,) = run_node("AttributeGuidance", encoder=demo["encoder"], target=target)
    inputs = {"image": portrait, "crops": crops, "mask": mask, "seam": seam, "guidance": guidance, "steps": 2}
    return {**inputs, "positive": positive, "negative": negative, "model": demo["model"], "vae": demo["vae"]}


def load(bound: float = -1.0, **more: Any) -> Any:
    return run_node("LoadRecogniser", network="faceanon/MobileFaceNet.onnx", max_similarity=bound, **more)[0]


# ---- recognisers ----


def test_a_recogniser_is_listed_loaded_with_its_card_and_joined_with_others(listed: Path) -> None:
    from faceanon_pack_under_test.nodes.check import LoadRecogniser

    assert "faceanon/MobileFaceNet.onnx" in LoadRecogniser.INPUT_TYPES()["required"]["network"][0]
    (one,) = load()
    assert one.limit() == 0.56
    assert [recogniser.limit() for recogniser in load(0.3, also=[one])] == [0.56, 0.3]


def test_a_recogniser_without_a_threshold_stops_the_graph(listed: Path) -> None:
    (listed / "MobileFaceNet.json").unlink()
    with pytest.raises(Exception, match="no card says which similarity is too high for MobileFaceNet"):
        load()
    assert load(0.4)[0].limit() == 0.4


def test_a_new_card_or_network_is_seen_without_a_restart(listed: Path) -> None:
    from faceanon_pack_under_test.nodes.check import LoadRecogniser

    given = {"network": "faceanon/MobileFaceNet.onnx", "max_similarity": -1.0, "also": None}  # a link arrives as None
    stamps = [LoadRecogniser.IS_CHANGED(**given) for _ in range(2)]
    for name in ("MobileFaceNet.json", "MobileFaceNet.onnx"):
        (listed / name).write_bytes((listed / name).read_bytes() + b" ")
        stamps.append(LoadRecogniser.IS_CHANGED(**given))
    assert stamps[0] == stamps[1] and stamps[1] != stamps[2] != stamps[3]
    linked = {**given, "network": None}
    assert LoadRecogniser.IS_CHANGED(**linked) != LoadRecogniser.IS_CHANGED(**linked)


# ---- the check ----


def test_the_check_stops_at_the_source_itself_and_covers_it_on_request(listed: Path, portrait: torch.Tensor) -> None:
    inputs = {"source": portrait, "result": portrait, "recogniser": load()}
    with pytest.raises(Exception, match=r"the identity check failed for 1 faces: picture 1, face near .* near copy"):
        run_node("IdentityCheck", **inputs)
    image, report, passed, _ = run_node("IdentityCheck", **inputs, on_failure="redact")
    assert not passed and "FAILED" in report
    changed = (image != portrait).any(-1)[0]
    assert 0.01 < changed.float().mean() < 0.3 and len(image[0][changed].unique(dim=0)) == 1
    _, _, passed, _ = run_node("IdentityCheck", **{**inputs, "result": image})
    assert passed


def test_a_new_face_passes_untouched(listed: Path, retry_inputs: dict[str, Any], portrait: torch.Tensor) -> None:
    result, _, _ = run_node("RetrySampler", **retry_inputs, recogniser=load(1.0), tries=1)
    noisy = (result + 0.0001).clamp(0, 1)  # no 8-bit picture
    image, report, passed, _ = run_node("IdentityCheck", source=portrait, result=noisy, recogniser=load())
    assert passed and torch.equal(image, noisy) and "MobileFaceNet" in report


def test_of_several_faces_those_chosen_are_checked_and_the_others_may_stay(listed: Path, portrait: torch.Tensor) -> None:
    pair = torch.cat([portrait, portrait.flip(2)], 2)
    faces, _, count = run_node("ParseFaces", image=pair)
    (chosen,) = run_node("SelectFaces", faces=faces, order="left to right", numbers="1")
    covered = pair.clone()
    covered[:, :, : portrait.shape[2]] = 0.5
    inputs = {"source": pair, "recogniser": load()}
    image, report, passed, _ = run_node("IdentityCheck", **inputs, result=covered, faces=chosen)
    assert count == 2 and passed and torch.equal(image, covered) and len(report.splitlines()) == 1
    with pytest.raises(Exception, match="the identity check failed for 1 faces"):
        run_node("IdentityCheck", **inputs, result=covered)
    with pytest.raises(Exception, match="the identity check failed for 1 faces"):
        run_node("IdentityCheck", **inputs, result=pair, faces=chosen)


def test_pictures_without_a_face_or_of_another_size_cannot_be_checked(listed: Path, coffee: Any) -> None:
    cup = torch.from_numpy(coffee).float()[None] / 255
    with pytest.raises(Exception, match="no face was found in picture 1 of the source, so nothing could be checked"):
        run_node("IdentityCheck", source=cup, result=cup, recogniser=load())
    with pytest.raises(Exception, match="source is 600x400 but result is 500x400"):
        run_node("IdentityCheck", source=cup, result=cup[:, :, :500], recogniser=load())


# ---- retry ----


def test_one_try_equals_the_chain_of_nodes_it_replaces(listed: Path, retry_inputs: dict[str, Any]) -> None:
    given = retry_inputs
    moved = {"proportions": 0.45}
    image, report, _ = run_node("RetrySampler", **given, recogniser=load(1.0), seed=5, drawn=0.6, **moved)
    shared = {name: given[name] for name in ("positive", "negative", "vae", "crops", "mask")}
    positive, negative, latent = run_node("InpaintFaces", **shared, seed=5, drawn=0.6, **moved)
    inputs = {"model": given["model"], "vae": given["vae"], "guidance": given["guidance"], "steps": given["steps"]}
    sampled = run_node("GuidedSampler", **inputs, positive=positive, negative=negative, latent=latent, seed=5)[0]
    with torch.inference_mode():
        result = given["vae"].decode(sampled["samples"])
    (stitched,) = run_node("StitchFaces", image=given["image"], crops=given["crops"], result=result, seam=given["seam"])
    assert (image - stitched).abs().max() <= 1 / 255 and "passed after try 1" in report


def test_a_face_that_never_passes_stops_the_graph_or_is_covered(listed: Path, retry_inputs: dict[str, Any]) -> None:
    impossible = load(-0.99)
    seen: list[tuple[int, int]] = []
    with (
        progress_hook(lambda value, total, _: seen.append((value, total))),
        pytest.raises(Exception, match=r"1 faces failed: after 2 tries it still looks like the source .*at most -0\.99"),
    ):
        run_node("RetrySampler", **retry_inputs, recogniser=impossible, tries=2)
    assert (4, 4) in seen  # one progress bar: 2 tries of 2 steps
    image, report, _ = run_node("RetrySampler", **retry_inputs, recogniser=impossible, tries=1, on_failure="redact")
    assert "FAILED, covered after try 1" in report
    crop = retry_inputs["crops"][0][1]
    x, y = crop.frame.to_image(crop.landmarks)[[4]].round().astype(int)[0]  # the nose
    assert torch.allclose(image[0, y - 5 : y + 5, x - 5 : x + 5], torch.tensor(128 / 255))


def test_all_tries_share_one_search_for_a_decoder(
    bridge: Any, listed: Path, retry_inputs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    searched: list[Any] = []
    monkeypatch.setattr(bridge, "_find_taesd", lambda vae, name: searched.append(name))
    run_node("RetrySampler", **retry_inputs, recogniser=load(-0.99), tries=2, on_failure="redact")
    assert searched == [retry_inputs["model"].model.latent_format.taesd_decoder_name]


def test_a_ruined_face_stops_the_graph_though_no_recogniser_knows_it(
    listed: Path, retry_inputs: dict[str, Any], demo: dict[str, Any], portrait: torch.Tensor
) -> None:
    target, *_ = run_node("TargetFace")
    (guidance,) = run_node("AttributeGuidance", encoder=demo["encoder"], target=target, strength=100.0, limit=0.0)
    ruinous = {**retry_inputs, "guidance": guidance, "steps": 6, "recogniser": load(1.0), "tries": 2}
    with pytest.raises(Exception, match="1 faces failed: after 2 tries no face is recognisable in the result; nothing"):
        run_node("RetrySampler", **ruinous)
    image, report, _ = run_node("RetrySampler", **ruinous, on_failure="redact")
    assert "FAILED, covered after try 2" in report and "no face is recognisable in the result" in report
    _, _, passed, _ = run_node("IdentityCheck", source=portrait, result=image, recogniser=load(1.0))
    assert passed  # a cover is no ruin
    noisy = portrait.clone()
    noisy[:, 50:200, 150:300] = torch.rand(1, 150, 150, 3, generator=torch.Generator().manual_seed(0))
    with pytest.raises(Exception, match=r"the identity check failed for 1 faces: .* no face is recognisable in the result"):
        run_node("IdentityCheck", source=portrait, result=noisy, recogniser=load(1.0))


def test_a_face_that_hardly_changes_is_covered_though_every_similarity_may_pass(
    listed: Path, retry_inputs: dict[str, Any]
) -> None:
    lazy = {**retry_inputs, "denoise": 0.05, "recogniser": load(1.0), "tries": 1}
    with pytest.raises(Exception, match=r"1 faces failed: after 1 try the face came out as a copy of the source's"):
        run_node("RetrySampler", **lazy)
    _, report, _ = run_node("RetrySampler", **lazy, on_failure="redact")
    assert "FAILED, covered after try 1" in report


def test_no_mask_or_sampler_that_leaves_the_face_gets_it_past_stitching(retry_inputs: dict[str, Any]) -> None:
    given = {name: retry_inputs[name] for name in ("positive", "negative", "vae", "crops")}
    with pytest.raises(Exception, match="the mask is empty, so nothing of the face would be regenerated"):
        run_node("InpaintFaces", **given, mask=torch.zeros_like(retry_inputs["mask"]))
    with torch.inference_mode():
        crop = retry_inputs["crops"][0][1].tensor
        through = given["vae"].decode(given["vae"].encode(crop.permute(0, 2, 3, 1)))
    rest = {name: retry_inputs[name] for name in ("image", "crops", "seam")}
    with pytest.raises(Exception, match=r"came out as a copy of the source's \(likeness 0\.9"):
        run_node("StitchFaces", **rest, result=through)


def test_a_further_try_makes_another_face_that_passes(listed: Path, retry_inputs: dict[str, Any]) -> None:
    _, report, _ = run_node("RetrySampler", **retry_inputs, recogniser=load(1.0))
    first = float(report.split("MobileFaceNet ")[1].split()[0])
    _, report, _ = run_node("RetrySampler", **retry_inputs, recogniser=load(round(first - 0.02, 2)), tries=8)
    assert "passed after try" in report and "passed after try 1;" not in report


def test_a_further_try_samples_the_faces_that_failed_alone(
    bridge: Any, retry_inputs: dict[str, Any], portrait: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = sys.modules["faceanon_pack_under_test.faceanon_core.judge"]
    batch = torch.cat([portrait, portrait.flip(2)])
    crops, _ = run_node("CropFaces", image=batch, faces=run_node("ParseFaces", image=batch)[0], size=256)
    mask, seam, _ = run_node("RegionMask", crops=crops)
    targets = run_node("CombineTargets", target_1=run_node("TargetFace")[0], target_2=run_node("TargetFace", seed=1)[0])[0]
    positive, negative = run_node("DemoConditioning", target=targets, crops=crops)
    (guidance,) = run_node("AttributeGuidance", encoder=retry_inputs["guidance"].encoder, target=targets, crops=crops)
    inputs = {**retry_inputs, "image": batch, "crops": crops, "mask": mask, "seam": seam, "guidance": guidance}
    sampled: list[int] = []

    def run(tries: int) -> torch.Tensor:
        """With the first verdict on the first face that it is none."""
        real, verdicts, sample = judge.judge_face, iter([judge.Judgement(False)]), bridge.sample

        def note(*words: Any) -> Any:
            sampled.append(len(words[5]["samples"]))
            return sample(*words)

        with monkeypatch.context() as patched:
            patched.setattr(judge, "judge_face", lambda *words, **more: next(verdicts, None) or real(*words, **more))
            patched.setattr(bridge, "sample", note)
            more = {"recogniser": [], "tries": tries, "on_failure": "redact"}
            return run_node("RetrySampler", **{**inputs, "positive": positive, "negative": negative}, **more)[0]

    covered, made = run(1), run(2)
    assert sampled == [2, 2, 1]
    assert torch.equal(covered[1], made[1]) and not torch.equal(covered[0], made[0])


def test_what_cannot_be_cut_to_faces_is_taken_whole(bridge: Any, demo: dict[str, Any]) -> None:
    model = demo["model"]
    tokens, pooled = torch.arange(6.0).reshape(3, 2, 1), torch.arange(3.0)[:, None]
    plain = [[tokens, {"pooled_output": pooled, "width": 256}], [tokens[:1], {}]]
    (cut,), faces = bridge.of_faces(model, [plain], [2], 3)
    assert faces == [2] and torch.equal(cut[0][0], tokens[2:]) and torch.equal(cut[0][1]["pooled_output"], pooled[2:])
    assert cut[0][1]["width"] == 256 and torch.equal(cut[1][0], tokens[:1])
    for whole in ([[tokens, {"control": object()}]], [[tokens[:2], {}]]):
        assert bridge.of_faces(model, [plain, whole], [2], 3) == ([plain, whole], [0, 1, 2])
    patched = model.clone()
    patched.set_model_attn2_patch(lambda *values: values)
    assert bridge.of_faces(patched, [plain], [2], 3) == ([plain], [0, 1, 2])


# ---- private save ----


def saved(places: Path) -> list[Path]:
    return sorted(path for path in places.rglob("*") if path.is_file() and "networks" not in path.parts)


SECRET = {"prompt": {"1": {"inputs": {"image": "alice.png"}}}, "extra_pnginfo": {"workflow": {"nodes": ["alice.png"]}}}


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_saved_files_hold_pixels_alone_and_are_the_only_copies(places: Path, portrait: torch.Tensor, kind: str) -> None:
    from faceanon_core.metadata import find_metadata

    answer = run_node("PrivateSave", images=portrait, format=kind, prefix="set/a", **SECRET)
    (file,) = saved(places)
    (shown,) = answer["ui"]["images"]
    assert file == places / "output" / shown["subfolder"] / shown["filename"] and shown["type"] == "output"
    assert find_metadata(file) == [] and b"alice" not in file.read_bytes()
    pixels = np.asarray(Image.open(file)).astype(int)
    assert np.abs(pixels - (portrait[0] * 255).numpy()).mean() < (0.01 if kind == "png" else 3)


def test_the_workflow_is_embedded_only_when_asked_and_only_in_png(places: Path, portrait: torch.Tensor) -> None:
    run_node("PrivateSave", images=portrait, embed_workflow=True, **SECRET)
    (file,) = saved(places)
    with Image.open(file) as opened:
        assert json.loads(opened.info["workflow"]) == SECRET["extra_pnginfo"]["workflow"]
        assert json.loads(opened.info["prompt"]) == SECRET["prompt"]
    with pytest.raises(Exception, match="a workflow can be embedded in png only, not in jpeg"):
        run_node("PrivateSave", images=portrait, embed_workflow=True, format="jpeg")


def test_numbers_go_on_and_nothing_is_overwritten(places: Path, portrait: torch.Tensor) -> None:
    run_node("PrivateSave", images=torch.cat([portrait] * 2))
    before = [path.read_bytes() for path in saved(places)]
    run_node("PrivateSave", images=1 - portrait)
    assert [path.name for path in saved(places)] == [f"faceanon_0000{number}.png" for number in (1, 2, 3)]
    assert [path.read_bytes() for path in saved(places)[:2]] == before


def test_names_can_be_random_or_hashes_that_only_the_key_repeats(places: Path, portrait: torch.Tensor) -> None:
    (places / "key").write_bytes(b"0123456789abcdef")
    (places / "other key").write_bytes(b"0123456789abcdeF")
    named: set[str] = set()
    for _ in range(2):
        named |= {shown["filename"] for shown in run_node("PrivateSave", images=portrait, names="random")["ui"]["images"]}
    hashed = {"images": portrait, "names": "keyed hash", "source_name": "alice.jpg"}
    for key in ("key", "other key"):
        answer = run_node("PrivateSave", **hashed, key_file=str(places / key))
        named.add(answer["ui"]["images"][0]["filename"])
    assert len(named) == 4 and not any("alice" in name for name in named)
    with pytest.raises(Exception, match="exists already"):  # the same key and source give the same name
        run_node("PrivateSave", **hashed, key_file=str(places / "key"))
    for lack, message in (({"key_file": ""}, "needs key_file"), ({"source_name": ""}, "needs source_name")):
        with pytest.raises(Exception, match=message):
            run_node("PrivateSave", **{**hashed, "key_file": str(places / "key"), **lack})
