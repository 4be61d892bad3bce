"""The demo model's weights as they are stored: the U-Net's in 8 bits, half the size of bfloat16."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from .errors import WeightsError

_SCALE = ":scale"  # ends the name of the scales of a tensor stored in 8 bits
_LEVELS = 127


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read weights of the demo model, in float32; those stored by `in_8_bits` are scaled back.

    Raises: WeightsError if the file is missing or damaged.
    """
    if not path.is_file():
        raise WeightsError(f"{path} is missing; reinstall the pack, it carries this file")
    try:
        stored = load_file(path)
    except SafetensorError as error:
        raise WeightsError(f"{path} is damaged and cannot be read; reinstall the pack") from error
    weights = {name: value.float() for name, value in stored.items() if not name.endswith(_SCALE)}
    for name, value in weights.items():
        if (scale := stored.get(name + _SCALE)) is not None:
            value.mul_(scale.reshape(-1, *[1] * (value.ndim - 1)))
    return weights


def in_8_bits(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights for storing in half the space of bfloat16: 8-bit integers, and a scale for each output channel.

    Tensors of one dimension (biases, norms) are few and stay, in bfloat16.
    """
    stored = {}
    for name, value in weights.items():
        if value.ndim < 2:
            stored[name] = value.bfloat16().contiguous()
            continue
        scale = value.flatten(1).abs().amax(1).float().clamp(min=1e-12) / _LEVELS
        levels = (value.float() / scale.reshape(-1, *[1] * (value.ndim - 1))).round()
        stored[name], stored[name + _SCALE] = levels.to(torch.int8).contiguous(), scale
    return stored
