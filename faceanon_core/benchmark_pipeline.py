"""What the rest of the pipeline costs: import, models, finding, parsing, cutting out, putting back, and all together."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from statistics import median

import numpy as np
from numpy.typing import NDArray

from .benchmark import machine, now, spread, timed
from .checks import usable_device
from .crop import crop_face, stitch_face
from .pipeline import Anonymizer, Settings
from .regions import region_mask

_PARTS = 10  # repetitions of what is quick, for each run
_IMPORT = (
    "import time; t = time.perf_counter(); import faceanon_core.cli, faceanon_core.pipeline; print(time.perf_counter() - t)"
)


def benchmark_pipeline(portrait: NDArray[np.uint8], runs: int = 3, device: str = "cpu") -> list[str]:
    """Measure every part on one portrait. Returns: the lines of a table in Markdown.

    Args:
        portrait: (H, W, 3) uint8 RGB with one face.
    Raises: InputError for an unknown device; NoFaceError or AnonymizationError if the portrait cannot be anonymized.
    """
    place = usable_device(device)

    def seconds(work: Callable[[], object], times: int) -> list[float]:
        return [timed(work, place) for _ in range(times)]

    imports = [_import_seconds() for _ in range(runs)]
    began = now(place)
    anonymizer = Anonymizer(device=device)
    loaded = (anonymizer.model, anonymizer.encoder)
    loading = [now(place) - began]
    first = seconds(lambda: anonymizer.anonymize(portrait, Settings()), 1)
    face = anonymizer.detector.detect(portrait)[0]
    crop = crop_face(portrait, face, loaded[0].size_px)
    labels = anonymizer.parser.parse(crop.pixels, crop.landmarks)
    mask = region_mask(labels, Settings().regions, anonymizer.parser)
    quick = runs * _PARTS
    rows = [
        ("import, in a new process", imports, "at most 3 s"),
        ("load the models", loading, ""),
        ("find the faces of a picture, all detectors", seconds(lambda: anonymizer.detector.scan(portrait), quick), ""),
        ("cut out a face", seconds(lambda: crop_face(portrait, face, 256), quick), ""),
        (
            "parse a face",
            seconds(lambda: anonymizer.parser.parse(crop.pixels, crop.landmarks), quick),
            "at least 15 a second",
        ),
        ("make the mask", seconds(lambda: region_mask(labels, Settings().regions, anonymizer.parser), quick), ""),
        ("put a face back", seconds(lambda: stitch_face(portrait, crop, crop.tensor, mask.seam), quick), ""),
        ("portrait end to end, the first, models loaded", first, "at most 10 s"),
        (
            "portrait end to end, later ones",
            seconds(lambda: anonymizer.anonymize(portrait, Settings()), runs),
            "at most 10 s",
        ),
    ]
    height, width = portrait.shape[:2]
    title = f"portrait of {width} x {height} px, defaults, {machine(place)}"
    lines = [title, "", "| | seconds | a second | goal |", "|---|---|---|---|"]
    return [*lines, *(f"| {name} | {spread(found)} | {1 / median(found):.1f} | {goal} |" for name, found, goal in rows)]


def _import_seconds() -> float:
    done = subprocess.run([sys.executable, "-c", _IMPORT], capture_output=True, text=True, check=True)
    return float(done.stdout)
