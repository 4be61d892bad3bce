"""Pictures that show what was found and done."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from .faces import Face
from .geometry import FACE_OVAL, LEFT_EYE, LIPS_INNER, LIPS_OUTER, RIGHT_EYE

_OUTLINES = (FACE_OVAL, LEFT_EYE, RIGHT_EYE, LIPS_OUTER, LIPS_INNER)


def draw_faces(pixels: NDArray[np.uint8], faces: list[Face]) -> NDArray[np.uint8]:
    """Draw box, number (from 1), confidence and outlines of every face on a copy of a picture.

    Args:
        pixels: (H, W, 3) uint8 RGB.
    """
    drawn = pixels.copy()
    width = max(1, round(max(pixels.shape[:2]) / 500))
    for number, face in enumerate(faces, 1):
        box = face.box
        corners = [(round(box.left), round(box.top)), (round(box.right), round(box.bottom))]
        cv2.rectangle(drawn, corners[0], corners[1], (255, 210, 0), width)
        for outline in _OUTLINES:
            points = np.round(face.landmarks[list(outline)]).astype(np.int32).reshape(-1, 1, 2)
            cv2.polylines(drawn, [points], True, (0, 255, 160), width, cv2.LINE_AA)
        place = (corners[0][0], max(12, corners[0][1] - 4))
        cv2.putText(
            drawn, f"{number}: {face.score:.2f}", place, cv2.FONT_HERSHEY_SIMPLEX, 0.35 + 0.15 * width, (255, 210, 0), width
        )
    return drawn


def side_by_side(pictures: list[NDArray[np.uint8]], gap_px: int = 4) -> NDArray[np.uint8]:
    """Join pictures of equal height from left to right with a white gap."""
    gap = np.full((pictures[0].shape[0], gap_px, 3), 255, np.uint8)
    row = [piece for picture in pictures for piece in (picture, gap)][:-1]
    return np.hstack(row)


def contact_sheet(rows: list[list[NDArray[np.uint8]]], titles: list[str], gap_px: int = 4) -> NDArray[np.uint8]:
    """A grid of equally sized pictures with a title over each column."""
    body = [side_by_side(row, gap_px) for row in rows]
    width = body[0].shape[1]
    head = np.full((24, width, 3), 255, np.uint8)
    step = rows[0][0].shape[1] + gap_px
    for column, title in enumerate(titles):
        cv2.putText(head, title, (column * step + 4, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
    line = np.full((gap_px, width, 3), 255, np.uint8)
    return np.vstack([head, *[piece for row in body for piece in (row, line)][:-1]])
