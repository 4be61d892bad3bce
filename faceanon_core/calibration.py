"""Measure which similarity is too high for a face-recognition network on the population at hand, and write its card."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from .errors import InputError
from .faces import FaceDetector
from .geometry import FloatArray
from .identity import CHECK_FAR, MIN_ACCEPTS, RATES, Card, Recogniser, threshold_at
from .image import load_picture
from .sources import find_sources

MIN_RECOGNISED = 0.95  # of the faces, in darker and coarser copies; a network fed the wrong way knows fewer


@dataclass(frozen=True)
class Calibration:
    """A card, the rates and files left out and why, and the two pictures of different people most alike."""

    card: Card
    left_out: list[str]
    most_alike: tuple[Path, Path, float]


def calibrate(recogniser: Recogniser, folder: Path, watch: Callable[[Iterable[Path]], Iterable[Path]] = iter) -> Calibration:
    """Measure thresholds on pairs of different people.

    Args:
        folder: pictures, each of another person; or a subfolder for every person. The largest face of each counts.
        watch: wraps the pictures as they are read, to show progress.
    Returns: thresholds at `RATES`; left out are those that rest on fewer than `MIN_ACCEPTS` pairs, and what cannot be read.
    Raises: InputError if there are too few people for the larger rate, or the network does not know a face in a darker and
        coarser copy of its own picture, as with a wrong layout.
    """
    folder = folder.resolve()
    found = find_sources(folder)
    paths, people, before, copies = _embed_folder(recogniser, folder, watch(found.pictures), found.unread)
    different = np.triu(np.not_equal.outer(people, people), 1) if people else np.zeros((0, 0), bool)
    pairs = int(different.sum())
    if pairs * CHECK_FAR < MIN_ACCEPTS:
        raise InputError(
            f"{folder} gives {pairs} pairs of different people, but a false-accept rate of {CHECK_FAR:.0%} needs at least "
            f"{MIN_ACCEPTS / CHECK_FAR:.0f} (pictures of 46 people give 1035)"
        )
    scores = before @ before.T
    thresholds = {rate: threshold_at(scores[different], rate) for rate in RATES if rate * pairs >= MIN_ACCEPTS}
    left_out = [
        f"{rate:.1%} false accepts cannot be measured on {pairs} pairs; it takes {MIN_ACCEPTS / rate:.0f}"
        for rate in RATES
        if rate not in thresholds
    ]
    left_out += [f"{path.relative_to(folder).as_posix()}: {why}" for path, why in found.unread.items()] + found.notes
    known = float(((before * copies).sum(1) > thresholds[CHECK_FAR]).mean())
    if known < MIN_RECOGNISED:
        raise InputError(
            f"{recogniser.name} knows only {known:.0%} of the faces in darker and coarser copies of their own pictures; "
            "this layout is wrong for it, try another"
        )
    first, second = np.unravel_index(int(np.where(different, scores, -2).argmax()), scores.shape)
    card = replace(
        recogniser.card, thresholds=thresholds, sha256=recogniser.sha256, measured=_measured(len(paths), people, pairs)
    )
    return Calibration(card, left_out, (paths[first], paths[second], float(scores[first, second])))


def _measured(pictures: int, people: list[str], pairs: int) -> dict[str, str | int]:
    today = datetime.date.today().isoformat()
    return {"date": today, "pictures": pictures, "people": len(set(people)), "pairs": pairs}


def _embed_folder(
    recogniser: Recogniser, folder: Path, pictures: Iterable[Path], unread: dict[Path, str]
) -> tuple[list[Path], list[str], NDArray[np.float32], NDArray[np.float32]]:
    """Pictures with a face, whose they are, and the embeddings (N, D) of their faces and of degraded copies.

    Those that cannot be read are added to `unread`.
    """
    paths, people, rows = [], [], []
    with FaceDetector() as detector:
        for path in pictures:
            try:
                pixels = load_picture(path).pixels
            except InputError as error:
                unread[path] = str(error)
                continue
            faces = detector.detect(pixels)
            if faces:
                rows.append(_embed_twice(recogniser, pixels, faces[0].landmarks))
                paths.append(path)
                inner = path.relative_to(folder)
                people.append(inner.parts[0])  # a subfolder's name, or the picture's own
    if not rows:
        return paths, people, np.zeros((0, 1), np.float32), np.zeros((0, 1), np.float32)
    both = np.asarray(rows, np.float32)
    return paths, people, both[:, 0], both[:, 1]


def _embed_twice(
    recogniser: Recogniser, pixels: NDArray[np.uint8], landmarks: FloatArray
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """A face's embedding, and that of a copy at 0.7 of its brightness with 64 pixels across the face."""
    height, width = pixels.shape[:2]
    shrink = min(1.0, 64 / float(np.ptp(landmarks, axis=0).max()))
    size = (max(1, round(width * shrink)), max(1, round(height * shrink)))
    coarse = cv2.resize((pixels * 0.7).astype(np.uint8), size, interpolation=cv2.INTER_AREA)
    copy = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)
    return recogniser.embed(pixels, landmarks), recogniser.embed(np.asarray(copy, np.uint8), landmarks)
