"""Real pictures, the real demo model and ComfyUI, loaded once per run. Nothing here is downloaded."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from skimage import data

sys.path.insert(0, str(Path(__file__).parent))
from comfyui_tools import comfyui_dir, import_bridge

from faceanon_core.crop import FaceCrop, crop_face
from faceanon_core.faces import Face
from faceanon_core.pipeline import Anonymizer

ROOT = Path(__file__).resolve().parent.parent
Pixels = NDArray[np.uint8]


@pytest.fixture(scope="session")
def astronaut() -> Pixels:
    """A portrait with one face, 512 x 512, about 93 x 107 px of it the face."""
    return data.astronaut()


@pytest.fixture(scope="session")
def coffee() -> Pixels:
    """A cup of coffee, 600 x 400; no face."""
    return data.coffee()


@pytest.fixture(scope="session")
def anonymizer() -> Anonymizer:
    return Anonymizer()


@pytest.fixture(scope="session")
def face(anonymizer: Anonymizer, astronaut: Pixels) -> Face:
    (found,) = anonymizer.detector.detect(astronaut)
    return found


@pytest.fixture(scope="session")
def crop(astronaut: Pixels, face: Face) -> FaceCrop:
    return crop_face(astronaut, face, 256)


@pytest.fixture(scope="session")
def portrait(astronaut: Pixels) -> Pixels:
    """The astronaut's head and shoulders alone, 220 x 220."""
    return astronaut[10:230, 115:335].copy()


@pytest.fixture
def portrait_file(portrait: Pixels, tmp_path: Path) -> Path:
    path = tmp_path / "portrait.png"
    Image.fromarray(portrait).save(path)
    return path


@pytest.fixture(scope="session")
def cut_portrait(astronaut: Pixels) -> Pixels:
    """The astronaut's face with its left half beyond the picture's border."""
    return astronaut[:, 210:].copy()


@pytest.fixture(scope="session")
def two_faces(astronaut: Pixels, coffee: Pixels) -> Pixels:
    """A whole face at the left; at the right a smaller copy of it."""
    canvas = cv2.resize(coffee, (760, 512))
    canvas[:, :400] = astronaut[:, :400]
    canvas[100:430, 480:] = cv2.resize(astronaut[:, 60:460], (330, 330), interpolation=cv2.INTER_AREA)[:, :280]
    return canvas


@pytest.fixture(scope="session")
def shared_faces() -> Path:
    """Folder of the training faces; tests that ask for it carry the marker `faces`."""
    folder = Path(os.environ.get("FACEANON_FACES", ROOT.parent / "shared" / "faces"))
    if not (folder / "metadata.csv").is_file():
        pytest.skip(f"no training faces in {folder}; name their folder in FACEANON_FACES")
    return folder


@pytest.fixture(scope="session")
def network(shared_faces: Path) -> Path:
    """A face-recognition network, MobileFaceNet."""
    pytest.importorskip("onnxruntime")
    path = shared_faces.parent / "models" / "MobileFaceNet.onnx"
    if not path.is_file():
        pytest.skip(f"{path} is missing")
    return path


@pytest.fixture(scope="session")
def comfyui() -> Path:
    return comfyui_dir()


@pytest.fixture(scope="session")
def bridge(comfyui: Path) -> Any:
    return import_bridge(comfyui)


@pytest.fixture(scope="session")
def demo(bridge: Any) -> dict[str, Any]:
    """The demo model as ComfyUI's objects."""
    with torch.inference_mode():
        model, vae = bridge.load_demo_model()
        return {"model": model, "vae": vae, "encoder": bridge.load_demo_encoder()}
