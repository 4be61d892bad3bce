"""Encoders the user brings, in their published layouts, against forward passes written independently of the pack."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from faceanon_core.cli import main
from faceanon_core.diffusion import has_native_bfloat16
from faceanon_core.errors import WeightsError
from faceanon_core.guidance import AttributeTerm, CombinedGuidance, GuidanceSettings
from faceanon_core.target import gallery_index, gallery_target
from faceanon_core.vision_encoders import VisionEncoder, comparable_strength, load_vision_encoder

ROOT = Path(__file__).resolve().parent.parent
transformers = pytest.importorskip("transformers")

CLIP_MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
CLIP_SPREAD = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]


def openai_layout(width: int, layers: int, patch_px: int, side: int) -> dict[str, Tensor]:
    """Random weights in the layout of OpenAI's CLIP (and FaRL), with something of the text tower."""
    torch.manual_seed(0)

    def rand(*shape: int) -> Tensor:
        return torch.randn(shape) * 0.05

    state = {
        "logit_scale": torch.tensor(4.6), "text_projection": rand(8, 8), "visual.proj": rand(width, 8),
        "transformer.resblocks.0.ln_1.weight": rand(8), "token_embedding.weight": rand(9, 8),
        "visual.conv1.weight": rand(width, 3, patch_px, patch_px), "visual.class_embedding": rand(width),
        "visual.positional_embedding": rand(side * side + 1, width),
    }  # fmt: skip
    norms = ["visual.ln_pre", "visual.ln_post"]
    for i in range(layers):
        block = f"visual.transformer.resblocks.{i}"
        norms += [f"{block}.ln_1", f"{block}.ln_2"]
        state |= {f"{block}.attn.in_proj_weight": rand(3 * width, width), f"{block}.attn.in_proj_bias": rand(3 * width)}
        sizes = {"attn.out_proj": (width, width), "mlp.c_fc": (4 * width, width), "mlp.c_proj": (width, 4 * width)}
        for name, shape in sizes.items():
            state |= {f"{block}.{name}.weight": rand(*shape), f"{block}.{name}.bias": rand(shape[0])}
    for norm in norms:
        state |= {f"{norm}.weight": 1 + rand(width), f"{norm}.bias": rand(width)}
    return state


def openai_forward(state: dict[str, Tensor], pixels: Tensor, layers: int, heads: int) -> Tensor:
    """OpenAI's VisionTransformer up to its last layer, before ln_post, out of torch's functions alone."""

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])

    weight = state["visual.conv1.weight"]
    patches = F.conv2d(pixels, weight, stride=weight.shape[-1]).flatten(2).transpose(1, 2)
    x = torch.cat([state["visual.class_embedding"].expand(len(patches), 1, -1), patches], 1)
    x = norm(x + state["visual.positional_embedding"], "visual.ln_pre").transpose(0, 1)
    for i in range(layers):
        block = f"visual.transformer.resblocks.{i}"
        y = norm(x, f"{block}.ln_1")
        weights = [state[f"{block}.attn.{name}"] for name in ("in_proj_weight", "in_proj_bias")]
        out = [state[f"{block}.attn.out_proj.{name}"] for name in ("weight", "bias")]
        x = x + F.multi_head_attention_forward(y, y, y, y.shape[-1], heads, *weights, None, None, False, 0.0, *out)[0]
        y = F.linear(norm(x, f"{block}.ln_2"), state[f"{block}.mlp.c_fc.weight"], state[f"{block}.mlp.c_fc.bias"])
        y = y * torch.sigmoid(1.702 * y)  # OpenAI's quick GELU
        x = x + F.linear(y, state[f"{block}.mlp.c_proj.weight"], state[f"{block}.mlp.c_proj.bias"])
    return x.transpose(0, 1)


@pytest.fixture(scope="module")
def farl(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Tensor], VisionEncoder]:
    """Random weights of ViT-B/16's real shapes in a file as FaRL is published, and the encoder read from it."""
    state = {name: value.half().float() for name, value in openai_layout(768, 12, 16, 14).items()}
    path = tmp_path_factory.mktemp("farl") / "FaRL-Base-Patch16-LAIONFace20M-ep64.pth"
    torch.save({"state_dict": {name: value.half() for name, value in state.items()}, "epoch": 64}, path)
    encoder = load_vision_encoder(path)
    path.unlink()
    return state, encoder


@pytest.mark.parametrize("normalise", [True, False])
def test_farls_published_layout_gives_the_features_of_an_independent_forward_pass(farl, crop, normalise: bool) -> None:
    state, encoder = farl
    features = encoder.features(crop.tensor, normalise)
    image = F.interpolate(crop.tensor, (224, 224), mode="bilinear", antialias=True)
    pixels = (image - CLIP_MEAN) / CLIP_SPREAD if normalise else image * 2 - 1
    wanted = openai_forward(state, pixels, 12, 12)
    assert features.shape == (1, 197, 768)
    torch.testing.assert_close(features, wanted, rtol=1e-3, atol=1e-3)


def test_the_gradient_reaches_the_image_and_agrees_with_finite_differences(farl, crop) -> None:
    _, encoder = farl
    wanted = encoder.features(gallery_target(min(gallery_index())).image)
    image = crop.tensor.requires_grad_(True)

    def loss(picture: Tensor) -> Tensor:
        return (encoder.features(picture) - wanted).square().mean(-1).sum()

    (gradient,) = torch.autograd.grad(loss(image), image)
    step = 0.05 * gradient / gradient.norm()
    with torch.no_grad():
        slope = float(loss(image + step) - loss(image - step)) / 0.1
    assert slope == pytest.approx(float(gradient.norm()), rel=0.02)


def test_strength_1_pulls_as_hard_as_with_the_demo_encoder(farl, anonymizer, crop) -> None:
    assert comparable_strength(anonymizer.encoder) == pytest.approx(anonymizer.encoder.unit_strength, rel=0.3)
    latent, target, norms = anonymizer.model.encode(crop.tensor), gallery_target(min(gallery_index())).image, []
    for encoder in (anonymizer.encoder, farl[1]):
        guidance = CombinedGuidance(anonymizer.model.decode, [AttributeTerm(encoder, GuidanceSettings(), target)])
        norms.append(float(guidance.gradient(latent, 0.0)[0].norm()))
    assert 0.2 < norms[1] / norms[0] < 5


def test_a_large_encoder_guides_in_bfloat16_where_that_is_faster_unless_exactly_asked(farl, anonymizer, crop) -> None:
    latent, target = anonymizer.model.encode(crop.tensor), gallery_target(min(gallery_index())).image
    quick, exact = (
        CombinedGuidance(anonymizer.model.decode, [AttributeTerm(farl[1], GuidanceSettings(exact=exact), target)])
        for exact in (False, True)
    )
    found, wanted = quick.gradient(latent, 0.0)[0], exact.gradient(latent, 0.0)[0]
    assert float(F.cosine_similarity(found.flatten(), wanted.flatten(), dim=0)) > 0.98
    assert torch.equal(found, wanted) != has_native_bfloat16(latent.device)


def small_clip(folder: Path, **changes: Any) -> Any:
    """A saved CLIP vision model of transformers: 28 px, 4 patches."""
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.CLIPVisionConfig(**shape | {"image_size": 28, "patch_size": 14, "hidden_act": "gelu"} | changes)
    network = transformers.CLIPVisionModel(config).eval()
    network.save_pretrained(folder)
    return network


def small_dinov2(folder: Path, **changes: Any) -> Any:
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 70, "patch_size": 14}
    network = transformers.Dinov2Model(transformers.Dinov2Config(**shape | changes)).eval()
    network.save_pretrained(folder)
    return network


def test_a_transformers_folder_gives_what_transformers_itself_gives(tmp_path: Path, crop) -> None:
    network = small_clip(tmp_path)
    image = F.interpolate(crop.tensor, (28, 28), mode="bilinear", antialias=True)
    with torch.no_grad():
        wanted = network(pixel_values=(image - CLIP_MEAN) / CLIP_SPREAD).last_hidden_state
    assert torch.allclose(load_vision_encoder(tmp_path).features(crop.tensor), wanted, atol=1e-4)


def test_comfyuis_clip_vision_layout_gives_the_same(tmp_path: Path, crop) -> None:
    """One file with `vision_model.` keys and the projection, in half precision, as in models/clip_vision."""
    small_clip(tmp_path)
    state = {f"vision_model.{name.removeprefix('vision_model.')}": value for name, value in file_of(tmp_path).items()}
    single = tmp_path / "clip_vision"
    single.mkdir()
    save_file({**state, "visual_projection.weight": torch.zeros(8, 64)}, single / "clip.safetensors")
    (single / "config.json").write_text((tmp_path / "config.json").read_text())
    got, wanted = (load_vision_encoder(path).features(crop.tensor) for path in (single / "clip.safetensors", tmp_path))
    assert torch.equal(got, wanted)


@pytest.mark.parametrize("swiglu", [False, True])
def test_dinov2_gives_its_tokens_before_the_final_norm(tmp_path: Path, crop, swiglu: bool) -> None:
    network = small_dinov2(tmp_path, use_swiglu_ffn=swiglu)
    features = load_vision_encoder(tmp_path).features(crop.tensor)
    image = F.interpolate(crop.tensor, (224, 224), mode="bilinear", antialias=True)
    mean, spread = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        wanted = network(pixel_values=(image - mean[:, None, None]) / spread[:, None, None]).last_hidden_state
        assert features.shape == (1, 257, 64)
        assert torch.allclose(network.layernorm(features), wanted, atol=1e-4)


def test_an_encoder_works_from_the_command_line(tmp_path: Path, portrait_file: Path) -> None:
    small_clip(tmp_path / "clip")
    settings = ["--steps", "3", "--seed", "2", "--recogniser", "none"]
    for name, more in (("own.png", ["--encoder", str(tmp_path / "clip")]), ("demo.png", [])):
        assert main(["anonymize", str(portrait_file), "-o", str(tmp_path / name), *settings, *more]) == 0
    assert (tmp_path / "own.png").read_bytes() != (tmp_path / "demo.png").read_bytes()


def file_of(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def changed(folder: Path, edit: Any) -> Path:
    state = file_of(folder)
    edit(state)
    save_file({name: value.contiguous() for name, value in state.items()}, folder / "model.safetensors")
    return folder


def rename(state: dict[str, Tensor], part: str, other: str) -> None:
    for name in list(state):
        state[name.replace(part, other)] = state.pop(name)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda state: state.update({"encoder.layers.1.mlp.fc1.weight": torch.zeros(80, 64)}),
            r"another architecture: .*layers\.1\.mlp\.fc1\.weight is \(80, 64\), expected \(96, 64\)",
        ),
        (
            lambda state: state.pop("pre_layrnorm.bias"),
            r"another architecture: it has no .*pre_layrnorm\.bias, expected with shape \(64,\)",
        ),
        (
            lambda state: state.update({"embeddings.position_embedding.weight": torch.zeros(7, 64)}),
            r"positions are \(7, 64\), expected a class token and a square of patches, such as 5 tokens",
        ),
        (
            lambda state: state.pop("embeddings.class_embedding"),
            r"SigLIP.*positions are \(5, 64\) without a class token, expected embeddings\.class_embedding of \(64,\)",
        ),
        (
            lambda state: rename(state, "patch_embedding", "stem"),
            r"no CLIP or DINOv2 vision model: its largest tensor is embeddings\.stem\.weight \(64, 3, 14, 14\), expected",
        ),
    ],
)
def test_another_architecture_is_refused_with_both_shapes(tmp_path: Path, edit: Any, message: str) -> None:
    small_clip(tmp_path)
    with pytest.raises(WeightsError, match=message):
        load_vision_encoder(changed(tmp_path, edit))


def test_a_clip_of_unknown_width_needs_its_config(tmp_path: Path) -> None:
    small_clip(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(WeightsError, match=r"of \(64, 3, 14, 14\), but the known CLIPs are 768, 1024, 1280, 1664 wide"):
        load_vision_encoder(tmp_path)


def test_resnets_and_registers_are_told(tmp_path: Path) -> None:
    torch.save({"visual.conv1.weight": torch.zeros(32, 3, 3, 3)}, tmp_path / "RN50.pt")
    with pytest.raises(WeightsError, match=r"CLIP ResNet: visual\.conv1\.weight is \(32, 3, 3, 3\), expected e\.g\."):
        load_vision_encoder(tmp_path / "RN50.pt")
    small_dinov2(tmp_path)
    registers = changed(tmp_path, lambda state: state.update({"embeddings.register_tokens": torch.zeros(1, 4, 64)}))
    with pytest.raises(WeightsError, match=r"DINOv2 with registers \(1, 4, 64\)"):
        load_vision_encoder(registers)


class Evil:
    def __reduce__(self) -> Any:
        return os.mkdir, (str(Path(self.path)),)

    def __init__(self, path: Path) -> None:
        self.path = path


def test_nothing_in_a_file_is_run_and_damage_is_told(tmp_path: Path) -> None:
    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"state_dict": Evil(tmp_path / "made")}, protocol=2))
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    torch.save([1, 2], tmp_path / "list.pt")
    for name, message in (
        ("evil.pth", "damaged|holds more than weights"),
        ("cut.safetensors", "damaged or no weights file"),
        ("list.pt", "holds no state dict"),
        ("absent.pth", "is missing; name a weights file"),
    ):
        with pytest.raises(WeightsError, match=message):
            load_vision_encoder(tmp_path / name)
    assert not (tmp_path / "made").exists()


def test_without_transformers_one_sentence_says_what_to_install(tmp_path: Path, portrait_file: Path) -> None:
    small_clip(tmp_path / "clip")
    code = (
        "import sys; sys.modules['transformers'] = None; from faceanon_core.cli import main; "
        f"sys.exit(main(['anonymize', {str(portrait_file)!r}, '-o', {str(tmp_path / 'x.png')!r}, "
        f"'--recogniser', 'none', '--encoder', {str(tmp_path / 'clip')!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "needs the package transformers; install it with pip install transformers" in done.stderr
    assert "Traceback" not in done.stderr
