"""Simpler ways to hide a face, and the method itself, run on the same pictures with time and memory taken."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ..encoder import DemoEncoder
from ..errors import AnonymizationError, NoFaceError, UnknownNameError
from ..faces import Face
from ..image import Picture, load_picture, save_picture
from ..pipeline import Anonymizer, Settings, reference_settings
from ..redact import redact_face
from ..weights import ASSETS, GALLERY
from .harness import Method
from .observe import file_hash

Pixels = NDArray[np.uint8]
Make = Callable[[list[Pixels]], Pixels]
Cover = Callable[[Pixels, Face], Pixels]
BLUR_SHARE = 0.1  # standard deviation of the Gaussian over the face's width
BLOCKS = 12  # mosaic blocks across the face
COVERS = ("blur", "pixelate", "solid")
BASELINES = (*COVERS, "unguided", "reference", "default")


@dataclass(frozen=True)
class Workshop:
    """What methods are run on: `sources` by relative name; each method's results get a folder of their own in `folder`."""

    anonymizer: Anonymizer
    sources: dict[str, Path]
    folder: Path
    settings: Settings = field(default_factory=Settings)  # the method's own, which baselines and attacks vary

    def make(self, name: str, key: str, change: Callable[[Pixels], Pixels]) -> Method:
        """Results of `change` on every source; see `make_results`."""
        inputs = {picture: [path] for picture, path in self.sources.items()}
        return make_results(name, key, lambda pictures: change(pictures[0]), inputs, self.folder)


def run_baseline(name: str, workshop: Workshop) -> Method:
    """Make one baseline's results, or find them made.

    Raises: UnknownNameError if there is no such baseline.
    """
    own = workshop.settings
    variants = {
        "unguided": replace(own, guidance=replace(own.guidance, strength=0.0)),
        "reference": reference_settings(DemoEncoder.unit_strength),
        "default": own,
    }
    covers: dict[str, Cover] = {"blur": blur_face, "pixelate": pixelate_face, "solid": redact_face}
    if name in variants:
        return run_settings(name, variants[name], workshop)
    if name not in covers:
        raise UnknownNameError(f"there is no baseline {name!r}; known: {', '.join(BASELINES)}")

    def hide(pixels: Pixels) -> Pixels:
        for face in _faces_of(workshop.anonymizer, pixels):
            pixels = covers[name](pixels, face)
        return pixels

    return workshop.make(name, f"{name} {BLUR_SHARE} {BLOCKS}", hide)


def run_settings(name: str, settings: Settings, workshop: Workshop) -> Method:
    """Results of the method itself with these settings."""
    return workshop.make(name, settings_key(settings), lambda pixels: workshop.anonymizer.anonymize(pixels, settings).pixels)


def settings_key(settings: Settings, *more: object) -> str:
    """Changes with the settings, the demo model's weights and its gallery, and `more`."""
    hashes = [file_hash(path) for path in sorted([*ASSETS.glob("*.safetensors"), *GALLERY.iterdir()])]
    return json.dumps([asdict(settings), hashes, *more], sort_keys=True)


def make_results(name: str, key: str, make: Make, inputs: dict[str, list[Path]], folder: Path) -> Method:
    """Run `make` on the pictures of every name that has no result yet; what fails closed is noted and not tried again.

    Args:
        key: everything the results depend on but the inputs.
        inputs: by the source's relative name, the pictures a result is made of.
    """
    own = folder / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:10]}"
    costs, results = {}, {}
    for picture, files in tqdm(inputs.items(), desc=f"making {name}", unit="picture", disable=None):
        result, note = own / f"{picture}.png", own / f"{picture}.json"
        made_of = [file_hash(path) for path in files]
        cost = _read_note(note)
        if cost is None or cost["made_of"] != made_of:
            cost = {"made_of": made_of, **_make_one(make, files, result)}
            note.parent.mkdir(parents=True, exist_ok=True)
            note.write_text(json.dumps(cost), "utf-8")
        costs[picture] = cost
        if "failed" not in cost:
            results[picture] = result
    return Method(name, results, costs)


def _read_note(note: Path) -> dict[str, Any] | None:
    """What an earlier run noted; None if there was none or it was cut off."""
    try:
        cost: dict[str, Any] = json.loads(note.read_text("utf-8"))
    except (OSError, json.JSONDecodeError):
        return None
    return cost


def _make_one(make: Make, files: list[Path], result: Path) -> dict[str, Any]:
    pictures = [load_picture(path).pixels for path in files]
    reset_peak_memory()
    began = time.perf_counter()
    try:
        made = make(pictures)
    except (AnonymizationError, NoFaceError) as error:
        return {"failed": str(error)}
    seconds = time.perf_counter() - began
    save_picture(Picture(made), result, overwrite=True)
    return {"seconds": round(seconds, 3), "peak_memory_mb": peak_memory_mb()}


def _faces_of(anonymizer: Anonymizer, pixels: Pixels) -> list[Face]:
    faces = anonymizer.detector.detect(pixels)
    if not faces:
        raise NoFaceError("no face was found")
    return faces


def blur_face(pixels: Pixels, face: Face) -> Pixels:
    """Blur a face by a Gaussian of `BLUR_SHARE` of its width, within the shape that redaction covers."""
    return _within_cover(pixels, face, cv2.GaussianBlur(pixels, (0, 0), face.box.width * BLUR_SHARE))


def pixelate_face(pixels: Pixels, face: Face) -> Pixels:
    """A mosaic of `BLOCKS` blocks across the face, within the shape that redaction covers."""
    height, width = pixels.shape[:2]
    block = max(1.0, face.box.width / BLOCKS)
    small = cv2.resize(pixels, (max(1, round(width / block)), max(1, round(height / block))), interpolation=cv2.INTER_AREA)
    return _within_cover(pixels, face, cv2.resize(small, (width, height), interpolation=cv2.INTER_NEAREST))


def _within_cover(pixels: Pixels, face: Face, changed: Any) -> Pixels:
    cover = redact_face(np.zeros_like(pixels), face) > 0
    return np.where(cover, np.asarray(changed, np.uint8), pixels)


def reset_peak_memory() -> None:
    """Begin a new measurement of `peak_memory_mb`, where the system can."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # not allowed: then the largest so far counts
            Path("/proc/self/clear_refs").write_text("5", "ascii")


def peak_memory_mb() -> float | None:
    """Largest resident memory of this process since `reset_peak_memory`, MiB; None where the system does not tell."""
    if sys.platform != "linux":
        return None
    status = Path("/proc/self/status").read_text("ascii", errors="replace")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return round(int(line.split()[1]) / 1024, 1)
