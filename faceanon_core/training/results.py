"""Results of the test faces, kept as files: a run that was cut off goes on where it stopped, and commands share results."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ..crop import FaceCrop
from ..evaluation.baselines import settings_key
from ..geometry import UprightFrame
from ..image import Picture, save_picture, tensor_to_pixels
from ..pipeline import Anonymizer, Settings
from ..regions import region_mask
from ..retry import TRY_SEED
from ..target import Target
from .data import FaceSet
from .workers import Crew

Job = tuple[str, int]  # a run and the test face it is of


def shuffled(faces: FaceSet, limit: int | None = None) -> list[int]:
    """The faces in a fixed random order, so that the first few stand for all; None for all of them."""
    return [int(i) for i in np.random.default_rng(0).permutation(len(faces))[:limit]]


def result_file(work: Path, faces: FaceSet, i: int, settings: Settings, attempt: int = 0) -> Path:
    """Where the result of test face `i` is kept: another place when weights, gallery or settings change.

    Args:
        attempt: how often the face was made before because none was recognisable; the seed goes on, the target stays.
    """
    key = hashlib.sha256(settings_key(settings, attempt).encode()).hexdigest()[:10]
    return work / "made" / f"{faces.records[i].name}-{key}.png"


def make_missing(
    root: Path, files: dict[Job, Path], settings: dict[Job, Settings], crew: Crew, minutes: float, device: str,
    attempt: int = 0,
) -> list[tuple[Job, Path]]:  # fmt: skip
    """Make the results that are not there yet, until the time is up. Returns: those that are there then."""
    missing = {file: (job[1], settings[job], file) for job, file in files.items() if not file.is_file()}
    crew.spread(partial(_make_share, root, device, time.time() + 60 * minutes, attempt), list(missing.values()))
    return [(job, file) for job, file in files.items() if file.is_file()]


def _make_share(
    root: Path, device: str, deadline: float, attempt: int, jobs: Sequence[tuple[int, Settings, Path]]
) -> dict[Path, None]:
    """One worker's part of the results; they are files, and nothing comes back."""
    anonymizer, faces = Anonymizer(device=device), FaceSet(root, "test")
    for i, settings, file in tqdm(jobs, desc="making", unit="face", mininterval=20):
        if time.time() > deadline:
            break
        crop, seed = as_crop(faces, i), settings.seed + i
        target = anonymizer.find_target(settings, crop, seed)
        pixels = regenerate_crop(anonymizer, crop, settings, target, seed + attempt * TRY_SEED)
        save_picture(Picture(pixels), file, overwrite=True)
    return {}


def as_crop(faces: FaceSet, i: int) -> FaceCrop:
    """A test face as the crop it already is."""
    frame = UprightFrame(np.eye(2, 3, dtype=np.float32), 256)
    return FaceCrop(frame, np.array(faces.image(i)), faces.landmarks[i])


def regenerate_crop(
    anonymizer: Anonymizer, crop: FaceCrop, settings: Settings, target: Target, seed: int
) -> NDArray[np.uint8]:
    """Another face in a crop, blended through its seam; (S, S, 3) uint8 RGB."""
    labels = anonymizer.parser.parse(crop.pixels, crop.landmarks)
    mask = region_mask(labels, settings.regions, anonymizer.parser)
    result = anonymizer.regenerate(crop, mask, target, settings, seed)
    return tensor_to_pixels(crop.tensor + mask.seam * (result - crop.tensor))[0]
