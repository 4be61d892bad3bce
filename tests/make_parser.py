"""A tiny SegFormer that works, for the tests: landmark regions of generated faces, and glasses drawn onto half of them.

`python tests/make_parser.py FACES FOLDER` trains it in a few minutes on one core; tests/data/face_parsing is its output.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from faceanon_core.geometry import LEFT_EYE, RIGHT_EYE
from faceanon_core.parsing import INDEX, LandmarkParser
from faceanon_core.training.data import FaceSet

SIDE = 128
# as published by jonathandinu/face-parsing, the classes landmarks do not give left out
CLASSES = {
    "background": "background", "skin": "skin", "nose": "nose", "eye_g": "eyeglasses", "l_eye": "left_eye",
    "r_eye": "right_eye", "l_brow": "left_brow", "r_brow": "right_brow", "mouth": "inner_mouth", "u_lip": "upper_lip",
    "l_lip": "lower_lip",
}  # fmt: skip


def draw_glasses(pixels: NDArray[np.uint8], landmarks: NDArray[np.float32], shade: int) -> NDArray[np.bool_]:
    """Draw sunglasses in place. Returns: where, (H, W)."""
    where = np.zeros(pixels.shape[:2], np.uint8)
    centers = [landmarks[list(eye)].mean(0) for eye in (RIGHT_EYE, LEFT_EYE)]
    apart = float(np.linalg.norm(centers[1] - centers[0]))
    for center in centers:
        axes = (round(0.42 * apart), round(0.3 * apart))
        cv2.ellipse(where, tuple(int(v) for v in center.round()), axes, 0, 0, 360, 1, -1)
    cv2.line(where, *(tuple(int(v) for v in center.round()) for center in centers), 1, max(1, round(0.06 * apart)))
    pixels[where > 0] = shade
    return where > 0


def example(faces: FaceSet, i: int, rng: np.random.Generator) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    pixels, landmarks = faces.image(i).copy(), faces.landmarks[i]
    labels = LandmarkParser().parse(pixels, landmarks)
    if rng.random() < 0.5:
        labels[draw_glasses(pixels, landmarks, int(rng.integers(0, 60)))] = INDEX["eyeglasses"]
    ours = [INDEX[name] for name in CLASSES.values()]
    classes = np.searchsorted(ours, labels)  # both in LABELS' order
    small = cv2.resize(pixels, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    return small, cv2.resize(classes.astype(np.uint8), (SIDE, SIDE), interpolation=cv2.INTER_NEAREST)


def main(root: Path, folder: Path, steps: int = 1000, batch: int = 8) -> None:
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    torch.manual_seed(0)
    rng, faces = np.random.default_rng(0), FaceSet(root, "train")
    names = dict(enumerate(CLASSES))
    config = SegformerConfig(
        hidden_sizes=[8, 16, 16, 24], depths=[1, 1, 1, 1], num_attention_heads=[1, 1, 1, 1], mlp_ratios=[2, 2, 2, 2],
        decoder_hidden_size=24, sr_ratios=[4, 2, 1, 1], id2label=names, label2id={name: i for i, name in names.items()},
        classifier_dropout_prob=0.0, drop_path_rate=0.0,
    )  # fmt: skip
    network = SegformerForSemanticSegmentation(config)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-2, weight_decay=1e-4)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=steps)
    mean, spread = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    weights = torch.tensor([1.0, 1, 2, 1, 10, 10, 6, 6, 8, 6, 6])
    for step in range(steps):
        rows = [example(faces, int(i), rng) for i in rng.integers(0, len(faces), batch)]
        image = torch.from_numpy(np.stack([row[0] for row in rows])).permute(0, 3, 1, 2).float() / 255
        wanted = torch.from_numpy(np.stack([row[1] for row in rows])).long()
        logits = F.interpolate(network(pixel_values=(image - mean) / spread).logits, (SIDE, SIDE), mode="bilinear")
        loss = F.cross_entropy(logits, wanted, weights)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()
        if step % 50 == 0:
            sys.stderr.write(f"{step} {float(loss):.3f} {float((logits.argmax(1) == wanted).float().mean()):.3f}\n")
    network.save_pretrained(folder)
    file = folder / "model.safetensors"
    halves = {name: value.half() if value.is_floating_point() else value for name, value in load_file(file).items()}
    save_file(halves, file, {"format": "pt"})
    size = {"height": SIDE, "width": SIDE}
    shown = {"size": size, "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    (folder / "preprocessor_config.json").write_text(json.dumps(shown) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
