"""Models that are not part of the pack: where to get them, their licence, and a download that checks what arrived.

Nothing is ever downloaded unasked.
"""

from __future__ import annotations

import hashlib
import os
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .errors import FaceAnonError, UnknownNameError, WeightsError

FOLDER_VARIABLE = "FACEANON_MODELS"


@dataclass(frozen=True)
class OptionalModel:
    """One file. `sha256` is of the file at `url`, hexadecimal."""

    file: str
    url: str
    sha256: str
    licence: str
    purpose: str


OPTIONAL_MODELS = {
    "face_landmarker": OptionalModel(
        "face_landmarker.task",
        "https://storage.googleapis.com/mediapipe-models/face_landmarker/face_landmarker/float16/1/face_landmarker.task",
        "64184e229b263107bc2b804c6625db1341ff2bb731874b0bcc2fe6544e0bc9ff",
        "by Google, Apache-2.0",
        "face detection with a mediapipe newer than 0.10.21, which comes without models",
    ),
    "yunet": OptionalModel(
        "face_detection_yunet_2023mar.onnx",
        "https://github.com/opencv/opencv_zoo/raw/main/models/face_detection_yunet/face_detection_yunet_2023mar.onnx",
        "8f2383e4dd3cfbb4553ea8718107fc0423210dc964f9f4280604804ed2552fa4",
        "by Shiqi Yu and others, MIT",
        "a second opinion on where faces are, instead of OpenCV's cascade",
    ),
}


def model_folder() -> Path:
    """Where the command line keeps optional models: the folder FACEANON_MODELS names, else ~/.faceanon."""
    return Path(os.environ.get(FOLDER_VARIABLE) or Path.home() / ".faceanon")


def find_optional(name: str) -> OptionalModel:
    """Raises: UnknownNameError naming those that exist."""
    if name not in OPTIONAL_MODELS:
        raise UnknownNameError(f"there is no optional model {name!r}; known: {', '.join(OPTIONAL_MODELS)}")
    return OPTIONAL_MODELS[name]


def download(model: OptionalModel, folder: Path, progress: Callable[[int], object] = lambda _: None) -> Path:
    """Fetch `model` into `folder`; a file that is already there and whole is left alone.

    Args:
        progress: called with the number of bytes of each piece that arrived.
    Returns: the file's path.
    Raises: WeightsError if another file is in its place or another file arrived, FaceAnonError if nothing arrived.
        Nothing is left behind or overwritten then.
    """
    path = folder / model.file
    if path.exists():
        if file_sha256(path) == model.sha256:
            return path
        raise WeightsError(f"{path} is there already but is not the known {model.file}; move it away and run this again")
    partial = path.with_suffix(".partial")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(model.url, timeout=60) as source, partial.open("wb") as sink:
            while piece := source.read(1 << 16):
                sink.write(piece)
                progress(len(piece))
        if file_sha256(partial) != model.sha256:
            raise WeightsError(f"what {model.url} sent is not the known {model.file}; nothing was kept")
        partial.replace(path)
    except OSError as error:
        raise FaceAnonError(f"{model.file} could not be fetched from {model.url} into {folder}: {error}") from error
    finally:
        partial.unlink(missing_ok=True)
    return path


def file_sha256(path: Path) -> str:
    """Of a file's content, hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
