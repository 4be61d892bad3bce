"""BiSeNet (Yu et al. 2018) as the published face parsers use it: a ResNet-18 context path, and its 1/8 features for detail.

Module names are those of the face-parsing.PyTorch checkpoints, so that these load as they are.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH = 128  # of the context path's features


class BiSeNet(nn.Module):
    """Logits of every class at the picture's own size; the two training heads are left out."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.cp = _ContextPath()
        self.ffm = _Fusion()
        self.conv_out = _Head(classes)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W), scaled as for ImageNet, sides multiples of 32 -> (B, classes, H, W)."""
        detail, context = self.cp(pixels)
        logits: Tensor = self.conv_out(self.ffm(torch.cat([detail, context], dim=1)))
        return F.interpolate(logits, pixels.shape[-2:], mode="bilinear", align_corners=True)


class _ConvNormRelu(nn.Module):
    def __init__(self, inputs: int, outputs: int, side: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, side, padding=side // 2, bias=False)
        self.bn = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class _Block(nn.Module):
    """ResNet's basic block."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = nn.Sequential()
        if stride > 1:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + self.downsample(x))


class _Resnet18(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.layer1 = nn.Sequential(_Block(64, 64, 1), _Block(64, 64, 1))
        self.layer2 = nn.Sequential(_Block(64, 128, 2), _Block(128, 128, 1))
        self.layer3 = nn.Sequential(_Block(128, 256, 2), _Block(256, 256, 1))
        self.layer4 = nn.Sequential(_Block(256, 512, 2), _Block(512, 512, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features at 1/8, 1/16 and 1/32."""
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, stride=2, padding=1)
        eighth = self.layer2(self.layer1(x))
        sixteenth = self.layer3(eighth)
        return eighth, sixteenth, self.layer4(sixteenth)


class _Attention(nn.Module):
    """The paper's attention refinement: channels weighed by what the whole picture shows."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.conv = _ConvNormRelu(inputs, WIDTH, 3)
        self.conv_atten = nn.Conv2d(WIDTH, WIDTH, 1, bias=False)
        self.bn_atten = nn.BatchNorm2d(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return out * self.bn_atten(self.conv_atten(_average(out))).sigmoid()


class _ContextPath(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.resnet = _Resnet18()
        self.arm16, self.arm32 = _Attention(256), _Attention(512)
        self.conv_head32, self.conv_head16 = _ConvNormRelu(WIDTH, WIDTH, 3), _ConvNormRelu(WIDTH, WIDTH, 3)
        self.conv_avg = _ConvNormRelu(512, WIDTH, 1)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Detail and context, both (B, WIDTH, H/8, W/8)."""
        eighth, sixteenth, small = self.resnet(pixels)
        coarse = self.arm32(small) + self.conv_avg(_average(small))
        coarse = self.conv_head32(F.interpolate(coarse, sixteenth.shape[-2:]))
        finer = self.arm16(sixteenth) + coarse
        return eighth, self.conv_head16(F.interpolate(finer, eighth.shape[-2:]))


class _Fusion(nn.Module):
    """The paper's feature fusion."""

    def __init__(self) -> None:
        super().__init__()
        self.convblk = _ConvNormRelu(2 * WIDTH, 2 * WIDTH, 1)
        self.conv1 = nn.Conv2d(2 * WIDTH, WIDTH // 2, 1, bias=False)
        self.conv2 = nn.Conv2d(WIDTH // 2, 2 * WIDTH, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.convblk(x)
        return out + out * self.conv2(F.relu(self.conv1(_average(out)))).sigmoid()


class _Head(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv = _ConvNormRelu(2 * WIDTH, 2 * WIDTH, 3)
        self.conv_out = nn.Conv2d(2 * WIDTH, classes, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv_out(self.conv(x))
        return out


def _average(x: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(x, 1)
