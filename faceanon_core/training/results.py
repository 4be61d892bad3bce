"""Results of the test faces, kept as files, so that a run that was cut off goes on where it stopped."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..evaluation.baselines import settings_key
from ..image import Picture, save_picture
from ..pipeline import Anonymizer, Settings
from .data import FaceSet
from .evaluate import as_crop, regenerate_crop
from .workers import Crew

Job = tuple[str, int]  # a run and the test face it is of


def shuffled(faces: FaceSet, limit: int | None = None) -> list[int]:
    """The faces in a fixed random order, so that the first few stand for all; None for all of them."""
    return [int(i) for i in np.random.default_rng(0).permutation(len(faces))[:limit]]


def result_file(out: Path, faces: FaceSet, job: Job, settings: Settings) -> Path:
    """Where a result is kept: another one when weights, gallery or settings change."""
    key = hashlib.sha256(settings_key(settings).encode()).hexdigest()[:10]
    run, i = job
    return out / run.replace(", ", "-") / f"{faces.records[i].name}-{key}.png"


def make_missing(
    root: Path, files: dict[Job, Path], settings: dict[Job, Settings], crew: Crew, minutes: float, device: str
) -> list[tuple[Job, Path]]:
    """Make the results that are not there yet, until the time is up. Returns: those that are there then."""
    missing = [(job[1], settings[job], file) for job, file in files.items() if not file.is_file()]
    crew.spread(partial(_make_share, root, device, time.time() + 60 * minutes), missing)
    return [(job, file) for job, file in files.items() if file.is_file()]


def _make_share(root: Path, device: str, deadline: float, jobs: Sequence[tuple[int, Settings, Path]]) -> dict[Path, None]:
    """One worker's part of the results; they are files, and nothing comes back."""
    anonymizer, faces = Anonymizer(device=device), FaceSet(root, "test")
    for i, settings, file in tqdm(jobs, unit="face", mininterval=20):
        if time.time() > deadline:
            break
        crop, seed = as_crop(faces, i), settings.seed + i
        target = anonymizer.find_target(settings, crop, seed)
        _, pixels = regenerate_crop(anonymizer, crop, settings, target, seed)
        save_picture(Picture(pixels), file, overwrite=True)
    return {}
