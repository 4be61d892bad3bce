"""Group photographs made of test faces, and what became of each face in them.

`FACEANON_FACES=FOLDER python tests/group_photographs.py 12` measures twelve of them, plain and hard in turn.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage import data

from faceanon_core.faces import Scan
from faceanon_core.geometry import Box
from faceanon_core.likeness import NEAR_COPY, likeness
from faceanon_core.pipeline import Anonymizer, Result, Settings
from faceanon_core.training.data import FaceSet

CELL_PX, COLUMNS, ROWS = 300, 4, 2
EMITTED = "emitted unchanged"


@dataclass(frozen=True)
class Group:
    """`pixels` (H, W, 3) uint8 RGB; `places` where each face was pasted with its surroundings."""

    pixels: NDArray[np.uint8]
    places: list[Box]


def group_photograph(faces: FaceSet, draw: np.random.Generator, hard: bool = False) -> Group:
    """Eight faces on a photograph of coffee, 110 to 280 px with their surroundings.

    Args:
        hard: 50 to 160 px, every third darkened to a quarter, every third blurred.
    """
    canvas, places = cv2.resize(data.coffee(), (COLUMNS * CELL_PX, ROWS * CELL_PX)), []
    for place, number in enumerate(draw.permutation(len(faces))[: COLUMNS * ROWS]):
        side = int(draw.integers(50, 160) if hard else draw.integers(110, 280))
        face = cv2.resize(faces.image(int(number)), (side, side), interpolation=cv2.INTER_AREA)
        if hard and place % 3 == 1:
            face = (face * 0.25).astype(np.uint8)
        if hard and place % 3 == 2:
            face = cv2.GaussianBlur(face, (0, 0), side / 64)
        left, top = (place % COLUMNS) * CELL_PX + 10, (place // COLUMNS) * CELL_PX + 10
        canvas[top : top + side, left : left + side] = face
        places.append(Box(left, top, left + side, top + side))
    return Group(canvas, places)


def fates(group: Group, result: Result) -> list[str]:
    """Per face: its status in the report ("unseen" if there is none), or `EMITTED` if it is still in the picture."""
    found = []
    for place in group.places:
        left, top, side = int(place.left), int(place.top), int(place.width)
        before, after = (
            cv2.resize(picture[top : top + side, left : left + side], (256, 256))
            for picture in (group.pixels, result.pixels)
        )
        middle = np.array([[80, 70], [176, 70], [176, 190], [80, 190]], np.float32)  # eyes, nose and mouth of a test face
        report = next((one for one in result.faces if place.intersection(one.face.box) > one.face.box.area / 2), None)
        status = "unseen" if report is None else report.status
        found.append(EMITTED if likeness(before, after, middle) >= NEAR_COPY else status)
    return found


def seen(group: Group, scan: Scan) -> list[bool]:
    """Per face whether a detector saw it."""
    boxes = [face.box for face in (*scan.faces, *scan.unfitted)]
    return [any(place.intersection(box) > box.area / 2 for box in boxes) for place in group.places]


def main(count: int) -> None:
    """Print the fates of the faces in that many photographs."""
    faces, anonymizer, draw = FaceSet(Path(os.environ["FACEANON_FACES"]), "test"), Anonymizer(), np.random.default_rng(0)
    totals: dict[str, Counter[str]] = {"plain": Counter(), "hard": Counter()}
    for number in range(count):
        group = group_photograph(faces, draw, hard=number % 2 == 1)
        result = anonymizer.anonymize(group.pixels, Settings(seed=number, on_failure="redact"))
        known = seen(group, anonymizer.detector.scan(group.pixels))
        for fate, was_seen in zip(fates(group, result), known, strict=True):
            totals["hard" if number % 2 else "plain"][fate if was_seen else f"{fate}, seen by no detector"] += 1
    for kind, counts in totals.items():
        sys.stdout.write(f"{kind}: {', '.join(f'{fate} {times}' for fate, times in counts.most_common())}\n")


if __name__ == "__main__":
    main(int(sys.argv[1]))
