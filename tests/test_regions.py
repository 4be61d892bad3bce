"""From a label map to the mask that is regenerated."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from faceanon_core.errors import InputError, ShapeError, UnknownNameError
from faceanon_core.parsing import GROUPS, INDEX, LandmarkParser, region_labels
from faceanon_core.regions import (
    COMBINATIONS,
    PaintedMask,
    RegionChoice,
    feather_mask,
    grow_mask,
    labels_to_mask,
    latent_mask,
    region_mask,
)


@pytest.fixture(scope="module")
def labels(crop) -> np.ndarray:
    return LandmarkParser().parse(crop.pixels, crop.landmarks)


def dot(size: int = 9) -> torch.Tensor:
    mask = torch.zeros(1, 1, size, size)
    mask[..., size // 2, size // 2] = 1
    return mask


def square_map(size: int = 512) -> np.ndarray:
    """Skin with a square nose in its middle, on background."""
    labels = np.zeros((size, size), np.uint8)
    labels[size // 8 : -size // 8, size // 8 : -size // 8] = INDEX["skin"]
    labels[size * 3 // 8 : size * 5 // 8, size * 3 // 8 : size * 5 // 8] = INDEX["nose"]
    return labels


@pytest.mark.parametrize("choice", [RegionChoice(), RegionChoice(keep=("eyes",)), RegionChoice(("skin",), feather_px=40)])
def test_the_core_is_binary_and_the_seam_is_1_on_it(labels, choice: RegionChoice) -> None:
    mask = region_mask(labels, choice)
    assert set(mask.core.unique().tolist()) == {0.0, 1.0}
    assert (mask.seam[mask.core == 1] == 1).all()
    assert mask.seam.min() == 0
    assert mask.seam.max() == 1
    assert ((mask.seam > 0) & (mask.seam < 1)).any()


@pytest.mark.parametrize("kept", ["eyes", "left_eye", "nose", "mouth", "brows", "skin"])
def test_a_kept_region_is_in_neither_core_nor_seam(labels, kept: str) -> None:
    mask = region_mask(labels, RegionChoice(keep=(kept,), grow_px=40, feather_px=60))
    inside = labels_to_mask(labels, region_labels((kept,))) == 1
    assert inside.any()
    assert mask.core[inside].max() == 0
    assert mask.seam[inside].max() == 0


@pytest.mark.parametrize(("size", "margin"), [(512, 3), (256, 2), (1024, 7)])
def test_a_kept_region_is_widened_by_a_7_px_square_at_512_px(size: int, margin: int) -> None:
    labels = square_map(size)
    mask = region_mask(labels, RegionChoice(keep=("nose",), grow_px=0, feather_px=0))
    rows = np.flatnonzero(mask.core[0, 0, :, size // 2].numpy() == 0)
    rows = rows[(rows > size // 4) & (rows < size * 3 // 4)]
    assert (rows.min(), rows.max()) == (size * 3 // 8 - margin, size * 5 // 8 - 1 + margin)


def test_growth_does_not_reach_into_regions_that_were_not_asked_for(labels) -> None:
    mask = region_mask(labels, RegionChoice(regenerate=("eyes",), grow_px=60, feather_px=60))
    others = labels_to_mask(labels, region_labels(("face",)) - region_labels(("eyes",))) == 1
    assert mask.seam[others].max() == 0


def test_keeping_everything_but_the_nose_changes_nothing_around_the_face(labels) -> None:
    kept = RegionChoice(keep=("skin", "eyes", "brows", "mouth"))
    outside = torch.from_numpy(labels == INDEX["background"])
    assert region_mask(labels, RegionChoice()).seam[0, 0][outside].any()
    mask = region_mask(labels, kept)
    assert not mask.seam[0, 0][outside].any() and mask.core[0, 0].any()


def test_the_whole_face_grows_outward_into_the_background() -> None:
    tight = region_mask(square_map(), RegionChoice(grow_px=0, feather_px=0)).core
    grown = region_mask(square_map(), RegionChoice(grow_px=10, feather_px=0)).core
    assert tight[0, 0, 256].sum() == 384
    assert grown[0, 0, 256].sum() == 384 + 20


@pytest.mark.parametrize(
    "choice",
    [
        RegionChoice(keep=("face",)),
        RegionChoice(("eyes",), ("eyes",)),
        RegionChoice(("hat",)),  # this face's map has none
        RegionChoice(()),
    ],
)
def test_a_mask_that_excludes_everything_is_refused(labels, choice: RegionChoice) -> None:
    with pytest.raises(InputError, match="the mask excludes everything"):
        region_mask(labels, choice)


def test_unknown_regions_are_refused_in_both_lists(labels) -> None:
    for choice in (RegionChoice(("knee",)), RegionChoice(keep=("knee",))):
        with pytest.raises(UnknownNameError, match="no region named 'knee'"):
            region_mask(labels, choice)


def stroke(rows: slice, columns: slice, size: int = 512) -> torch.Tensor:
    """A painted rectangle."""
    mask = torch.zeros(1, 1, size, size)
    mask[..., rows, columns] = 1
    return mask


@pytest.mark.parametrize("combine", COMBINATIONS)
def test_with_any_painted_mask_the_core_is_binary_and_the_seam_is_1_on_it(labels, combine: str) -> None:
    soft = feather_mask(stroke(slice(90, 140), slice(0, 150), 256), 10)
    mask = region_mask(labels, RegionChoice(keep=("eyes",)), painted=PaintedMask(soft, combine))
    assert set(mask.core.unique().tolist()) == {0.0, 1.0}
    assert (mask.seam[mask.core == 1] == 1).all()
    assert not torch.equal(mask.core, region_mask(labels, RegionChoice(keep=("eyes",))).core)


def test_adding_also_regenerates_outside_the_face_and_in_regions_switched_off() -> None:
    beside, nose = stroke(slice(0, 60), slice(0, 100)), stroke(slice(220, 280), slice(220, 280))
    choice = RegionChoice(("skin",), grow_px=0)
    plain = region_mask(square_map(), choice).core
    added = region_mask(square_map(), choice, painted=PaintedMask(torch.maximum(beside, nose)))
    assert torch.equal(added.core, torch.maximum(plain, torch.maximum(beside, nose)))
    assert 0 < added.seam[0, 0, 62, 50] < 1  # the painted edge is soft
    assert added.seam[0, 0, 215, 250] == 0  # the rest of the nose stays


def test_what_is_kept_stays_kept_though_it_is_painted_over() -> None:
    painted = PaintedMask(torch.ones(1, 1, 512, 512))
    mask = region_mask(square_map(), RegionChoice(keep=("nose",)), painted=painted)
    nose = labels_to_mask(square_map(), frozenset({"nose"})) == 1
    assert mask.core[nose].max() == mask.seam[nose].max() == 0
    assert mask.core[0, 0, 0, 0] == 1


def test_a_painted_mask_alone_is_enough_to_add() -> None:
    painted = stroke(slice(10, 20), slice(30, 50))
    for choice in (RegionChoice(()), RegionChoice(keep=("face",))):
        assert torch.equal(region_mask(square_map(), choice, painted=PaintedMask(painted)).core, painted)


@pytest.mark.parametrize(("size", "margin"), [(512, 3), (256, 2)])
def test_subtracting_keeps_like_a_kept_region(size: int, margin: int) -> None:
    middle = slice(size * 3 // 8, size * 5 // 8)
    choice = RegionChoice(grow_px=0, feather_px=40)
    mask = region_mask(square_map(size), choice, painted=PaintedMask(stroke(middle, middle, size), "subtract"))
    rows = np.flatnonzero(mask.core[0, 0, :, size // 2].numpy() == 0)
    rows = rows[(rows > size // 4) & (rows < size * 3 // 4)]
    assert (rows.min(), rows.max()) == (middle.start - margin, middle.stop - 1 + margin)
    guarded = slice(middle.start - 1, middle.stop + 1)  # the stitch interpolates between neighbours
    assert mask.seam[..., guarded, guarded].max() == 0
    assert mask.seam[..., middle.start - 2, size // 2] > 0


def test_intersecting_regenerates_only_where_both_are() -> None:
    left = stroke(slice(0, 512), slice(0, 256))
    mask = region_mask(square_map(), RegionChoice(feather_px=10), painted=PaintedMask(left, "intersect"))
    assert torch.equal(mask.core, region_mask(square_map(), RegionChoice()).core * left)
    assert mask.core[..., 256:].max() == 0
    assert mask.seam[..., 266:].max() == 0


@pytest.mark.parametrize(
    ("combine", "painted", "message"),
    [
        ("add", torch.zeros(1, 1, 512, 512), "every chosen region is also kept"),
        ("subtract", torch.ones(1, 1, 512, 512), "every chosen region is kept or covered by the painted mask"),
        ("intersect", stroke(slice(0, 9), slice(0, 9)), "the painted mask meets no chosen region"),
    ],
)
def test_a_painted_mask_that_leaves_nothing_is_refused(combine: str, painted: torch.Tensor, message: str) -> None:
    choice = RegionChoice(keep=("face",) if combine == "add" else ())
    with pytest.raises(InputError, match=f"the mask excludes everything: {message}"):
        region_mask(square_map(), choice, painted=PaintedMask(painted, combine))


def test_an_unknown_combination_and_another_size_are_refused(labels) -> None:
    with pytest.raises(UnknownNameError, match="no way to combine masks named 'union'; use add, subtract, intersect"):
        PaintedMask(dot(), "union")
    with pytest.raises(ShapeError, match="the painted mask is 9x9 but the image is 256x256"):
        region_mask(labels, RegionChoice(), painted=PaintedMask(dot()))


def test_groups_select_exactly_their_labels(labels) -> None:
    mask = labels_to_mask(labels, frozenset(GROUPS["eyes"]))
    assert mask.shape == (1, 1, 256, 256)
    assert mask.sum() == np.isin(labels, [INDEX["left_eye"], INDEX["right_eye"]]).sum()


@pytest.mark.parametrize(("radius", "pixels"), [(0, 1), (0.4, 1), (1, 5), (2, 17), (-1, 0)])
def test_a_dot_grows_to_a_disc_and_erodes_to_nothing(radius: float, pixels: int) -> None:
    assert grow_mask(dot(), radius).sum() == pixels


def test_masks_of_a_batch_grow_apart() -> None:
    both = torch.cat([dot(), torch.zeros(1, 1, 9, 9)])
    assert grow_mask(both, 1).sum(dim=(1, 2, 3)).tolist() == [5, 0]


def test_a_feather_falls_monotonically_to_0_at_its_radius() -> None:
    soft = feather_mask(dot(21), 8)[0, 0, 10, 10:].tolist()
    assert soft[0] == 1
    assert all(a > b for a, b in pairwise(soft[:9]))
    assert soft[4] == pytest.approx(0.5)
    assert soft[8:] == [0, 0, 0]


def test_a_feather_of_0_changes_nothing_and_an_empty_mask_stays_empty() -> None:
    assert torch.equal(feather_mask(dot(), 0), dot())
    assert feather_mask(torch.zeros(1, 1, 9, 9), 5).max() == 0


@pytest.mark.parametrize("function", [grow_mask, feather_mask])
def test_only_masks_of_the_documented_shape_and_range_are_taken(function) -> None:
    with pytest.raises(ShapeError, match=r"mask must be \(batch, 1, height, width\), got \(1, 3, 9, 9\)"):
        function(torch.zeros(1, 3, 9, 9), 1)
    with pytest.raises(InputError, match=r"must lie in 0\.\.1, but its values run from 0 to 255"):
        function(dot() * 255, 1)
    with pytest.raises(InputError, match="NaN"):
        function(dot() * torch.nan, 1)


def test_a_latent_counts_as_regenerated_if_any_of_its_pixels_is() -> None:
    core = torch.zeros(1, 1, 256, 256)
    core[..., 100, 37] = 1  # a single pixel
    small = latent_mask(core, 32)
    assert small.shape == (1, 1, 32, 32)
    assert small.sum() == small[0, 0, 100 // 8, 37 // 8] == 1
