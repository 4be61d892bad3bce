"""Known attacks on anonymized faces, run on our own results. What they find becomes a default or a warning.

Every attack returns lines of a table: a label, and what an attacker reaches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..diffusion import DemoModel
from ..errors import UnknownNameError
from ..leakage import NOTHING
from ..regions import RegionChoice
from ..weights import ASSETS
from .baselines import COVERS, Pixels, Workshop, make_results, run_baseline, run_settings, settings_key
from .harness import Figures, Gallery, Method, Row, Thresholds, figures_of, identity_figures, measure_method, spread_of
from .observe import Observer, Seen

REGIONS = ("eyes", "brows", "nose", "mouth")
STARTS = (0.75, 0.5)  # shares of the noise schedule left to run
SEEDS = (0, 1, 2, 3)
_UPSCALE = 4


@dataclass(frozen=True)
class Bench:
    """What the attacks work with."""

    workshop: Workshop
    gallery: Gallery
    observer: Observer
    thresholds: Thresholds

    def measure(self, method: Method) -> tuple[list[Row], Figures]:
        """Rows and figures of a method's results."""
        rows = measure_method(method, self.gallery, self.observer, self.thresholds)
        return rows, figures_of(method, rows, self.gallery, self.observer, self.thresholds)

    def line(self, label: str, method: Method) -> Figures:
        """A line of a table: identity and the landmarks' distance."""
        figures = self.measure(method)[1]
        kept = ("faces", "identity", "landmark_distance", "detected")
        return {"label": label, **{name: figures[name] for name in kept}}


def sharpen(bench: Bench, methods: list[Method]) -> list[Figures]:
    """Re-identification after sharpening, and after enlarging and sharpening, of every method's results."""
    lines = []
    for method in methods:
        lines.append(bench.line(method.name, method))
        results = replace(bench.workshop, sources=method.results)
        for name, change in (("sharpened", unsharp), ("enlarged", enlarge)):
            label = f"{method.name} {name}"
            lines.append(bench.line(label, results.make(label, name, change)))
    return lines


def unsharp(pixels: Pixels, amount: float = 1.5, radius_px: float = 2.0) -> Pixels:
    """Unsharp masking of (H, W, 3) uint8."""
    soft = cv2.GaussianBlur(pixels, (0, 0), radius_px)
    return np.asarray(cv2.addWeighted(pixels, 1 + amount, soft, -amount, 0), np.uint8)


def enlarge(pixels: Pixels) -> Pixels:
    """Super-resolution without a network: smoothed, four times as large, sharpened. The harness brings it back to size."""
    even = cv2.bilateralFilter(pixels, 7, 30, 5)
    large = cv2.resize(even, None, fx=_UPSCALE, fy=_UPSCALE, interpolation=cv2.INTER_LANCZOS4)
    return unsharp(np.asarray(large, np.uint8), 1.5, 2.0 * _UPSCALE)


def average(bench: Bench) -> list[Figures]:
    """Several results of one source, with different seeds: the first alone, the mean picture, the mean embedding."""
    runs = [_seeded(bench.workshop, seed) for seed in SEEDS]
    names = [name for name in bench.workshop.sources if all(name in run.results for run in runs)]
    inputs = {name: [run.results[name] for run in runs] for name in names}

    def mean(pictures: list[Pixels]) -> Pixels:
        return np.mean(pictures, axis=0).round().astype(np.uint8)

    mixed = make_results("mean", "", mean, inputs, bench.workshop.folder)
    one = bench.line("one result", runs[0])
    return [one, bench.line(f"mean of {len(SEEDS)} pictures", mixed), _fused(bench, runs, names)]


def _seeded(workshop: Workshop, seed: int) -> Method:
    """The method's own settings with another seed; seed 0 is the baseline."""
    name = "default" if seed == 0 else f"seed {seed}"
    return run_settings(name, replace(workshop.settings, seed=seed), workshop)


def _fused(bench: Bench, runs: list[Method], names: list[str]) -> Figures:
    """The mean of the embeddings of several results, searched among the sources."""
    faces = [
        (bench.gallery.places[name, number], several)
        for name in names
        for number, several in enumerate(
            zip(*(bench.observer.results(run.results[name], bench.gallery.root / name) for run in runs), strict=True)
        )
    ]
    identity: Figures = {}
    for network, bounds in bench.thresholds.items():
        crowd = bench.gallery.embeddings(network)
        scores = [crowd @ _mean_embedding(network, several) for _, several in faces]
        own = [float(row[place]) for row, (place, _) in zip(scores, faces, strict=True)]
        ranks = [int((row > score).sum()) + 1 for row, score in zip(scores, own, strict=True)]
        identity[network] = identity_figures(own, ranks, bounds, len(crowd))
    return {"label": f"mean of {len(runs)} embeddings", "faces": len(faces), "identity": identity}


def _mean_embedding(network: str, faces: Sequence[Seen]) -> NDArray[np.float32]:
    vector: NDArray[np.float32] = np.mean([face.embeddings[network] for face in faces], axis=0)
    return vector / np.linalg.norm(vector)


def link(bench: Bench) -> list[Figures]:
    """Two photographs of a person, both anonymized: does the one result find the other among those of all people?

    The second photograph is the first one mirrored, darker, turned and shifted, since the sources show everyone once; two
    real photographs of a person differ more. What covers a face is attacked in the same way (Newton et al. 2005: treat
    the suspects' pictures as the result was treated).
    """
    first = bench.workshop
    views = first.make("view", "1", another_view)
    known = {name: path for name, path in views.results.items() if bench.observer.sources(path)}
    second = Workshop(first.anonymizer, known, first.folder / "views", first.settings)
    own = _seeded(first, 0)
    pairs = {
        "not anonymized": (Method("sources", first.sources), Method("views", known)),
        "one anonymized": (own, Method("views", known)),
        "both anonymized, one seed": (own, _seeded(second, 0)),
        "both anonymized, two seeds": (own, _seeded(second, 1)),
        **{f"both {name}": (run_baseline(name, first), run_baseline(name, second)) for name in COVERS},
    }
    both = {label: (a, b) for label, (a, b) in pairs.items() if a.results.keys() & b.results.keys()}  # else: all refused
    return [_linked(bench, label, a, b, known) for label, (a, b) in both.items()]


def _linked(bench: Bench, label: str, first: Method, second: Method, views: dict[str, Path]) -> Figures:
    """Search the largest face of every picture of `first` among those of `second`, which were made of `views`."""
    names = [name for name in first.results if name in second.results]
    one = [bench.observer.results(first.results[name], bench.gallery.root / name)[0] for name in names]
    other = [bench.observer.results(second.results[name], views[name])[0] for name in names]
    identity: Figures = {}
    for network, bounds in bench.thresholds.items():
        scores = np.array([[a.embeddings[network] @ b.embeddings[network] for b in other] for a in one])
        own = np.diag(scores)
        identity[network] = identity_figures(list(own), list((scores > own[:, None]).sum(1) + 1), bounds, len(names))
        identity[network]["others"] = spread_of(scores[~np.eye(len(names), dtype=bool)])
    return {"label": label, "faces": len(names), "identity": identity}


def another_view(pixels: Pixels) -> Pixels:
    """A stand-in for another photograph of the same person."""
    height, width = pixels.shape[:2]
    turn = cv2.getRotationMatrix2D((width / 2, height / 2), 6, 0.94)
    turned = cv2.warpAffine(pixels[:, ::-1].copy(), turn, (width, height), borderMode=cv2.BORDER_REFLECT_101)
    return np.clip(np.asarray(turned, np.float32) * 0.85 + 4, 0, 255).astype(np.uint8)


def start(bench: Bench) -> list[Figures]:
    """What the start latent hands on: from pure noise, from the noised source (default), from less noise than that."""
    pure = run_settings("start noise", replace(bench.workshop.settings, start="noise"), bench.workshop)
    whole = bench.line("source, all of the noise (default)", _seeded(bench.workshop, 0))
    lines = [bench.line("pure noise", pure), {**whole, "share": 1.0}]
    for share in STARTS:
        line = bench.line(f"source, {share:.0%} of the schedule", _late_start(bench.workshop, share))
        lines.append({**line, "share": share})
    return lines


def _late_start(workshop: Workshop, share: float) -> Method:
    """The default method begun at a lower noise level, which the pack does not offer: to see what it would leak."""

    class LateModel(DemoModel):
        def sigmas(self, steps: int) -> Tensor:
            return super().sigmas(steps)[steps - max(1, round(steps * share)) :]

    late = copy(workshop.anonymizer)
    late.model = LateModel(ASSETS, workshop.anonymizer.model.device)
    key = settings_key(workshop.settings, share)
    return workshop.make(f"start {share:g}", key, lambda pixels: late.anonymize(pixels, workshop.settings).pixels)


def regions(bench: Bench) -> list[Figures]:
    """What a kept region tells: the default with each region kept."""
    lines = [bench.line(NOTHING, _seeded(bench.workshop, 0))]
    for region in REGIONS:
        kept = replace(bench.workshop.settings, regions=RegionChoice(keep=(region,)))
        lines.append(bench.line(region, run_settings(f"keep {region}", kept, bench.workshop)))
    return lines


_ON_THE_DEFAULT: dict[str, Callable[[Bench], list[Figures]]] = {
    "average": average, "link": link, "start": start, "regions": regions,
}  # fmt: skip
ATTACKS = ("sharpen", *_ON_THE_DEFAULT)


def run_attack(name: str, bench: Bench, methods: list[Method]) -> list[Figures]:
    """One attack's table.

    Args:
        methods: what was measured already; only `sharpen` attacks them all, the others the default method.
    Raises: UnknownNameError if there is no such attack.
    """
    if name not in ATTACKS:
        raise UnknownNameError(f"there is no attack {name!r}; known: {', '.join(ATTACKS)}")
    return sharpen(bench, methods) if name == "sharpen" else _ON_THE_DEFAULT[name](bench)
