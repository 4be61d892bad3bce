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
from torch import Tensor
from tqdm import tqdm

from ..crop import FaceCrop
from ..evaluation.measures import landmark_distance, pose_error
from ..faces import face_at
from ..geometry import Box, UprightFrame
from ..guidance import feature_distance
from ..identity import Recogniser
from ..image import tensor_to_pixels
from ..judge import judge_face
from ..pipeline import Anonymizer, Settings
from ..regions import RegionChoice, region_mask
from ..report import contact_sheet
from ..retry import TRY_SEED, until_anonymous
from ..target import Target
from .crowd import Crowd, Likeness, rates, share
from .data import FaceSet
from .encoder import attribute_accuracy
from .labels import label_faces
from .strangers import compare_strangers
from .vae import reconstruction_psnr
from .workers import Crew

_COMPARED = 3  # every third face is made a second time without guidance


@dataclass(frozen=True)
class Measured:
    """One test face: the last result's pixels, landmarks found in it (None where it is refused as no face), target."""

    pixels: NDArray[np.uint8]
    landmarks: NDArray[np.float32] | None
    target: Target
    distances: tuple[float, float] | None  # to the target's features: guided, unguided; None where not compared
    seconds: float
    tries: int


def evaluate(
    root: Path, recogniser: Recogniser, settings: Settings, out: Path, minutes: float = 1e9, device: str = "cpu",
    workers: int = 1,
) -> dict[str, Any]:  # fmt: skip
    """Anonymize the test faces in `root` with `settings` and measure.

    Args:
        minutes: stop after this long and report on the faces measured so far.
        workers: processes that share the faces, each on one core and all on `device`.

    Writes `out/figures.json`, `out/rows.csv` (a line for every face), `out/contact_sheet.jpg`, and the results as pictures
    into `out/results`, named as `training sources` names their sources.
    """
    out.mkdir(parents=True, exist_ok=True)
    faces, anonymizer = FaceSet(root, "test"), Anonymizer(device=device)
    indices = [int(i) for i in np.random.default_rng(0).permutation(len(faces))]
    with Crew(workers) as crew:
        measured = crew.spread(partial(_measure_share, root, settings, time.time() + 60 * minutes, device), indices)
    indices = sorted(measured)
    results = [measured[i] for i in indices]
    figures = _figures(faces, FaceSet(root, "train"), recogniser, indices, results, out / "rows.csv")
    (out / "results").mkdir(exist_ok=True)
    for i, result in measured.items():
        Image.fromarray(result.pixels).save(out / "results" / f"{faces.records[i].name}.png")
    figures["vae_psnr_db"] = round(reconstruction_psnr(anonymizer.model.vae, faces, len(indices)), 2)
    accuracy = attribute_accuracy(anonymizer.encoder, faces, label_faces(faces))
    figures["encoder_accuracy"] = {name: [round(share, 3), known] for name, (share, known) in accuracy.items()}
    (out / "figures.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    Image.fromarray(_sheet(anonymizer, faces, indices, results, settings)).save(out / "contact_sheet.jpg", quality=90)
    return figures


def _measure_share(
    root: Path, settings: Settings, deadline: float, device: str, indices: Sequence[int]
) -> dict[int, Measured]:
    """One worker's part of the test faces."""
    anonymizer, faces = Anonymizer(device=device), FaceSet(root, "test")
    measured = {}
    for number, i in enumerate(tqdm(indices, unit="face", mininterval=20)):
        if time.time() > deadline:
            break
        measured[i] = _measure(anonymizer, faces, i, settings, compare=number % _COMPARED == 0)
    return measured


def as_crop(faces: FaceSet, i: int) -> FaceCrop:
    """A test face as the crop it already is."""
    frame = UprightFrame(np.eye(2, 3, dtype=np.float32), 256)
    return FaceCrop(frame, np.array(faces.image(i)), faces.landmarks[i])


def regenerate_crop(
    anonymizer: Anonymizer, crop: FaceCrop, settings: Settings, target: Target, seed: int
) -> tuple[Tensor, NDArray[np.uint8]]:
    """Another face in a crop, blended through its seam. Returns: (1, 3, S, S) float 0..1 and (S, S, 3) uint8 RGB."""
    labels = anonymizer.parser.parse(crop.pixels, crop.landmarks)
    mask = region_mask(labels, settings.regions, anonymizer.parser)
    result = anonymizer.regenerate(crop, mask, target, settings, seed)
    mixed = crop.tensor + mask.seam * (result - crop.tensor)
    return mixed, tensor_to_pixels(mixed)[0]


def _measure(anonymizer: Anonymizer, faces: FaceSet, i: int, settings: Settings, compare: bool) -> Measured:
    crop = as_crop(faces, i)
    seed = settings.seed + i
    target = anonymizer.find_target(settings, crop, seed)
    began = time.time()
    done = until_anonymous(
        lambda attempt, _: regenerate_crop(anonymizer, crop, settings, target, seed + attempt * TRY_SEED)[0],
        lambda made: [judge_face(crop, tensor_to_pixels(made)[0], (), anonymizer.detector)],
        [0], settings.tries,
    )  # fmt: skip
    seconds = time.time() - began
    mixed, pixels, taken = done.results, tensor_to_pixels(done.results)[0], done.tries[0]
    found = face_at(Box.around(crop.landmarks), anonymizer.detector.detect(pixels))
    landmarks = found.landmarks if found is not None and not done.failed else None

    def distance(image: Tensor) -> float:
        with torch.no_grad():
            places = (x.to(anonymizer.model.device) for x in (image, target.image))
            reached, wanted = (anonymizer.encoder.features(x) for x in places)
            return float(feature_distance(reached, wanted, settings.guidance.tokens))

    distances = None
    if compare:
        off = replace(settings, guidance=replace(settings.guidance, strength=0.0))
        made = regenerate_crop(anonymizer, crop, off, target, seed + (taken - 1) * TRY_SEED)[0]
        distances = (distance(mixed), distance(made))
    return Measured(pixels, landmarks, target, distances, seconds, taken)


def _figures(
    faces: FaceSet, strangers: FaceSet, recogniser: Recogniser, indices: list[int], results: list[Measured], rows: Path
) -> dict[str, Any]:
    crowd = Crowd(faces, recogniser)
    likenesses: list[Likeness] = []
    shift: list[float] = []
    turned: list[float] = []
    for i, result in zip(indices, results, strict=True):
        if result.landmarks is not None:
            likenesses.append(crowd.compare(i, result.pixels, result.landmarks))
            shift.append(landmark_distance(faces.landmarks[i], result.landmarks))
            turned.append(pose_error(faces.landmarks[i], result.landmarks))
    _write_rows(rows, [faces.records[i].name for i in indices], results, likenesses, shift)
    compared = [r.distances for r in results if r.distances is not None]
    return {
        "faces": len(indices),
        "threshold_at_far_1_percent": {group: round(value, 3) for group, value in crowd.thresholds.items()},
        **rates(likenesses),
        "other_people_of_the_kind": compare_strangers(crowd, strangers),
        "detected_rate": round(len(shift) / len(indices), 4),
        "landmark_distance": round(float(np.mean(shift)), 4),
        "landmark_distance_median": round(float(np.median(shift)), 4),
        "pose_error_degrees": round(float(np.mean(turned)), 2),
        "guidance_compared_on": len(compared),
        "guidance_lowers_distance_rate": share([guided < plain for guided, plain in compared]),
        "guided_over_unguided_distance": round(float(np.mean([g / p for g, p in compared])), 3),
        "made_more_than_once": sum(r.tries > 1 for r in results),
        "seconds_per_face": round(float(np.median([r.seconds for r in results])), 2),
    }


def _write_rows(
    path: Path, names: list[str], results: list[Measured], likenesses: list[Likeness], shift: list[float]
) -> None:
    found = iter(zip(likenesses, shift, strict=True))
    with path.open("w", newline="", encoding="utf-8") as handle:
        writer = csv.writer(handle)
        writer.writerow(["name", "target", "similarity", "same_person", "rank_1", "landmark_distance"])
        for name, result in zip(names, results, strict=True):
            if result.landmarks is None:
                writer.writerow([name, result.target.name, "", "", "", ""])
                continue
            likeness, distance = next(found)
            cells = [f"{likeness.similarity:.4f}", int(likeness.same_person), int(likeness.first), f"{distance:.4f}"]
            writer.writerow([name, result.target.name, *cells])


def _sheet(
    anonymizer: Anonymizer, faces: FaceSet, indices: list[int], results: list[Measured], settings: Settings
) -> NDArray[np.uint8]:
    rows = []
    picked = list(range(0, len(indices), max(1, len(indices) // 10)))[:10]
    keep_eyes = replace(settings, regions=RegionChoice(keep=("eyes",)))
    for position in picked:
        i, result = indices[position], results[position]
        _, kept = regenerate_crop(anonymizer, as_crop(faces, i), keep_eyes, result.target, settings.seed + i)
        target = tensor_to_pixels(result.target.image)[0]
        rows.append([np.array(faces.image(i)), target, result.pixels, kept])
    return contact_sheet(rows, ["source", "target", "result", "result, eyes kept"])
