"""The demo model's attribute encoder, with its shipped weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from faceanon_core.attributes import LEARNED
from faceanon_core.encoder import ENCODER_LANDMARKS, DemoEncoder, landmark_targets, load_demo_encoder
from faceanon_core.errors import InputError, ShapeError, WeightsError
from faceanon_core.geometry import inter_ocular
from faceanon_core.weights import ASSETS


@pytest.fixture(scope="module")
def encoder(anonymizer) -> DemoEncoder:
    return anonymizer.encoder


@pytest.mark.parametrize(("batch", "height", "width"), [(1, 128, 128), (2, 256, 256), (1, 64, 64), (1, 200, 131)])
def test_any_image_size_gives_a_class_token_and_64_patches(encoder, batch: int, height: int, width: int) -> None:
    assert encoder.features(torch.rand(batch, 3, height, width)).shape == (batch, 65, 192)


def test_pictures_of_a_batch_do_not_influence_each_other(encoder, crop) -> None:
    both = encoder.features(torch.cat([crop.tensor, 1 - crop.tensor]))
    assert torch.allclose(both[:1], encoder.features(crop.tensor), atol=1e-4)


def test_the_gradient_reaches_every_part_of_the_image(encoder, crop) -> None:
    image = crop.tensor.requires_grad_(True)
    (gradient,) = torch.autograd.grad(encoder.features(image).square().sum(), image)
    blocks = gradient.abs().unfold(2, 32, 32).unfold(3, 32, 32).sum(dim=(0, 1, 4, 5))  # (8, 8)
    assert torch.isfinite(gradient).all()
    assert (blocks > 0).all()


def test_a_small_change_of_the_picture_moves_the_features_less_than_another_face_part(encoder, crop) -> None:
    def distance(image: Tensor) -> float:
        return float((encoder.features(image) - encoder.features(crop.tensor)).square().sum())

    brighter = distance((crop.tensor + 0.01).clamp(0, 1))
    flipped_mouth = crop.tensor.clone()
    flipped_mouth[..., 150:200, 80:180] = flipped_mouth[..., 150:200, 80:180].flip(-2)
    assert 0 < brighter < distance(flipped_mouth)


def test_it_finds_the_landmarks_of_a_real_face(encoder, crop) -> None:
    found = encoder.landmarks(encoder.features(crop.tensor))
    truth = landmark_targets(crop.landmarks[None], 256)
    assert found.shape == truth.shape == (1, len(ENCODER_LANDMARKS), 2)
    error = (found - truth).norm(dim=-1).mean() * 256
    assert error < 0.15 * inter_ocular(crop.landmarks)


def test_landmark_targets_count_from_the_corner_of_the_crop() -> None:
    points = landmark_targets(np.full((1, 478, 2), 127.5, np.float32), 256)
    assert torch.allclose(points, torch.tensor(0.5))


def test_predictions_are_values_of_the_vocabulary_with_probabilities(encoder, crop) -> None:
    rows = encoder.predict(torch.cat([crop.tensor, torch.rand(1, 3, 256, 256)]))
    assert len(rows) == 2
    for values, sure in rows:
        for attribute in LEARNED:
            assert values[attribute.name] in attribute.values
            assert 1 / len(attribute.values) <= sure[attribute.name] <= 1


def test_the_astronaut_is_seen_as_a_smiling_woman(encoder, crop) -> None:
    values, _ = encoder.predict(crop.tensor)[0]
    assert values["sex"] == "female"
    assert values["expression"] != "neutral"


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (torch.rand(3, 64, 64), ShapeError, r"image must be \(batch, 3, height, width\), got \(3, 64, 64\)"),
        (torch.rand(1, 1, 64, 64), ShapeError, r"got \(1, 1, 64, 64\)"),
        (torch.rand(1, 3, 64, 64) * 255, InputError, r"image must lie in 0\.\.1, but its values run from"),
        (torch.rand(1, 3, 64, 64) * 2 - 1, InputError, r"image must lie in 0\.\.1"),
        (torch.full((1, 3, 64, 64), torch.nan), InputError, "image holds NaN or infinite values"),
        (torch.zeros(0, 3, 64, 64), InputError, "image is empty"),
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), InputError, "image must hold floats in 0..1, got torch.uint8"),
    ],
)
def test_only_images_of_the_documented_shape_and_range_are_taken(encoder, image, error, message: str) -> None:
    with pytest.raises(error, match=message):
        encoder.predict(image)


def test_the_shipped_weights_are_frozen_and_in_float32(encoder) -> None:
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float32}
    assert not encoder.training


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    state = load_file(ASSETS / "encoder.safetensors")
    state.pop("class_token")
    save_file(state, tmp_path / "encoder.safetensors")
    with pytest.raises(WeightsError, match=r"encoder\.safetensors is missing, damaged or holds another network; reinstall"):
        load_demo_encoder(tmp_path / "encoder.safetensors")
