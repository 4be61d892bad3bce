"""Measure on the test faces whether results show the attributes asked for and keep those that are to stay.

Results are made first, as files, so that a run that was cut off goes on where it stopped; then all of them are judged.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from ..attributes import BY_NAME, Attributes
from ..encoder import DemoEncoder
from ..engines import usable_cores
from ..evaluation.measures import pose_error, share_with_interval
from ..evaluation.observe import file_hash
from ..evaluation.tables import say_share
from ..geometry import FloatArray
from ..guidance import TermSettings
from ..identity import Recogniser
from ..image import Picture, load_picture, save_picture
from ..pipeline import Anonymizer, Settings
from ..skin import crop_skin_tone, mouth_expression
from ..weights import ASSETS
from .data import FaceSet
from .evaluate import Crowd, as_crop, regenerate_crop
from .labels import record_attributes

# In the order in which they are made; "off": the same without any guidance. "default" neither asks nor keeps more.
RUNS = ("asked", "kept", "asked, off", "default", "kept, off")
KEPT = ("sex", "age", "skin", "expression")
# Values that are asked for. Babies are left out (nobody asks for one on an adult's head), and so are the middle-aged, whom
# neither judge knows.
ASKED = {
    "sex": BY_NAME["sex"].values,
    "age": ("child", "teen", "adult", "senior"),
    "skin": BY_NAME["skin"].values,
}
# Who judges what. The encoder is the one that guides; the others have no part in making the face.
JUDGES = {
    "sex, by the demo encoder": "sex",
    "sex, by the recognition network": "sex",
    "age, by the demo encoder": "age",
    "age, by the recognition network": "age",
    "skin, measured": "skin",
    "expression, by the landmarks": "expression",
}
# What the recognition network's embedding is read for. The middle-aged are missing: 13 training faces are labelled so.
_SECOND_JUDGE = {"sex": BY_NAME["sex"].values, "age": ("baby", "child", "teen", "adult", "senior")}
_SURE = 0.5  # probability from which a judge's word on a source is taken
_RIDGE = 0.1
_COMPARED = 40  # faces, at least, that are made without guidance and with the defaults as well; a quarter of all if more

Reading = dict[str, str | None]  # by judge; None where it is not sure, or there is no face


@dataclass(frozen=True)
class Plan:
    """What is asked of one face, and the settings that ask for it."""

    settings: Settings
    asked: Attributes


def plan(run: str, i: int, reading: Reading) -> Plan:
    """Settings of one run for test face `i`, of which the judges say `reading`.

    Each face is asked for one attribute, in turn, among those the judges are sure of; its value is any other one in turn.
    """
    settings, asked = Settings(), {}
    if run.startswith("asked"):
        shown = {JUDGES[judge]: value for judge, value in reading.items() if value is not None}
        names = [name for name in ASKED if name in shown]
        name = names[i % len(names)]
        others = [value for value in ASKED[name] if value != shown[name]]
        asked = {name: others[(i // len(names)) % len(others)]}
        settings = replace(settings, attributes=asked)
    if run.startswith("kept"):
        settings = replace(settings, keep_attributes=KEPT, hold_pose=TermSettings(1.0))
    if run.endswith("off"):
        guidance = replace(settings.guidance, strength=0.0)
        settings = replace(settings, guidance=guidance, hold_pose=TermSettings(0.0))
    return Plan(settings, asked)


class Judges:
    """Read attributes in a face crop.

    Args:
        second: weights of `fit_second_judge`.
    """

    def __init__(self, encoder: DemoEncoder, recogniser: Recogniser, second: dict[str, FloatArray]) -> None:
        self._encoder, self._recogniser, self._second = encoder, recogniser, second

    def read(self, pixels: NDArray[np.uint8], landmarks: FloatArray, sure: float = 0.0) -> Reading:
        """What every judge says.

        Args:
            pixels: (256, 256, 3) uint8 RGB.
            landmarks: (478, 2) in it.
            sure: probability below which a network says nothing.
        """
        image = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 255
        seen, certain = self._encoder.predict(image)[0]
        embedding = np.append(self._recogniser.embed(pixels, landmarks), 1.0)
        reading: Reading = {
            f"{name}, by the demo encoder": seen[name] if certain[name] >= sure else None for name in _SECOND_JUDGE
        }
        for name, values in _SECOND_JUDGE.items():
            scores = embedding @ self._second[name]  # about probabilities: least squares of 0 and 1
            best = int(scores.argmax())
            reading[f"{name}, by the recognition network"] = values[best] if scores[best] >= sure else None
        reading["skin, measured"] = crop_skin_tone(pixels, landmarks)
        reading["expression, by the landmarks"] = mouth_expression(landmarks)
        return reading

    def read_source(self, faces: FaceSet, i: int) -> Reading:
        """What they say of a source, where they are sure and the data's own label does not say otherwise."""
        known = record_attributes(faces.records[i])
        read = self.read(faces.image(i), faces.landmarks[i], _SURE)
        return {judge: value if known.get(JUDGES[judge], value) == value else None for judge, value in read.items()}


def fit_second_judge(root: Path, recogniser: Recogniser, kept: Path) -> dict[str, FloatArray]:
    """Judge of sex and age: least squares on the recognition network's embeddings of the labelled training faces.

    Args:
        kept: .npz file that remembers the weights.
    Returns: (D + 1, values) by attribute, the last row the offset.
    """
    if not kept.is_file():
        faces = FaceSet(root, "train")
        bar = tqdm(range(len(faces)), desc="second judge", unit="face", mininterval=20)
        rows = np.stack([np.append(recogniser.embed(faces.image(i), faces.landmarks[i]), 1.0) for i in bar])
        labels = [record_attributes(record) for record in faces.records]
        np.savez(kept, **{name: _least_squares(rows, [label.get(name) for label in labels], values)
                          for name, values in _SECOND_JUDGE.items()})  # fmt: skip
    with np.load(kept) as weights:
        return {name: weights[name] for name in weights.files}


def _least_squares(rows: NDArray[np.float64], labels: list[str | None], values: tuple[str, ...]) -> NDArray[np.float64]:
    known = [i for i, label in enumerate(labels) if label in values]
    wanted = np.array([[labels[i] == value for value in values] for i in known], np.float64)
    used = rows[known]
    weights: NDArray[np.float64] = np.linalg.solve(used.T @ used + _RIDGE * np.eye(used.shape[1]), used.T @ wanted)
    return weights


def measure_attributes(
    root: Path, recogniser: Recogniser, out: Path, limit: int | None = None, minutes: float = 1e9
) -> dict[str, Any]:
    """Make every run's results of the test faces in `root` and judge them, one process per core.

    Args:
        out: results and figures; a result that is there already, made with the same weights and settings, is kept.
        limit: how many faces, None for all.
        minutes: stop making results after this long and judge those that are there.
    Returns: the figures, also written to `out/attributes.json` and, as tables, `out/attributes.md`.
    """
    out.mkdir(parents=True, exist_ok=True)
    faces, anonymizer = FaceSet(root, "test"), Anonymizer()
    judges = Judges(
        anonymizer.encoder, recogniser, fit_second_judge(root, recogniser, out / f"judge-{recogniser.sha256[:10]}.npz")
    )
    chosen = [int(i) for i in np.random.default_rng(0).permutation(len(faces))[:limit]]
    sources = {i: judges.read_source(faces, i) for i in chosen}
    compared = chosen[: max(_COMPARED, len(chosen) // 4)]
    plans = {(run, i): plan(run, i, sources[i]) for run in RUNS for i in (chosen if run in ("asked", "kept") else compared)}
    files = {job: result_file(out, faces, job, wanted.settings) for job, wanted in plans.items()}
    missing = [(i, plans[run, i].settings, files[run, i]) for run, i in plans if not files[run, i].is_file()]
    _make(root, missing, time.time() + 60 * minutes)
    crowd = Crowd(faces, recogniser)
    rows = [
        {"run": run, "face": i, "asked": plans[run, i].asked, "source": sources[i]}
        | _judge(anonymizer, judges, crowd, i, load_picture(files[run, i]).pixels)
        for run, i in tqdm(plans, desc="judging", unit="result", mininterval=20)
        if files[run, i].is_file()
    ]
    figures = summarize(rows) | {"judges": _judge_accuracy(faces, judges, chosen)}
    (out / "attributes.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    (out / "attributes.md").write_text(tables(figures), encoding="utf-8")
    return figures


def result_file(out: Path, faces: FaceSet, job: tuple[str, int], settings: Settings) -> Path:
    """Where a result is kept: another one when weights or settings change."""
    used = [file_hash(ASSETS / f"{name}.safetensors") for name in ("vae", "unet", "tokens", "encoder")]
    gallery = file_hash(ASSETS / "gallery" / "gallery.json")
    key = hashlib.sha256(json.dumps([used, gallery, asdict(settings)], sort_keys=True).encode()).hexdigest()[:10]
    run, i = job
    return out / run.replace(", ", "-") / f"{faces.records[i].name}-{key}.png"


Job = tuple[int, Settings, Path]


def _make(root: Path, jobs: list[Job], deadline: float) -> None:
    workers = usable_cores()
    shares = [jobs[start::workers] for start in range(workers) if jobs[start::workers]]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for _ in pool.map(partial(_make_share, root, deadline), shares):
            pass


def _make_share(root: Path, deadline: float, jobs: Iterable[Job]) -> None:
    """One worker's part of the results."""
    torch.set_num_threads(1)
    anonymizer, faces = Anonymizer(), FaceSet(root, "test")
    for i, settings, file in tqdm(jobs, unit="face", mininterval=20):
        if time.time() > deadline:
            break
        crop, seed = as_crop(faces, i), settings.seed + i
        target = anonymizer.find_target(settings, crop, seed)
        _, pixels = regenerate_crop(anonymizer, crop, settings, target, seed)
        save_picture(Picture(pixels), file, overwrite=True)


def _judge(anonymizer: Anonymizer, judges: Judges, crowd: Crowd, i: int, pixels: NDArray[np.uint8]) -> dict[str, Any]:
    found = anonymizer.detector.detect(pixels)
    if not found:
        return {"shown": dict.fromkeys(JUDGES)}
    landmarks, source = found[0].landmarks, crowd.faces.landmarks[i]
    likeness = crowd.compare(i, pixels, landmarks)
    return {
        "shown": judges.read(pixels, landmarks),
        "pose_error": pose_error(source, landmarks),
        "same_person": likeness.same_person,
        "similarity": likeness.similarity,
    }


def summarize(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Shares per run. A face counts for a judge that is sure of its source; asked for, if the source shows otherwise."""
    figures: dict[str, Any] = {}
    for run in RUNS:
        own = [row for row in rows if row["run"] == run]
        seen = [row for row in own if "pose_error" in row]
        figures[run] = {
            "faces": len(own),
            "detected": share_with_interval(len(seen), len(own)),
            "pose_error": round(float(np.mean([row["pose_error"] for row in seen])), 2) if seen else None,
            "pose_error_median": round(float(np.median([row["pose_error"] for row in seen])), 2) if seen else None,
            "same_person": share_with_interval(sum(row["same_person"] for row in seen), len(seen)),
            "similarity": round(float(np.mean([row["similarity"] for row in seen])), 3) if seen else None,
            "kept": {judge: _share_kept(own, judge) for judge in JUDGES},
        }
        if run.startswith("asked"):
            figures[run]["asked"] = {judge: _shares_asked(own, judge) for judge in JUDGES if JUDGES[judge] in ASKED}
    return figures


def _share_kept(rows: list[dict[str, Any]], judge: str) -> dict[str, float]:
    counted = [row for row in rows if row["source"][judge] is not None and JUDGES[judge] not in row["asked"]]
    return share_with_interval(sum(row["shown"][judge] == row["source"][judge] for row in counted), len(counted))


def _shares_asked(rows: list[dict[str, Any]], judge: str) -> dict[str, Any]:
    name = JUDGES[judge]
    counted = [row for row in rows if name in row["asked"] and row["source"][judge] not in (None, row["asked"][name])]
    hits = [(row["asked"][name], row["shown"][judge]) for row in counted]
    return {
        "exact": share_with_interval(sum(wanted == shown for wanted, shown in hits), len(hits)),
        "or the next value": share_with_interval(sum(_near(name, *pair) for pair in hits), len(hits)),
        "by value": {
            value: share_with_interval(sum(shown == value for _, shown in part), len(part))
            for value in ASKED[name]
            if (part := [pair for pair in hits if pair[0] == value])
        },
    }


def _near(name: str, wanted: str, shown: str | None) -> bool:
    values = BY_NAME[name].values
    return shown is not None and abs(values.index(wanted) - values.index(shown)) <= (name != "sex")


def _judge_accuracy(faces: FaceSet, judges: Judges, chosen: list[int]) -> dict[str, dict[str, float]]:
    """How often each judge says of the sources what the data's labels say."""
    read = {i: judges.read(faces.image(i), faces.landmarks[i]) for i in chosen}
    known = {i: record_attributes(faces.records[i]) for i in chosen}
    accuracy = {}
    for judge, name in JUDGES.items():
        pairs = [(known[i][name], read[i][judge]) for i in chosen if name in known[i]]
        if pairs:
            accuracy[judge] = share_with_interval(sum(label == said for label, said in pairs), len(pairs))
    return accuracy


def tables(figures: dict[str, Any]) -> str:
    """The figures as Markdown."""
    asked = ["| asked for | with guidance | ... or the next value | guidance off |", "|---|---|---|---|"]
    on, off = figures["asked"]["asked"], figures["asked, off"]["asked"]
    for judge in on:
        near = "-" if JUDGES[judge] == "sex" else say_share(on[judge]["or the next value"])
        asked.append(f"| {judge} | {say_share(on[judge]['exact'])} | {near} | {say_share(off[judge]['exact'])} |")
    kept = ["| kept | asked to be kept | guidance off | defaults |", "|---|---|---|---|"]
    runs = [figures[run] for run in ("kept", "kept, off", "default")]
    for judge in JUDGES:
        kept.append(f"| {judge} | " + " | ".join(say_share(run["kept"][judge]) for run in runs) + " |")
    beside = ["| | " + " | ".join(RUNS) + " |", "|---" * (1 + len(RUNS)) + "|"]
    everything = [figures[run] for run in RUNS]
    beside.append("| faces | " + " | ".join(str(run["faces"]) for run in everything) + " |")
    beside.append("| a face is detected | " + " | ".join(say_share(run["detected"]) for run in everything) + " |")
    beside.append(
        "| same person at 1% false accepts | " + " | ".join(say_share(r["same_person"]) for r in everything) + " |"
    )
    beside.append("| mean similarity | " + " | ".join(str(run["similarity"]) for run in everything) + " |")
    beside.append("| mean pose error, degrees | " + " | ".join(str(run["pose_error"]) for run in everything) + " |")
    beside.append("| median pose error, degrees | " + " | ".join(str(run["pose_error_median"]) for run in everything) + " |")
    judged = ["| judge | agrees with the data's labels |", "|---|---|"]
    judged += [f"| {judge} | {say_share(share)} |" for judge, share in figures["judges"].items()]
    return "\n\n".join("\n".join(lines) for lines in (asked, kept, beside, judged)) + "\n"
