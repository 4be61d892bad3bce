"""Attribute encoders the user brings: FaRL (the paper's), and any CLIP or DINOv2 vision transformer.

File layouts: OpenAI's (FaRL, inside a `state_dict` wrapper or not), transformers' and ComfyUI's (models/clip_vision).
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .encoder import AttributeEncoder
from .errors import WeightsError
from .pretrained import build_pretrained, read_json, read_state, weights_file

_CLIP_SCALING = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))  # mean, spread; FaRL's too
_IMAGENET_SCALING = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_DINO_PX = 224  # it was trained at 518 px last; its positions are interpolated, as is usual
# width -> attention heads and activation of the published CLIPs, which the weights do not tell (B, L, H, bigG)
_KNOWN_CLIPS = {768: (12, "quick_gelu"), 1024: (16, "quick_gelu"), 1280: (16, "gelu"), 1664: (16, "gelu")}
_PULL = 62.5  # see `comparable_strength`


class VisionEncoder(nn.Module):
    """A vision transformer of transformers as `AttributeEncoder`; (B, 1 + patches, width), before the final norm.

    Args:
        network: CLIPVisionModel, or Dinov2Model whose final norm was taken off.
        size_px: side of the square it looks at, a multiple of its patches'.
        scaling: mean and spread per channel of its training.
    """

    mean: Tensor
    spread: Tensor
    large = True

    def __init__(self, network: nn.Module, size_px: int, scaling: tuple[tuple[float, ...], tuple[float, ...]]) -> None:
        super().__init__()
        self.network, self.size_px = network, size_px
        for name, values in zip(("mean", "spread"), scaling, strict=True):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)
        self.unit_strength = comparable_strength(self)

    def features(self, image: Tensor, normalise: bool = True) -> Tensor:
        """See `AttributeEncoder.features`."""
        size = (self.size_px, self.size_px)
        if image.shape[-2:] != size:
            image = F.interpolate(image, size, mode="bilinear", antialias=True)
        pixels = (image - self.mean) / self.spread if normalise else image * 2 - 1
        tokens: Tensor = self.network(pixel_values=pixels).last_hidden_state
        return tokens


def comparable_strength(encoder: AttributeEncoder) -> float:
    """The unit strength at which an encoder pulls as hard as the demo encoder does at its own.

    Encoders differ in the number and size of their tokens, so their losses and gradients do by orders of magnitude. The
    pull is the length of the loss's gradient between two pairs of gallery faces, with respect to changes of the picture
    as coarse as a latent; the demo encoder's was tuned by eye and recogniser.
    """
    from .target import gallery_index, gallery_target

    faces = torch.cat([gallery_target(name).image for name in sorted(gallery_index())[:4]])
    with torch.enable_grad():
        change = torch.zeros(2, 3, 32, 32, requires_grad=True)
        wanted = encoder.features(faces[2:]).detach()
        found = encoder.features(faces[:2] + F.interpolate(change, faces.shape[-2:]))
        (gradient,) = torch.autograd.grad(((found - wanted) ** 2).mean(-1).sum(), change)
    return _PULL / float(gradient.flatten(1).norm(dim=1).mean())


def load_vision_encoder(path: Path) -> VisionEncoder:
    """Read a CLIP (FaRL included) or DINOv2 vision transformer, frozen, in float32.

    Args:
        path: a weights file, or a folder with model.safetensors. A config.json beside the weights is believed where the
            shapes do not tell: heads and activation.
    Raises: InputError if transformers is missing; WeightsError if the file is missing, damaged, or of another
        architecture, naming its shapes and the expected ones.
    """
    file = weights_file(path)
    state, config = read_state(file), read_json(file.parent / "config.json")
    if "visual.conv1.weight" in state:
        return _clip(_from_openai_layout(state, file), config, file)
    if any(name.endswith("embeddings.patch_embedding.weight") for name in state):
        return _clip(state, config, file)
    if any(name.endswith("embeddings.patch_embeddings.projection.weight") for name in state):
        return _dinov2(state, config, file)
    name, shape = max(((name, tuple(value.shape)) for name, value in state.items()), key=lambda row: math.prod(row[1]))
    raise WeightsError(
        f"{file} is no CLIP or DINOv2 vision model: its largest tensor is {name} {shape}, expected an "
        "embeddings.patch_embedding.weight such as (768, 3, 16, 16)"
    )


def _clip(state: dict[str, Tensor], found: dict[str, Any], file: Path) -> VisionEncoder:
    state = {f"vision_model.{name}": value for name, value in _below(state, "vision_model.").items()}
    patches = _tensor(state, "vision_model.embeddings.patch_embedding.weight", 4, file)
    places = _tensor(state, "vision_model.embeddings.position_embedding.weight", 2, file)
    if "vision_model.embeddings.class_embedding" not in state:
        raise WeightsError(
            f"{file} is of another architecture (SigLIP?): positions are {tuple(places.shape)} without a class token, "
            f"expected embeddings.class_embedding of {(len(patches),)}"
        )
    width, patch_px, side = len(patches), patches.shape[-1], _grid_side(len(places), file, places)
    found = found.get("vision_config", found)
    heads, activation = _KNOWN_CLIPS.get(width, (None, None))
    if found.get("hidden_size") == width:
        heads, activation = found.get("num_attention_heads", heads), found.get("hidden_act", activation)
    if heads is None:
        raise WeightsError(
            f"{file} holds patches of {tuple(patches.shape)}, but the known CLIPs are {', '.join(map(str, _KNOWN_CLIPS))} "
            "wide; put its config.json beside it"
        )
    config = {
        "hidden_size": width, "patch_size": patch_px, "image_size": side * patch_px, "num_attention_heads": heads,
        "hidden_act": activation, "num_hidden_layers": _layers(state, "encoder.layers"),
        "intermediate_size": len(_tensor(state, "vision_model.encoder.layers.0.mlp.fc1.weight", 2, file)),
    }  # fmt: skip
    return VisionEncoder(build_pretrained("CLIPVisionModel", config, state, file), side * patch_px, _CLIP_SCALING)


def _dinov2(state: dict[str, Tensor], found: dict[str, Any], file: Path) -> VisionEncoder:
    state = _below(state, "dinov2.")
    if "embeddings.register_tokens" in state:
        shape = tuple(state["embeddings.register_tokens"].shape)
        raise WeightsError(f"{file} is a DINOv2 with registers {shape}, expected one without, whose tokens are patches")
    patches = _tensor(state, "embeddings.patch_embeddings.projection.weight", 4, file)
    places = _tensor(state, "embeddings.position_embeddings", 3, file)
    width, patch_px, side = len(patches), patches.shape[-1], _grid_side(places.shape[1], file, places)
    heads = found.get("num_attention_heads") if found.get("hidden_size") == width else None
    config = {
        "hidden_size": width, "patch_size": patch_px, "image_size": side * patch_px,
        "num_attention_heads": heads or max(1, width // 64), "num_hidden_layers": _layers(state, "encoder.layer"),
        "use_swiglu_ffn": any(".mlp.weights_in." in name for name in state),
    }  # fmt: skip
    network = build_pretrained("Dinov2Model", config, state, file)
    network.layernorm = nn.Identity()  # features are taken before the final norm, docs/METHOD.md
    return VisionEncoder(network, _DINO_PX // patch_px * patch_px, _IMAGENET_SCALING)


def _below(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors below `prefix` without it, or all if there are none."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)} or state


def _tensor(state: dict[str, Tensor], name: str, dimensions: int, file: Path) -> Tensor:
    if name not in state or state[name].ndim != dimensions:
        shape = tuple(state[name].shape) if name in state else "missing"
        raise WeightsError(f"{file} is of another architecture: {name} is {shape}, expected {dimensions} dimensions")
    return state[name]


def _grid_side(tokens: int, file: Path, places: Tensor) -> int:
    side = math.isqrt(tokens - 1)
    if side * side != tokens - 1:
        raise WeightsError(
            f"{file} is of another architecture: its positions are {tuple(places.shape)}, expected a class token and a "
            f"square of patches, such as {side * side + 1} tokens"
        )
    return side


def _layers(state: dict[str, Tensor], name: str) -> int:
    """How many numbered layers there are below `name`."""
    found = {match[1] for key in state if (match := re.search(rf"(?:^|\.){re.escape(name)}\.(\d+)\.", key))}
    return len(found)


_OPENAI_NAMES = (
    ("visual.", "vision_model."), ("conv1.", "embeddings.patch_embedding."), ("class_emb", "embeddings.class_emb"),
    ("positional_embedding", "embeddings.position_embedding.weight"), ("ln_pre.", "pre_layrnorm."),
    ("ln_post.", "post_layernorm."), ("transformer.resblocks.", "encoder.layers."), (".attn.", ".self_attn."),
    (".ln_1.", ".layer_norm1."), (".ln_2.", ".layer_norm2."), (".c_fc.", ".fc1."), (".c_proj.", ".fc2."),
)  # fmt: skip


def _from_openai_layout(state: dict[str, Tensor], file: Path) -> dict[str, Tensor]:
    """OpenAI-CLIP's keys in transformers' layout; its query, key and value projections are one tensor.

    Raises: WeightsError for its ResNets.
    """
    if "visual.class_embedding" not in state:
        shape = tuple(state["visual.conv1.weight"].shape)
        raise WeightsError(f"{file} is a CLIP ResNet: visual.conv1.weight is {shape}, expected e.g. (768, 3, 16, 16)")
    converted: dict[str, Tensor] = {}
    for name, value in state.items():
        if not name.startswith("visual.") or name == "visual.proj":
            continue
        renamed = name
        for theirs, ours in _OPENAI_NAMES:
            renamed = renamed.replace(theirs, ours)
        if ".in_proj_" in name:
            for part, rows in zip("qkv", value.chunk(3), strict=True):
                converted[renamed.replace("in_proj_", f"{part}_proj.")] = rows
        else:
            converted[renamed] = value
    return converted
