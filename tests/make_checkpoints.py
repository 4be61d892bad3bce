"""Small checkpoints with random weights in the formats ComfyUI recognises. Needs ComfyUI on the path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

VAE_FILE = Path(__file__).resolve().parent.parent / "faceanon_core" / "assets" / "vae.safetensors"


def write_checkpoint(path: Path, in_channels: int, context: int = 768, dtype: torch.dtype = torch.float32) -> Path:
    """One-level U-Net, 13.7M weights, with the demo VAE (TAESD's format) and no CLIP.

    Args:
        in_channels: 9 for an inpainting model, 4 for a plain one.
        context: 768 makes ComfyUI see SD 1.5, 1024 SD 2.
    """
    state = {f"model.diffusion_model.{name}": value.to(dtype) for name, value in _unet(in_channels, context).items()}
    save_file({**state, **_vae()}, path)
    return path


def _unet(in_channels: int, context: int) -> dict[str, Tensor]:
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    linear = context == 1024
    heads: dict[str, Any] = {"num_head_channels": 64} if linear else {"num_heads": 8}
    network = UNetModel(
        image_size=32, in_channels=in_channels, out_channels=4, model_channels=320, num_res_blocks=[1],
        channel_mult=[1], transformer_depth=[1], transformer_depth_output=[1, 1], transformer_depth_middle=1,
        context_dim=context, use_spatial_transformer=True, use_linear_in_transformer=linear, legacy=False,
        dtype=torch.float32, operations=comfy.ops.disable_weight_init, **heads,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    return {name: _fill(name, value, generator) for name, value in network.state_dict().items()}


def _fill(name: str, value: Tensor, generator: torch.Generator) -> Tensor:
    if value.ndim > 1:
        return torch.randn(value.shape, generator=generator) * value[0].numel() ** -0.5
    return torch.ones(value.shape) if name.endswith("weight") else torch.zeros(value.shape)


def _vae() -> dict[str, Tensor]:
    state = {"first_stage_model.vae_scale": torch.tensor(1.0), "first_stage_model.vae_shift": torch.tensor(0.0)}
    for name, value in load_file(VAE_FILE).items():
        part, _, number, rest = name.split(".", 3)
        state[f"first_stage_model.taesd_{part}.{int(number) + (part == 'decoder')}.{rest}"] = value.float()
    return state
