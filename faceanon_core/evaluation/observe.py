"""What detector, encoder and recognisers see in a picture, kept on disk so that nothing is looked at twice."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..attributes import Attributes
from ..crop import FaceCrop, crop_face
from ..encoder import DemoEncoder, load_demo_encoder
from ..errors import AnonymizationError
from ..faces import Face, FaceDetector, face_at
from ..geometry import Box, FloatArray
from ..identity import FaceRecogniser
from ..image import load_picture
from ..weights import ASSETS
from .measures import detail

CROP_PX = 256
_FORMAT = 1  # of what is kept on disk
DEMO_FEATURES = "the demo encoder"


class FeatureNetwork(Protocol):
    """What Fréchet and Visual-DNA distance are computed on. `name` goes with every such figure."""

    name: str
    key: str  # changes when the network does

    def features(self, crop: Tensor) -> NDArray[np.float32]:
        """(D,) for one upright face crop (1, 3, S, S) float 0..1."""
        ...


@dataclass(frozen=True)
class Seen:
    """One face of a picture.

    In a result that shows no face where the source has one, `landmarks` is None and everything else is taken at the
    source's place: who attacks a result knows where the face was.
    """

    landmarks: FloatArray | None  # (478, 2) in pixels of the source picture
    embeddings: dict[str, NDArray[np.float32]]  # by recogniser, unit norm
    features: NDArray[np.float32]
    attributes: Attributes
    detail: float

    @property
    def place(self) -> FloatArray:
        """The landmarks of a source's face, which always has them."""
        assert self.landmarks is not None
        return self.landmarks


class Observer:
    """Looks at pictures and remembers what it saw in `folder`, by the file's content and the networks.

    Args:
        recognisers: each of another name.
        features: None: the demo encoder's own.
    """

    def __init__(self, recognisers: Sequence[FaceRecogniser], folder: Path, features: FeatureNetwork | None = None) -> None:
        self.recognisers, self._folder = {network.name: network for network in recognisers}, folder
        self.detector = FaceDetector()
        self._encoder = load_demo_encoder(ASSETS / "encoder.safetensors")
        self.features = features or DemoFeatures(self._encoder)
        networks = [
            self.features.key,
            file_hash(ASSETS / "encoder.safetensors"),
            *sorted((network.name, network.key) for network in recognisers),
        ]
        self._key = json.dumps([_FORMAT, CROP_PX, networks])

    def sources(self, path: Path) -> list[Seen]:
        """The faces of an original, largest first, those cut by the border left out.

        Raises: InputError if the file cannot be read.
        """
        return self._remembered(path, "", lambda: self._look(load_picture(path).pixels))

    def results(self, path: Path, source: Path) -> list[Seen]:
        """What became of each face of `sources(source)` in an anonymized picture, in the same order.

        A result of another size is first brought to its source's.
        """

        def look() -> list[Seen]:
            pixels, like = load_picture(path).pixels, load_picture(source).pixels
            if pixels.shape != like.shape:
                pixels = cv2.resize(pixels, (like.shape[1], like.shape[0]), interpolation=cv2.INTER_AREA)
            return self._look(pixels, [seen.place for seen in self.sources(source)])

        return self._remembered(path, file_hash(source), look)

    def _look(self, pixels: NDArray[np.uint8], places: list[FloatArray] | None = None) -> list[Seen]:
        found = self.detector.detect(pixels)
        if places is None:
            return [seen for face in found if (seen := self._see(pixels, face.landmarks, face.landmarks)) is not None]
        at_places = [face_at(Box.around(place), found) for place in places]
        rows = [self._see(pixels, place, f.landmarks if f else None) for place, f in zip(places, at_places, strict=True)]
        return [row for row in rows if row is not None]  # none is: the source's places were seen before

    def _see(self, pixels: NDArray[np.uint8], place: FloatArray, landmarks: FloatArray | None) -> Seen | None:
        try:
            crop = face_crop(pixels, place)
        except AnonymizationError:
            return None
        where = place if landmarks is None else landmarks
        attributes, _ = self._encoder.predict(crop.tensor)[0]
        return Seen(
            landmarks,
            {name: network.embed(pixels, where) for name, network in self.recognisers.items()},
            self.features.features(crop.tensor),
            attributes,
            detail(crop.pixels),
        )

    def _remembered(self, path: Path, beside: str, look: Any) -> list[Seen]:
        key = hashlib.sha256("\n".join([self._key, beside, file_hash(path)]).encode()).hexdigest()[:32]
        kept = self._folder / f"{key}.npz"
        if not kept.is_file():
            _keep(kept, look(), sorted(self.recognisers))
        return _recall(kept, sorted(self.recognisers))


class DemoFeatures:
    """The 192 numbers that the demo encoder's attribute heads read."""

    name = DEMO_FEATURES

    def __init__(self, encoder: DemoEncoder) -> None:
        self.key = self.name
        self._encoder = encoder

    @torch.no_grad()
    def features(self, crop: Tensor) -> NDArray[np.float32]:
        summary: NDArray[np.float32] = self._encoder.summary(self._encoder.features(crop))[0].numpy()
        return summary


def face_crop(pixels: NDArray[np.uint8], landmarks: FloatArray) -> FaceCrop:
    """The upright crop that everything but recognition is measured on. Raises: AnonymizationError as `crop_face`."""
    return crop_face(pixels, Face(Box.around(landmarks), 1.0, landmarks), CROP_PX)


@cache
def _hash_at(path: Path, size: int, changed: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def file_hash(path: Path) -> str:
    """SHA-256 of a file's content, hexadecimal."""
    state = path.stat()
    return _hash_at(path.resolve(), state.st_size, state.st_mtime_ns)


def _keep(path: Path, faces: list[Seen], names: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nowhere = np.full((478, 2), np.nan, np.float32)
    columns: dict[str, Any] = {
        "landmarks": [nowhere if seen.landmarks is None else seen.landmarks for seen in faces],
        "features": [seen.features for seen in faces],
        "detail": [seen.detail for seen in faces],
        "attributes": [json.dumps(seen.attributes) for seen in faces],
        **{f"embedding {name}": [seen.embeddings[name] for seen in faces] for name in names},
    }
    partial = path.with_name(f".{path.stem}.{os.getpid()}.npz")
    np.savez(partial, **{name: np.array(values) for name, values in columns.items()})
    partial.replace(path)


def _recall(path: Path, names: list[str]) -> list[Seen]:
    with np.load(path) as kept:
        table = {name: kept[name] for name in kept.files}
    return [
        Seen(
            None if np.isnan(table["landmarks"][i]).any() else table["landmarks"][i],
            {name: table[f"embedding {name}"][i] for name in names},
            table["features"][i],
            json.loads(str(table["attributes"][i])),
            float(table["detail"][i]),
        )
        for i in range(len(table["detail"]))
    ]
