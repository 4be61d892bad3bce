"""Face parsers in their published layouts: a tiny SegFormer that works, see make_parser.py; a BiSeNet of random weights."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from faceanon_core.bisenet import BiSeNet
from faceanon_core.cli import main
from faceanon_core.crop import crop_face
from faceanon_core.errors import UnknownNameError, WeightsError
from faceanon_core.parsing import INDEX, LABELS, LandmarkParser, region_labels
from faceanon_core.regions import RegionChoice, region_mask

pytest.importorskip("transformers")
sys.path.insert(0, str(Path(__file__).parent))
from make_parser import draw_glasses

from faceanon_core.semantic_parser import SemanticParser, load_semantic_parser

FOLDER = Path(__file__).parent / "data" / "face_parsing"


@pytest.fixture(scope="module")
def parser() -> SemanticParser:
    return load_semantic_parser(FOLDER)


@pytest.fixture(scope="module")
def glasses(crop) -> tuple[np.ndarray, np.ndarray]:
    """The astronaut with sunglasses, and where they are."""
    pixels = crop.pixels.copy()
    where = draw_glasses(pixels, crop.landmarks, 20)
    return pixels, where


def overlap(labels: np.ndarray, truth: np.ndarray, name: str) -> float:
    """Intersection over union of one region."""
    one, other = (each == INDEX[name] for each in (labels, truth))
    return float((one & other).sum() / (one | other).sum())


def test_the_network_finds_a_real_faces_regions_where_the_landmarks_have_them(parser, crop) -> None:
    labels, truth = (each.parse(crop.pixels, crop.landmarks) for each in (parser, LandmarkParser()))
    assert labels.shape == truth.shape and labels.dtype == np.uint8
    assert overlap(labels, truth, "skin") > 0.7 and overlap(labels, truth, "nose") > 0.5
    for name in ("left_eye", "right_eye", "upper_lip", "lower_lip"):
        assert overlap(labels, truth, name) > 0.25, name


def test_it_finds_glasses_which_the_landmarks_cannot(parser, crop, glasses) -> None:
    pixels, where = glasses
    found = parser.parse(pixels, crop.landmarks) == INDEX["eyeglasses"]
    assert (found & where).sum() / (found | where).sum() > 0.7
    assert (parser.parse(crop.pixels, crop.landmarks) == INDEX["eyeglasses"]).mean() < 0.005
    assert "eyeglasses" in parser.delivers and "eyeglasses" not in LandmarkParser.delivers


@pytest.mark.parametrize(
    ("choice", "kept"),
    [
        (RegionChoice(), True),
        (RegionChoice(("skin", "eyes", "nose")), True),
        (RegionChoice(("face", "glasses")), False),
        (RegionChoice(("glasses",)), False),
        (RegionChoice(("face", "glasses"), keep=("glasses",)), True),
    ],
)
def test_glasses_are_kept_unless_they_are_asked_for_by_name(parser, crop, glasses, choice: RegionChoice, kept: bool) -> None:
    labels = parser.parse(glasses[0], crop.landmarks)
    lens = labels == INDEX["eyeglasses"]
    mask = region_mask(labels, choice, parser)
    assert lens.any() and mask.core[0, 0].numpy()[lens].all() != kept
    assert (mask.seam[0, 0].numpy()[lens] == 0).all() == kept


def test_a_region_the_checkpoint_has_no_class_for_is_refused_by_name(parser) -> None:
    assert region_labels(("glasses",), parser) == {"eyeglasses"}
    with pytest.raises(UnknownNameError, match="the active face parser cannot find hair; it finds eyeglasses, inner_mouth"):
        region_labels(("hair",), parser)


def test_parsing_follows_the_crops_size(parser, crop, face, astronaut) -> None:
    large = crop_face(astronaut, face, 512)
    labels = parser.parse(large.pixels, large.landmarks)
    assert labels.shape == (512, 512)
    small = parser.parse(crop.pixels, crop.landmarks)
    assert (labels[::2, ::2] == small).mean() > 0.95


def checkpoint(folder: Path, edit: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of the checkpoint with another config.json."""
    shutil.copytree(FOLDER, folder)
    config = json.loads((folder / "config.json").read_text())
    edit(config)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def renamed(names: Callable[[str], str]) -> Callable[[dict[str, Any]], None]:
    return lambda config: config.update(id2label={key: names(name) for key, name in config["id2label"].items()})


@pytest.mark.parametrize(
    "names",
    [
        lambda name: f"{name}.png",  # an older face-parsing checkpoint's
        str.upper,
        {"eye_g": "glasses", "l_eye": "left eye", "r_brow": "right-eyebrow", "mouth": "teeth", "u_lip": "upper_lip"}.get,
    ],
)
def test_classes_are_known_by_the_names_that_are_around(parser, crop, tmp_path: Path, names: Any) -> None:
    other = load_semantic_parser(checkpoint(tmp_path / "other", renamed(lambda name: names(name) or name)))
    assert other.delivers == parser.delivers
    assert np.array_equal(other.parse(crop.pixels, crop.landmarks), parser.parse(crop.pixels, crop.landmarks))


def test_left_and_right_are_the_subjects_own_whichever_the_checkpoint_means(parser, crop, tmp_path: Path) -> None:
    mirror = {"l_eye": "r_eye", "r_eye": "l_eye", "l_brow": "r_brow", "r_brow": "l_brow"}
    other = load_semantic_parser(checkpoint(tmp_path / "other", renamed(lambda name: mirror.get(name, name))))
    labels = other.parse(crop.pixels, crop.landmarks)
    assert np.array_equal(labels, parser.parse(crop.pixels, crop.landmarks))
    x = {name: np.argwhere(labels == INDEX[name])[:, 1].mean() for name in ("left_eye", "right_eye")}
    assert x["right_eye"] < x["left_eye"]  # the subject's own right is at the picture's left


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (renamed(lambda name: "skin" if name == "nose" else name), "lacks the class nose, which"),
        (
            renamed(lambda name: {"nose": "wall", "skin": "sky"}.get(name, name)),
            "no region is known for its class sky, wall",
        ),
        (lambda config: config.update(model_type="mask2former"), "is no face parser that is known: .*says 'mask2former'"),
        (lambda config: config.update(hidden_sizes=[8, 16, 24, 32]), r"another architecture: .* is \(.*\), expected \(.*\)"),
    ],
)
def test_a_checkpoint_that_is_no_face_parser_is_refused(tmp_path: Path, edit: Any, message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        load_semantic_parser(checkpoint(tmp_path / "other", edit))


def test_missing_weights_and_a_missing_tensor_are_told(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"model\.safetensors is missing; name a weights file, or a folder"):
        load_semantic_parser(tmp_path)
    broken = checkpoint(tmp_path / "broken", lambda config: None)
    state = load_file(broken / "model.safetensors")
    state.pop("decode_head.classifier.bias")
    save_file(state, broken / "model.safetensors")
    with pytest.raises(WeightsError, match=r"it has no decode_head\.classifier\.bias, expected with shape \(11,\)"):
        load_semantic_parser(broken)


def test_the_command_line_keeps_the_glasses_bit_identical(parser, anonymizer, portrait, tmp_path: Path) -> None:
    (face,) = anonymizer.detector.detect(portrait)
    worn = portrait.copy()
    where = draw_glasses(worn, face.landmarks, 20)
    Image.fromarray(worn).save(tmp_path / "worn.png")
    arguments = ["anonymize", str(tmp_path / "worn.png"), "--steps", "2", "--recogniser", "none", "--parser", str(FOLDER)]
    for name, more in (("kept.png", []), ("new.png", ["--regions", "face,glasses"])):
        assert main([*arguments, "-o", str(tmp_path / name), *more]) == 0
    kept, new = (np.asarray(Image.open(tmp_path / name)) for name in ("kept.png", "new.png"))
    assert (kept == worn).all(-1)[where].mean() > 0.75  # all that this small network finds of them
    assert (new == worn).all(-1)[where].mean() < 0.3
    assert (kept != worn).any(-1).mean() > 0.05


def test_the_command_line_refuses_what_the_parser_cannot_find(portrait_file: Path, tmp_path: Path, capsys) -> None:
    arguments = ["anonymize", str(portrait_file), "-o", str(tmp_path / "new.png"), "--keep", "hair"]
    assert main([*arguments, "--recogniser", "none", "--parser", str(FOLDER)]) == 2
    assert "cannot find hair" in capsys.readouterr().err


EXPECTED = [-0.77279, 1.75502, -0.07889, -0.80325]


def bisenet_weights(classes: int = 19) -> dict[str, Tensor]:
    """A published checkpoint's tensors, both training heads included, with random weights: a seed for every name."""
    shapes = {name: tuple(value.shape) for name, value in BiSeNet(classes).state_dict().items()}
    shapes |= {f"{head}.conv.conv.weight": (64, 128, 3, 3) for head in ("conv_out16", "conv_out32")}
    state = {}
    for name, shape in shapes.items():
        torch.manual_seed(sum(map(ord, name)))
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(1)
        elif len(shape) == 1:
            state[name] = 0.2 * torch.randn(shape) if name.endswith(("bias", "mean")) else 0.5 + torch.rand(shape)
        else:
            state[name] = torch.randn(shape) / torch.tensor(shape[1:]).prod().sqrt()
    return state


def bisenet_file(path: Path, edit: Callable[[dict[str, Tensor]], None] = lambda state: None) -> Path:
    state = bisenet_weights()
    edit(state)
    torch.save(state, path)
    return path


def test_bisenet_computes_what_an_independent_implementation_does() -> None:
    """The numbers are those of facexlib 0.3.0 with the same weights; on 512 px noise both agreed to 2e-7."""
    network = BiSeNet(19).eval()
    network.load_state_dict({name: value for name, value in bisenet_weights().items() if name in network.state_dict()})
    x = torch.linspace(-2, 2, 3 * 64 * 96).reshape(1, 3, 64, 96).sin()
    with torch.no_grad():
        logits = network(x)
    assert logits.shape == (1, 19, 64, 96)
    assert logits[0, [0, 5, 11, 18], [0, 20, 40, 63], [0, 30, 60, 95]].tolist() == pytest.approx(EXPECTED, abs=1e-4)


@pytest.mark.parametrize(("number", "name"), [(6, "eyeglasses"), (10, "nose"), (17, "hair"), (16, "clothing")])
def test_bisenets_classes_are_those_of_its_authors(crop, tmp_path: Path, number: int, name: str) -> None:
    def always(state: dict[str, Tensor]) -> None:
        state["conv_out.conv_out.weight"] = torch.zeros(19, 256, 1, 1)
        state["conv_out.conv_out.weight"][number] = 1.0  # what it weighs is never negative

    parser = load_semantic_parser(bisenet_file(tmp_path / "79999_iter.pth", always))
    assert parser.delivers == frozenset(LABELS)
    labels = parser.parse(crop.pixels, crop.landmarks)
    assert labels.shape == (256, 256) and (labels == INDEX[name]).all()


def test_bisenet_from_the_command_line_needs_neither_folder_nor_config(portrait_file: Path, tmp_path: Path, capsys) -> None:
    def only_skin(state: dict[str, Tensor]) -> None:
        state["conv_out.conv_out.weight"] = torch.zeros(19, 256, 1, 1)
        state["conv_out.conv_out.weight"][1] = 1.0

    network = bisenet_file(tmp_path / "bisenet.pth", only_skin)
    arguments = ["anonymize", str(portrait_file), "--steps", "2", "--recogniser", "none", "--parser", str(network)]
    assert main([*arguments, "-o", str(tmp_path / "new.png"), "--keep", "hair"]) == 0
    assert main([*arguments, "-o", str(tmp_path / "none.png"), "--regions", "glasses"]) == 2
    assert "nothing can be regenerated" in capsys.readouterr().err and not (tmp_path / "none.png").exists()


def named(*names: str) -> str:
    return json.dumps({"id2label": dict(enumerate(names))})


@pytest.mark.parametrize(
    ("name", "value", "config", "message"),
    [
        ("conv_out.conv_out.weight", torch.zeros(11, 256, 1, 1), "{}", "has 11 classes, but 19 names are known for them"),
        (
            "conv_out.conv_out.weight",
            torch.zeros(2, 256, 1, 1),
            named("background", "skin"),
            "lacks the class inner_mouth, ",
        ),
        (
            "cp.resnet.conv1.weight",
            torch.zeros(32, 3, 7, 7),
            "{}",
            r"cp\.resnet\.conv1\.weight is \(32, 3, 7, 7\), expected \(64,",
        ),
        ("ffm.conv2.weight", None, "{}", r"another architecture: ffm\.conv2\.weight is missing, expected \(256, 64, 1, 1\)"),
        ("conv_out.conv_out.weight", None, "{}", "is no face parser that is known: it has no BiSeNet's conv_out"),
    ],
)
def test_a_bisenet_that_is_no_face_parser_is_refused(tmp_path: Path, name: str, value: Any, config: str, message) -> None:
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(WeightsError, match=message):
        load_semantic_parser(
            bisenet_file(
                tmp_path / "b.pth", lambda state: state.update({name: value}) if value is not None else state.pop(name)
            )
        )


def test_a_bisenet_file_that_could_run_code_is_not_read(tmp_path: Path) -> None:
    torch.save({"state_dict": bisenet_weights(), "parser": nn.Linear(1, 1)}, tmp_path / "b.pth")
    with pytest.raises(WeightsError, match="holds more than weights, which is not read because it could run code"):
        load_semantic_parser(tmp_path / "b.pth")
