"""A long run over a folder in one process."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from faceanon_core.benchmark import settled_mb
from faceanon_core.diffusion import DemoModel
from faceanon_core.engines import Made, Outcomes, make_picture, run_here
from faceanon_core.folder import Journal, fill_folder
from faceanon_core.pipeline import Anonymizer, Settings
from faceanon_core.weights import ASSETS, GALLERY

COUNT, EVERY = 100, 10  # pictures, and how many lie between two looks at the memory; each of these is guided
_BOUND_MB = 5.0  # a sixteenth of a megabyte for each picture after the tenth: about the picture itself


class SmallModel(DemoModel):
    """The demo model on crops of half the side, which is four times as quick."""

    size_px = 128


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_a_hundred_portraits_need_no_more_memory_than_ten(tmp_path: Path) -> None:
    """One step each, so that it is quick, and two for some, the first of which is guided."""
    anonymizer = Anonymizer()
    anonymizer.model = SmallModel(ASSETS)
    sources = write_portraits(tmp_path / "in")
    quick, guided = (Settings(steps=steps, tries=1, on_failure="redact") for steps in (1, 2))
    memory: list[float] = []

    def maker(source: Path) -> Made:
        settings = guided if sources.index(source) % EVERY == 0 else quick
        return make_picture(anonymizer, settings, False, source)

    def engine(missing: list[Path]) -> Outcomes:
        for number, (source, outcome) in enumerate(run_here(maker, missing), 1):
            yield source, outcome
            if number % EVERY == 0:
                memory.append(settled_mb())

    problems = fill_folder({path: path.name for path in sources}, Journal(tmp_path / "out", "test"), engine)
    assert len(list((tmp_path / "out").glob("*.png"))) == len(problems) == COUNT
    assert len(memory) == COUNT // EVERY
    assert max(memory) - memory[0] < _BOUND_MB, [round(value) for value in memory]


def write_portraits(folder: Path) -> list[Path]:
    """The gallery's faces, each in several places of a larger picture and mirrored."""
    folder.mkdir()
    faces = [np.asarray(Image.open(path).convert("RGB").resize((128, 128))) for path in sorted(GALLERY.glob("*.jpg"))]
    paths = []
    for number in range(COUNT):
        face = faces[number % len(faces)][:, :: 1 - 2 * (number // len(faces) % 2)]
        margin = 8 + 4 * (number // len(faces))
        padded = np.pad(face, ((margin, 8), (margin, 8), (0, 0)), mode="edge")
        paths.append(folder / f"{number:03d}.png")
        Image.fromarray(padded).save(paths[-1])
    return paths
