"""Measure on the test faces what the fast default keeps of full guidance, with the same targets and seeds.

Full guidance takes a new gradient at every step, from start to end, through a decoder in float32, at the same strength.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ..engines import usable_cores
from ..evaluation.measures import landmark_distance
from ..faces import face_at
from ..geometry import Box
from ..identity import Recogniser
from ..pipeline import Anonymizer, Settings
from .crowd import Crowd
from .data import FaceSet
from .evaluate import target_distance
from .results import SETTINGS, Job, Made, make_missing, result_file, shuffled
from .workers import Crew

RUNS = ("unguided", "full", "fast")
_DRAWS = 10_000  # of the bootstrap

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], float]  # of rows, one for each face


@dataclass(frozen=True)
class Judged:
    """One result: distance to the target's features; the rest NaN where no face is found in it."""

    distance: float
    same_person: float  # 1 or 0
    landmarks: float  # mean distance from the source's, in its inter-ocular distances


def run_settings(fast: Settings) -> dict[str, Settings]:
    """Settings of every run; `fast` is what is measured."""
    full = replace(fast.guidance, start=0.0, end=1.0, reuse=1, exact=True)
    return {
        "unguided": replace(fast, guidance=replace(full, strength=0.0)),  # of `full`: whatever `fast` is, the same results
        "full": replace(fast, guidance=full),
        "fast": fast,
    }


def measure_quality(
    root: Path, recogniser: Recogniser, work: Path, limit: int | None = None, minutes: float = 1e9, device: str = "cpu",
    workers: int | None = None, fast: Settings | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Make the test faces in `root` without guidance, with all of it and fast, and compare.

    Args:
        work: results that are there already, made with the same weights and settings, are kept.
        limit: how many faces, None for all.
        minutes: stop making results after this long and compare the faces of which all three are there.
        device: where results are made.
        workers: how many processes work at it, None for one per core.
        fast: None for the defaults.
    Returns: the figures, also written to `work/quality/quality.json` and, as a table, `quality.md`.
    """
    out = work / "quality"
    out.mkdir(parents=True, exist_ok=True)
    faces, settings = FaceSet(root, "test"), run_settings(fast or SETTINGS)
    rng, chosen = np.random.default_rng(0), shuffled(faces, limit)
    # face by face, since time may run out; runs in random order, so that no worker gets all of the slow ones
    wanted = {(RUNS[run], i): settings[RUNS[run]] for i in chosen for run in rng.permutation(len(RUNS))}
    files = {job: result_file(work, faces, job[1], each) for job, each in wanted.items()}
    with Crew(workers or usable_cores()) as crew:
        made = make_missing(root, files, wanted, crew, minutes, device)
        judged = crew.spread(partial(_judge_share, root, recogniser, settings["fast"]), made)
    rows = [[judged[run, i] for run in RUNS] for i in chosen if all((run, i) in judged for run in RUNS)]
    figures = compare(rows)
    (out / "quality.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    (out / "quality.md").write_text(table(figures), encoding="utf-8")
    return figures


def _judge_share(
    root: Path, recogniser: Recogniser, settings: Settings, jobs: Sequence[tuple[Job, Path]]
) -> dict[Job, Judged]:
    """One worker's part of the judging."""
    faces, anonymizer = FaceSet(root, "test"), Anonymizer()
    crowd = Crowd(faces, recogniser)
    judged = {}
    for (run, i), file in tqdm(jobs, desc="judging", unit="result", mininterval=20):
        made, source = Made(file), faces.landmarks[i]
        distance = target_distance(anonymizer.encoder, made, source, settings)
        found = face_at(Box.around(source), anonymizer.detector.detect(made.pixels))
        same = shift = float("nan")
        if found is not None:
            same = float(crowd.compare(i, made.pixels, found.landmarks).same_person)
            shift = landmark_distance(source, found.landmarks)
        judged[run, i] = Judged(distance, same, shift)
    return judged


def compare(rows: Sequence[Sequence[Judged]]) -> dict[str, Any]:
    """Figures with 95% bootstrap intervals over faces.

    Args:
        rows: per face its results in the order of `RUNS`. Identity and landmarks are compared where all three show a face.
    """
    if not rows:
        return {"faces": 0}
    table_ = np.array([[(one.distance, one.same_person, one.landmarks) for one in row] for row in rows])  # (faces, runs, 3)
    distances, seen = table_[:, :, 0], table_[~np.isnan(table_[:, :, 1:]).any((1, 2))]
    figures: dict[str, Any] = {
        "faces": len(rows),
        "with a face in all": len(seen),
        "distance": _by_run(distances),
        "same_person": _by_run(seen[:, :, 1]),
        "landmark_distance": _by_run(seen[:, :, 2]),
        "kept": _with_interval(distances, _kept),
    }
    if len(seen):
        figures["same_person_points"] = _with_interval(seen[:, :, 1], lambda same: 100 * _gained(same))
        figures["landmark_change"] = _with_interval(seen[:, :, 2], lambda shift: _gained(shift) / float(shift[:, 1].mean()))
    return figures


def _kept(distances: Floats) -> float:
    """Share of full guidance's drop in distance, (faces, runs)."""
    unguided, full, fast = distances.mean(0)
    return float((unguided - fast) / (unguided - full))


def _gained(values: Floats) -> float:
    """By how much the fast run's mean lies above the full one's."""
    return float(values[:, 2].mean() - values[:, 1].mean())


def _by_run(values: Floats) -> dict[str, float]:
    return {run: round(float(values[:, column].mean()), 4) for column, run in enumerate(RUNS)}


def _with_interval(rows: Floats, statistic: Statistic) -> dict[str, float]:
    rng = np.random.default_rng(0)
    drawn = [statistic(rows[rng.integers(len(rows), size=len(rows))]) for _ in range(_DRAWS)]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return {"value": statistic(rows), "low": float(low), "high": float(high)}


def table(figures: dict[str, Any]) -> str:
    """The figures as Markdown."""
    if not figures["faces"]:
        return "No face has all three results yet.\n"
    lines = ["| | " + " | ".join(RUNS) + " | fast against full | goal |", "|---" * 6 + "|"]
    for name, row, key, unit, goal in (
        ("distance to the target's features", "distance", "kept", "of the drop kept", "at least 95%"),
        ("same person at 1% false accepts", "same_person", "same_person_points", "points", "within 0.5 points"),
        ("landmark error, inter-ocular distances", "landmark_distance", "landmark_change", "", "within 5%"),
    ):
        cells = " | ".join(f"{figures[row][run]:.4f}" for run in RUNS)
        lines.append(f"| {name} | {cells} | {_say(figures.get(key), unit)} | {goal} |")
    counted = f"{figures['faces']} faces, a face found in all three results of {figures['with a face in all']}"
    return "\n".join([*lines, "", f"{counted}; in brackets 95% intervals (bootstrap over faces).", ""])


def _say(found: dict[str, float] | None, unit: str) -> str:
    if found is None:
        return "-"
    value, low, high = found["value"], found["low"], found["high"]
    if unit == "points":
        return f"{value:+.1f} ({low:+.1f}..{high:+.1f}) points"
    if unit:
        return f"{value:.1%} ({low:.1%}..{high:.1%}) {unit}"
    return f"{value:+.1%} ({low:+.1%}..{high:+.1%})"
