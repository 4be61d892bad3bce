"""Pictures and their sources in, one row per face and figures per method out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ..errors import InputError
from ..identity import MIN_ACCEPTS, RATES, threshold_at
from ..image import SUFFIXES
from ..sources import find_sources
from . import measures
from .measures import share_with_interval
from .observe import Observer, Seen

Row = dict[str, Any]
Figures = dict[str, Any]


@dataclass(frozen=True)
class Method:
    """Results to measure.

    `results` by the source's relative name; `costs` likewise: "seconds" and "peak_memory_mb", or "failed" with the reason
    nothing was made.
    """

    name: str
    results: dict[str, Path]
    costs: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Threshold:
    """Similarity at a rate of false accepts, and what it rests on."""

    value: float
    origin: str


class Gallery:
    """Every face of the sources: what results are compared with, and the crowd in which they are searched.

    Every face is taken for another person. `names` are those of the pictures that could be read, `unread` says why others
    could not, and `notes` what was left alone.

    Args:
        root: folder with the sources, searched recursively.
        results: a folder that is not searched.
    Raises: InputError if there are fewer than two faces.
    """

    def __init__(self, root: Path, observer: Observer, results: Path | None = None) -> None:
        self.root = root.resolve()
        found = find_sources(self.root, results)
        self.unread = {path.relative_to(self.root).as_posix(): why for path, why in found.unread.items()}
        self.notes = found.notes
        self._by_picture: dict[str, list[Seen]] = {}
        for path in tqdm(found.pictures, desc="sources", unit="picture", disable=None):
            name = path.relative_to(self.root).as_posix()
            try:
                self._by_picture[name] = observer.sources(path)
            except InputError as error:
                self.unread[name] = str(error)
        self.names = list(self._by_picture)
        self.faces = [(name, number, seen) for name, faces in self._by_picture.items() for number, seen in enumerate(faces)]
        if len(self.faces) < 2:
            raise InputError(f"{root} shows {len(self.faces)} faces; measuring needs those of at least two people")

    def embeddings(self, network: str) -> NDArray[np.float32]:
        """(N, D) of all faces."""
        return np.stack([seen.embeddings[network] for _, _, seen in self.faces])

    @cached_property
    def places(self) -> dict[tuple[str, int], int]:
        """Index of a face by picture and number."""
        return {(name, number): i for i, (name, number, _) in enumerate(self.faces)}

    def of(self, name: str) -> list[Seen]:
        """The faces of one picture."""
        return self._by_picture.get(name, [])


def find_results(folder: Path, names: list[str]) -> Method:
    """The pictures in `folder` that have the relative names of sources, with any suffix.

    Raises: InputError if there is none.
    """
    found = {}
    for name in names:
        beside = (folder / name).with_suffix("")
        candidates = [folder / name, *(beside.with_name(beside.name + suffix) for suffix in SUFFIXES)]
        path = next((path for path in candidates if path.is_file()), None)
        if path is not None:
            found[name] = path
    if not found:
        raise InputError(f"{folder} holds no picture named like one of the sources; results must keep their sources' names")
    return Method("results", found)


def find_thresholds(gallery: Gallery, network: str, calibrated: dict[float, float]) -> dict[float, Threshold]:
    """Thresholds at `RATES`: calibrated ones where there are any, else of all pairs of sources.

    Args:
        calibrated: similarities by rate of false accepts, from the network's card.
    """
    scores = measures.impostor_scores(gallery.embeddings(network))
    found = {}
    for far in RATES:
        if far in calibrated:
            found[far] = Threshold(calibrated[far], "the network's calibration card")
            continue
        few = "" if len(scores) * far >= MIN_ACCEPTS else ", too few for this rate: take it as a rough bound"
        found[far] = Threshold(threshold_at(scores, far), f"{len(scores)} pairs of different sources{few}")
    return found


Thresholds = dict[str, dict[float, Threshold]]


def measure_method(method: Method, gallery: Gallery, observer: Observer, thresholds: Thresholds) -> list[Row]:
    """One row per face of every source that the method has a result of."""
    rows = []
    crowd = {network: gallery.embeddings(network) for network in thresholds}
    for name, path in tqdm(method.results.items(), desc=method.name, unit="picture", disable=None):
        seen = observer.results(path, gallery.root / name)
        for number, (source, result) in enumerate(zip(gallery.of(name), seen, strict=True)):
            row: Row = {"method": method.name, "picture": name, "face": number + 1}
            row |= compare_faces(source, result)
            for network, bounds in thresholds.items():
                row |= _identity(network, bounds, crowd[network], gallery.places[name, number], result)
            cost = method.costs.get(name, {})
            row |= {key: cost.get(key) for key in ("seconds", "peak_memory_mb")}
            rows.append(row)
    return rows


def compare_faces(source: Seen, result: Seen) -> Row:
    """Everything about a pair of faces but identity; what needs landmarks is None where the result shows no face."""
    row: Row = {"detected": result.landmarks is not None}
    for name, measure in _LANDMARK_MEASURES.items():
        row[name] = None if result.landmarks is None else measure(source.place, result.landmarks)
    row["attribute_agreement"] = measures.attribute_agreement(source.attributes, result.attributes)
    row["sharpness_ratio"] = result.detail / max(source.detail, 1e-6)
    return row


_LANDMARK_MEASURES = {
    "landmark_distance": measures.landmark_distance,
    "pose_error_degrees": measures.pose_error,
    "expression_error": measures.expression_error,
    "gaze_error": measures.gaze_error,
}
SPREADS = (*_LANDMARK_MEASURES, "attribute_agreement", "sharpness_ratio", "seconds", "peak_memory_mb")


def _identity(network: str, bounds: dict[float, Threshold], crowd: NDArray[np.float32], place: int, result: Seen) -> Row:
    scores = crowd @ result.embeddings[network]
    row: Row = {f"similarity {network}": float(scores[place]), f"rank {network}": int((scores > scores[place]).sum()) + 1}
    for far, bound in bounds.items():
        row[f"same person at {far:g} {network}"] = bool(scores[place] > bound.value)
    return row


def figures_of(method: Method, rows: list[Row], gallery: Gallery, observer: Observer, thresholds: Thresholds) -> Figures:
    """A method's figures over all its rows; JSON-ready."""
    failed = {name: cost["failed"] for name, cost in method.costs.items() if "failed" in cost}
    networks = {
        network: identity_figures(
            [row[f"similarity {network}"] for row in rows], [row[f"rank {network}"] for row in rows],
            bounds, len(gallery.faces),
        )
        for network, bounds in thresholds.items()
    }  # fmt: skip
    return {
        "pictures": len(method.results),
        "faces": len(rows),
        "failed_closed": failed,
        "detected": share_of(row["detected"] for row in rows),
        "identity": networks,
        **{name: spread_of(row[name] for row in rows) for name in SPREADS},
        "distribution": _distribution(method, gallery, observer),
    }


def identity_figures(own: list[float], ranks: list[int], bounds: dict[float, Threshold], crowd: int) -> Figures:
    """What an attacker reaches with one network.

    Args:
        own: similarity of every result to the person it must not show.
        ranks: place of that person when the result is searched among `crowd` faces, 1 = found.
    """
    return {
        "same_person": {f"{far:g}": share_of(score > bound.value for score in own) for far, bound in bounds.items()},
        "rank1": share_of(rank == 1 for rank in ranks),
        "searched_among": crowd,
        "similarity": spread_of(own),
    }


def share_of(flags: Iterable[bool]) -> dict[str, float]:
    """Share of true values with its interval, see `share_with_interval`."""
    values = [bool(flag) for flag in flags]
    return share_with_interval(sum(values), len(values))


def spread_of(values: Iterable[float | None]) -> dict[str, float] | None:
    """Mean, median, 5th and 95th percentile and extremes of the numbers among `values`; None without any."""
    numbers = [value for value in values if value is not None]
    if not numbers:
        return None
    low, median, high = (float(value) for value in np.quantile(numbers, [0.05, 0.5, 0.95]))
    ends = {"least": float(min(numbers)), "most": float(max(numbers)), "of": len(numbers)}
    return {"mean": float(np.mean(numbers)), "median": median, "p5": low, "p95": high, **ends}


def _distribution(method: Method, gallery: Gallery, observer: Observer) -> Figures | None:
    """Fréchet and Visual-DNA distance of a method's faces to the sources they were made of."""
    before, after = [], []
    for name, path in method.results.items():
        before += [seen.features for seen in gallery.of(name)]
        after += [seen.features for seen in observer.results(path, gallery.root / name)]
    if len(before) < 2:
        return None
    sources, results = np.stack(before), np.stack(after)
    return {
        "features": observer.features.name,
        "frechet": measures.frechet_distance(sources, results),
        "visual_dna": measures.visual_dna_distance(sources, results),
    }
