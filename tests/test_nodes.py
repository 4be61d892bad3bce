"""The nodes without ComfyUI: schemas, and the pure ones on a real picture."""

from __future__ import annotations

import inspect
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from pack import NAME, ROOT, load_pack

from faceanon_core.target import gallery_index, gallery_target, save_target
from faceanon_core.weights import GALLERY

NODES = load_pack().NODE_CLASS_MAPPINGS
FROZEN = json.loads((ROOT / "tests" / "node_schema.json").read_text(encoding="utf-8"))
# combos whose choices are what is there, not part of the schema
_LOADERS = ("LoadEncoder", "LoadFaceParser", "LoadRecognition")
FROM_FILES = {
    ("FaceAnon_TargetFace", "name"), ("FaceAnon_LoadRecogniser", "network"),
    *((f"FaceAnon_{loader}", "file") for loader in _LOADERS),
}  # fmt: skip


def run(node_id: str, **inputs: Any) -> Any:
    """Execute a node with its defaults filled in, under inference mode as ComfyUI does."""
    node = NODES["FaceAnon_" + node_id]
    values = {name: spec[1]["default"] for name, spec in node.INPUT_TYPES()["required"].items() if "default" in spec[1]}
    with torch.inference_mode():
        return getattr(node(), node.FUNCTION)(**{**values, **inputs})


@pytest.fixture(scope="module")
def portrait() -> torch.Tensor:
    data = pytest.importorskip("skimage.data")
    return torch.from_numpy(data.astronaut()).float()[None] / 255


@pytest.fixture(scope="module")
def faces(portrait: torch.Tensor) -> Any:
    return run("ParseFaces", image=portrait)[0]


@pytest.fixture(scope="module")
def crops(portrait: torch.Tensor, faces: Any) -> Any:
    return run("CropFaces", image=portrait, faces=faces, size=128)[0]


def schema(node_id: str) -> dict[str, Any]:
    """What saved workflows depend on: names, types and choices of the inputs in their order, and the outputs' types."""

    def row(name: str, kind: Any, options: dict[str, Any]) -> list[Any]:
        shown = "COMBO" if (node_id, name) in FROM_FILES else kind
        # the editor adds a widget of its own, and a stored value, after such an input
        return [name, shown, *(["control_after_generate"] if options.get("control_after_generate") else [])]

    declared = NODES[node_id].INPUT_TYPES()
    parts = {part: [row(name, *spec) for name, spec in declared.get(part, {}).items()] for part in ("required", "optional")}
    return {**parts, "outputs": list(NODES[node_id].RETURN_TYPES)}


def test_no_node_is_renamed_or_removed() -> None:
    assert set(FROZEN) == set(NODES), "saved workflows name these; add new ones to node_schema.json, remove none"


@pytest.mark.parametrize("node_id", FROZEN)
def test_saved_workflows_keep_working(node_id: str) -> None:
    """A saved graph stores widget values and links by position, an API prompt lacks what was added since.

    So a node may only grow: optional inputs, choices and outputs at the end of theirs, in the code and in
    node_schema.json. Whatever stands in that file stays.
    """
    assert schema(node_id) == FROZEN[node_id]


@pytest.mark.parametrize("node_id", ["StitchFaces", "IdentityCheck", "BeforeAfter", "ReportPreview"])
def test_a_bypassed_node_hands_on_its_result_and_not_the_source(node_id: str) -> None:
    """The editor takes the input of an output's place if it is of its type, else the first that is."""
    node = FROZEN["FaceAnon_" + node_id]
    names, kinds = zip(*(row[:2] for part in ("required", "optional") for row in node[part]), strict=True)
    slot = node["outputs"].index("IMAGE")
    assert names[slot if kinds[slot] == "IMAGE" else kinds.index("IMAGE")] in ("result", "after")


def test_the_pictures_of_the_help_pages_are_there_small_and_all_shown() -> None:
    pages = [page.read_text(encoding="utf-8") for page in (ROOT / "web" / "docs").rglob("*.md")]
    shown = {name for page in pages for name in re.findall(r"!\[[^]]+\]\(([^)]+)\)", page)}
    files = {f"pictures/{path.name}": path for path in (ROOT / "web" / "docs" / "pictures").iterdir()}
    assert shown == set(files) and shown
    sizes = {path.stem: path.stat().st_size for path in files.values()}
    assert sizes.pop("gallery") <= 65_000  # many faces with small print
    assert max(sizes.values()) <= 40_000


@pytest.mark.parametrize("node_id", NODES)
def test_schema_is_complete(node_id: str) -> None:
    node = NODES[node_id]
    assert node.TITLE and node.DESCRIPTION and node.SEARCH_ALIASES and node.CATEGORY == "FaceAnon"
    assert len(getattr(node, "RETURN_NAMES", node.RETURN_TYPES)) == len(node.RETURN_TYPES)
    inputs = node.INPUT_TYPES()
    hidden = inputs.pop("hidden", {})
    declared = {name: spec for part in inputs.values() for name, spec in part.items()}
    taken = inspect.signature(getattr(node, node.FUNCTION)).parameters
    variadic = any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values())
    assert variadic or {*declared, *hidden} == set(taken) - {"self"}
    for name, (kind, options) in declared.items():
        assert len(options["tooltip"]) > 10, f"{name} needs a tooltip"
        if kind in ("INT", "FLOAT"):
            assert options["min"] <= options["default"] <= options["max"], name
        if isinstance(kind, list) and "default" in options:
            assert options["default"] in kind, name


@pytest.mark.parametrize("node_id", NODES)
def test_every_node_has_a_help_page_that_explains_its_inputs_and_outputs(node_id: str) -> None:
    node, page = NODES[node_id], (ROOT / "web" / "docs" / f"{node_id}.md").read_text(encoding="utf-8")
    assert page.startswith(f"# {node.TITLE}\n")
    named = {word for line in page.splitlines()[1:] for word in re.findall(r"\w+", line)}
    inputs = {name for kind, part in node.INPUT_TYPES().items() if kind != "hidden" for name in part}
    assert inputs | set(getattr(node, "RETURN_NAMES", ())) <= named


def test_no_help_page_is_left_of_a_node_that_is_gone() -> None:
    assert {page.stem for page in (ROOT / "web" / "docs").glob("*.md")} == set(NODES)


def test_titles_are_unique() -> None:
    titles = [node.TITLE for node in NODES.values()]
    assert len(set(titles)) == len(titles)


def test_loading_the_nodes_imports_neither_comfyui_nor_mediapipe() -> None:
    assert f"{NAME}.nodes.comfy_bridge" not in sys.modules and "comfy" not in sys.modules


def test_parse_finds_the_face_and_draws_it(portrait: torch.Tensor) -> None:
    faces, preview, count = run("ParseFaces", image=portrait)
    assert count == len(faces[0]) == 1
    assert preview.shape == portrait.shape and not torch.equal(preview, portrait)


def test_stitching_a_crop_changes_only_pixels_under_the_seam(portrait: torch.Tensor, crops: Any) -> None:
    _, seam, _ = run("RegionMask", crops=crops)
    (stitched,) = run("StitchFaces", image=portrait, crops=crops, result=torch.rand(1, 128, 128, 3), seam=seam)
    changed = (stitched != portrait).any(-1)
    assert stitched.shape == portrait.shape
    assert changed.any() and torch.equal(stitched[:, 300:], portrait[:, 300:])


def test_kept_eyes_are_bit_identical(portrait: torch.Tensor, crops: Any) -> None:
    mask, seam, _ = run("RegionMask", crops=crops, keep="eyes")
    everything, _, _ = run("RegionMask", crops=crops)
    eyes = crops[0][1].landmarks[[468, 473]].round().astype(int)  # the irises
    assert all(seam[0, y, x] == 0 == mask[0, y, x] and everything[0, y, x] == 1 for x, y in eyes)


def test_a_batch_keeps_its_order(portrait: torch.Tensor) -> None:
    batch = torch.cat([portrait, portrait.flip(2)])
    faces, _, _ = run("ParseFaces", image=batch)
    crops, images = run("CropFaces", image=batch, faces=faces, size=128)
    assert [index for index, _ in crops] == [0, 1] and images.shape == (2, 128, 128, 3)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_gray_and_alpha_pictures_are_accepted(portrait: torch.Tensor, channels: int) -> None:
    picture = {1: portrait.mean(-1, keepdim=True), 3: portrait, 4: torch.cat([portrait, portrait[..., :1]], -1)}[channels]
    assert run("ParseFaces", image=picture)[2] == 1


def test_parse_refuses_bad_pictures(portrait: torch.Tensor) -> None:
    with pytest.raises(Exception, match="no face was found in the picture"):
        run("ParseFaces", image=torch.full((1, 128, 128, 3), 0.5))
    with pytest.raises(Exception, match="picture 2 of the batch"):
        run("ParseFaces", image=torch.cat([portrait, torch.zeros_like(portrait)]))
    with pytest.raises(Exception, match="NaN or infinite"):
        run("ParseFaces", image=portrait * float("nan"))
    with pytest.raises(Exception, match=r"must lie in 0\.\.1"):
        run("ParseFaces", image=portrait * 255)
    with pytest.raises(Exception, match="at least 64 pixels"):
        run("ParseFaces", image=portrait[:, :32])


def test_video_frames_without_a_face_may_pass_unchanged(portrait: torch.Tensor) -> None:
    frames = torch.cat([portrait, torch.full_like(portrait, 0.3), portrait])
    with pytest.raises(Exception, match=r"no face was found in picture 2 of the batch.*allow_empty"):
        run("ParseFaces", image=frames)
    faces, preview, count = run("ParseFaces", image=frames, allow_empty=True)
    assert [len(found) for found in faces] == [1, 0, 1] and count == 2
    assert torch.equal((preview[1] * 255).round(), (frames[1] * 255).round())
    (faces,) = run("SelectFaces", faces=faces, order="largest first", numbers="1")
    crops, _ = run("CropFaces", image=frames, faces=faces, size=128)
    assert [index for index, _ in crops] == [0, 2]
    _, seam, _ = run("RegionMask", crops=crops)
    (stitched,) = run("StitchFaces", image=frames, crops=crops, result=torch.rand(2, 128, 128, 3), seam=seam)
    assert [torch.equal(new, old) for new, old in zip(stitched, frames, strict=True)] == [False, True, False]


def test_pictures_without_any_face_stop_although_empty_ones_are_allowed(portrait: torch.Tensor) -> None:
    empty = torch.full((2, 128, 128, 3), 0.5)
    with pytest.raises(Exception, match="no face was found in picture 1, 2 of the batch"):
        run("ParseFaces", image=empty, allow_empty=True)
    with pytest.raises(Exception, match="there is no face to crop"):
        run("CropFaces", image=empty, faces=[[], []])


def test_tracking_numbers_people_and_replaces_faces_missed_in_between(portrait: torch.Tensor) -> None:
    """The detector's miss is made by dropping what it found in the middle frame."""
    frames = torch.cat([portrait, portrait.roll(6, 2), portrait.roll(12, 2)])
    faces, _, _ = run("ParseFaces", image=frames)
    missed = type(faces)([faces[0], [], faces[2]], faces.size)
    tracked, preview, people = run("TrackFaces", image=frames, faces=missed)
    assert people == 1 and [[face.person for face in found] for found in tracked] == [[0], [0], [0]]
    assert abs(tracked[1][0].landmarks - faces[1][0].landmarks).max() < 3
    assert preview.shape == frames.shape and not torch.equal(preview[1], frames[1])
    crops, _ = run("CropFaces", image=frames, faces=tracked, size=128)
    assert [crop.person for _, crop in crops] == [0, 0, 0]
    left, _, _ = run("TrackFaces", image=frames, faces=missed, fill_gaps=False)
    assert [len(found) for found in left] == [1, 0, 1]
    assert run("TrackFaces", image=frames, faces=missed, max_gap=0)[2] == 2
    with pytest.raises(Exception, match="batch of 2 but the faces come from 3 pictures"):
        run("TrackFaces", image=frames[:2], faces=missed)


def test_a_target_is_a_list_and_lists_combine_in_order() -> None:
    names = sorted(gallery_index())
    chosen = [run("TargetFace", name=name) for name in names[:3]]
    assert [(target[0].name, image.shape[0]) for target, image, _ in chosen] == [(name, 1) for name in names[:3]]
    (two,) = run("CombineTargets", target_1=chosen[2][0], target_2=chosen[0][0])
    (four,) = run("CombineTargets", target_1=two, target_2=chosen[1][0], target_3=chosen[1][0])
    assert [target.name for target in four] == [names[2], names[0], names[1], names[1]]


def test_a_saved_target_is_among_those_to_choose_from_at_the_next_run(tmp_path: Path, monkeypatch) -> None:
    node = NODES["FaceAnon_TargetFace"]
    monkeypatch.setattr(sys.modules[node.__module__], "target_galleries", lambda: (tmp_path, GALLERY))
    inputs = {"name": "automatic", "seed": 0, "crops": None, "encoder": None}  # links arrive as None
    before = node.IS_CHANGED(**inputs)
    assert node.IS_CHANGED(**inputs) == before
    save_target(gallery_target(min(gallery_index())), "mine", tmp_path)
    assert node.IS_CHANGED(**inputs) != before and "mine" in node.INPUT_TYPES()["required"]["name"][0]


def test_the_gallery_output_shows_whom_one_can_choose() -> None:
    name = sorted(gallery_index())[1]
    _, chosen, sheet = run("TargetFace", name=name)
    shown = torch.nn.functional.interpolate(chosen.permute(0, 3, 1, 2), (192, 192), mode="area").permute(0, 2, 3, 1)
    assert (sheet[:, :192, 196 : 196 + 192] - shown).abs().mean() < 0.02  # the second tile of the first row
    assert sheet[:, 192:216, 196 : 196 + 192].min() < 0.3  # its name is written under it


def test_select_refuses_numbers_that_do_not_exist(faces: Any) -> None:
    assert len(run("SelectFaces", faces=faces, order="largest first", numbers="1, 1")[0][0]) == 1  # once
    with pytest.raises(Exception, match="face 2 was asked for, but in picture 1 there are 1"):
        run("SelectFaces", faces=faces, order="largest first", numbers="2")
    with pytest.raises(Exception, match='numbers must be "all" or like'):
        run("SelectFaces", faces=faces, order="largest first", numbers="first")
    with pytest.raises(Exception, match="no face is left"):
        run("SelectFaces", faces=faces, order="largest first", min_size=4000)


def test_crop_refuses_another_batch(portrait: torch.Tensor, faces: Any) -> None:
    with pytest.raises(Exception, match="batch of 2 but the faces come from 1"):
        run("CropFaces", image=portrait.repeat(2, 1, 1, 1), faces=faces)


def test_region_mask_refuses_unknown_and_empty_choices(crops: Any) -> None:
    with pytest.raises(Exception, match="no region named 'ear lobe'"):
        run("RegionMask", crops=crops, keep="ear lobe")
    with pytest.raises(Exception, match="excludes everything"):
        run("RegionMask", crops=crops, keep="face")


def test_a_mask_painted_on_the_picture_combines_with_the_regions(portrait: torch.Tensor, crops: Any) -> None:
    x, y = crops[0][1].frame.to_image(crops[0][1].landmarks[[4]])[0].round().astype(int)  # the tip of the nose
    painted = torch.zeros(1, 512, 512)
    painted[:, y - 3 : y + 4, x - 3 : x + 4] = 1
    plain, _, _ = run("RegionMask", crops=crops)
    kept, seam, _ = run("RegionMask", crops=crops, painted=painted, combine="subtract")
    only, _, _ = run("RegionMask", crops=crops, painted=painted, combine="intersect")
    (stitched,) = run("StitchFaces", image=portrait, crops=crops, result=torch.rand(1, 128, 128, 3), seam=seam)
    assert torch.equal(stitched[painted == 1], portrait[painted == 1])
    assert 0 < only.sum() < plain.sum() - kept.sum() < plain.sum()


def test_painting_adds_unless_told_otherwise(crops: Any) -> None:
    corner = torch.zeros(1, 128, 128)  # of the crop's size
    corner[:, :20, :20] = 1
    plain, _, _ = run("RegionMask", crops=crops)
    added, _, _ = run("RegionMask", crops=crops, painted=corner)
    assert torch.equal(added, torch.maximum(plain, corner))


def test_each_picture_of_a_batch_takes_its_own_painted_mask(portrait: torch.Tensor) -> None:
    batch = torch.cat([portrait, portrait.flip(2)])
    crops, _ = run("CropFaces", image=batch, faces=run("ParseFaces", image=batch)[0], size=128)
    painted = torch.zeros(2, 512, 512)
    painted[1] = 1
    plain, added = (run("RegionMask", crops=crops, **more)[0] for more in ({}, {"painted": painted}))
    assert torch.equal(added[0], plain[0]) and added[1].min() == 1
    assert run("RegionMask", crops=crops, painted=painted[1:])[0].min() == 1  # one mask serves every picture
    with pytest.raises(Exception, match="face 1 of 2: the mask excludes everything: the painted mask meets no"):
        run("RegionMask", crops=crops, painted=painted, combine="intersect")
    with pytest.raises(Exception, match="painted has a batch of 2 but there are 3 pictures; pass one for each"):
        run("RegionMask", crops=type(crops)([(2, crops[0][1])], 3), painted=painted)


def test_faces_go_with_the_picture_they_were_found_in_alone(portrait: torch.Tensor, faces: Any) -> None:
    (chosen,) = run("SelectFaces", faces=faces, order="largest first")
    larger = portrait.repeat_interleave(2, 1).repeat_interleave(2, 2)
    for node, found in (("CropFaces", faces), ("CropFaces", chosen), ("TrackFaces", faces)):
        with pytest.raises(Exception, match="image is 1024x1024 but the faces were found in one of 512x512; connect"):
            run(node, image=larger, faces=found)


def test_edges_that_overshoot_after_a_resize_are_clipped_and_other_scales_refused(portrait: torch.Tensor) -> None:
    planes = torch.nn.functional.interpolate(portrait.permute(0, 3, 1, 2), scale_factor=1.5, mode="bicubic")
    sharp = planes.permute(0, 2, 3, 1)
    assert sharp.min() < -0.01 and sharp.max() > 1.01
    assert run("ParseFaces", image=sharp)[2] == 1
    for other in (portrait * 255, portrait * 2 - 1):
        with pytest.raises(Exception, match=r"image must lie in 0\.\.1, but its values run from"):
            run("ParseFaces", image=other)


def test_the_empty_mask_of_load_image_is_explained(crops: Any) -> None:
    with pytest.raises(Exception, match=r"64x64 but the picture is 512x512 and the crop is 128x128.*nothing was painted"):
        run("RegionMask", crops=crops, painted=torch.zeros(1, 64, 64))


def test_stitch_never_lets_an_unchanged_face_through(portrait: torch.Tensor, crops: Any) -> None:
    _, seam, _ = run("RegionMask", crops=crops)
    same = crops[0][1].tensor.permute(0, 2, 3, 1)
    with pytest.raises(Exception, match="nearly unchanged"):
        run("StitchFaces", image=portrait, crops=crops, result=same, seam=seam)
    softer = torch.nn.functional.avg_pool2d(same.permute(0, 3, 1, 2), 3, 1, 1).permute(0, 2, 3, 1)
    for copy in (0.8 * same, softer):
        with pytest.raises(Exception, match=r"came out as a copy of the source's \(likeness (0\.9|1)"):
            run("StitchFaces", image=portrait, crops=crops, result=copy, seam=seam)
    with pytest.raises(Exception, match="the seam reaches 1 nowhere"):
        run("StitchFaces", image=portrait, crops=crops, result=1 - same, seam=torch.zeros_like(seam))
    with pytest.raises(Exception, match="the mask lies beside the face"):
        run("StitchFaces", image=portrait, crops=crops, result=1 - same, seam=1 - torch.ceil(seam))
    for weight in (0.3, 0.8):
        translucent = weight * seam
        translucent[0, 0, 0] = 1
        with pytest.raises(Exception, match="the seam is translucent over most of the face it touches"):
            run("StitchFaces", image=portrait, crops=crops, result=torch.rand_like(same), seam=translucent)


def test_a_mask_that_leaves_much_of_a_face_is_said(crops: Any, caplog: pytest.LogCaptureFixture) -> None:
    upper = torch.zeros(1, 128, 128)
    upper[:, :64] = 1
    run("RegionMask", crops=crops)
    assert not caplog.records
    run("RegionMask", crops=crops, painted=upper, combine="subtract")
    assert re.search(r"[3-7]\d% of face 1 stays as it is, and what stays can identify", caplog.text)


def test_stitch_refuses_sizes_and_batches_that_differ(portrait: torch.Tensor, crops: Any) -> None:
    _, seam, _ = run("RegionMask", crops=crops)
    with pytest.raises(Exception, match="2 results but 1 crops"):
        run("StitchFaces", image=portrait, crops=crops, result=torch.rand(2, 128, 128, 3), seam=seam)
    with pytest.raises(Exception, match="result is 64x64 but the crops are 128x128"):
        run("StitchFaces", image=portrait, crops=crops, result=torch.rand(1, 64, 64, 3), seam=seam)
    with pytest.raises(Exception, match="seam is 64x64 but the crops are 128x128"):
        run("StitchFaces", image=portrait, crops=crops, result=torch.rand(1, 128, 128, 3), seam=torch.ones(1, 64, 64))
    with pytest.raises(Exception, match="NaN"):
        run("StitchFaces", image=portrait, crops=crops, result=torch.full((1, 128, 128, 3), float("nan")), seam=seam)
    result, seam = torch.rand(1, 128, 128, 3), torch.ones(1, 128, 128)
    with pytest.raises(Exception, match="come from 1 pictures but the image is a batch of 2"):
        run("StitchFaces", image=portrait.repeat(2, 1, 1, 1), crops=crops, result=result, seam=seam)
    with pytest.raises(Exception, match="come from a picture of 512x512 but the image is 512x256"):
        run("StitchFaces", image=portrait[:, :256], crops=crops, result=result, seam=seam)


def test_before_and_after_stand_side_by_side_under_their_labels(portrait: torch.Tensor) -> None:
    before, after = torch.cat([portrait, portrait.flip(3)]), torch.cat([portrait.flip(1), portrait.flip(2)])
    (sheet,) = run("BeforeAfter", before=before, after=after)
    head = sheet.shape[1] - 512
    for i in range(2):
        assert torch.equal(sheet[i, head:, :512], before[i]) and torch.equal(sheet[i, head:, -512:], after[i])
    for half in (sheet[:, :head, :512], sheet[:, :head, -512:]):
        assert half.min() < 0.5 < half.max() == 1  # black text on white


def test_before_and_after_must_match(portrait: torch.Tensor) -> None:
    with pytest.raises(Exception, match="before has a batch of 1 but after one of 2"):
        run("BeforeAfter", before=portrait, after=portrait.repeat(2, 1, 1, 1))
    with pytest.raises(Exception, match="before is 512x512 but after is 512x500"):
        run("BeforeAfter", before=portrait, after=portrait[:, :500])
    with pytest.raises(Exception, match="after holds NaN"):
        run("BeforeAfter", before=portrait, after=portrait * float("nan"))


def test_parse_stops_on_a_face_no_mesh_fits_though_others_work(portrait: torch.Tensor, monkeypatch) -> None:
    """The mesh fit is made to fail on the left of two faces: mediapipe fits one to every face that could be drawn here."""
    run("ParseFaces", image=portrait)  # imports the pack's own copy of the detector
    detector = sys.modules[f"{NAME}.faceanon_core.faces"].FaceDetector
    fit = detector._fit

    def fit_right_half(self: Any, image: Any, proposal: Any) -> Any:
        return None if proposal.box.center[0] < 512 else fit(self, image, proposal)

    monkeypatch.setattr(detector, "_fit", fit_right_half)
    with pytest.raises(Exception, match=r"1 faces were found that cannot be replaced \(no face mesh fits it\)"):
        run("ParseFaces", image=torch.cat([portrait, portrait], dim=2))


def test_the_report_preview_shows_the_worst_of_the_faces_and_names_all(portrait: torch.Tensor, faces: Any) -> None:
    from faceanon_core.report import CheckedFace

    checks = [CheckedFace(0, faces[0][0].box), CheckedFace(1, faces[0][0].box, problem="it is a near copy")]
    both = torch.cat([portrait, 1 - portrait])
    table, report = run("ReportPreview", checks=checks, result=both, rows=1)
    assert table.shape[1] == 24 + 4 + 144 and report.splitlines()[0] == "1 of 2 faces passed"
    assert "picture 2, face near" in report.splitlines()[1] and "FAILED, it is a near copy" in report.splitlines()[1]
    wider, _ = run("ReportPreview", checks=checks, result=both, source=both, rows=1)
    assert wider.shape[2] > table.shape[2]
    with pytest.raises(Exception, match="the checks are of more pictures than the 1 in result; connect those"):
        run("ReportPreview", checks=checks, result=portrait)
