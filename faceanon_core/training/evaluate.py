"""Measure the demo model on the 302 test faces and write the model card's figures and contact sheet."""

from __future__ import annotations

import csv
import json
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

from ..encoder import DemoEncoder
from ..evaluation.measures import landmark_distance, pose_error
from ..faces import face_at
from ..geometry import Box, FloatArray
from ..guidance import feature_distance
from ..identity import FaceRecogniser, Recogniser
from ..image import tensor_to_pixels
from ..pipeline import Anonymizer, Settings
from ..proportions import CHECKED
from ..regions import RegionChoice
from ..report import contact_sheet
from ..target import gallery_target
from .crowd import Crowd, Likeness, rates, share
from .data import FaceSet
from .encoder import attribute_accuracy
from .labels import label_faces
from .results import SETTINGS, Job, Made, face_crop, is_refused, make_missing, result_file, shuffled
from .strangers import compare_strangers
from .vae import reconstruction_psnr
from .workers import Crew

_COMPARED = 3  # every third face is made a second time without guidance


@dataclass(frozen=True)
class Seen:
    """What is seen in a result: `landmarks` (478, 2) found in it, None where none are."""

    made: Made
    landmarks: FloatArray | None
    distance: float  # to the target's features


def evaluate(
    root: Path, recogniser: Recogniser, work: Path, minutes: float = 1e9, device: str = "cpu", workers: int = 1,
    settings: Settings = SETTINGS, checks: Sequence[FaceRecogniser] = (),
) -> dict[str, Any]:  # fmt: skip
    """Anonymize the test faces in `root` and measure.

    Args:
        work: results that are there already, made with the same weights and settings, are kept.
        minutes: stop making results after this long and report on the faces that are there.
        workers: processes that share the faces, each on one core and all on `device`.
        checks: what every result has to pass; the `recogniser` that judges them should be none of these.

    Writes `work/evaluation/figures.json`, `rows.csv` (a line for every face) and `contact_sheet.jpg`, and the results as
    pictures into `work/evaluation/results`, named as `training sources` names their sources.
    """
    out = work / "evaluation"
    (out / "results").mkdir(parents=True, exist_ok=True)
    faces = FaceSet(root, "test")
    chosen = shuffled(faces)
    off = replace(settings, guidance=replace(settings.guidance, strength=0.0))
    wanted = {("default", i): settings for i in chosen} | {("unguided", i): off for i in chosen[::_COMPARED]}
    files = {job: result_file(work, faces, job[1], each, checks) for job, each in wanted.items()}
    with Crew(workers) as crew:
        made = make_missing(root, files, wanted, crew, minutes, device, checks)
        seen = crew.spread(partial(_see_share, root, settings), made)
    results, unguided = ({i: one for (run, i), one in seen.items() if run == name} for name in ("default", "unguided"))
    indices = sorted(results)
    names = [faces.records[i].name for i in indices]
    for name, i in zip(names, indices, strict=True):
        Image.fromarray(results[i].made.pixels).save(out / "results" / f"{name}.png")
    figures, rows = _figures(faces, FaceSet(root, "train"), recogniser, {i: results[i] for i in indices}, unguided)
    figures["refused"] = sum(is_refused(files["default", i]) for i in chosen)
    _write_rows(out / "rows.csv", names, [results[i].made.target for i in indices], rows)
    anonymizer = Anonymizer(device=device)
    figures["vae_psnr_db"] = round(reconstruction_psnr(anonymizer.model.vae, faces, len(chosen)), 2)
    accuracy = attribute_accuracy(anonymizer.encoder, faces, label_faces(faces))
    figures["encoder_accuracy"] = {name: [round(share, 3), known] for name, (share, known) in accuracy.items()}
    (out / "figures.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    Image.fromarray(_sheet(anonymizer, faces, results, settings)).save(out / "contact_sheet.jpg", quality=90)
    return figures


def _see_share(root: Path, settings: Settings, jobs: Sequence[tuple[Job, Path]]) -> dict[Job, Seen]:
    """One worker's part of the looking at results."""
    anonymizer, faces = Anonymizer(), FaceSet(root, "test")
    seen = {}
    for job, file in tqdm(jobs, desc="looking", unit="result", mininterval=20):
        made, source = Made(file), faces.landmarks[job[1]]
        found = face_at(Box.around(source), anonymizer.detector.detect(made.pixels))
        distance = target_distance(anonymizer.encoder, made, source, settings)
        seen[job] = Seen(made, found.landmarks if found is not None else None, distance)
    return seen


def target_distance(encoder: DemoEncoder, made: Made, source: FloatArray, settings: Settings) -> float:
    """How far a result's features are from its target's; `source` (478, 2), the landmarks of its source."""
    with torch.no_grad():
        reached, wanted = (encoder.features(x) for x in (face_crop(made.pixels, source), gallery_target(made.target).image))
    return float(feature_distance(reached, wanted, settings.guidance.tokens))


Row = tuple[Likeness, float]  # with the mean landmark distance


def _figures(
    faces: FaceSet, strangers: FaceSet, recogniser: Recogniser, results: dict[int, Seen], unguided: dict[int, Seen]
) -> tuple[dict[str, Any], list[Row | None]]:
    """The figures, and for every result what they were taken from; None where no face is found in it."""
    crowd = Crowd(faces, recogniser)
    rows: list[Row | None] = []
    turned: list[float] = []
    for i, seen in results.items():
        if seen.landmarks is None:
            rows.append(None)
            continue
        turned.append(pose_error(faces.landmarks[i], seen.landmarks))
        shift = landmark_distance(faces.landmarks[i], seen.landmarks)
        rows.append((crowd.compare(i, seen.made.pixels, seen.landmarks), shift))
    known = [row for row in rows if row is not None]
    shifts = [shift for _, shift in known]
    pairs = [(results[i].distance, plain.distance) for i, plain in unguided.items() if i in results]
    figures = {
        "faces": len(results),
        "threshold_at_far_1_percent": {group: round(value, 3) for group, value in crowd.thresholds.items()},
        **rates([likeness for likeness, _ in known]),
        "other_people_of_the_kind": compare_strangers(crowd, strangers),
        "detected_rate": round(len(known) / len(results), 4),
        "landmark_distance": round(float(np.mean(shifts)), 4),
        "landmark_distance_median": round(float(np.median(shifts)), 4),
        "pose_error_degrees": round(float(np.mean(turned)), 2),
        "guidance_compared_on": len(pairs),
        "guidance_lowers_distance_rate": share([guided < plain for guided, plain in pairs]),
        "guided_over_unguided_distance": round(float(np.mean([guided / plain for guided, plain in pairs])), 3),
        "made_more_than_once": sum(seen.made.tries > 1 for seen in results.values()),
    }
    return figures, rows


def _write_rows(path: Path, names: list[str], targets: list[str], rows: list[Row | None]) -> None:
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(["name", "target", "similarity", "same_person", "rank_1", "landmark_distance"])
        for name, target, row in zip(names, targets, rows, strict=True):
            if row is None:
                writer.writerow([name, target, "", "", "", ""])
                continue
            likeness, shift = row
            cells = [f"{likeness.similarity:.4f}", int(likeness.same_person), int(likeness.first), f"{shift:.4f}"]
            writer.writerow([name, target, *cells])


def _sheet(anonymizer: Anonymizer, faces: FaceSet, results: dict[int, Seen], settings: Settings) -> NDArray[np.uint8]:
    indices = sorted(results)
    rows = []
    keep_eyes = replace(settings, regions=RegionChoice(keep=("eyes",)), proportions=CHECKED, on_failure="redact")
    for i in indices[:: max(1, len(indices) // 10)][:10]:
        kept = anonymizer.anonymize(faces.image(i), keep_eyes).pixels
        target = tensor_to_pixels(gallery_target(results[i].made.target).image)[0]
        rows.append([np.array(faces.image(i)), target, results[i].made.pixels, kept])
    return contact_sheet(rows, ["source", "target", "result", "result, eyes kept"])
