"""Make the gallery of target faces with the trained model itself: from attributes, a sketch, and noise."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..attributes import LEARNED, Attributes, describe, to_indices
from ..diffusion import DemoModel
from ..encoder import DemoEncoder
from ..faces import FaceDetector
from ..image import load_picture, pixels_to_tensor, tensor_to_pixels
from ..skin import crop_skin_tone, mouth_expression
from ..synthesis import random_pose, synthesize

log = logging.getLogger(__name__)

WISHES: dict[str, Attributes] = {
    "anna": {"sex": "female", "age": "adult", "skin": "light", "ethnicity": "white"},
    "bela": {"sex": "male", "age": "adult", "skin": "light", "ethnicity": "white"},
    "chidi": {"sex": "male", "age": "adult", "skin": "dark", "ethnicity": "black"},
    "dewi": {"sex": "female", "age": "adult", "skin": "tan", "ethnicity": "asian"},
    "elif": {"sex": "female", "age": "middle-aged", "skin": "intermediate", "ethnicity": "middle-eastern"},
    "femi": {"sex": "female", "age": "adult", "skin": "brown", "ethnicity": "black"},
    "goro": {"sex": "male", "age": "adult", "skin": "light", "ethnicity": "asian"},
    "hugo": {"sex": "male", "age": "senior", "skin": "light", "ethnicity": "white"},
    "ines": {"sex": "female", "age": "adult", "skin": "intermediate", "ethnicity": "latino"},
    "jan": {"sex": "male", "age": "teen", "skin": "very-light", "ethnicity": "white"},
    "kaya": {"sex": "female", "age": "child", "skin": "light", "ethnicity": "white"},
    "luis": {"sex": "male", "age": "adult", "skin": "tan", "ethnicity": "latino"},
    "mira": {"sex": "female", "age": "senior", "skin": "light", "ethnicity": "white"},
    "nuri": {"sex": "male", "age": "child", "skin": "intermediate", "ethnicity": "asian"},
    "olu": {"sex": "male", "age": "senior", "skin": "dark", "ethnicity": "black"},
    "pia": {"sex": "female", "age": "teen", "skin": "very-light", "ethnicity": "white"},
    "rosa": {"sex": "female", "age": "adult", "skin": "light", "ethnicity": "white", "expression": "smile"},
    "sven": {"sex": "male", "age": "adult", "skin": "light", "ethnicity": "white", "expression": "smile"},
    "tala": {"sex": "female", "age": "adult", "skin": "intermediate", "ethnicity": "asian", "expression": "smile"},
    "umar": {"sex": "male", "age": "adult", "skin": "tan", "ethnicity": "latino", "expression": "smile"},
    "vida": {"sex": "female", "age": "adult", "skin": "brown", "ethnicity": "black", "expression": "smile"},
    "wole": {"sex": "male", "age": "adult", "skin": "dark", "ethnicity": "black", "expression": "smile"},
    "xena": {"sex": "female", "age": "senior", "skin": "light", "ethnicity": "white", "expression": "smile"},
    "yuri": {"sex": "male", "age": "senior", "skin": "intermediate", "ethnicity": "white", "expression": "smile"},
}


def make_gallery(model: DemoModel, encoder: DemoEncoder, folder: Path, tries: int = 4) -> None:
    """Write one face per wish, the best of `tries` by the encoder's and the detector's judgement."""
    folder.mkdir(parents=True, exist_ok=True)
    with FaceDetector() as detector:
        for number, (name, wish) in enumerate(WISHES.items()):
            asked = {"expression": "neutral", **wish, "glasses": "none"}
            seeds = [1000 * number + attempt for attempt in range(tries)]
            images = synthesize(model, asked, [random_pose(wish, seed) for seed in seeds], seeds)
            candidates = []
            for attempt, image in enumerate(images.split(1)):
                pixels = tensor_to_pixels(image)[0]
                found = detector.detect(pixels)
                if len(found) == 1:
                    score = found[0].score + 2 * _agreement(encoder, image, wish) - 4 * _unrest(image)
                    candidates.append((score, attempt, pixels))
            if not candidates:
                log.warning("no usable face for %s", name)
                continue
            score, _, pixels = max(candidates, key=lambda candidate: candidate[0])
            Image.fromarray(pixels).save(folder / f"{name}.jpg", quality=92)
            log.info("%s: %s (score %.2f)", name, describe(wish), score)
    judge_gallery(encoder, folder)


def judge_gallery(encoder: DemoEncoder, folder: Path) -> None:
    """Write `gallery.json` with the attributes each face shows, which need not be those that were wished for."""
    index: dict[str, Attributes] = {}
    with FaceDetector() as detector:
        for path in sorted(folder.glob("*.jpg")):
            pixels = load_picture(path).pixels
            image = pixels_to_tensor(pixels)
            shown, sure = encoder.predict(image)[0]
            known = {name: shown[name] for name in ("sex", "age", "ethnicity") if sure[name] >= 0.5}
            for name in ("sex", "age"):  # the encoder's word on what was not wished for is not worth enough to stand alone
                if known.get(name) != WISHES.get(path.stem, {}).get(name):
                    known.pop(name, None)
            landmarks = detector.detect(pixels)[0].landmarks
            measured = {"skin": crop_skin_tone(pixels, landmarks), "expression": mouth_expression(landmarks)}
            index[path.stem] = known | measured
    (folder / "gallery.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")


@torch.no_grad()
def _agreement(encoder: DemoEncoder, image: Tensor, wish: Attributes) -> float:
    """Mean probability the encoder gives the wished values, 0..1."""
    summary = encoder.summary(encoder.features(image))
    indices = to_indices(wish)
    chances = [
        float(head(summary).softmax(1)[0, index - 1])
        for head, index, _ in zip(encoder.attribute_heads, indices, LEARNED, strict=True)
        if index
    ]
    return float(np.mean(chances))


def _unrest(image: Tensor) -> float:
    """Spread of the upper corners, 0..1, where a portrait has a calm background."""
    corner = image.shape[-1] // 6
    corners = torch.cat([image[..., : 2 * corner, :corner], image[..., : 2 * corner, -corner:]], dim=-1)
    return float(corners.std(dim=(-2, -1)).mean())
