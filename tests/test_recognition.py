"""Recognition networks that can be differentiated: a real one against onnxruntime, and insightface's layout."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from onnx_weights import read_onnx_weights
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from faceanon_core.errors import WeightsError
from faceanon_core.geometry import ARCFACE_PX, arcface_alignment
from faceanon_core.identity import Recogniser
from faceanon_core.recognition import RecognitionNetwork, align, load_recognition

ROOT = Path(__file__).resolve().parent.parent
MODELS = Path(os.environ.get("FACEANON_TEST_MODELS", ROOT.parent / "shared" / "models"))


def foamlius_layout(onnx: Path) -> dict[str, Tensor]:
    """MobileFaceNet's weights under the names its author publishes them by; the ONNX file has its norms folded in."""
    left = iter(read_onnx_weights(onnx))
    state: dict[str, Tensor] = {}

    def convolution(conv: str, norm: str) -> None:
        state[f"{conv}.weight"], bias = next(left), next(left)
        state[f"{norm}.weight"], state[f"{norm}.bias"] = torch.ones_like(bias), bias
        state[f"{norm}.running_mean"], state[f"{norm}.running_var"] = torch.zeros_like(bias), torch.ones_like(bias) - 1e-5

    convolution("conv1.0", "conv1.1")
    convolution("dw_conv.depthwise", "dw_conv.bn1")
    convolution("dw_conv.pointwise", "dw_conv.bn2")
    for block in range(15):
        for conv, norm in (("0.0", "0.1"), ("1.0", "1.1"), ("2", "3")):
            convolution(f"features.{block}.conv.{conv}", f"features.{block}.conv.{norm}")
    convolution("conv2.0", "conv2.1")
    convolution("gdconv.depthwise", "gdconv.bn")
    convolution("conv3", "bn")
    return {**state, "conv3.bias": torch.zeros(128)}


@pytest.fixture(scope="session")
def onnx_file() -> Path:
    path = MODELS / "MobileFaceNet.onnx"
    if not path.is_file():
        pytest.skip(f"no {path}; name the folder that holds MobileFaceNet.onnx in FACEANON_TEST_MODELS")
    return path


@pytest.fixture(scope="session")
def mobilefacenet_file(onnx_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recognition") / "mobilefacenet.safetensors"
    save_file(foamlius_layout(onnx_file), path)
    return path


@pytest.fixture(scope="module")
def network(mobilefacenet_file: Path) -> RecognitionNetwork:
    return load_recognition(mobilefacenet_file)


def test_mobilefacenet_equals_onnxruntime(network, onnx_file: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(onnx_file), providers=["CPUExecutionProvider"])
    faces = torch.randn(1, 3, ARCFACE_PX, ARCFACE_PX, generator=torch.Generator().manual_seed(0))
    (wanted,) = session.run(None, {session.get_inputs()[0].name: faces.numpy()})
    torch.testing.assert_close(network.backbone(faces), torch.from_numpy(wanted), rtol=1e-4, atol=1e-4)


def test_the_embedding_of_a_real_face_is_the_identity_checks_own(network, onnx_file: Path, crop) -> None:
    pytest.importorskip("onnxruntime")
    mine = network.embed(crop.tensor, torch.from_numpy(arcface_alignment(crop.landmarks))[None])[0]
    assert float(mine.norm()) == pytest.approx(1, abs=1e-5)
    assert float(mine @ torch.from_numpy(Recogniser(onnx_file).embed(crop.pixels, crop.landmarks))) > 0.99


def test_the_gradient_reaches_the_face_and_agrees_with_finite_differences(network, crop) -> None:
    places, image = torch.from_numpy(arcface_alignment(crop.landmarks))[None], crop.tensor.requires_grad_(True)
    other = network.embed(image.detach().flip(1), places)

    def cosine(picture: Tensor) -> Tensor:
        return (network.embed(picture, places) * other).sum()

    (gradient,) = torch.autograd.grad(cosine(image), image)
    step = 0.01 * gradient / gradient.norm()
    with torch.no_grad():
        slope = float(cosine(image + step) - cosine(image - step)) / 0.02
    assert slope == pytest.approx(float(gradient.norm()), rel=0.05)
    assert all(parameter.grad is None for parameter in network.parameters())


def test_the_cut_out_face_has_eyes_and_mouth_at_arcfaces_places() -> None:
    """A dot at each of five landmarks of a turned, scaled face."""
    landmarks = np.zeros((478, 2), np.float32)
    template = np.array([[38.29, 51.70], [73.53, 51.50], [56.03, 71.74], [41.55, 92.37], [70.73, 92.20]])
    turn = 1.3 * np.array([[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]])
    points = (template @ turn.T + [40, 30]).astype(np.float32)
    landmarks[list(range(468, 473))], landmarks[list(range(473, 478))] = points[0], points[1]
    from faceanon_core.geometry import LEFT_EYE, RIGHT_EYE

    landmarks[list(RIGHT_EYE)], landmarks[list(LEFT_EYE)] = points[0], points[1]
    landmarks[1], landmarks[61], landmarks[291] = points[2:]
    picture = torch.zeros(1, 3, 240, 240)
    for x, y in points.round().astype(int):
        picture[..., y - 1 : y + 2, x - 1 : x + 2] = 1
    face = align(picture, torch.from_numpy(arcface_alignment(landmarks))[None])
    assert face.shape == (1, 3, ARCFACE_PX, ARCFACE_PX)
    for x, y in template.round().astype(int):
        assert face[0, 0, y - 1 : y + 2, x - 1 : x + 2].max() > 0.8


def random_iresnet(depths: tuple[int, ...], width: int = 512) -> dict[str, Tensor]:
    """Random weights in the layout of arcface_torch's IResNet."""
    state: dict[str, Tensor] = {}

    def norm(name: str, channels: int) -> None:
        state[f"{name}.weight"], state[f"{name}.bias"] = 1 + torch.randn(channels) * 0.1, torch.randn(channels) * 0.1
        state[f"{name}.running_mean"], state[f"{name}.running_var"] = torch.randn(channels) * 0.1, 1 + torch.rand(channels)
        state[f"{name}.num_batches_tracked"] = torch.tensor(7)

    def conv(name: str, outputs: int, inputs: int, side: int) -> None:
        state[f"{name}.weight"] = torch.randn(outputs, inputs, side, side) / (inputs * side * side) ** 0.5

    conv("conv1", 64, 3, 3)
    norm("bn1", 64)
    state["prelu.weight"] = torch.rand(64)
    inputs = 64
    for layer, (channels, depth) in enumerate(zip((64, 128, 256, 512), depths, strict=True), 1):
        for i in range(depth):
            block = f"layer{layer}.{i}"
            norm(f"{block}.bn1", inputs)
            conv(f"{block}.conv1", channels, inputs, 3)
            norm(f"{block}.bn2", channels)
            state[f"{block}.prelu.weight"] = torch.rand(channels)
            conv(f"{block}.conv2", channels, channels, 3)
            norm(f"{block}.bn3", channels)
            if i == 0:
                conv(f"{block}.downsample.0", channels, inputs, 1)
                norm(f"{block}.downsample.1", channels)
            inputs = channels
    norm("bn2", 512)
    state["fc.weight"], state["fc.bias"] = torch.randn(width, 512 * 49) / 158, torch.randn(width) * 0.1
    norm("features", width)
    return state


def iresnet_forward(state: dict[str, Tensor], x: Tensor, depths: tuple[int, ...]) -> Tensor:
    """arcface_torch's IResNet out of torch's functions alone."""

    def norm(x: Tensor, name: str) -> Tensor:
        parts = (state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, *parts)

    def conv(x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = state[f"{name}.weight"]
        return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)

    x = F.prelu(norm(conv(x, "conv1"), "bn1"), state["prelu.weight"])
    for layer, depth in enumerate(depths, 1):
        for i in range(depth):
            block, stride = f"layer{layer}.{i}", 2 if i == 0 else 1
            y = norm(conv(norm(x, f"{block}.bn1"), f"{block}.conv1"), f"{block}.bn2")
            y = norm(conv(F.prelu(y, state[f"{block}.prelu.weight"]), f"{block}.conv2", stride), f"{block}.bn3")
            x = y + (norm(conv(x, f"{block}.downsample.0", stride), f"{block}.downsample.1") if i == 0 else x)
    return norm(F.linear(norm(x, "bn2").flatten(1), state["fc.weight"], state["fc.bias"]), "features")


@pytest.mark.parametrize("depths", [(2, 2, 2, 2), (1, 2, 3, 1)])
def test_insightfaces_layout_gives_the_embeddings_of_an_independent_forward_pass(tmp_path: Path, depths) -> None:
    torch.manual_seed(0)
    state = random_iresnet(depths)
    torch.save({f"module.{name}": value for name, value in state.items()}, tmp_path / "backbone.pth")
    network = load_recognition(tmp_path / "backbone.pth")
    faces = torch.rand(2, 3, ARCFACE_PX, ARCFACE_PX)
    identity = torch.tensor([[[1.0, 0, 0], [0, 1, 0]]])
    wanted = F.normalize(iresnet_forward(state, faces * 2 - 1, depths), dim=1)
    torch.testing.assert_close(network.embed(faces, identity), wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            {"layer2.0.conv1.weight": (128, 32, 3, 3)},
            r"layer2\.0\.conv1\.weight is \(128, 32, 3, 3\), expected \(128, 64, 3, 3\)",
        ),
        ({"features.bias": None}, r"features\.bias is missing, expected \(512,\)"),
        ({"layer1.0.bn1.weight": None}, r"neither an IResNet .* its largest tensor is fc\.weight \(512, 25088\), expected"),
    ],
)
def test_another_architecture_is_refused_with_both_shapes(tmp_path: Path, edit, message: str) -> None:
    state = random_iresnet((1, 1, 1, 1))
    for name, shape in edit.items():
        state.pop(name)
        if shape:
            state[name] = torch.zeros(shape)
    save_file(state, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match=message):
        load_recognition(tmp_path / "other.safetensors")


def test_the_networks_are_frozen(network, mobilefacenet_file: Path) -> None:
    assert not any(parameter.requires_grad for parameter in network.parameters()) and not network.training
    assert isinstance(network, nn.Module) and load_file(mobilefacenet_file)
