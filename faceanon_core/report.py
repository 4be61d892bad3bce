"""Pictures that show what was found and done."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from .faces import Face
from .geometry import CONTEXT, FACE_OVAL, LEFT_EYE, LIPS_INNER, LIPS_OUTER, RIGHT_EYE, Box, warp_square
from .identity import Verdict
from .parsing import LABELS, LandmarkParser

_OUTLINES = (FACE_OVAL, LEFT_EYE, RIGHT_EYE, LIPS_OUTER, LIPS_INNER)
_REGION_COLOURS = {
    "skin": (70, 130, 255), "nose": (255, 140, 0), "left_brow": (170, 80, 255), "right_brow": (255, 80, 220),
    "left_eye": (0, 230, 230), "right_eye": (90, 255, 90), "inner_mouth": (120, 0, 60), "upper_lip": (255, 40, 60),
    "lower_lip": (255, 150, 170),
}  # fmt: skip
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_PAD_PX = 4  # left and right of a caption
_TINT = 0.35  # opacity of the regions' colours
_TILE_PX, _LINE_PX = 144, 24  # of a table of verdicts: side of a face, height of a line of text
_PASSED, _FAILED = (20, 120, 50), (200, 30, 30)


@dataclass(frozen=True)
class CheckedFace:
    """What a check found about one face: in which picture (from 0) and where; `problem` is "" if it passed."""

    picture: int
    box: Box
    verdicts: list[Verdict] = field(default_factory=list)
    problem: str = ""

    @property
    def excess(self) -> float:
        """How far the highest similarity lies above what may pass, below 0 if it may; infinite for another problem."""
        if self.problem and all(verdict.passed for verdict in self.verdicts):
            return float("inf")
        return max((verdict.similarity - verdict.limit for verdict in self.verdicts), default=float("-inf"))

    def __str__(self) -> str:
        x, y = self.box.center
        said = "".join(f", {v.recogniser} {v.similarity:.2f} (at most {v.limit:.2f})" for v in self.verdicts)
        outcome = f"FAILED, {self.problem}" if self.problem else "passed"
        return f"picture {self.picture + 1}, face near x {x:.0f}, y {y:.0f}: {outcome}{said}"


def draw_faces(pixels: NDArray[np.uint8], faces: list[Face]) -> NDArray[np.uint8]:
    """Draw box, number (from 1), confidence, outlines and coloured regions of every face on a copy of a picture.

    A tracked face shows its person's number instead of its own.

    The regions are those of `LandmarkParser`; left and right (the subject's own) differ in colour.

    Args:
        pixels: (H, W, 3) uint8 RGB.
    """
    drawn = pixels.copy()
    width = max(1, round(max(pixels.shape[:2]) / 500))
    for number, face in enumerate(faces, 1):
        box = face.box
        _tint_regions(drawn, face)
        corners = [(round(box.left), round(box.top)), (round(box.right), round(box.bottom))]
        cv2.rectangle(drawn, corners[0], corners[1], (255, 210, 0), width)
        for outline in _OUTLINES:
            points = np.round(face.landmarks[list(outline)]).astype(np.int32).reshape(-1, 1, 2)
            fine = max(1, round(box.width / 300))  # so that the lines leave the regions of a small face visible
            cv2.polylines(drawn, [points], True, (0, 255, 160), fine, cv2.LINE_AA)
        place = (corners[0][0], max(12, corners[0][1] - 4))
        shown = number if face.person is None else face.person + 1
        cv2.putText(
            drawn, f"{shown}: {face.score:.2f}", place, cv2.FONT_HERSHEY_SIMPLEX, 0.35 + 0.15 * width, (255, 210, 0), width
        )
    return drawn


def _tint_regions(drawn: NDArray[np.uint8], face: Face) -> None:
    (left, top), (right, bottom) = np.floor(face.landmarks.min(0)).astype(int), np.ceil(face.landmarks.max(0)).astype(int)
    left, top = max(0, left), max(0, top)
    window = drawn[top : bottom + 1, left : right + 1]
    labels = LandmarkParser().parse(window, face.landmarks - np.array([left, top], np.float32))
    palette = np.array([_REGION_COLOURS.get(name, (0, 0, 0)) for name in LABELS], np.float32)
    tinted = (1 - _TINT) * window + _TINT * palette[labels]
    window[labels > 0] = np.round(tinted[labels > 0]).astype(np.uint8)


def side_by_side(pictures: list[NDArray[np.uint8]], gap_px: int = 4) -> NDArray[np.uint8]:
    """Join pictures of equal height from left to right with a white gap."""
    gap = np.full((pictures[0].shape[0], gap_px, 3), 255, np.uint8)
    row = [piece for picture in pictures for piece in (picture, gap)][:-1]
    return np.hstack(row)


def contact_sheet(
    rows: list[list[NDArray[np.uint8]]], titles: list[str], labels: list[str] | None = None, gap_px: int = 4
) -> NDArray[np.uint8]:
    """A grid of equally sized pictures with a title over each column.

    Args:
        rows: (H, W, 3) uint8 RGB pictures, as many in each row as there are titles.
        labels: one for each row, written left of it; None: rows have no labels.
    """
    height, width = rows[0][0].shape[:2]
    line_px = max(24, width // 16)
    grid = [[_caption(title, width, line_px, line_px) for title in titles], *rows]
    if labels is not None:
        margin = max(_text_width(label, line_px) for label in labels) + 2 * _PAD_PX
        sides = [_caption("", margin, line_px, line_px), *(_caption(label, margin, height, line_px) for label in labels)]
        grid = [[side, *row] for side, row in zip(sides, grid, strict=True)]
    bands = [side_by_side(row, gap_px) for row in grid]
    line = np.full((gap_px, bands[0].shape[1], 3), 255, np.uint8)
    return np.vstack([piece for band in bands for piece in (band, line)][:-1])


def captioned_sheet(
    pictures: Sequence[NDArray[np.uint8]], captions: Sequence[Sequence[str]], columns: int = 6, side_px: int = 192
) -> NDArray[np.uint8]:
    """A grid of pictures, each with lines of text under it.

    Args:
        pictures: (H, W, 3) uint8 RGB, at least one; shown as squares.
        captions: the lines of each.
        side_px: of a picture.
    """
    rows = []
    for first in range(0, len(pictures), columns):
        row = list(zip(pictures, captions, strict=True))[first : first + columns]
        most = max(len(lines) for _, lines in row)
        tiles = [_captioned(picture, [*lines, *[""] * (most - len(lines))], side_px) for picture, lines in row]
        missing = min(columns, len(pictures)) - len(tiles)
        rows.append(side_by_side([*tiles, *[np.full_like(tiles[0], 255)] * missing]))
    return np.vstack(rows)


def _captioned(picture: NDArray[np.uint8], lines: Sequence[str], side_px: int) -> NDArray[np.uint8]:
    square = cv2.resize(picture, (side_px, side_px), interpolation=cv2.INTER_AREA)
    return np.vstack([square, *(_caption(line, side_px, _LINE_PX, _LINE_PX) for line in lines)])


def worst_first(faces: Sequence[CheckedFace]) -> list[CheckedFace]:
    """Those that failed, then those that were closest to it."""
    return sorted(faces, key=lambda face: (not face.problem, -face.excess))


def verdict_text(faces: Sequence[CheckedFace]) -> str:
    """A summary, then one line for every face."""
    passed = sum(not face.problem for face in faces)
    return "\n".join([f"{passed} of {len(faces)} faces passed", *map(str, faces)])


def verdict_table(
    faces: Sequence[CheckedFace], results: Sequence[NDArray[np.uint8]], sources: Sequence[NDArray[np.uint8]] | None = None
) -> NDArray[np.uint8]:
    """A table with one row for each face: source, result, similarity to the source, the highest that may pass, verdict.

    Args:
        results: (H, W, 3) uint8 RGB, every picture the faces are in.
        sources: the same pictures before; None: their column is left out, since it shows whom the results must not show.
    """
    shown = [("source", sources)] if sources is not None else []
    pictures = [*shown, ("result", results)]
    columns = [*(title for title, _ in pictures), "similarity", "at most", "verdict"]
    widths = [*[_TILE_PX] * len(pictures), 2 * _TILE_PX, _TILE_PX // 2 + 2 * _PAD_PX, 2 * _TILE_PX]
    rows = [[_caption(title, width, _LINE_PX, _LINE_PX) for title, width in zip(columns, widths, strict=True)]]
    for face in faces:
        similar = [f"{verdict.recogniser} {verdict.similarity:.2f}" for verdict in face.verdicts] or ["-"]
        bounds = [f"{verdict.limit:.2f}" for verdict in face.verdicts] or ["-"]
        outcome = textwrap.wrap(f"FAILED: {face.problem}" if face.problem else "passed", 26)
        colour = _FAILED if face.problem else _PASSED
        cells = [_lines(similar, widths[-3]), _lines(bounds, widths[-2]), _lines(outcome, widths[-1], colour)]
        rows.append([*(_face_tile(pixels[face.picture], face.box) for _, pixels in pictures), *cells])
    bands = [side_by_side(row) for row in rows]
    line = np.full((4, bands[0].shape[1], 3), 225, np.uint8)
    return np.vstack([piece for band in bands for piece in (band, line)][:-1])


def _face_tile(picture: NDArray[np.uint8], box: Box) -> NDArray[np.uint8]:
    scale = _TILE_PX / (CONTEXT * max(box.width, box.height, 1.0))
    offset = (_TILE_PX - 1) / 2 - scale * np.array(box.center)
    matrix = np.concatenate([scale * np.eye(2), offset[:, None]], axis=1).astype(np.float32)
    return warp_square(picture, matrix, _TILE_PX)


def _lines(texts: Sequence[str], width: int, colour: tuple[int, int, int] = (0, 0, 0)) -> NDArray[np.uint8]:
    """A cell with text line by line; what does not fit its height is left out."""
    shown = list(texts[: _TILE_PX // _LINE_PX])
    left = _TILE_PX - _LINE_PX * len(shown)
    gaps = [np.full((height, width, 3), 255, np.uint8) for height in (left // 2, left - left // 2)]
    return np.vstack([gaps[0], *(_caption(text, width, _LINE_PX, _LINE_PX, colour) for text in shown), gaps[1]])


def _caption(
    text: str, width: int, height: int, line_px: int, colour: tuple[int, int, int] = (0, 0, 0)
) -> NDArray[np.uint8]:
    """A white tile with text in the middle of its height, smaller than the line where it would not fit."""
    tile = np.full((height, width, 3), 255, np.uint8)
    scale = line_px / 48 * min(1.0, (width - 2 * _PAD_PX) / max(1, _text_width(text, line_px)))
    base = height // 2 + round(11 * scale)  # a capital letter of this font is 22 px high at scale 1
    cv2.putText(tile, text, (_PAD_PX, base), _FONT, scale, colour, max(1, round(1.5 * scale)), cv2.LINE_AA)
    return tile


def _text_width(text: str, line_px: int) -> int:
    (width, _), _ = cv2.getTextSize(text, _FONT, line_px / 48, 1)
    return int(width)
