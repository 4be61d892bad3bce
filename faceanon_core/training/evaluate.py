"""Measure the demo model on the 302 test faces and write the model card's figures and contact sheet."""

from __future__ import annotations

import json
import os
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ..crop import FaceCrop
from ..evaluation.measures import landmark_distance, threshold_at
from ..geometry import UprightFrame
from ..guidance import feature_distance
from ..identity import Recogniser
from ..image import tensor_to_pixels
from ..pipeline import Anonymizer, Settings
from ..regions import RegionChoice, region_mask
from ..report import contact_sheet
from ..target import Target
from .data import FaceSet
from .encoder import attribute_accuracy
from .labels import label_faces
from .vae import reconstruction_psnr

_COMPARED = 3  # every third face is made a second time without guidance


@dataclass(frozen=True)
class Measured:
    """One test face: result pixels, landmarks found in it (None if no face), target."""

    pixels: NDArray[np.uint8]
    landmarks: NDArray[np.float32] | None
    target: Target
    distances: tuple[float, float] | None  # to the target's features: guided, unguided; None where not compared
    seconds: float


def evaluate(root: Path, recogniser: Recogniser, settings: Settings, out: Path, minutes: float = 1e9) -> dict[str, Any]:
    """Anonymize the test faces in `root` with `settings` and measure, one process per core.

    Args:
        minutes: stop after this long and report on the faces measured so far.

    Writes `out/figures.json` and `out/contact_sheet.jpg`.
    """
    out.mkdir(parents=True, exist_ok=True)
    faces, anonymizer = FaceSet(root, "test"), Anonymizer()
    indices = [int(i) for i in np.random.default_rng(0).permutation(len(faces))]
    workers = os.cpu_count() or 1
    shares = [indices[start::workers] for start in range(workers)]
    measured: dict[int, Measured] = {}
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for part in pool.map(partial(_measure_share, root, settings, time.time() + 60 * minutes), shares):
            measured |= part
    indices = sorted(measured)
    results = [measured[i] for i in indices]
    figures = _figures(faces, recogniser, indices, results)
    figures["vae_psnr_db"] = round(reconstruction_psnr(anonymizer.model.vae, faces, len(indices)), 2)
    accuracy = attribute_accuracy(anonymizer.encoder, faces, label_faces(faces))
    figures["encoder_accuracy"] = {name: [round(share, 3), known] for name, (share, known) in accuracy.items()}
    (out / "figures.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    Image.fromarray(_sheet(anonymizer, faces, indices, results, settings)).save(out / "contact_sheet.jpg", quality=90)
    return figures


def _measure_share(root: Path, settings: Settings, deadline: float, indices: list[int]) -> dict[int, Measured]:
    """One worker's part of the test faces."""
    torch.set_num_threads(1)
    anonymizer, faces = Anonymizer(), FaceSet(root, "test")
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


def _run(
    anonymizer: Anonymizer, crop: FaceCrop, settings: Settings, target: Target, seed: int
) -> tuple[Tensor, NDArray[np.uint8]]:
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
    mixed, pixels = _run(anonymizer, crop, settings, target, seed)
    seconds = time.time() - began
    found = anonymizer.detector.detect(pixels)
    landmarks = found[0].landmarks if found else None

    def distance(image: Tensor) -> float:
        with torch.no_grad():
            reached, wanted = (anonymizer.encoder.features(x) for x in (image, target.image))
            return float(feature_distance(reached, wanted, settings.guidance.tokens))

    distances = None
    if compare:
        off = replace(settings, guidance=replace(settings.guidance, strength=0.0))
        distances = (distance(mixed), distance(_run(anonymizer, crop, off, target, seed)[0]))
    return Measured(pixels, landmarks, target, distances, seconds)


def _figures(faces: FaceSet, recogniser: Recogniser, indices: list[int], results: list[Measured]) -> dict[str, Any]:
    every = range(len(faces))
    sources = np.stack([recogniser.embed(faces.image(i), faces.landmarks[i]) for i in every])
    groups = np.array(["SFHQ" if "SFHQ" in record.source else "generated-faces" for record in faces.records])
    thresholds = {group: threshold_at(sources[groups == group], 0.01) for group in sorted(set(groups))}
    found = [(i, r) for i, r in zip(indices, results, strict=True) if r.landmarks is not None]
    same, rank1, similarity, shift = [], [], [], []
    for i, result in found:
        assert result.landmarks is not None
        scores = sources @ recogniser.embed(result.pixels, result.landmarks)
        similarity.append(float(scores[i]))
        same.append(float(scores[i]) > thresholds[groups[i]])
        rank1.append(int(scores.argmax()) == i)
        shift.append(landmark_distance(faces.landmarks[i], result.landmarks))
    compared = [r.distances for r in results if r.distances is not None]
    return {
        "faces": len(indices),
        "threshold_at_far_1_percent": {group: round(value, 3) for group, value in thresholds.items()},
        "same_person_rate": _share(same),
        "rank1_rate": _share(rank1),
        "mean_similarity": round(float(np.mean(similarity)), 3),
        "detected_rate": round(len(found) / len(indices), 4),
        "landmark_distance": round(float(np.mean(shift)), 4),
        "landmark_distance_median": round(float(np.median(shift)), 4),
        "guidance_compared_on": len(compared),
        "guidance_lowers_distance_rate": _share([guided < plain for guided, plain in compared]),
        "guided_over_unguided_distance": round(float(np.mean([g / p for g, p in compared])), 3),
        "seconds_per_face": round(float(np.median([r.seconds for r in results])), 2),
    }


def _share(values: list[bool]) -> float:
    return round(float(np.mean(values)), 4) if values else float("nan")


def _sheet(
    anonymizer: Anonymizer, faces: FaceSet, indices: list[int], results: list[Measured], settings: Settings
) -> NDArray[np.uint8]:
    rows = []
    picked = list(range(0, len(indices), max(1, len(indices) // 10)))[:10]
    keep_eyes = replace(settings, regions=RegionChoice(keep=("eyes",)))
    for position in picked:
        i, result = indices[position], results[position]
        _, kept = _run(anonymizer, as_crop(faces, i), keep_eyes, result.target, settings.seed + i)
        target = tensor_to_pixels(result.target.image)[0]
        rows.append([np.array(faces.image(i)), target, result.pixels, kept])
    return contact_sheet(rows, ["source", "target", "result", "result, eyes kept"])
