"""Face recognition that can be differentiated, for guidance away from the source's identity. The user brings the weights.

Layouts: IResNet of insightface's arcface_torch (r18 to r200), and MobileFaceNet of foamliu. Both take 112 px faces.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import WeightsError
from .geometry import ARCFACE_PX
from .pretrained import fill_weights, read_state, weights_file

_MOBILE_BLOCKS = (
    (2, 64, 5, 2),
    (4, 128, 1, 2),
    (2, 128, 6, 1),
    (4, 128, 1, 2),
    (2, 128, 2, 1),
)  # as its paper


def align(images: Tensor, matrices: Tensor) -> Tensor:
    """Cut faces out, bilinearly and differentiably: (B, 3, H, W), (B, 2, 3) of `arcface_alignment` -> (B, 3, 112, 112)."""
    height, width = images.shape[-2:]
    whole = torch.cat([matrices, matrices.new_tensor([[[0, 0, 1]]]).expand(len(matrices), 1, 3)], 1)
    back = torch.linalg.inv(whole)  # face pixel -> picture pixel
    y, x = torch.meshgrid(*[torch.arange(ARCFACE_PX, dtype=back.dtype, device=back.device)] * 2, indexing="ij")
    places = torch.stack([x, y, torch.ones_like(x)], -1) @ back[:, None, :2].transpose(-1, -2)  # (B, 112, 112, 2)
    grid = places * 2 / places.new_tensor([width - 1, height - 1]) - 1
    return F.grid_sample(images, grid.to(images), mode="bilinear", padding_mode="border", align_corners=True)


class RecognitionNetwork(nn.Module):
    """A backbone with the input scaling it was trained with.

    Args:
        backbone: (B, 3, 112, 112) scaled RGB -> (B, D).
        mean, spread: per channel.
    """

    mean: Tensor
    spread: Tensor

    def __init__(self, backbone: nn.Module, mean: tuple[float, ...], spread: tuple[float, ...]) -> None:
        super().__init__()
        self.backbone = backbone
        for name, values in (("mean", mean), ("spread", spread)):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)

    def embed(self, images: Tensor, matrices: Tensor) -> Tensor:
        """Unit embeddings (B, D) of faces in (B, 3, H, W) float 0..1; `matrices` (B or 1, 2, 3) by `arcface_alignment`."""
        faces = align(images, matrices.expand(len(images), -1, -1).to(images))
        return F.normalize(self.backbone((faces - self.mean) / self.spread), dim=1)


def load_recognition(path: Path) -> RecognitionNetwork:
    """Read a recognition network, frozen, in float32; the layout is told by the names of its tensors.

    Raises: WeightsError if the file is missing, damaged or of another architecture, naming both shapes.
    """
    file = weights_file(path)
    state = {name.removeprefix("module."): value for name, value in read_state(file).items()}
    if "layer1.0.bn1.weight" in state:
        depths = [len({name.split(".")[1] for name in state if name.startswith(f"layer{i}.")}) for i in range(1, 5)]
        width = state["fc.weight"].shape[0] if "fc.weight" in state else 512
        network = RecognitionNetwork(_IResNet(depths, width), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    elif "gdconv.depthwise.weight" in state:
        network = RecognitionNetwork(_MobileFaceNet(), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    else:
        name, largest = max(state.items(), key=lambda row: row[1].numel())
        raise WeightsError(
            f"{file} is neither an IResNet of arcface_torch nor foamliu's MobileFaceNet: its largest tensor is {name} "
            f"{tuple(largest.shape)}, expected layer1.0.bn1.weight (64,) or gdconv.depthwise.weight (512, 1, 7, 7)"
        )
    fill_weights(network.backbone, state, file)
    return network.eval().requires_grad_(False)


# ---- the two architectures; attribute names are those of the published weights ----


class _IResNet(nn.Module):
    def __init__(self, depths: list[int], width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.bn1, self.prelu = nn.BatchNorm2d(64), nn.PReLU(64)
        inputs = 64
        for number, (channels, depth) in enumerate(zip((64, 128, 256, 512), depths, strict=True), 1):
            blocks = [_IBlock(inputs if i == 0 else channels, channels, 2 if i == 0 else 1) for i in range(depth)]
            self.add_module(f"layer{number}", nn.Sequential(*blocks))
            inputs = channels
        self.bn2, self.fc, self.features = nn.BatchNorm2d(512), nn.Linear(512 * 49, width), nn.BatchNorm1d(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.prelu(self.bn1(self.conv1(x)))
        for number in range(1, 5):
            x = self.get_submodule(f"layer{number}")(x)
        out: Tensor = self.features(self.fc(self.bn2(x).flatten(1)))
        return out


class _IBlock(nn.Module):
    def __init__(self, inputs: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, channels, 3, padding=1, bias=False)
        self.bn2, self.prelu = nn.BatchNorm2d(channels), nn.PReLU(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        shortcut = nn.Sequential(nn.Conv2d(inputs, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))
        self.downsample = shortcut if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        added: Tensor = self.bn3(self.conv2(out)) + self.downsample(x)
        return added


class _MobileFaceNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = _conv(3, 64, 3, 2)
        self.dw_conv = nn.ModuleDict(
            {
                "depthwise": nn.Conv2d(64, 64, 3, padding=1, groups=64, bias=False), "bn1": nn.BatchNorm2d(64),
                "pointwise": nn.Conv2d(64, 64, 1, bias=False), "bn2": nn.BatchNorm2d(64),
            }
        )  # fmt: skip
        blocks, inputs = [], 64
        for expansion, channels, count, stride in _MOBILE_BLOCKS:
            for i in range(count):
                blocks.append(_Inverted(inputs, channels, stride if i == 0 else 1, expansion))
                inputs = channels
        self.features = nn.Sequential(*blocks)
        self.conv2 = _conv(128, 512, 1)
        whole = nn.Conv2d(512, 512, 7, groups=512, bias=False)
        self.gdconv = nn.ModuleDict({"depthwise": whole, "bn": nn.BatchNorm2d(512)})
        self.conv3, self.bn = nn.Conv2d(512, 128, 1), nn.BatchNorm2d(128)

    def forward(self, x: Tensor) -> Tensor:
        x, first = self.conv1(x), self.dw_conv
        x = first["bn1"](first["depthwise"](x)).relu()
        x = first["bn2"](first["pointwise"](x)).relu()
        x = self.conv2(self.features(x))
        out: Tensor = self.bn(self.conv3(self.gdconv["bn"](self.gdconv["depthwise"](x)))).flatten(1)
        return out


class _Inverted(nn.Module):
    def __init__(self, inputs: int, channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inputs * expansion
        self.conv = nn.Sequential(
            _conv(inputs, wide, 1), _conv(wide, wide, 3, stride, wide), nn.Conv2d(wide, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )  # fmt: skip
        self.residual = stride == 1 and inputs == channels

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return x + out if self.residual else out


def _conv(inputs: int, outputs: int, side: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, side, stride, side // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU6())
