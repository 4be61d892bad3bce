"""Measure on the test faces whether results show the attributes asked for and keep those that are to stay.

Results are made first, as files, so that a run that was cut off goes on where it stopped; then all of them are judged.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ..attributes import BY_NAME, Attributes
from ..encoder import DemoEncoder, load_demo_encoder
from ..engines import usable_cores
from ..evaluation.measures import pose_error, share_with_interval
from ..evaluation.tables import say_share
from ..faces import FaceDetector, face_at
from ..geometry import Box, FloatArray
from ..guidance import TermSettings
from ..identity import FaceRecogniser, Recogniser
from ..image import load_picture, pixels_to_tensor
from ..pipeline import Settings
from ..skin import crop_skin_tone, mouth_expression
from ..weights import ASSETS
from .crowd import Crowd
from .data import FaceSet
from .labels import record_attributes
from .results import SETTINGS, Job, is_refused, make_missing, result_file, shuffled
from .workers import Crew

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
    settings, asked = SETTINGS, {}
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
        seen, certain = self._encoder.predict(pixels_to_tensor(pixels.copy()))[0]
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


def fit_second_judge(root: Path, recogniser: Recogniser, kept: Path, crew: Crew) -> dict[str, FloatArray]:
    """Judge of sex and age: least squares on the recognition network's embeddings of the labelled training faces.

    Args:
        kept: .npz file that remembers the weights.
    Returns: (D + 1, values) by attribute, the last row the offset.
    """
    if not kept.is_file():
        records = FaceSet(root, "train").records
        embedded = crew.spread(partial(_embed_share, root, recogniser), range(len(records)))
        rows = np.stack([np.append(embedded[i], 1.0) for i in range(len(records))])
        labels = [record_attributes(record) for record in records]
        np.savez(kept, **{name: _least_squares(rows, [label.get(name) for label in labels], values)
                          for name, values in _SECOND_JUDGE.items()})  # fmt: skip
    with np.load(kept) as weights:
        return {name: weights[name] for name in weights.files}


def _embed_share(root: Path, recogniser: Recogniser, indices: Sequence[int]) -> dict[int, NDArray[np.float32]]:
    """One worker's part of the training faces."""
    faces = FaceSet(root, "train")
    bar = tqdm(indices, desc="second judge", unit="face", mininterval=20)
    return {i: recogniser.embed(faces.image(i), faces.landmarks[i]) for i in bar}


def _least_squares(rows: NDArray[np.float64], labels: list[str | None], values: tuple[str, ...]) -> NDArray[np.float64]:
    known = [i for i, label in enumerate(labels) if label in values]
    wanted = np.array([[labels[i] == value for value in values] for i in known], np.float64)
    used = rows[known]
    weights: NDArray[np.float64] = np.linalg.solve(used.T @ used + _RIDGE * np.eye(used.shape[1]), used.T @ wanted)
    return weights


def measure_attributes(
    root: Path, recogniser: Recogniser, work: Path, limit: int | None = None, minutes: float = 1e9, device: str = "cpu",
    workers: int | None = None, checks: Sequence[FaceRecogniser] = (),
) -> dict[str, Any]:  # fmt: skip
    """Make every run's results of the test faces in `root` and judge them.

    Args:
        work: results that are there already, made with the same weights and settings, are kept.
        limit: how many faces, None for all. Those that the pipeline refuses are counted and left out.
        minutes: stop making results after this long and judge those that are there.
        device: where results are made.
        workers: how many processes work at it, None for one per core.
        checks: what every result has to pass; the `recogniser` that judges them should be none of these.
    Returns: the figures, also written to `work/attributes/attributes.json` and, as tables, `attributes.md`.
    """
    out = work / "attributes"
    out.mkdir(parents=True, exist_ok=True)
    faces = FaceSet(root, "test")
    chosen = shuffled(faces, limit)
    with Crew(workers or usable_cores()) as crew:
        second = fit_second_judge(root, recogniser, out / f"judge-{recogniser.sha256[:10]}.npz", crew)
        sources = crew.spread(partial(_read_share, root, recogniser, second), chosen)
        taken = [i for i in chosen if sources[i].accepted]
        plans = {(run, i): plan(run, i, sources[i].sure) for run, i in _everything(taken)}
        wanted = {job: each.settings for job, each in plans.items()}
        files = {job: result_file(work, faces, job[1], settings, checks) for job, settings in wanted.items()}
        made = make_missing(root, files, wanted, crew, minutes, device, checks)
        judged = crew.spread(partial(_judge_share, root, recogniser, second), made)
    rows = [
        {"run": run, "face": i, "asked": plans[run, i].asked, "source": sources[i].sure} | shown
        for (run, i), shown in judged.items()
    ]
    figures = summarize(rows)
    for run in RUNS:
        refused = sum(is_refused(file) for job, file in files.items() if job[0] == run)
        figures[run]["refused"] = share_with_interval(refused, refused + figures[run]["faces"])
    figures |= {
        "not found": share_with_interval(len(chosen) - len(taken), len(chosen)),
        "judges": _judge_accuracy(faces, {i: sources[i].seen for i in taken}),
    }
    (out / "attributes.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    (out / "attributes.md").write_text(tables(figures), encoding="utf-8")
    return figures


def _everything(taken: list[int]) -> list[tuple[str, int]]:
    """Runs and faces, in the order in which they are made."""
    compared = taken[: max(_COMPARED, len(taken) // 4)]
    return [(run, i) for run in RUNS for i in (taken if run in ("asked", "kept") else compared)]


@dataclass(frozen=True)
class Source:
    """A test face as it is."""

    accepted: bool  # False: the pipeline refuses it
    seen: Reading
    sure: Reading  # of `Judges.read_source`


def _read_share(
    root: Path, recogniser: Recogniser, second: dict[str, FloatArray], indices: Sequence[int]
) -> dict[int, Source]:  # fmt: skip
    """One worker's part of the sources."""
    faces, detector = FaceSet(root, "test"), FaceDetector()
    judges = Judges(_load_encoder(), recogniser, second)
    sources = {}
    for i in tqdm(indices, desc="sources", unit="face", mininterval=20):
        pixels, landmarks = faces.image(i), faces.landmarks[i]
        accepted = face_at(Box.around(landmarks), detector.scan(pixels).faces) is not None
        sources[i] = Source(accepted, judges.read(pixels, landmarks), judges.read_source(faces, i))
    return sources


def _load_encoder() -> DemoEncoder:
    return load_demo_encoder(ASSETS / "encoder.safetensors")


def _judge_share(
    root: Path, recogniser: Recogniser, second: dict[str, FloatArray], jobs: Sequence[tuple[Job, Path]]
) -> dict[Job, dict[str, Any]]:
    """One worker's part of the judging."""
    detector, judges = FaceDetector(), Judges(_load_encoder(), recogniser, second)
    crowd = Crowd(FaceSet(root, "test"), recogniser)
    bar = tqdm(jobs, desc="judging", unit="result", mininterval=20)
    return {job: _judge(detector, judges, crowd, job[1], load_picture(file).pixels) for job, file in bar}


def _judge(detector: FaceDetector, judges: Judges, crowd: Crowd, i: int, pixels: NDArray[np.uint8]) -> dict[str, Any]:
    found = detector.detect(pixels)
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


def _judge_accuracy(faces: FaceSet, read: dict[int, Reading]) -> dict[str, dict[str, float]]:
    """How often each judge says of the sources what the data's labels say."""
    known = {i: record_attributes(faces.records[i]) for i in read}
    accuracy = {}
    for judge, name in JUDGES.items():
        pairs = [(known[i][name], read[i][judge]) for i in read if name in known[i]]
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
    beside.append("| refused | " + " | ".join(say_share(run["refused"]) for run in everything) + " |")
    beside.append("| a face is detected | " + " | ".join(say_share(run["detected"]) for run in everything) + " |")
    beside.append(
        "| same person at 1% false accepts | " + " | ".join(say_share(r["same_person"]) for r in everything) + " |"
    )
    beside.append("| mean similarity | " + " | ".join(str(run["similarity"]) for run in everything) + " |")
    beside.append("| mean pose error, degrees | " + " | ".join(str(run["pose_error"]) for run in everything) + " |")
    beside.append("| median pose error, degrees | " + " | ".join(str(run["pose_error_median"]) for run in everything) + " |")
    judged = ["| judge | agrees with the data's labels |", "|---|---|"]
    judged += [f"| {judge} | {say_share(share)} |" for judge, share in figures["judges"].items()]
    missing = [f"Of the sources the pipeline finds no face in {say_share(figures['not found'])}; they are left out."]
    return "\n\n".join("\n".join(lines) for lines in (asked, kept, beside, judged, missing)) + "\n"
