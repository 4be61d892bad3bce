"""Guidance terms beside the attributes', with the real networks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_recognition import mobilefacenet_file, onnx_file  # noqa: F401  (fixtures)
from torch import Tensor

from faceanon_core.chart import draw_chart
from faceanon_core.cli import main
from faceanon_core.errors import InputError
from faceanon_core.geometry import arcface_alignment
from faceanon_core.guidance import AttributeTerm, CombinedGuidance, GuidanceSettings, TermSettings
from faceanon_core.pipeline import Settings
from faceanon_core.recognition import RecognitionNetwork, load_recognition
from faceanon_core.target import gallery_index, gallery_target
from faceanon_core.terms import IdentityTerm, PoseTerm, feature_shapes

ALWAYS = TermSettings(end=1.0)


@pytest.fixture(scope="module")
def network(mobilefacenet_file: Path) -> RecognitionNetwork:  # noqa: F811
    return load_recognition(mobilefacenet_file)


@pytest.fixture(scope="module")
def latent(anonymizer, crop) -> Tensor:
    torch.manual_seed(0)
    latent = anonymizer.model.encode(crop.tensor)
    return latent + 0.1 * torch.randn_like(latent)


def follow(guidance: CombinedGuidance, latent: Tensor, steps: int = 3) -> tuple[dict[str, float], dict[str, float]]:
    """The losses before and after some steps along the gradient."""
    _, before = guidance.gradient(latent, 0.0)
    for _ in range(steps):
        gradient, _ = guidance.gradient(latent, 0.0)
        latent = latent - 0.01 * latent.norm() / gradient.norm() * gradient
    return before, guidance.gradient(latent, 0.0)[1]


def test_following_the_identity_term_makes_a_stranger(anonymizer, network, crop, latent) -> None:
    term = IdentityTerm(network, ALWAYS, crop.tensor, torch.from_numpy(arcface_alignment(crop.landmarks))[None])
    before, after = follow(CombinedGuidance(anonymizer.model.decode, [term]), latent)
    assert before["identity"] > 0.7 and after["identity"] < before["identity"] - 0.3


def test_a_stranger_is_not_pushed_any_further(anonymizer, network, crop) -> None:
    term = IdentityTerm(network, ALWAYS, crop.tensor, torch.from_numpy(arcface_alignment(crop.landmarks))[None])
    loss, parts = term.losses(gallery_target(max(gallery_index())).image)
    assert float(loss) == max(0.0, float(parts["identity"]))


def test_following_the_pose_term_comes_back_to_the_sources_features(anonymizer, crop, latent) -> None:
    other = anonymizer.model.encode(gallery_target(min(gallery_index())).image)
    term = PoseTerm(anonymizer.encoder, ALWAYS, crop.tensor)
    before, after = follow(CombinedGuidance(anonymizer.model.decode, [term]), other, steps=6)
    assert 0 < after["pose"] < 0.9 * before["pose"]


def test_places_and_sizes_of_features_are_free_but_their_shapes_are_not(anonymizer, crop) -> None:
    points = anonymizer.encoder.find_landmarks(crop.tensor)
    shapes = feature_shapes(points)
    assert torch.allclose(feature_shapes(points * 1.2 + 0.1), shapes, atol=1e-5)
    turned = points @ torch.tensor([[0.98, 0.2], [-0.2, 0.98]])
    assert (feature_shapes(turned) - shapes).square().mean() > 1e-3


def test_terms_add_up(anonymizer, network, crop, latent) -> None:
    terms = [
        AttributeTerm(anonymizer.encoder, GuidanceSettings(end=1.0), gallery_target(min(gallery_index())).image),
        IdentityTerm(
            network, replace(ALWAYS, strength=0.5), crop.tensor, torch.from_numpy(arcface_alignment(crop.landmarks))[None]
        ),
        PoseTerm(anonymizer.encoder, replace(ALWAYS, strength=2.0), crop.tensor),
    ]
    decode = anonymizer.model.decode
    together, readout = CombinedGuidance(decode, terms).gradient(latent, 0.0)
    apart = sum(CombinedGuidance(decode, [term]).gradient(latent, 0.0)[0] for term in terms)
    assert torch.allclose(together, apart, rtol=1e-3, atol=1e-3 * float(apart.abs().max()))
    assert set(readout) == {"toward", "identity", "pose"}


def test_each_term_acts_in_its_own_part_of_the_schedule(anonymizer, crop, latent) -> None:
    early = AttributeTerm(anonymizer.encoder, GuidanceSettings(end=0.3), gallery_target(min(gallery_index())).image)
    late = PoseTerm(anonymizer.encoder, TermSettings(start=0.5, end=1.0), crop.tensor)
    guidance = CombinedGuidance(anonymizer.model.decode, [early, late])
    assert [guidance.active(progress) for progress in (0.0, 0.3, 0.5, 0.9)] == [True, False, True, True]
    assert set(guidance.gradient(latent, 0.0)[1]) == {"toward"}
    assert set(guidance.gradient(latent, 0.7)[1]) == {"pose"}


def test_a_gradient_that_serves_several_steps_is_new_where_a_term_begins_or_ends(anonymizer, crop, latent) -> None:
    first = PoseTerm(anonymizer.encoder, TermSettings(end=0.6), crop.tensor)
    second = AttributeTerm(
        anonymizer.encoder, GuidanceSettings(start=0.3, end=1.0), gallery_target(min(gallery_index())).image
    )
    guidance = CombinedGuidance(anonymizer.model.decode, [first, second], reuse=100)
    seen = [set(guidance.gradient(latent, progress)[1]) for progress in (0.0, 0.2, 0.3, 0.5, 0.6, 0.9)]
    assert seen == [{"pose"}, set(), {"pose", "toward"}, set(), {"toward"}, set()]


def test_the_default_settings_have_the_attribute_term_alone(anonymizer, crop) -> None:
    settings = Settings()
    assert settings.away_identity.strength == settings.hold_pose.strength == 0


def test_pushing_away_from_an_identity_needs_a_network(anonymizer, portrait) -> None:
    with pytest.raises(InputError, match="needs a recognition network; name its weights"):
        anonymizer.anonymize(portrait, Settings(away_identity=ALWAYS))


def test_terms_change_the_picture_from_the_command_line(
    mobilefacenet_file: Path, portrait_file: Path, tmp_path: Path  # noqa: F811
) -> None:  # fmt: skip
    results = []
    for name, more in (
        ("plain", []),
        ("away", ["--identity-network", str(mobilefacenet_file)]),
        ("off", ["--identity-network", str(mobilefacenet_file), "--away-identity", "0"]),
        ("pose", ["--hold-pose", "1"]),
        ("region", ["--tokens", "region"]),
    ):
        out = tmp_path / f"{name}.png"
        words = ["anonymize", str(portrait_file), "-o", str(out), "--steps", "3", "--seed", "6", "--recogniser", "none"]
        assert main([*words, *more]) == 0
        results.append(np.asarray(Image.open(out)))
    plain, _, off, pose, region = results
    assert np.array_equal(plain, off) and not np.array_equal(plain, pose) and not np.array_equal(plain, region)


def test_the_chart_has_a_panel_for_every_loss_and_for_sigma() -> None:
    readout = [{"sigma": 10.0, "toward": 4.0}, {"sigma": 3.0, "toward": 2.0, "identity": -0.1}, {"sigma": 0.5}]
    chart = draw_chart(readout, 400, 100)
    assert chart.shape == (300, 400, 3) and chart.dtype == np.uint8
    assert all((panel != 255).any() for panel in (chart[30:100], chart[130:200], chart[230:]))
    with pytest.raises(InputError, match="the sampler has made no step"):
        draw_chart([])
    assert draw_chart([{"sigma": float("nan")}]).shape[0] == 150
