"""The demo model with its shipped weights, against diffusers' own schedulers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from faceanon_core.attributes import LEARNED
from faceanon_core.diffusion import (
    CONTEXT_WIDTH,
    SCHEDULE_CONFIG,
    AttributeTokens,
    DemoModel,
    InpaintCond,
    build_schedule,
    has_native_bfloat16,
    last_sigma,
    load_vae,
    native_bfloat16,
    schedule_sigmas,
)
from faceanon_core.eight_bits import in_8_bits, read_weights
from faceanon_core.errors import WeightsError
from faceanon_core.guidance import AttributeTerm, CombinedGuidance, GuidanceSettings
from faceanon_core.sampling import sample_guided, seeded_noise
from faceanon_core.sketch import hide_face
from faceanon_core.weights import ASSETS


@pytest.fixture(scope="module")
def model(anonymizer) -> DemoModel:
    return anonymizer.model


@pytest.fixture(scope="module")
def source(model, crop) -> Tensor:
    return model.encode(crop.tensor)


@pytest.fixture(scope="module")
def cond(model, crop, source) -> InpaintCond:
    """The middle of the crop is to be regenerated."""
    core = torch.zeros(1, 1, 256, 256)
    core[..., 64:192, 64:192] = 1
    hole = core[..., ::8, ::8]
    return InpaintCond(model.tokens.encode({"sex": "male"}), hole, model.encode(hide_face(crop.tensor, core)), source)


def test_a_face_survives_the_vae(model, crop, source) -> None:
    assert source.shape == (1, 4, 32, 32)
    again = model.decode(source).clamp(0, 1)
    psnr = -10 * torch.log10((again - crop.tensor).square().mean())
    assert psnr > 25


def test_scaled_latents_have_about_unit_spread(source) -> None:
    assert 0.5 < float(source.std()) < 2


@pytest.mark.parametrize("steps", [1, 2, 20, 45])
def test_noise_levels_fall_from_the_schedules_noisiest_to_0(model, steps: int) -> None:
    sigmas = model.sigmas(steps)
    alpha = build_schedule().alphas_cumprod[-1]
    assert sigmas.shape == (steps + 1,)
    assert float(sigmas[0]) == pytest.approx(float((1 - alpha).sqrt() / alpha.sqrt()), rel=1e-4)
    assert sigmas[-1] == 0
    assert (sigmas[1:] < sigmas[:-1]).all()


@pytest.mark.parametrize("timestep", [999, 500, 40])
def test_the_prediction_is_that_of_diffusers_ddim_for_v(model, source, cond, timestep: int) -> None:
    from diffusers import DDIMScheduler

    ddim = DDIMScheduler(**SCHEDULE_CONFIG, clip_sample=False)
    ddim.set_timesteps(1000)
    noise = seeded_noise(0)(source)
    x_t = ddim.add_noise(source, noise, torch.tensor([timestep]))
    inputs = torch.cat([x_t, cond.mask, cond.masked_latent], 1)
    with native_bfloat16(model.device):  # the model's own precision on this machine
        v = model.unet(inputs, timestep, encoder_hidden_states=cond.context).sample.float()
    expected = ddim.step(v, timestep, x_t).pred_original_sample
    alpha = ddim.alphas_cumprod[timestep]
    sigma = (1 - alpha).sqrt() / alpha.sqrt()
    free = InpaintCond(cond.context, cond.mask, cond.masked_latent)
    rounding = 0.03 if has_native_bfloat16(model.device) else 1e-3  # a last bit of bfloat16 at the size of v
    assert torch.allclose(model.denoise(source + sigma * noise, sigma.view(1), free), expected, atol=rounding)


def test_outside_the_hole_the_source_is_restored_exactly(model, source, cond) -> None:
    denoised = model.denoise(source + 3 * seeded_noise(0)(source), torch.tensor([3.0]), cond)
    outside = cond.mask.expand_as(source) == 0
    assert torch.equal(denoised[outside], source[outside])
    assert (denoised[~outside] != source[~outside]).all()


def test_a_nearly_clean_latent_stays_as_it_is(model, source, cond) -> None:
    denoised = model.denoise(source, torch.tensor([0.03]), cond)
    assert (denoised - source).abs().mean() < 0.1


def test_the_drawing_is_seen_down_to_its_noise_level_and_grey_below_it(model, source, cond) -> None:
    x = source + 3 * seeded_noise(0)(source)
    drawn, grey = (replace(cond, masked_latent=latent) for latent in (source, cond.masked_latent))
    both = replace(drawn, plain_latent=cond.masked_latent, plain_below=3.0)
    for sigma, alone in ((3.1, drawn), (3.0, drawn), (2.9, grey)):
        level = torch.tensor([sigma])
        assert torch.equal(model.denoise(x, level, both), model.denoise(x, level, alone))
    assert not torch.equal(model.denoise(x, level, drawn), model.denoise(x, level, grey))


@pytest.mark.parametrize("steps", [1, 2, 20, 21, 25, 45])
def test_a_share_of_the_steps_is_counted_as_the_guidance_counts_it(steps: int) -> None:
    """0.28 of 25 steps are 7, of 20 steps 6: the sixth begins at 0.25."""
    sigmas = torch.from_numpy(schedule_sigmas(steps))
    for share in (i / 100 for i in range(101)):
        begun = [round(index / steps, 9) < share for index in range(steps)]
        assert (sigmas[:-1] >= last_sigma(sigmas, share)).tolist() == begun


def sample(model: DemoModel, source: Tensor, cond: InpaintCond, guidance: Any = None) -> Tensor:
    sigmas, noise = model.sigmas(2), seeded_noise(3)
    return sample_guided(model.denoise, source + sigmas[0] * noise(source), sigmas, cond, noise, guidance)


def test_strength_0_is_bit_identical_to_no_guidance(anonymizer, model, crop, source, cond) -> None:
    def guide(strength: float) -> CombinedGuidance:
        settings = GuidanceSettings(strength=strength)
        return CombinedGuidance(model.decode, [AttributeTerm(anonymizer.encoder, settings, crop.tensor.flip(-1))])

    plain = sample(model, source, cond)
    assert torch.equal(sample(model, source, cond, guide(0.0)), plain)
    assert not torch.equal(sample(model, source, cond, guide(1.0)), plain)


def test_the_attributes_change_what_is_made(model, source, cond) -> None:
    x = source + 5 * seeded_noise(0)(source)
    other = InpaintCond(model.tokens.encode({"sex": "female", "age": "baby"}), cond.mask, cond.masked_latent, source)
    sigma = torch.tensor([5.0])
    assert (model.denoise(x, sigma, other) - model.denoise(x, sigma, cond)).abs().max() > 1e-3


def test_there_is_one_token_per_attribute_and_unknown_is_its_own(model) -> None:
    known, unknown = model.tokens.encode({"age": "senior"}), model.tokens.encode({})
    assert known.shape == unknown.shape == (1, len(LEARNED), CONTEXT_WIDTH)
    assert [bool((known[0, i] != unknown[0, i]).any()) for i in range(len(LEARNED))] == [
        attribute.name == "age" for attribute in LEARNED
    ]


def test_no_two_values_share_a_token() -> None:
    tokens = AttributeTokens()
    every = [
        tokens.encode({attribute.name: value})[0, column]
        for column, attribute in enumerate(LEARNED)
        for value in attribute.values
    ]
    assert len(torch.unique(torch.stack(every), dim=0)) == sum(len(attribute.values) for attribute in LEARNED)


def test_the_schedule_of_the_sampler_is_a_subset_of_the_training_schedule() -> None:
    alphas = build_schedule().alphas_cumprod.numpy()
    every = np.sqrt((1 - alphas) / alphas)
    for sigma in schedule_sigmas(45)[:-1]:
        assert np.abs(every - sigma).min() < 1e-3 * sigma


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"vae\.safetensors is missing; reinstall the pack"):
        DemoModel(tmp_path)


def test_weights_stored_in_8_bits_come_back_nearly_as_they_were_in_half_the_space(tmp_path: Path) -> None:
    weights = {"conv.weight": torch.randn(8, 16, 3, 3) * torch.logspace(-4, 1, 8).reshape(-1, 1, 1, 1)}
    weights |= {"norm.bias": torch.randn(16), "unused.weight": torch.zeros(2, 3)}
    stored = in_8_bits(weights)
    save_file(stored, tmp_path / "weights.safetensors")
    again = read_weights(tmp_path / "weights.safetensors")
    assert again.keys() == weights.keys()
    for name, value in weights.items():  # each channel by itself: the quiet ones as well as the loud ones
        rows, found = value.reshape(len(value), -1), again[name].reshape(len(value), -1)
        assert ((found - rows).norm(dim=1) <= 0.01 * rows.norm(dim=1)).all()
    assert stored["conv.weight"].numel() * stored["conv.weight"].element_size() == weights["conv.weight"].numel()


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    state = load_file(ASSETS / "vae.safetensors")
    state.pop(next(iter(state)))
    save_file(state, tmp_path / "vae.safetensors")
    with pytest.raises(WeightsError, match=r"vae\.safetensors holds another architecture than the demo model's"):
        load_vae(tmp_path / "vae.safetensors")


@pytest.mark.parametrize("content", [b"", b"not safetensors", b"\x10\0\0\0\0\0\0\0{}"])
def test_a_damaged_weights_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "vae.safetensors").write_bytes(content)
    with pytest.raises(WeightsError, match=r"vae\.safetensors is damaged and cannot be read"):
        load_vae(tmp_path / "vae.safetensors")


def test_all_shipped_files_together_stay_under_96_mb() -> None:
    assert sum(path.stat().st_size for path in ASSETS.rglob("*") if path.is_file()) <= 96e6
