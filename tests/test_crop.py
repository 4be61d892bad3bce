"""Cutting a face out and stitching it back."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

from faceanon_core.crop import FaceCrop, crop_face, mask_in_crop, seam_in_image, stitch_face
from faceanon_core.errors import AnonymizationError, InputError, ShapeError
from faceanon_core.faces import Face
from faceanon_core.geometry import LEFT_EYE, RIGHT_EYE, Box, inter_ocular
from faceanon_core.parsing import LandmarkParser
from faceanon_core.regions import PaintedMask, RegionChoice, region_mask


def placed(face: Face, portrait: np.ndarray, width: int, height: int, scale: float, at: tuple[int, int]):
    """The portrait at a scale in a larger noisy picture, and its face there."""
    noise = np.random.default_rng(0).integers(0, 256, (101, 103, 3), dtype=np.uint8)
    canvas = np.tile(noise, (height // 101 + 1, width // 103 + 1, 1))[:height, :width].copy()
    small = cv2.resize(portrait, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    left, top = at
    canvas[top : top + small.shape[0], left : left + small.shape[1]] = small[: height - top, : width - left]
    landmarks = ((face.landmarks - (115, 10) + 0.5) * scale - 0.5 + at).astype(np.float32)
    return canvas, Face(Box.around(landmarks), face.score, landmarks)


def face_mask(crop: FaceCrop, **choice):
    return region_mask(LandmarkParser().parse(crop.pixels, crop.landmarks), RegionChoice(**choice))


SCENES = {
    "small odd picture": (221, 223, 1.0, (1, 3)),
    "face larger than the working size": (901, 1001, 4.0, (7, 11)),
    "tiny face": (641, 479, 0.3, (500, 300)),
    "8k wide": (7680, 331, 1.0, (7301, 93)),
    "8k high": (333, 8191, 1.3, (11, 7001)),
    "at the border": (150, 160, 1.0, (0, 0)),
}


@pytest.mark.parametrize("scene", SCENES)
def test_pixels_outside_the_seam_are_bit_identical_and_those_inside_are_new(face, portrait, scene: str) -> None:
    image, there = placed(face, portrait, *SCENES[scene])
    before = image.copy()
    crop = crop_face(image, there, 256)
    mask = face_mask(crop)
    green = torch.tensor([0.0, 1.0, 0.0]).view(1, 3, 1, 1).expand(1, 3, 256, 256)
    result = stitch_face(image, crop, green, mask.seam)
    weight = seam_in_image(crop, mask.seam, image.shape[1], image.shape[0])
    assert np.array_equal(image, before)  # the source picture itself is never written to
    assert np.array_equal(result[weight == 0], image[weight == 0])
    assert (weight == 0).sum() > 0.2 * weight.size
    assert (np.abs(result[weight == 1].astype(int) - (0, 255, 0)) <= 1).all()
    assert (weight == 1).sum() > 500


@pytest.mark.parametrize("scene", SCENES)
def test_crop_then_stitch_without_change_is_the_identity(face, portrait, scene: str) -> None:
    image, there = placed(face, portrait, *SCENES[scene])
    crop = crop_face(image, there, 256)
    result = stitch_face(image, crop, crop.tensor, torch.ones(1, 1, 256, 256))
    assert np.array_equal(result, image)
    assert result is not image


def test_an_empty_seam_changes_nothing(astronaut, crop) -> None:
    assert np.array_equal(
        stitch_face(astronaut, crop, 1 - crop.tensor, torch.zeros(1, 1, 256, 256)),
        astronaut,
    )


@pytest.mark.parametrize("scale", [0.5, 1.0, 4.0])
def test_kept_eyes_are_bit_identical_at_the_pictures_own_resolution(face, portrait, scale: float) -> None:
    image, there = placed(face, portrait, 900, 910, scale, (3, 5))
    crop = crop_face(image, there, 256)
    mask = face_mask(crop, keep=("eyes",), grow_px=30, feather_px=40)
    result = stitch_face(image, crop, 1 - crop.tensor, mask.seam)
    changed = (result != image).any(-1)
    for outline in (RIGHT_EYE, LEFT_EYE):
        points = there.landmarks[list(outline)]
        ys, xs = np.nonzero(changed)
        deepest = max(cv2.pointPolygonTest(points, (float(x), float(y)), True) for x, y in zip(xs, ys, strict=True))
        assert deepest <= 0  # no changed pixel's centre lies inside the outline
    assert changed[tuple(there.landmarks[4].round().astype(int)[::-1])]  # the tip of the nose is not kept


@pytest.mark.parametrize("scene", SCENES)
def test_pixels_painted_to_be_kept_are_bit_identical(face, portrait, scene: str) -> None:
    """Thin strokes and single dots of the picture, whatever the crop's scale."""
    image, there = placed(face, portrait, *SCENES[scene])
    painted = np.zeros(image.shape[:2], np.float32)
    center, reach = there.box.center, there.box.width
    for angle in np.linspace(0, np.pi, 7):
        way = reach * np.array([np.cos(angle), np.sin(angle)])
        cv2.line(painted, *[np.round(center + sign * way).astype(int).tolist() for sign in (-1, 1)], 1.0, 1)
    dots = np.random.default_rng(2).normal(center, reach / 3, (60, 2)).round().astype(int)
    inside = ((dots >= 0) & (dots < image.shape[1::-1])).all(1)
    painted[dots[inside, 1], dots[inside, 0]] = 1
    crop = crop_face(image, there, 256)
    area = mask_in_crop(crop, torch.from_numpy(painted)[None, None])
    labels = LandmarkParser().parse(crop.pixels, crop.landmarks)
    mask = region_mask(labels, RegionChoice(), painted=PaintedMask(area, "subtract"))
    changed = (stitch_face(image, crop, 1 - crop.tensor, mask.seam) != image).any(-1)
    assert changed.any()
    assert not changed[painted == 1].any()


def test_a_mask_of_the_whole_picture_lands_on_what_it_covers(astronaut, face, crop) -> None:
    eye = cv2.fillConvexPoly(np.zeros((512, 512), np.float32), np.round(face.landmarks[list(LEFT_EYE)]).astype(int), 1.0)
    area = mask_in_crop(crop, torch.from_numpy(eye)[None, None])
    outline = crop.landmarks[list(LEFT_EYE)]
    assert area.shape == (1, 1, 256, 256)
    assert set(area.unique().tolist()) == {0.0, 1.0}
    ys, xs = np.nonzero(area[0, 0].numpy())
    furthest = min(cv2.pointPolygonTest(outline, (float(x), float(y)), True) for x, y in zip(xs, ys, strict=True))
    assert furthest > -3 * crop.frame.scale  # rounding, and a pixel that is touched counts
    x, y = outline.mean(0).round().astype(int)
    assert area[0, 0, y, x] == 1


def test_a_mask_reaches_into_the_mirrored_part_beyond_the_border(face, portrait) -> None:
    image, there = placed(face, portrait, *SCENES["at the border"])
    crop = crop_face(image, there, 256)
    assert mask_in_crop(crop, torch.ones(1, 1, *image.shape[:2])).min() == 1


def test_a_mask_of_the_crops_size_is_taken_as_it_is_unless_the_picture_is_as_large(astronaut, face) -> None:
    painted = torch.rand(1, 1, 512, 512)
    assert torch.equal(mask_in_crop(crop_face(astronaut, face, 256), painted[..., :256, :256]), painted[..., :256, :256])
    assert set(mask_in_crop(crop_face(astronaut, face, 512), painted).unique().tolist()) == {0.0, 1.0}  # warped


def test_a_mask_as_large_as_neither_is_refused_with_the_sizes_named(astronaut, face) -> None:
    crop = crop_face(astronaut[:500], face, 256)
    with pytest.raises(ShapeError, match=r"is 64x64 but the picture is 512x500 and the crop is 256x256.*64x64 mask when"):
        mask_in_crop(crop, torch.zeros(1, 1, 64, 64))
    with pytest.raises(ShapeError, match="is 64x64 but the crop is 256x256"):
        mask_in_crop(replace(crop, picture_size=None), torch.zeros(1, 1, 64, 64))


def test_the_seam_blends_between_old_and_new(astronaut, crop) -> None:
    half = torch.full((1, 1, 256, 256), 0.5)
    black = stitch_face(astronaut, crop, torch.zeros(1, 3, 256, 256), half)
    x, y = (round(v) for v in crop.frame.to_image(np.array([[128, 128]], np.float32))[0])
    assert black[y, x].astype(float) == pytest.approx(astronaut[y, x] / 2, abs=1)


def test_nothing_of_the_source_survives_inside_the_core(astronaut, crop) -> None:
    noise = np.random.default_rng(1).integers(0, 256, astronaut.shape, dtype=np.uint8)
    seam = face_mask(crop).seam
    grey = torch.full((1, 3, 256, 256), 0.5)
    core = seam_in_image(crop, seam, 512, 512) == 1
    assert np.array_equal(stitch_face(astronaut, crop, grey, seam)[core], stitch_face(noise, crop, grey, seam)[core])


@pytest.mark.parametrize("degrees", [0, 25, 90, 180])
def test_a_turned_face_is_cut_upright(astronaut, face, crop, degrees: int) -> None:
    matrix = cv2.getRotationMatrix2D((256, 256), degrees, 1).astype(np.float32)
    turned = cv2.warpAffine(astronaut, matrix, (512, 512), flags=cv2.INTER_CUBIC)
    landmarks = (face.landmarks @ matrix[:, :2].T + matrix[:, 2]).astype(np.float32)
    again = crop_face(turned, Face(Box.around(landmarks), face.score, landmarks), 256)
    middle = (slice(48, 208), slice(48, 208))
    assert np.abs(again.pixels[middle].astype(int) - crop.pixels[middle]).mean() < 6
    assert again.landmarks == pytest.approx(crop.landmarks, abs=0.5)


@pytest.mark.parametrize("size", [64, 256, 512])
def test_the_crop_has_the_working_size_with_the_face_at_the_same_share(astronaut, face, size: int) -> None:
    crop = crop_face(astronaut, face, size)
    assert crop.pixels.shape == (size, size, 3)
    assert crop.tensor.shape == (1, 3, size, size)
    assert 0 <= crop.tensor.min() < crop.tensor.max() <= 1
    share = inter_ocular(face.landmarks) / (1.6 * face.box.height)  # the crop's side is 1.6 times the face's
    assert inter_ocular(crop.landmarks) / size == pytest.approx(share, rel=0.02)


@pytest.mark.parametrize("side", ["left", "right", "top", "bottom"])
def test_a_face_cut_by_the_border_is_refused(astronaut, face, side: str) -> None:
    x, y = (round(v) for v in face.box.center)
    parts = {"left": astronaut[:, x:], "right": astronaut[:, :x], "top": astronaut[y:], "bottom": astronaut[:y]}
    shift = {"left": (x, 0), "top": (0, y)}.get(side, (0, 0))
    there = replace(face, landmarks=(face.landmarks - shift).astype(np.float32))
    with pytest.raises(AnonymizationError, match=r"the face is cut by the picture's border \(\d+% of it lies outside"):
        crop_face(parts[side], there, 256)


def test_a_result_of_another_size_or_range_is_refused(astronaut, crop) -> None:
    seam = torch.ones(1, 1, 256, 256)
    with pytest.raises(ShapeError, match="the result is 128x128 but the crop is 256x256"):
        stitch_face(astronaut, crop, torch.zeros(1, 3, 128, 128), torch.ones(1, 1, 128, 128))
    with pytest.raises(ShapeError, match="seam is 128x256 but the image is 256x256"):
        stitch_face(astronaut, crop, crop.tensor, seam[..., :128])
    with pytest.raises(InputError, match="result holds NaN"):
        stitch_face(astronaut, crop, crop.tensor * torch.nan, seam)
    with pytest.raises(InputError, match=r"result must lie in 0\.\.1, but its values run from"):
        stitch_face(astronaut, crop, crop.tensor * 255, seam)
