"""The guidance's gradient, with the real encoder and the real decoder."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from faceanon_core.encoder import DemoEncoder
from faceanon_core.errors import AnonymizationError, InputError
from faceanon_core.guidance import AttributeTerm, CombinedGuidance, GuidanceSettings, feature_distance, token_weights
from faceanon_core.parsing import LandmarkParser
from faceanon_core.regions import RegionChoice, latent_mask, region_mask
from faceanon_core.target import gallery_index, gallery_target

SETTINGS = GuidanceSettings(end=1.0)


@pytest.fixture(scope="module")
def target() -> Tensor:
    return gallery_target(min(gallery_index())).image


@pytest.fixture(scope="module")
def latent(anonymizer, crop) -> Tensor:
    return anonymizer.model.encode(crop.tensor)


def guidance(anonymizer, settings: GuidanceSettings, target: Tensor, source: Tensor | None = None) -> CombinedGuidance:
    return CombinedGuidance(anonymizer.model.decode, [AttributeTerm(anonymizer.encoder, settings, target, source)])


def test_the_distance_is_the_sum_over_tokens_of_the_mean_square_over_channels() -> None:
    features, wanted = torch.zeros(2, 3, 4), torch.zeros(1, 3, 4)
    features[0, 0] = 2.0  # class token: mean square 4
    features[1, 1:, 0] = 2.0  # two patches: mean square 1 each
    assert feature_distance(features, wanted).tolist() == [4, 2]
    assert feature_distance(features, wanted, "class").tolist() == [4, 0]
    assert feature_distance(features, wanted, "patches").tolist() == [0, 2]


def test_patches_of_the_region_are_those_at_least_half_inside_it() -> None:
    """8 x 8 px and 2 x 2 patches: the first whole, the second half, the third less than half inside."""
    region = torch.zeros(1, 1, 8, 8)
    region[..., :4, :6] = 1
    region[..., 4:, :1] = 1
    assert token_weights("region", 5, region).tolist() == [[0, 1, 1, 0, 0]]
    features = torch.ones(1, 5, 3)
    assert feature_distance(features, features * 0, "region", region).tolist() == [2]


def test_a_region_smaller_than_a_patch_still_has_one() -> None:
    small = torch.zeros(2, 1, 8, 8)
    small[0, :, 5:7, 5:7] = 1
    small[1, :, :, 0] = 1
    assert token_weights("region", 5, small).tolist() == [[0, 0, 0, 0, 1], [0, 1, 0, 1, 0]]


@pytest.mark.parametrize("seed", [0, 1])
def test_the_region_of_a_real_face_pulls_inside_the_face_more_than_all_tokens_do(anonymizer, crop, target, seed) -> None:
    core = region_mask(LandmarkParser().parse(crop.pixels, crop.landmarks), RegionChoice()).core
    latent = torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(seed))  # as in the first, guided steps
    inside = latent_mask(core, latent.shape[-1])

    def share(tokens: str) -> float:
        term = AttributeTerm(anonymizer.encoder, replace(SETTINGS, tokens=tokens), target, region=core)
        gradient, _ = CombinedGuidance(anonymizer.model.decode, [term]).gradient(latent, 0.0)
        return float((gradient * inside).square().sum() / gradient.square().sum())

    assert share("region") > share("all") + 0.05


def test_the_default_loss_counts_every_token_once(anonymizer, crop, target) -> None:
    total, parts = AttributeTerm(anonymizer.encoder, SETTINGS, target).losses(crop.tensor)
    features, wanted = anonymizer.encoder.features(crop.tensor), anonymizer.encoder.features(target)
    by_hand = sum(float((features[0, k] - wanted[0, k]).square().mean()) for k in range(65))
    assert float(total) == float(parts["toward"]) == pytest.approx(by_hand, rel=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        SETTINGS,
        replace(SETTINGS, tokens="class", strength=0.25, toward=0.5, away=0.7),
    ],
)
def test_the_gradient_agrees_with_finite_differences(anonymizer, crop, target, settings: GuidanceSettings) -> None:
    encoder, vae = copy.deepcopy(anonymizer.encoder).double(), copy.deepcopy(anonymizer.model.vae).double()

    def decode(latent: Tensor) -> Tensor:
        return (vae.decode(latent).sample + 1) / 2

    small = torch.nn.functional.interpolate(crop.tensor.double(), (32, 32), mode="area")
    latent = vae.encode(small * 2 - 1).latents
    term = AttributeTerm(encoder, settings, target.double(), crop.tensor.double())
    gradient, _ = CombinedGuidance(decode, [term]).gradient(latent, 0.0)
    torch.manual_seed(0)
    direction, step = torch.randn_like(latent), 1e-7
    with torch.no_grad():
        ends = [term.losses(decode(latent + sign * step * direction))[0] for sign in (1, -1)]
    slope = float((ends[0] - ends[1]).sum()) / (2 * step) * settings.strength * encoder.unit_strength
    assert slope != 0
    assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-4)


def test_following_the_gradient_comes_closer_to_the_target(anonymizer, latent, target) -> None:
    guide = guidance(anonymizer, SETTINGS, target)
    _, before = guide.gradient(latent, 0.0)
    moved = latent
    for _ in range(3):
        gradient, _ = guide.gradient(moved, 0.0)
        moved = moved - 0.02 * latent.norm() / gradient.norm() * gradient
    _, after = guide.gradient(moved, 0.0)
    assert after["toward"] < 0.95 * before["toward"]


def test_pushing_away_moves_off_the_source(anonymizer, crop, latent, target) -> None:
    guide = guidance(anonymizer, replace(SETTINGS, toward=0.0, away=1.0), target, crop.tensor)
    gradient, before = guide.gradient(latent, 0.0)
    _, after = guide.gradient(latent - 0.02 * latent.norm() / gradient.norm() * gradient, 0.0)
    assert after["away"] > before["away"]


def test_the_gradient_is_proportional_to_the_strength(anonymizer, latent, target) -> None:
    once, _ = guidance(anonymizer, SETTINGS, target).gradient(latent, 0.0)
    twice, _ = guidance(anonymizer, replace(SETTINGS, strength=2.0), target).gradient(latent, 0.0)
    assert torch.allclose(twice, 2 * once, rtol=1e-4, atol=1e-6)


def test_at_the_target_itself_there_is_no_pull(anonymizer, latent) -> None:
    with torch.no_grad():
        shown = anonymizer.model.decode(latent)
    gradient, losses = guidance(anonymizer, SETTINGS, shown).gradient(latent, 0.0)
    assert losses["toward"] == pytest.approx(0, abs=1e-6)
    assert gradient.abs().max() < 1e-2


def test_pictures_of_a_batch_are_guided_apart(anonymizer, latent, target) -> None:
    guide = guidance(anonymizer, SETTINGS, target)
    both, _ = guide.gradient(torch.cat([latent, -latent]), 0.0)
    assert torch.allclose(both[:1], guide.gradient(latent, 0.0)[0], rtol=1e-2, atol=1e-3 * float(both[:1].abs().max()))


def test_a_large_batch_is_guided_in_chunks_with_the_same_result(anonymizer, crop, latent, target) -> None:
    """Each face with its own target and source; what is decoded at once stays small."""
    decoded: list[int] = []
    vae = copy.deepcopy(anonymizer.model.vae).float()

    def decode(latent: Tensor) -> Tensor:
        decoded.append(len(latent))
        return (vae.decode(latent).sample + 1) / 2

    def guide(chunk_px: int) -> CombinedGuidance:
        term = AttributeTerm(anonymizer.encoder, replace(SETTINGS, away=0.5), targets, sources, chunk_px=chunk_px)
        return CombinedGuidance(decode, [term], chunk_px=chunk_px)

    targets = torch.cat([target.roll(20 * i, -1) for i in range(5)])
    sources = torch.cat([crop.tensor.roll(20 * i, -2) for i in range(5)])
    latents = torch.cat([latent.float() * (1 - 0.2 * i) for i in range(5)])
    whole, losses = guide(5 * 256 * 256).gradient(latents, 0.0)
    assert decoded == [5]
    parts, losses_in_parts = guide(2 * 256 * 256 + 7).gradient(latents, 0.0)
    assert decoded[1:] == [2, 2, 1]
    assert torch.allclose(parts, whole, rtol=0, atol=1e-5 * float(whole.abs().max()))
    assert losses_in_parts == pytest.approx(losses, rel=1e-5)
    decoded.clear()
    guide(1).gradient(latents[:, :, :8, :8], 0.0)
    assert decoded == [1] * 5


def test_each_face_of_a_batch_is_pulled_to_its_own_target(anonymizer, latent, target) -> None:
    other = gallery_target(max(gallery_index())).image
    pair, _ = guidance(anonymizer, SETTINGS, torch.cat([target, other])).gradient(torch.cat([latent, latent]), 0.0)
    apart = torch.cat([guidance(anonymizer, SETTINGS, one).gradient(latent, 0.0)[0] for one in (target, other)])
    assert torch.allclose(pair, apart, rtol=1e-2, atol=1e-3 * float(apart.abs().max()))
    assert not torch.allclose(pair[0], pair[1], rtol=0.1, atol=1e-2 * float(pair.abs().max()))


def test_a_number_of_targets_or_sources_that_does_not_fit_is_refused(anonymizer, crop, latent, target) -> None:
    pair, three = torch.cat([target, target]), torch.cat([latent] * 3)
    with pytest.raises(InputError, match="2 target faces but 3 faces are sampled; give one for all"):
        guidance(anonymizer, SETTINGS, pair).gradient(three, 0.0)
    with pytest.raises(InputError, match="2 source faces but 3"):
        guidance(anonymizer, replace(SETTINGS, away=1.0), target, torch.cat([crop.tensor] * 2)).gradient(three, 0.0)


def test_features_of_target_and_source_are_computed_once(anonymizer, crop, latent, target) -> None:
    class Counting(DemoEncoder):
        calls = 0

        def features(self, image: Tensor, *options: bool) -> Tensor:
            self.calls += 1
            return super().features(image, *options)

    encoder = Counting()
    encoder.load_state_dict(anonymizer.encoder.state_dict())
    term = AttributeTerm(encoder, replace(SETTINGS, away=0.5), target, crop.tensor)
    guide = CombinedGuidance(anonymizer.model.decode, [term])
    assert encoder.calls == 2
    guide.gradient(latent, 0.0)
    guide.gradient(latent, 0.0)
    assert encoder.calls == 4


def test_the_model_and_the_latent_keep_no_gradient(anonymizer, latent, target) -> None:
    gradient, _ = guidance(anonymizer, SETTINGS, target).gradient(latent, 0.0)
    assert not gradient.requires_grad
    assert not latent.requires_grad
    assert all(parameter.grad is None for parameter in anonymizer.encoder.parameters())


@pytest.mark.parametrize(
    ("settings", "active"),
    [
        (SETTINGS, [True, True, True]),
        (replace(SETTINGS, strength=0.0), [False, False, False]),
        (replace(SETTINGS, start=0.5), [False, True, True]),
        (replace(SETTINGS, end=0.5), [True, False, False]),
        (replace(SETTINGS, start=0.5, end=0.5), [False, False, False]),
    ],
)
def test_guidance_acts_from_its_start_to_before_its_end(anonymizer, target, settings, active: list[bool]) -> None:
    assert [guidance(anonymizer, settings, target).active(progress) for progress in (0.0, 0.5, 0.99)] == active


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strength": -1.0}, r"guidance strength must be a number of at least 0, got -1\.0"),
        ({"strength": float("nan")}, "guidance strength must be a number of at least 0, got nan"),
        ({"toward": float("inf")}, "guidance toward must be a number of at least 0, got inf"),
        ({"away": -0.1}, "guidance away"),
        ({"start": 0.6, "end": 0.5}, r"must run from start to end within 0\.\.1, got 0\.6\.\.0\.5"),
        ({"end": 1.5}, r"must run from start to end within 0\.\.1, got 0\.0\.\.1\.5"),
    ],
)
def test_settings_without_a_meaning_are_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        GuidanceSettings(**change)


def test_pushing_away_needs_the_source(anonymizer, target) -> None:
    with pytest.raises(InputError, match="pushing away from the source needs the source image"):
        guidance(anonymizer, replace(SETTINGS, away=1.0), target)


def test_tokens_of_the_region_need_the_region(anonymizer, target) -> None:
    with pytest.raises(InputError, match="comparing the tokens of the region needs its mask"):
        guidance(anonymizer, replace(SETTINGS, tokens="region"), target)


def test_a_gradient_that_is_no_number_stops_the_run(anonymizer, latent, target) -> None:
    with pytest.raises(AnonymizationError, match="the guidance gradient is not finite"):
        guidance(anonymizer, SETTINGS, target).gradient(latent * torch.nan, 0.0)


def test_one_gradient_serves_as_many_steps_as_asked_and_a_new_run_begins_with_its_own(anonymizer, crop) -> None:
    decoded = []

    def decode(latent: torch.Tensor) -> torch.Tensor:
        decoded.append(latent)
        return anonymizer.model.decode(latent)

    term = AttributeTerm(anonymizer.encoder, GuidanceSettings(end=1.0), crop.tensor.flip(-1))
    guidance = CombinedGuidance(decode, [term], reuse=3)
    latents = [anonymizer.model.encode(crop.tensor) * (1 + 0.1 * k) for k in range(5)]
    pulls = [guidance.gradient(latent, k / 5) for k, latent in enumerate(latents)]
    assert [bool(readout) for _, readout in pulls] == [True, False, False, True, False] and len(decoded) == 2
    assert torch.equal(pulls[0][0], pulls[2][0]) and not torch.equal(pulls[2][0], pulls[3][0])
    again, readout = guidance.gradient(latents[4], 0.0)
    assert readout and not torch.equal(again, pulls[4][0])


def test_a_gradient_must_serve_a_step() -> None:
    with pytest.raises(InputError, match="guidance reuse must be at least 1, got 0"):
        GuidanceSettings(reuse=0)


def limited(anonymizer, target: Tensor, limit: float | None, strength: float) -> CombinedGuidance:
    term = AttributeTerm(anonymizer.encoder, replace(SETTINGS, strength=strength), target)
    return CombinedGuidance(anonymizer.model.decode, [term], limit=limit)


@pytest.mark.parametrize("strength", [1.0, 50.0])
def test_no_face_is_pulled_longer_than_the_limit_nor_in_another_direction(anonymizer, latent, target, strength) -> None:
    """Two faces whose pulls differ in length; the limit lies between them, or below both where the strength is high."""
    latents = torch.cat([latent, latent + 3 * torch.randn(latent.shape, generator=torch.Generator().manual_seed(0))])
    free, _ = limited(anonymizer, target, None, strength).gradient(latents, 0.0)
    lengths = free.square().mean((1, 2, 3)).sqrt()
    limit = float(lengths.mean()) / (1 if strength == 1 else 10)
    short, _ = limited(anonymizer, target, limit, strength).gradient(latents, 0.0)
    found = short.square().mean((1, 2, 3)).sqrt()
    assert found.tolist() == pytest.approx(lengths.clamp(max=limit).tolist(), rel=1e-4)
    assert (lengths < limit).any() == (strength == 1) and (lengths > limit).any()
    for face in range(2):
        assert torch.cosine_similarity(short[face].flatten(), free[face].flatten(), dim=0) > 0.99999
        assert torch.equal(short[face], free[face]) == bool(lengths[face] < limit)


def test_a_limit_that_is_not_reached_and_none_at_all_change_no_bit(anonymizer, latent, target) -> None:
    free, high = (limited(anonymizer, target, limit, 1.0).gradient(latent, 0.0)[0] for limit in (None, 1e6))
    plain, _ = guidance(anonymizer, SETTINGS, target).gradient(latent, 0.0)
    assert torch.equal(free, plain) and torch.equal(high, plain)


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        (0.0, "a guidance limit of 0 lets nothing through; use a strength of 0 to switch the guidance off"),
        (-0.1, r"guidance limit must be a number of at least 0, got -0\.1"),
        (float("nan"), "guidance limit must be a number of at least 0, got nan"),
    ],
)
def test_a_limit_without_a_meaning_is_refused(limit: float, message: str) -> None:
    with pytest.raises(InputError, match=message):
        GuidanceSettings(limit=limit)
