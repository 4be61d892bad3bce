"""Small models with random weights in the formats ComfyUI recognises. Most need ComfyUI on the path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

VAE_FILE = Path(__file__).resolve().parent.parent / "faceanon_core" / "assets" / "vae.safetensors"

_SD15: dict[str, Any] = {
    "num_res_blocks": [1], "channel_mult": [1], "transformer_depth": [1], "transformer_depth_output": [1, 1],
    "transformer_depth_middle": 1, "context_dim": 768, "use_linear_in_transformer": False, "num_heads": 8,
}  # fmt: skip
_SD2: dict[str, Any] = {
    **_SD15, "context_dim": 1024, "use_linear_in_transformer": True, "num_heads": -1, "num_head_channels": 64,
}  # fmt: skip
_UNETS: dict[str, dict[str, Any]] = {
    "sd15": _SD15,  # 13.7M weights
    "sd2": _SD2,
    # v-prediction is told by the twelfth output block, so this one has all levels of the real model; 60M weights
    "sd2-v": {
        **_SD2, "num_res_blocks": [2] * 4, "channel_mult": [1] * 4, "transformer_depth": [1] + [0] * 7,
        "transformer_depth_output": [1] + [0] * 11, "transformer_depth_middle": -1,
    },
    # told by transformer_depth: KOALA, the smallest of the family; 56M weights
    "sdxl": {
        **_SD2, "num_res_blocks": [1] * 3, "channel_mult": [1] * 3, "transformer_depth": [0, 2, 5],
        "transformer_depth_output": [0] * 6, "transformer_depth_middle": -1, "context_dim": 2048,
        "num_classes": "sequential", "adm_in_channels": 2816,
    },
}  # fmt: skip
_V_PREDICTION_KEY = "output_blocks.11.1.transformer_blocks.0.norm1.bias"  # ComfyUI looks at its spread


def write_checkpoint(
    path: Path, family: str = "sd15", in_channels: int = 9, dtype: torch.dtype = torch.float32, vae: str = "taesd"
) -> Path:
    """A U-Net and a VAE, without CLIP.

    Args:
        family: what ComfyUI is to see, a key of `_UNETS`.
        in_channels: 9 for an inpainting model, 4 for a plain one.
        vae: "taesd" for the demo VAE, which has TAESD's format; "kl" for a full AutoencoderKL, 84M random weights.
    """
    unet = _random(_unet(family, in_channels).state_dict())
    if _V_PREDICTION_KEY in unet:
        unet[_V_PREDICTION_KEY] = torch.linspace(-0.2, 0.2, 320)
    return _save(path, {name: value.to(dtype) for name, value in unet.items()}, {"taesd": _taesd, "kl": _kl}[vae]())


def write_sd3_checkpoint(path: Path) -> Path:
    """A diffusion transformer with SD 3's keys and a VAE with 16 channels, without text encoders; 3M weights."""
    import comfy.ops
    from comfy.ldm.modules.diffusionmodules.mmdit import OpenAISignatureMMDITWrapper

    context = {"target": "torch.nn.Linear", "params": {"in_features": 4096, "out_features": 64}}
    network = OpenAISignatureMMDITWrapper(
        in_channels=16, depth=1, input_size=None, pos_embed_max_size=32, num_patches=1024, adm_in_channels=2048,
        context_embedder_config=context, dtype=torch.float32, operations=comfy.ops.disable_weight_init,
    )  # fmt: skip
    return _save(path, _random(network.state_dict()), _taesd(16))


def _save(path: Path, network: dict[str, Tensor], vae: dict[str, Tensor]) -> Path:
    state = {f"model.diffusion_model.{name}": value for name, value in network.items()}
    save_file({**state, **{f"first_stage_model.{name}": value for name, value in vae.items()}}, path)
    return path


def write_lora(path: Path) -> Path:
    """A LoRA for the linear layers of SD 1.5's transformers, with kohya's keys."""
    from comfy.utils import unet_to_diffusers

    weights, rank, state = _unet("sd15", 4).state_dict(), 4, {}
    for name, key in unet_to_diffusers(_UNETS["sd15"]).items():
        if "transformer_blocks" in name and name.endswith(".weight") and weights[key].ndim == 2:
            layer, (rows, columns) = "lora_unet_" + name.removesuffix(".weight").replace(".", "_"), weights[key].shape
            state[f"{layer}.lora_up.weight"] = torch.empty(rows, rank)
            state[f"{layer}.lora_down.weight"] = torch.empty(rank, columns)
            state[f"{layer}.alpha"] = torch.tensor(float(rank))
    save_file(_random(state), path)
    return path


def write_controlnet(path: Path) -> Path:
    """A ControlNet for SD 1.5 in the original repository's format."""
    from comfy.cldm.cldm import ControlNet

    network = ControlNet(**_common("sd15", 4), hint_channels=3)
    save_file({f"control_model.{name}": value for name, value in _random(network.state_dict()).items()}, path)
    return path


def write_taesd(folder: Path) -> None:
    """The demo VAE as the two files of models/vae_approx that VAELoader offers as "taesd"."""
    for part in ("taesd_encoder", "taesd_decoder"):
        weights = {name.removeprefix(f"{part}."): value for name, value in _taesd().items() if name.startswith(part)}
        save_file(weights, folder / f"{part}.safetensors")


def write_vae_of_16_channels(path: Path) -> Path:
    """What models/vae holds for a VAE as wide as SD 3's; this one can be written without ComfyUI."""
    save_file(_taesd(16), path)
    return path


def _common(family: str, in_channels: int) -> dict[str, Any]:
    import comfy.ops

    return {
        **{name: list(value) if isinstance(value, list) else value for name, value in _UNETS[family].items()},
        "image_size": 32, "in_channels": in_channels, "model_channels": 320, "use_spatial_transformer": True,
        "legacy": False, "dtype": torch.float32, "operations": comfy.ops.disable_weight_init,
    }  # fmt: skip


def _unet(family: str, in_channels: int) -> Any:
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    return UNetModel(**_common(family, in_channels), out_channels=4)


def _random(state: dict[str, Tensor]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: _fill(name, value, generator) for name, value in state.items()}


def _fill(name: str, value: Tensor, generator: torch.Generator) -> Tensor:
    if name.endswith(".alpha"):
        return value
    if value.ndim > 1:
        return torch.randn(value.shape, generator=generator) * value[0].numel() ** -0.5
    return torch.ones(value.shape) if name.endswith("weight") else torch.zeros(value.shape)


def _taesd(channels: int = 4) -> dict[str, Tensor]:
    """The demo VAE in TAESD's format; with more channels than 4 its own are repeated."""
    state = {"vae_scale": torch.tensor(1.0), "vae_shift": torch.tensor(0.0)}
    for name, value in load_file(VAE_FILE).items():
        part, _, number, rest = name.split(".", 3)
        times = [channels // 4 if size == 4 else 1 for size in value.shape]
        state[f"taesd_{part}.{int(number) + (part == 'decoder')}.{rest}"] = value.float().repeat(times)
    return state


def _kl() -> dict[str, Tensor]:
    from comfy.ldm.models.autoencoder import AutoencoderKL

    shape = {
        "double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 128,
        "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0,
    }  # fmt: skip
    return {name: value.half() for name, value in _random(AutoencoderKL(embed_dim=4, ddconfig=shape).state_dict()).items()}
