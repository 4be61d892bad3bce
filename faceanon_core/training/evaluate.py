"""Measure the demo model on the 302 test faces and write the model card's figures and contact sheet."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from ..evaluation.measures import landmark_distance, pose_error
from ..faces import face_at
from ..geometry import Box
from ..guidance import feature_distance
from ..identity import Recogniser
from ..image import load_picture, pixels_to_tensor, tensor_to_pixels
from ..judge import judge_face
from ..pipeline import Anonymizer, Settings
from ..regions import RegionChoice
from ..report import contact_sheet
from ..target import Target
from .crowd import Crowd, Likeness, rates, share
from .data import FaceSet
from .encoder import attribute_accuracy
from .labels import label_faces
from .results import as_crop, make_missing, regenerate_crop, result_file, shuffled
from .strangers import compare_strangers
from .vae import reconstruction_psnr
from .workers import Crew

_COMPARED = 3  # every third face is made a second time without guidance


@dataclass(frozen=True)
class Seen:
    """What is seen in a result: `landmarks` (478, 2) found in it, None where none are; whether it passes as a face."""

    pixels: NDArray[np.uint8]
    landmarks: NDArray[np.float32] | None
    is_face: bool
    distance: float  # to the target's features


@dataclass(frozen=True)
class Measured:
    """One test face: its last result, and how often it was made; without guidance, where it was made so as well."""

    result: Seen
    tries: int
    unguided: Seen | None


def evaluate(
    root: Path, recogniser: Recogniser, settings: Settings, work: Path, minutes: float = 1e9, device: str = "cpu",
    workers: int = 1,
) -> dict[str, Any]:  # fmt: skip
    """Anonymize the test faces in `root` with `settings` and measure. As in the pipeline, what is no face is made again.

    Args:
        work: results that are there already, made with the same weights and settings, are kept.
        minutes: stop making results after this long and report on the faces that are there.
        workers: processes that share the faces, each on one core and all on `device`.

    Writes `work/evaluation/figures.json`, `rows.csv` (a line for every face) and `contact_sheet.jpg`, and the last results
    as pictures into `work/evaluation/results`, named as `training sources` names their sources.
    """
    out, deadline = work / "evaluation", time.time() + 60 * minutes
    (out / "results").mkdir(parents=True, exist_ok=True)
    faces = FaceSet(root, "test")
    off = replace(settings, guidance=replace(settings.guidance, strength=0.0))
    chosen = shuffled(faces)
    with Crew(workers) as crew:

        def see(run: Settings, indices: list[int], attempt: int) -> dict[int, Seen]:
            jobs = {("", i): result_file(work, faces, i, run, attempt) for i in indices}
            left = (deadline - time.time()) / 60
            made = make_missing(root, jobs, dict.fromkeys(jobs, run), crew, left, device, attempt)
            return crew.spread(partial(_see_share, root, settings), [(i, file) for (_, i), file in made])

        results, tries = see(settings, chosen, 0), dict.fromkeys(chosen, 1)
        for attempt in range(1, settings.tries):
            again = see(settings, [i for i, seen in results.items() if not seen.is_face], attempt)
            results |= again
            tries |= dict.fromkeys(again, attempt + 1)
        unguided: dict[int, Seen] = {}
        for attempt in range(settings.tries):
            same_seed = [i for i in chosen[::_COMPARED] if i in results and tries[i] == attempt + 1]
            unguided |= see(off, same_seed, attempt)
    indices = sorted(results)
    measured = [Measured(results[i], tries[i], unguided.get(i)) for i in indices]
    anonymizer = Anonymizer(device=device)
    targets = [anonymizer.find_target(settings, as_crop(faces, i), settings.seed + i) for i in indices]
    names = [faces.records[i].name for i in indices]
    figures, rows = _figures(faces, FaceSet(root, "train"), recogniser, indices, measured)
    _write_rows(out / "rows.csv", names, targets, rows)
    for name, one in zip(names, measured, strict=True):
        Image.fromarray(one.result.pixels).save(out / "results" / f"{name}.png")
    figures["vae_psnr_db"] = round(reconstruction_psnr(anonymizer.model.vae, faces, len(indices)), 2)
    accuracy = attribute_accuracy(anonymizer.encoder, faces, label_faces(faces))
    figures["encoder_accuracy"] = {name: [round(share, 3), known] for name, (share, known) in accuracy.items()}
    (out / "figures.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    Image.fromarray(_sheet(anonymizer, faces, indices, measured, targets, settings)).save(
        out / "contact_sheet.jpg", quality=90
    )
    return figures


def _see_share(root: Path, settings: Settings, jobs: Sequence[tuple[int, Path]]) -> dict[int, Seen]:
    """One worker's part of the looking at results."""
    anonymizer, faces = Anonymizer(), FaceSet(root, "test")
    seen = {}
    for i, file in tqdm(jobs, desc="looking", unit="result", mininterval=20):
        pixels, crop = load_picture(file).pixels, as_crop(faces, i)
        target = anonymizer.find_target(settings, crop, settings.seed + i)
        found = face_at(Box.around(crop.landmarks), anonymizer.detector.detect(pixels))
        seen[i] = Seen(
            pixels,
            found.landmarks if found is not None else None,
            judge_face(crop, pixels, (), anonymizer.detector).is_face,
            target_distance(anonymizer, pixels, target, settings),
        )
    return seen


def target_distance(anonymizer: Anonymizer, pixels: NDArray[np.uint8], target: Target, settings: Settings) -> float:
    """How far a result's features, (S, S, 3) uint8 RGB, are from its target's."""
    with torch.no_grad():
        reached, wanted = (anonymizer.encoder.features(x) for x in (pixels_to_tensor(pixels), target.image))
    return float(feature_distance(reached, wanted, settings.guidance.tokens))


Row = tuple[Likeness, float]  # with the mean landmark distance


def _figures(
    faces: FaceSet, strangers: FaceSet, recogniser: Recogniser, indices: list[int], measured: list[Measured]
) -> tuple[dict[str, Any], list[Row | None]]:
    """The figures, and for every face what they were taken from; None where a result counts as no face."""
    crowd = Crowd(faces, recogniser)
    rows: list[Row | None] = []
    turned: list[float] = []
    for i, one in zip(indices, measured, strict=True):
        landmarks = one.result.landmarks
        if landmarks is None or not one.result.is_face:
            rows.append(None)
            continue
        turned.append(pose_error(faces.landmarks[i], landmarks))
        distance = landmark_distance(faces.landmarks[i], landmarks)
        rows.append((crowd.compare(i, one.result.pixels, landmarks), distance))
    known = [row for row in rows if row is not None]
    shift = [distance for _, distance in known]
    pairs = [(one.result.distance, one.unguided.distance) for one in measured if one.unguided is not None]
    figures = {
        "faces": len(indices),
        "threshold_at_far_1_percent": {group: round(value, 3) for group, value in crowd.thresholds.items()},
        **rates([likeness for likeness, _ in known]),
        "other_people_of_the_kind": compare_strangers(crowd, strangers),
        "detected_rate": round(len(known) / len(indices), 4),
        "landmark_distance": round(float(np.mean(shift)), 4),
        "landmark_distance_median": round(float(np.median(shift)), 4),
        "pose_error_degrees": round(float(np.mean(turned)), 2),
        "guidance_compared_on": len(pairs),
        "guidance_lowers_distance_rate": share([guided < plain for guided, plain in pairs]),
        "guided_over_unguided_distance": round(float(np.mean([guided / plain for guided, plain in pairs])), 3),
        "made_more_than_once": sum(one.tries > 1 for one in measured),
    }
    return figures, rows


def _write_rows(path: Path, names: list[str], targets: list[Target], rows: list[Row | None]) -> None:
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(["name", "target", "similarity", "same_person", "rank_1", "landmark_distance"])
        for name, target, row in zip(names, targets, rows, strict=True):
            cells = ["", "", "", ""]
            if row is not None:
                likeness, distance = row
                cells = [
                    f"{likeness.similarity:.4f}",
                    str(int(likeness.same_person)),
                    str(int(likeness.first)),
                    f"{distance:.4f}",
                ]
            writer.writerow([name, target.name, *cells])


def _sheet(
    anonymizer: Anonymizer, faces: FaceSet, indices: list[int], measured: list[Measured], targets: list[Target],
    settings: Settings,
) -> NDArray[np.uint8]:  # fmt: skip
    rows = []
    picked = list(range(0, len(indices), max(1, len(indices) // 10)))[:10]
    keep_eyes = replace(settings, regions=RegionChoice(keep=("eyes",)))
    for position in picked:
        i, target = indices[position], targets[position]
        kept = regenerate_crop(anonymizer, as_crop(faces, i), keep_eyes, target, settings.seed + i)
        rows.append([np.array(faces.image(i)), tensor_to_pixels(target.image)[0], measured[position].result.pixels, kept])
    return contact_sheet(rows, ["source", "target", "result", "result, eyes kept"])
