"""Results of the test faces, kept as files: a run that was cut off goes on where it stopped, and commands share results.

They are made as `faceanon anonymize FOLDER` makes them, from the whole 256 px picture.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from ..errors import AnonymizationError, NoFaceError
from ..evaluation.baselines import settings_key
from ..geometry import FloatArray, upright_frame, warp_square
from ..identity import FaceRecogniser
from ..image import Picture, load_picture, pixels_to_tensor, save_picture
from ..pipeline import Anonymizer, Settings
from .data import FaceSet
from .workers import Crew

Job = tuple[str, int]  # a run and the test face it is of

SETTINGS = Settings(own_seed=True)  # the defaults of a folder run


class Made:
    """A result: `pixels` (256, 256, 3) uint8 RGB, its target's name and how often it was made until it was a face."""

    def __init__(self, file: Path) -> None:
        said = json.loads(_note(file).read_text(encoding="utf-8"))
        self.target: str = said["target"]
        self.tries: int = said["tries"]
        self.pixels = load_picture(file).pixels

    @staticmethod
    def keep(file: Path, pixels: NDArray[np.uint8], target: str, tries: int = 1) -> None:
        """Write a result."""
        save_picture(Picture(pixels), file, overwrite=True)
        _write_note(file, {"target": target, "tries": tries})


def shuffled(faces: FaceSet, limit: int | None = None) -> list[int]:
    """The faces in a fixed random order, so that the first few stand for all; None for all of them."""
    return [int(i) for i in np.random.default_rng(0).permutation(len(faces))[:limit]]


def result_file(
    work: Path, faces: FaceSet, i: int, settings: Settings, checks: Sequence[FaceRecogniser] = ()
) -> Path:  # fmt: skip
    """Where the result of test face `i` is kept: another place when weights, gallery, settings or checks change."""
    key = hashlib.sha256(settings_key(settings, *([one.key, one.limit()] for one in checks)).encode()).hexdigest()[:10]
    return work / "made" / f"{faces.records[i].name}-{key}.png"


def make_missing(
    root: Path, files: dict[Job, Path], settings: dict[Job, Settings], crew: Crew, minutes: float, device: str,
    checks: Sequence[FaceRecogniser] = (),
) -> list[tuple[Job, Path]]:  # fmt: skip
    """Make the results that are not there yet, until the time is up.

    Returns: those that are there then. What the pipeline refuses is noted, not tried again, and not among them.
    """
    missing = {file: (job[1], settings[job], file) for job, file in files.items() if not _note(file).is_file()}
    crew.spread(partial(_make_share, root, device, time.time() + 60 * minutes, checks), list(missing.values()))
    return [(job, file) for job, file in files.items() if _note(file).is_file() and file.is_file()]


def _make_share(
    root: Path, device: str, deadline: float, checks: Sequence[FaceRecogniser], jobs: Sequence[tuple[int, Settings, Path]]
) -> dict[Path, None]:  # fmt: skip
    """One worker's part of the results; they are files, and nothing comes back."""
    anonymizer, faces = Anonymizer(device=device, recognisers=checks), FaceSet(root, "test")
    for i, settings, file in tqdm(jobs, desc="making", unit="face", mininterval=20):
        if time.time() > deadline:
            break
        try:
            result = anonymizer.anonymize(faces.image(i), settings)
        except (AnonymizationError, NoFaceError) as error:
            _write_note(file, {"refused": str(error)})
            continue
        Made.keep(file, result.pixels, result.faces[0].target or "", result.faces[0].tries)
    return {}


def is_refused(file: Path) -> bool:
    """Whether the pipeline refused to make this result."""
    return _note(file).is_file() and not file.is_file()


def _note(file: Path) -> Path:
    """What is known of a result; there once it is made or refused."""
    return file.with_suffix(".json")


def _write_note(file: Path, said: dict[str, str | int]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    _note(file).write_text(json.dumps(said) + "\n", encoding="utf-8")


def face_crop(pixels: NDArray[np.uint8], landmarks: FloatArray) -> Tensor:
    """The upright square around a face as the pipeline cuts it out, (1, 3, 256, 256) float 0..1.

    Args:
        landmarks: (478, 2) of the source, for results as well.
    """
    return pixels_to_tensor(warp_square(pixels, upright_frame(landmarks, 256).matrix, 256))
