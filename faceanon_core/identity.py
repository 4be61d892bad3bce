"""Whether two faces are the same person to face-recognition networks: those that the user brings, or dlib's.

How a network of the user's wants its input and what similarity is too high are never guessed: both stand in a card, a small
JSON file beside the network, because they depend on the network and on the population (the same network needs 0.30 on
photographs of real people and 0.60 on one set of generated faces). `calibration` measures thresholds and writes the card.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from .crop import FaceCrop
from .errors import InputError, WeightsError
from .geometry import ARCFACE_PX, FloatArray, arcface_alignment
from .pretrained import open_onnx

CHECK_FAR = 0.01  # false-accept rate whose threshold decides; the stricter of the two that are measured
RATES = (CHECK_FAR, 0.001)
MIN_ACCEPTS = 10  # pairs above the threshold a rate must rest on; fewer, and the next set of faces gives another threshold


def threshold_at(scores: NDArray[np.float32], far: float) -> float:
    """The lowest similarity that no more than the share `far` of the pairs of different people exceeds.

    Args:
        scores: (N,) similarities of such pairs, at least one.
    """
    return float(np.sort(scores)[::-1][int(far * len(scores))])


@dataclass(frozen=True)
class Layout:
    """How a network wants its pixels: `channels` "RGB" or "BGR", values 0..`top`, then minus `mean`, over `spread`."""

    channels: str
    top: float
    mean: tuple[float, float, float]
    spread: tuple[float, float, float]


LAYOUTS = {
    "mobilefacenet": Layout("RGB", 1.0, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),  # foamliu/MobileFaceNet
    "insightface": Layout("RGB", 255.0, (127.5, 127.5, 127.5), (127.5, 127.5, 127.5)),  # insightface's arcface_onnx.py
    "sface": Layout("RGB", 255.0, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),  # OpenCV's FaceRecognizerSF
}
_KNOWN = {  # sha256 of networks whose layout is certain, so that they need no card
    "b7120c095d60094f28a4a54ba6a8bf51b297a6273fb40ef6350dfec1f63d9507": "mobilefacenet",  # MobileFaceNet.onnx
    "0ba9fbfa01b5270c96627c4ef784da859931e02f04419c829e83484087c34e79": "sface",  # face_recognition_sface_2021dec.onnx
}


@dataclass(frozen=True)
class Card:
    """What stands beside a network: its layout, and the similarity that pairs of different people exceed at a rate.

    `thresholds` maps false-accept rates to similarities, -1..1; `sha256` is the network's `content_hash`, "" in a card
    written by hand; `measured` says when and on how many pairs.
    """

    layout: Layout
    thresholds: dict[float, float] = field(default_factory=dict)
    sha256: str = ""
    measured: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """What one network says of one face: cosine similarity of source and result, -1..1, and the highest that may pass."""

    recogniser: str
    similarity: float
    limit: float

    @property
    def passed(self) -> bool:
        """False for NaN too."""
        return self.similarity <= self.limit


class FaceRecogniser(Protocol):
    """A face-recognition network, and how alike two people may be to it.

    `sha256` is that of its weights; `key` changes with them, or where the same ones are given other pixels; `thresholds` as
    in `Card`, none where they have to be measured.
    """

    name: str
    sha256: str

    @property
    def key(self) -> str: ...

    @property
    def thresholds(self) -> dict[float, float]: ...

    def embed(self, pixels: NDArray[np.uint8], landmarks: FloatArray) -> NDArray[np.float32]:
        """Unit-norm embedding (D,) of one face; `landmarks` (478, 2) in pixels of (H, W, 3) uint8 RGB."""

    def limit(self, max_similarity: float | None = None) -> float:
        """The highest similarity to the source that may pass: the one asked for, else the network's own."""

    def set_limit(self, max_similarity: float) -> None:
        """Let up to this similarity pass, in place of the network's own."""


class Recogniser:
    """A face-recognition network in ONNX: one aligned 112 px crop -> embedding.

    Needs the optional package onnxruntime (`pip install faceanon[identity]`).

    Args:
        card: in place of the file `<network>.json` beside it.
    Raises: InputError if onnxruntime is missing; WeightsError if the file is no such network, or nothing says how it wants
        its input: with the wrong one it would call everybody a stranger.
    """

    def __init__(self, path: Path, card: Card | None = None) -> None:
        self._path, self._session = path, open_onnx(path, "face-recognition network")
        entry = self._session.get_inputs()[0]
        self._input, self._planes_first = entry.name, _planes_first(path, entry.shape)
        self.name, self.sha256 = path.stem, content_hash(path)
        self.card = card or _find_card(path, self.sha256)
        self._probe(path)

    def __reduce__(self) -> tuple[type[Recogniser], tuple[Path, Card]]:
        """Another process reads the file anew."""
        return Recogniser, (self._path, self.card)

    @property
    def key(self) -> str:
        """See `FaceRecogniser`."""
        return f"{self.sha256} {self.card.layout}"

    @property
    def thresholds(self) -> dict[float, float]:
        """See `FaceRecogniser`."""
        return self.card.thresholds

    def embed(self, pixels: NDArray[np.uint8], landmarks: FloatArray) -> NDArray[np.float32]:
        """Unit-norm embedding (D,) of one face; `landmarks` (478, 2) in pixels of (H, W, 3) uint8 RGB."""
        vector = self._run(cv2.warpAffine(pixels, arcface_alignment(landmarks), (ARCFACE_PX, ARCFACE_PX)))
        unit: NDArray[np.float32] = vector / np.linalg.norm(vector)
        return unit

    def limit(self, max_similarity: float | None = None) -> float:
        """The highest similarity to the source that may pass: the one asked for, else the card's at `CHECK_FAR`.

        Raises: InputError if neither says one.
        """
        if max_similarity is not None:
            return max_similarity
        if CHECK_FAR not in self.card.thresholds:
            raise InputError(
                f"no card says which similarity is too high for {self.name}; measure it with faceanon calibrate, "
                "or give max-similarity"
            )
        return self.card.thresholds[CHECK_FAR]

    def set_limit(self, max_similarity: float) -> None:
        """Let up to this similarity pass, in place of the card's."""
        self.card = replace(self.card, thresholds={CHECK_FAR: max_similarity})

    def _run(self, face: NDArray[np.uint8]) -> NDArray[np.float32]:
        layout = self.card.layout
        ordered = face if layout.channels == "RGB" else face[..., ::-1]
        scaled = ordered.astype(np.float32) * np.float32(layout.top / 255)
        values = (scaled - np.array(layout.mean, np.float32)) / np.array(layout.spread, np.float32)
        batch = (values.transpose(2, 0, 1) if self._planes_first else values)[None]
        vector: NDArray[np.float32] = np.asarray(self._session.run(None, {self._input: batch})[0], np.float32).reshape(-1)
        return vector

    def _probe(self, path: Path) -> None:
        """Run it once, so that a network of another kind is refused at the start.

        Raises: WeightsError.
        """
        try:
            vector = self._run(np.full((ARCFACE_PX, ARCFACE_PX, 3), 128, np.uint8))
        except Exception as error:  # onnxruntime's errors have no common base but Exception
            raise WeightsError(f"{path} cannot be run on one 112x112 face crop") from error
        if len(vector) < 2 or not bool(np.isfinite(vector).all()):
            raise WeightsError(f"{path} gives no embedding for a face crop; it is no face-recognition network")


def card_path(network: Path) -> Path:
    """Where a network's card is looked for: `<network>.json` beside it."""
    return network.with_suffix(".json")


def content_hash(network: Path) -> str:
    """sha256 of a network's file, and of the file ONNX keeps its weights in, if there is one beside it; hexadecimal."""
    digest = hashlib.sha256(network.read_bytes())
    for extra in (network.with_name(network.name + ".data"), network.with_name(network.name + "_data")):
        if extra.is_file():
            digest.update(extra.read_bytes())
    return digest.hexdigest()


def read_card(path: Path) -> Card:
    """Read a card.

    Raises: WeightsError if it is none; the text says what is wrong.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        named = entries["layout"]
        layout = LAYOUTS[named] if isinstance(named, str) else _read_layout(named)
        thresholds = {float(rate): float(bound) for rate, bound in entries.get("thresholds", {}).items()}
        card = Card(layout, thresholds, str(entries.get("sha256", "")), dict(entries.get("measured", {})))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"{path} is no card of a face-recognition network ({error}); its layout must be one of {', '.join(LAYOUTS)}, or "
            "an object with channels, top, mean and spread"
        ) from error
    if not all(0 < rate < 1 and -1 <= bound <= 1 for rate, bound in thresholds.items()):
        raise WeightsError(f"{path} has thresholds that are no similarities of -1 to 1 at rates between 0 and 1")
    return card


def card_text(card: Card) -> str:
    """A card as the text of its file."""
    named = next((name for name, layout in LAYOUTS.items() if layout == card.layout), None)
    entries = {**asdict(card), "layout": named or asdict(card.layout)}
    entries["thresholds"] = {f"{rate:g}": round(bound, 4) for rate, bound in card.thresholds.items()}
    return json.dumps(entries, indent=2) + "\n"


def _read_layout(entries: dict[str, Any]) -> Layout:
    mean, spread = (tuple(float(value) for value in entries[name]) for name in ("mean", "spread"))
    layout = Layout(str(entries["channels"]), float(entries["top"]), mean, spread)  # type: ignore[arg-type]
    if layout.channels not in ("RGB", "BGR") or len(mean) != 3 or len(spread) != 3 or layout.top <= 0 or min(spread) <= 0:
        raise ValueError("channels is RGB or BGR, mean and spread have three numbers, top and spread are above 0")
    return layout


def _find_card(network: Path, sha256: str) -> Card:
    """The card beside a network, else what is known of this very file.

    Raises: WeightsError.
    """
    path = card_path(network)
    if path.is_file():
        card = read_card(path)
        if card.sha256 not in ("", sha256):
            raise WeightsError(f"{path} was measured with another network than {network.name}; run faceanon calibrate again")
        return card
    known = _KNOWN.get(hashlib.sha256(network.read_bytes()).hexdigest())
    if known is None:
        raise WeightsError(
            f"nothing says how {network.name} wants its input, and a wrong guess would call everybody a stranger; write its "
            f"card {path.name} with faceanon calibrate --layout {'|'.join(LAYOUTS)}"
        )
    return Card(LAYOUTS[known])


def _planes_first(path: Path, shape: list[Any]) -> bool:
    """Whether the input is (1, 3, 112, 112) and not (1, 112, 112, 3); sizes that are not numbers fit anything.

    Raises: WeightsError for any other shape.
    """
    for planes_first, wanted in ((True, [3, ARCFACE_PX, ARCFACE_PX]), (False, [ARCFACE_PX, ARCFACE_PX, 3])):
        if len(shape) == 4 and all(not isinstance(a, int) or a == b for a, b in zip(shape[1:], wanted, strict=True)):
            return planes_first
    raise WeightsError(f"{path} takes {shape}, not (1, 3, 112, 112) face crops")


def excess_similarity(
    recognisers: Sequence[FaceRecogniser], crop: FaceCrop, sources: Sequence[tuple[NDArray[np.uint8], FloatArray]],
    max_similarity: float | None = None,
) -> float:  # fmt: skip
    """How far a face's similarity to any of the sources lies above what may pass, by the strictest network; <= 0 passes.

    Args:
        sources: picture and landmarks of each.
    Raises: InputError if neither card nor `max_similarity` says what may pass.
    """
    excesses = []
    for net in recognisers:
        shown = net.embed(crop.pixels, crop.landmarks)
        closest = float(np.max([shown @ net.embed(*source) for source in sources]))  # NaN if any is
        excesses.append(closest - net.limit(max_similarity))
    return float(np.max(excesses))
