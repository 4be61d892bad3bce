"""Train, fill the gallery and measure: `python -m faceanon_core.training all --faces DIR --start DIR --work DIR`.

Every stage resumes from its checkpoint in the work folder and is seeded.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.numpy import save_file

from ..attributes import Attributes
from ..diffusion import DemoModel, load_vae
from ..dlib_recogniser import DlibRecogniser
from ..encoder import load_demo_encoder
from ..engines import usable_cores
from ..evaluation.observe import file_hash
from ..geometry import FloatArray
from ..identity import FaceRecogniser, Recogniser
from ..weights import ASSETS
from .attributes import measure_attributes, tables
from .data import FaceSet
from .encoder import EncoderSettings, train_encoder
from .evaluate import evaluate
from .gallery import make_gallery
from .labels import label_faces
from .quality import measure_quality
from .quality import table as quality_table
from .results import SETTINGS
from .unet import UnetSettings, complete_labels, train_unet
from .vae import VaeSettings, train_vae

_SETTINGS: dict[str, Any] = {"vae": VaeSettings, "encoder": EncoderSettings, "unet": UnetSettings}
STAGES = ("vae", "encoder", "poses", "unet", "gallery", "install", "evaluate")


def main() -> int:
    """Run the stages asked for. Returns: the exit code."""
    parser = argparse.ArgumentParser(prog="python -m faceanon_core.training", description=__doc__)
    parser.add_argument(
        "stage",
        choices=("all", *STAGES, "sources", "attributes", "quality"),
        help="sources: the test faces as pictures; attributes: do results show what was asked, and keep what was to stay; "
        "quality: what the fast default keeps of full guidance",
    )
    parser.add_argument("--faces", type=Path, required=True, help="folder with faces256.tar, landmarks.npz, metadata.csv")
    parser.add_argument("--start", type=Path, help="folder with vae_tiny.safetensors and unet.safetensors to begin from")
    parser.add_argument("--work", type=Path, default=Path("training"), help="checkpoints and results")
    parser.add_argument("--recogniser", type=Path, help="MobileFaceNet.onnx, for evaluate, attributes and quality")
    parser.add_argument("--unchecked", action="store_true", help="evaluate, attributes: with --recogniser none")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--workers", type=int, default=usable_cores(), help="processes that draw faces or make results")
    for name, settings in _SETTINGS.items():
        parser.add_argument(f"--{name}-steps", type=int, default=settings.steps)
        parser.add_argument(f"--{name}-batch", type=int, default=settings.batch)
    parser.add_argument("--sharpen-steps", type=int, default=VaeSettings.sharpen_steps, help="of the VAE's decoder")
    parser.add_argument("--unet-seed", type=int, default=UnetSettings.seed, help="another one draws other faces and masks")
    parser.add_argument("--unet-views", type=int, default=UnetSettings.images_per_view, help="faces drawn at a time")
    parser.add_argument("--unet-passes", type=int, default=UnetSettings.passes_per_view, help="how often each is used")
    parser.add_argument("--checkpoint-every", type=int, default=UnetSettings.checkpoint_every, help="steps of the U-Net")
    parser.add_argument("--minutes", type=float, default=1e9, help="end the U-Net or results after this long")
    parser.add_argument("--limit", type=int, help="how many test faces attributes and quality measure (default: all)")
    parser.add_argument("--reuse", type=int, help="quality: steps that one gradient serves (default: the pack's)")
    parser.add_argument("--end", type=float, help="quality: share of the steps after which guidance stops (default: all)")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    options.work.mkdir(parents=True, exist_ok=True)
    for stage in STAGES if options.stage == "all" else (options.stage,):
        _RUN[stage](options)
    return 0


def _vae(options: argparse.Namespace) -> None:
    settings = VaeSettings(steps=options.vae_steps, batch=options.vae_batch, sharpen_steps=options.sharpen_steps)
    start = options.start / "vae_tiny.safetensors"
    train_vae(FaceSet(options.faces, "train"), start, options.work, settings, options.device)


def _encoder(options: argparse.Namespace) -> None:
    faces = FaceSet(options.faces, "train")
    settings = EncoderSettings(steps=options.encoder_steps, batch=options.encoder_batch)
    train_encoder(faces, label_faces(faces), options.work, settings, options.device)


def _poses(options: argparse.Namespace) -> None:
    """Mean landmarks, from which the sketches of synthesized faces are made."""
    faces = FaceSet(options.faces, "train")
    labels = _complete_labels(options.work, faces)
    frontal = np.array([_frontal(landmarks) for landmarks in faces.landmarks])
    child = np.array([known.get("age") in ("baby", "child") for known in labels])
    smiling = np.array([known["expression"] == "smile" for known in labels])
    stored = {
        "adult": faces.landmarks[frontal & ~child].mean(0),
        "child": faces.landmarks[frontal & child].mean(0),
        "smile": faces.landmarks[frontal & ~child & smiling].mean(0),
    }
    save_file(stored, options.work / "poses.safetensors")


def _complete_labels(work: Path, faces: FaceSet) -> list[Attributes]:
    """Labels of the training faces, completed by the encoder; kept beside it, since they take minutes."""
    encoder = work / "encoder.safetensors"
    kept = work / f"labels-{file_hash(encoder)[:10]}.json"
    if not kept.is_file():
        labels = complete_labels(load_demo_encoder(encoder), faces, label_faces(faces))
        kept.write_text(json.dumps(labels) + "\n", encoding="utf-8")
    found: list[Attributes] = json.loads(kept.read_text(encoding="utf-8"))
    return found


def _frontal(landmarks: FloatArray) -> bool:
    """Whether the nose's tip lies near the middle of the face: a turned head shows other proportions than its own."""
    tip, right, left = landmarks[[4, 234, 454], 0]
    return bool(abs((tip - right) / (left - right) - 0.5) < 0.08)


def _unet(options: argparse.Namespace) -> None:
    faces = FaceSet(options.faces, "train")
    labels = _complete_labels(options.work, faces)
    vae = load_vae(options.work / "vae.safetensors", options.device).to(memory_format=torch.channels_last)
    settings = UnetSettings(
        options.unet_steps, options.unet_batch, seed=options.unet_seed, images_per_view=options.unet_views,
        passes_per_view=options.unet_passes, checkpoint_every=options.checkpoint_every,
    )  # fmt: skip
    workers = 0 if options.device == "cpu" else options.workers  # on the CPU the training needs the cores itself
    start = options.start / "unet.safetensors"
    train_unet(faces, labels, vae, start, options.work, settings, options.minutes, workers)


def _gallery(options: argparse.Namespace) -> None:
    encoder = load_demo_encoder(options.work / "encoder.safetensors")
    make_gallery(DemoModel(options.work), encoder, options.work / "gallery")


def _install(options: argparse.Namespace) -> None:
    """Copy what was trained into the package."""
    ASSETS.mkdir(exist_ok=True)
    for name in ("vae", "unet", "tokens", "encoder", "poses"):
        shutil.copy(options.work / f"{name}.safetensors", ASSETS)
    shutil.copytree(options.work / "gallery", ASSETS / "gallery", dirs_exist_ok=True)


def _evaluate(options: argparse.Namespace) -> None:
    figures = evaluate(
        options.faces, Recogniser(options.recogniser), options.work, options.minutes, options.device, options.workers,
        checks=_checks(options),
    )  # fmt: skip
    logging.getLogger(__name__).info("%s", json.dumps(figures, indent=1))


def _checks(options: argparse.Namespace) -> tuple[FaceRecogniser, ...]:
    return () if options.unchecked else (DlibRecogniser(),)


def _attributes(options: argparse.Namespace) -> None:
    measure = partial(measure_attributes, checks=_checks(options))
    logging.getLogger(__name__).info("%s", tables(_measure(options, measure)))


def _quality(options: argparse.Namespace) -> None:
    asked = {name: value for name in ("reuse", "end") if (value := getattr(options, name)) is not None}
    fast = replace(SETTINGS, guidance=replace(SETTINGS.guidance, **asked))
    logging.getLogger(__name__).info("%s", quality_table(_measure(options, partial(measure_quality, fast=fast))))


def _measure(options: argparse.Namespace, measure: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    return measure(
        options.faces, Recogniser(options.recogniser), options.work, options.limit, options.minutes,
        device=options.device, workers=options.workers,
    )  # fmt: skip


def _sources(options: argparse.Namespace) -> None:
    """Write the test faces as pictures, for `faceanon evaluate`."""
    faces, folder = FaceSet(options.faces, "test"), options.work / "sources"
    folder.mkdir(exist_ok=True)
    for i, record in enumerate(faces.records):
        Image.fromarray(faces.image(i)).save(folder / f"{record.name}.png")


_RUN = {
    "vae": _vae, "encoder": _encoder, "poses": _poses, "unet": _unet, "gallery": _gallery,
    "install": _install, "evaluate": _evaluate, "sources": _sources,
    "attributes": _attributes, "quality": _quality,
}  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
