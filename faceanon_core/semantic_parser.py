"""Face parsing by a network the user brings: SegFormer in transformers' layout, e.g. jonathandinu/face-parsing, or BiSeNet
in face-parsing.PyTorch's.

They tell apart what the landmarks cannot: eyeglasses, ears, hair, hat, neck. Classes are read by their names in id2label;
BiSeNet's files have none and are known to hold CelebAMask-HQ's 19 in their authors' order.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from .bisenet import BiSeNet
from .errors import WeightsError
from .geometry import FloatArray, eye_centers
from .parsing import INDEX, LabelMap, LandmarkParser
from .pretrained import build_pretrained, fill_weights, read_json, read_state, weights_file

# Names in checkpoints for ours, written without case, file endings and separators.
_ALIASES = {
    "face": "skin", "eyeg": "eyeglasses", "glasses": "eyeglasses", "eyeglass": "eyeglasses", "leye": "left_eye",
    "reye": "right_eye", "lbrow": "left_brow", "rbrow": "right_brow", "leyebrow": "left_brow", "reyebrow": "right_brow",
    "lefteyebrow": "left_brow", "righteyebrow": "right_brow", "lear": "left_ear", "rear": "right_ear",
    "mouth": "inner_mouth", "teeth": "inner_mouth", "ulip": "upper_lip", "llip": "lower_lip", "earr": "earring",
    "neckl": "necklace", "cloth": "clothing", "clothes": "clothing",
} | {name.replace("_", ""): name for name in INDEX}  # fmt: skip
# CelebAMask-HQ's classes as face-parsing.PyTorch numbers them
_BISENET_CLASSES = (
    "background", "skin", "l_brow", "r_brow", "l_eye", "r_eye", "eye_g", "l_ear", "r_ear", "ear_r", "nose", "mouth",
    "u_lip", "l_lip", "neck", "neck_l", "cloth", "hair", "hat",
)  # fmt: skip
_BISENET_CLASSIFIER = "conv_out.conv_out.weight"
_IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])  # mean and spread
_NEEDED = LandmarkParser.delivers  # so that another parser never takes a region away
_MIRRORED = {INDEX[f"left_{part}"]: INDEX[f"right_{part}"] for part in ("eye", "brow", "ear")}


class SemanticParser(nn.Module):
    """A `parsing.FaceParser`.

    Args:
        network: (1, 3, S, S) -> logits (1, classes, h, w), or an output of transformers with these.
        labels: index into `parsing.LABELS` of each of its classes.
        size_px, mean, spread: of its training's pictures.
    """

    mean: Tensor
    spread: Tensor

    def __init__(
        self, network: nn.Module, labels: NDArray[np.uint8], size_px: int, mean: list[float], spread: list[float]
    ) -> None:
        super().__init__()
        self.network, self._labels, self._size_px = network, labels, size_px
        for name, values in (("mean", mean), ("spread", spread)):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)
        self.delivers = frozenset(name for name, index in INDEX.items() if index in labels)

    @torch.no_grad()
    def parse(self, crop: NDArray[np.uint8], landmarks: FloatArray) -> LabelMap:
        """See `FaceParser.parse`.

        Left and right are the subject's own, whichever the checkpoint means: the landmarks tell where its left eye is.
        """
        side = (self._size_px, self._size_px)
        image = torch.from_numpy(cv2.resize(crop, side, interpolation=cv2.INTER_AREA)).permute(2, 0, 1).float() / 255
        pixels = (image.to(self.mean) - self.mean) / self.spread
        found = self.network(pixels[None])
        logits: Tensor = found if isinstance(found, Tensor) else found.logits
        classes = F.interpolate(logits, crop.shape[:2], mode="bilinear").argmax(1)[0].cpu().numpy()
        return _subjects_sides(self._labels[classes], landmarks)


def _subjects_sides(labels: LabelMap, landmarks: FloatArray) -> LabelMap:
    """Exchange left and right if the left eye and brow were found at the subject's right."""
    right, left = eye_centers(landmarks)
    wrong = 0.0
    for part in ("eye", "brow"):
        for side, sign in (("left", 1), ("right", -1)):
            places = np.argwhere(labels == INDEX[f"{side}_{part}"])[:, ::-1]  # xy
            if len(places):
                wrong -= sign * float((places.mean(0) - (left + right) / 2) @ (left - right))
    if wrong <= 0:
        return labels
    exchanged = labels.copy()
    for one, other in _MIRRORED.items():
        exchanged[labels == one], exchanged[labels == other] = other, one
    return exchanged


def load_semantic_parser(path: Path) -> SemanticParser:
    """Read a face parser, frozen.

    Args:
        path: SegFormer: a folder with config.json and model.safetensors (or that file); what preprocessor_config.json says
            is believed. BiSeNet: its file; if it has others than the published classes, a config.json beside it names them.
    Raises: InputError if transformers is missing and needed; WeightsError if the checkpoint is damaged, of neither
        architecture, has a class no region is known for, or lacks one of the regions that the landmarks give.
    """
    file = weights_file(path)
    config = read_json(file.parent / "config.json")
    if config.get("model_type") == "segformer" and file.name == "model.safetensors":
        return _load_segformer(file, config)
    state = {name.removeprefix("module."): value for name, value in read_state(file).items()}
    if _BISENET_CLASSIFIER not in state:
        kind = config.get("model_type", "nothing")
        raise WeightsError(
            f"{file} is no face parser that is known: it has no BiSeNet's {_BISENET_CLASSIFIER}, "
            f"and a config.json beside it that would make it a SegFormer says {kind!r}"
        )
    return _load_bisenet(file, state, config)


def _load_segformer(file: Path, config: dict[str, Any]) -> SemanticParser:
    labels, shown = _known_labels(_class_names(config), file), read_json(file.parent / "preprocessor_config.json")
    network = build_pretrained("SegformerForSemanticSegmentation", config, read_state(file), file)
    mean, spread = shown.get("image_mean", _IMAGENET[0]), shown.get("image_std", _IMAGENET[1])
    return SemanticParser(network, labels, _side(shown.get("size")), mean, spread)


def _load_bisenet(file: Path, state: dict[str, Tensor], config: dict[str, Any]) -> SemanticParser:
    names, count = _class_names(config) or dict(enumerate(_BISENET_CLASSES)), len(state[_BISENET_CLASSIFIER])
    if len(names) != count:
        raise WeightsError(
            f"{file} has {count} classes, but {len(names)} names are known for them; "
            'put a config.json beside it that names all, as {"id2label": {"0": "background", ...}}'
        )
    labels, network = _known_labels(names, file), BiSeNet(count)
    fill_weights(network, state, file)
    return SemanticParser(network.eval().requires_grad_(False), labels, 512, *_IMAGENET)


def _class_names(config: dict[str, Any]) -> dict[int, str]:
    return {int(number): str(name) for number, name in config.get("id2label", {}).items()}


def _known_labels(names: dict[int, str], file: Path) -> NDArray[np.uint8]:
    """Index into `parsing.LABELS` of every class."""
    ours = {number: _ALIASES.get(_plain(name)) for number, name in names.items()}
    unknown = sorted(name for number, name in names.items() if ours[number] is None)
    if unknown:
        raise WeightsError(f"{file} is no face parser: no region is known for its class {', '.join(unknown)}")
    missing = sorted(_NEEDED - set(ours.values()))
    if missing:
        raise WeightsError(f"{file} lacks the class {', '.join(missing)}, which a face parser needs")
    return np.array([INDEX[str(ours[number])] for number in sorted(ours)], np.uint8)


def _side(size: Any) -> int:
    """Of preprocessor_config.json's size: a number in its older form, a height and a width in its newer."""
    side = size.get("height") if isinstance(size, dict) else size
    return side if isinstance(side, int) else 512


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower().removesuffix(".png") if letter.isalnum())
