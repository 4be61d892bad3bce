"""Pictures that show what was found and done."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from faceanon_core.faces import Face
from faceanon_core.geometry import LEFT_EYE, LIPS_INNER, RIGHT_EYE, Box
from faceanon_core.identity import Verdict
from faceanon_core.report import CheckedFace, contact_sheet, draw_faces, verdict_table, verdict_text, worst_first

# landmarks whose mean lies inside a region, away from every line
INSIDE = {
    "nose": (4,), "skin": (50,), "left_eye": LEFT_EYE, "right_eye": RIGHT_EYE, "inner_mouth": LIPS_INNER,
    "left_brow": (334, 282), "right_brow": (105, 52),
}  # fmt: skip


def moved(face: Face, scale: float = 1, shift: tuple[int, int] = (0, 0)) -> Face:
    landmarks = (face.landmarks * scale + shift).astype(np.float32)
    return replace(face, box=Box.around(landmarks), landmarks=landmarks)


def test_every_region_has_a_colour_of_its_own_through_which_the_picture_shows(face) -> None:
    large = moved(face, 3)
    spots = {name: large.landmarks[list(wanted)].mean(0).round().astype(int) for name, wanted in INSIDE.items()}
    pictures = [draw_faces(np.full((1536, 1536, 3), grey, np.uint8), [large]).astype(int) for grey in (60, 200)]
    dark, light = ({name: tuple(picture[y, x]) for name, (x, y) in spots.items()} for picture in pictures)
    assert len(set(dark.values())) == len(INSIDE)
    assert all(np.subtract(light[name], dark[name]).min() > 70 for name in INSIDE)


def test_drawing_leaves_the_source_and_everything_far_from_the_face_alone(astronaut, face) -> None:
    before = astronaut.copy()
    drawn = draw_faces(astronaut, [face])
    assert np.array_equal(astronaut, before)
    far = np.ones((512, 512), bool)
    far[int(face.box.top) - 20 : int(face.box.bottom) + 5, int(face.box.left) - 5 : int(face.box.right) + 60] = False
    assert np.array_equal(drawn[far], before[far])


@pytest.mark.parametrize("shift", [(-220, 0), (0, -120), (290, 0), (0, 400)])
def test_a_face_beyond_the_border_is_drawn_as_far_as_it_lies_inside(astronaut, face, shift: tuple[int, int]) -> None:
    margin = 110
    drawn = draw_faces(astronaut, [moved(face, shift=shift)])
    padded = np.pad(astronaut, ((margin, margin), (margin, margin), (0, 0)))
    whole = draw_faces(padded, [moved(face, shift=(shift[0] + margin, shift[1] + margin))])
    below_the_number = slice(20, None)
    same = (drawn == whole[margin:-margin, margin:-margin])[below_the_number].all(-1)
    assert same.mean() > 0.99  # at the border lines may be rastered, and hair found, a little differently
    assert (drawn != astronaut)[below_the_number].any(-1).sum() > 1000


@pytest.mark.parametrize("labels", [None, ["seed 1", "seed 2"]])
def test_a_sheet_shows_every_picture_untouched_in_its_place(labels: list[str] | None) -> None:
    noise = np.random.default_rng(0).integers(0, 128, (2, 3, 70, 90, 3), dtype=np.uint8)
    noise[..., 2] = 200  # blue: captions are grey
    sheet = contact_sheet([list(row) for row in noise], ["a", "b", "c"], labels)
    ys, xs = np.nonzero((sheet[..., 2] == 200) & (sheet[..., 0] < 128))
    grid = sheet[ys.min() :, xs.min() :]
    for row, column in np.ndindex(2, 3):
        top, left = row * 74, column * 94
        assert np.array_equal(grid[top : top + 70, left : left + 90], noise[row, column])
    assert grid.shape[:2] == (144, 278)


def blank(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), 255, np.uint8)


def ink(area: np.ndarray) -> int:
    return int((area < 128).any(-1).sum())


def test_titles_stand_over_their_columns_and_labels_beside_their_rows() -> None:
    rows = [[blank(64, 100) for _ in range(2)] for _ in range(2)]
    plain = contact_sheet(rows, ["", ""])
    assert ink(plain) == 0
    titled = contact_sheet(rows, ["", "strength 2"])
    assert ink(titled[:24, :100]) == 0 < ink(titled[:24, 104:])
    labelled = contact_sheet(rows, ["", ""], ["", "seed 7"])
    margin = labelled.shape[1] - plain.shape[1] - 4
    assert ink(labelled[:92]) == 0 < ink(labelled[92:, :margin]) == ink(labelled)


def test_a_long_title_is_made_to_fit_and_titles_grow_with_the_pictures() -> None:
    long = contact_sheet([[blank(64, 64), blank(64, 64)]], ["strength 0.12345678", ""])
    assert 0 < ink(long[:, :64]) == ink(long)
    small, large = (contact_sheet([[blank(side, side)]], ["after"]) for side in (256, 2048))
    assert ink(large) > 20 * ink(small)
    assert large.shape[0] - 2048 == 128 + 4


# ---- verdicts ----


PASSED, ALIKE = Verdict("MobileFaceNet", 0.31, 0.56), Verdict("MobileFaceNet", 0.71, 0.56)


def checked(face: Face) -> list[CheckedFace]:
    """One that passed, one clearly too alike, one nearly so, one that is no face."""
    alike = "it still looks like the source"
    rows = [([PASSED], ""), ([ALIKE], alike), ([Verdict("other", 0.57, 0.56), PASSED], alike), ([PASSED], "no face")]
    return [CheckedFace(0, face.box, verdicts, problem) for verdicts, problem in rows]


def test_failures_come_first_and_the_text_counts_them(face) -> None:
    first = worst_first(checked(face))
    assert [bool(one.problem) for one in first] == [True, True, True, False]
    assert first[0].problem == "no face" and first[1].verdicts == [ALIKE]
    said = verdict_text(first).splitlines()
    assert said[0] == "1 of 4 faces passed" and len(said) == 5
    x, y = face.box.center
    assert said[-1] == f"picture 1, face near x {x:.0f}, y {y:.0f}: passed, MobileFaceNet 0.31 (at most 0.56)"


def test_the_table_shows_each_face_with_a_coloured_verdict_and_the_source_only_if_given(astronaut, face) -> None:
    inverted = 255 - astronaut
    alone, beside = (verdict_table(checked(face), [inverted], sources) for sources in (None, [astronaut]))
    tile = 144
    assert alone.shape[0] == 4 * (tile + 4) + 24 and beside.shape[1] == alone.shape[1] + tile + 4
    source, result = (beside[28 : 28 + tile, left : left + tile] for left in (0, tile + 4))
    assert np.abs(source.astype(int) - (255 - result.astype(int))).mean() < 1  # the same place of both pictures
    assert np.array_equal(alone[28 : 28 + tile, :tile], result)
    for row, failed in enumerate([False, True, True, True]):
        verdict = beside[28 + row * (tile + 4) : 28 + row * (tile + 4) + tile, -2 * tile :].astype(int)
        assert (verdict[..., 0] - verdict[..., 1] > 100).any() == failed
        assert (verdict[..., 1] - verdict[..., 0] > 50).any() != failed
