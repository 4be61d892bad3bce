"""dlib's face-recognition ResNet: the one recogniser that needs no file of the user's.

The package face-recognition-models carries the weights (public domain).
"""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import InputError
from .geometry import Box, FloatArray
from .identity import FaceRecogniser, Recogniser

DLIB = "dlib"  # in place of a network's file
LIMIT = 0.90  # cosine; dlib's own bound, a distance of 0.6, is 0.93. How it was chosen: docs/PRIVACY.md
_WEIGHTS = "dlib_face_recognition_resnet_model_v1.dat"
_FIVE = (263, 362, 33, 133, 2)  # dlib's five points: outer and inner corners of left and right eye, base of the nose


class DlibRecogniser:
    """A `FaceRecogniser`. dlib compares by distance; the cosine of unit vectors orders pairs nearly the same way.

    Args:
        limit: the highest similarity to the source that may pass.
    Raises: InputError if a package is missing.
    """

    name = DLIB

    def __init__(self, limit: float = LIMIT) -> None:
        path = _weights_path()
        try:
            import dlib
        except ImportError as error:
            raise InputError(_help("dlib-bin")) from error
        self._dlib: Any = dlib
        self._network = dlib.face_recognition_model_v1(str(path))
        self._limit = limit
        self.sha256 = hashlib.sha256(path.read_bytes()).hexdigest()

    def __reduce__(self) -> tuple[type[DlibRecogniser], tuple[float]]:
        """Another process reads the file anew."""
        return DlibRecogniser, (self._limit,)

    @property
    def key(self) -> str:
        """See `FaceRecogniser`."""
        return self.sha256

    @property
    def thresholds(self) -> dict[float, float]:
        """Empty: the limit is no rate of false accepts, which depends on the population."""
        return {}

    def embed(self, pixels: NDArray[np.uint8], landmarks: FloatArray) -> NDArray[np.float32]:
        """Unit-norm (128,) of the face with (478, 2) landmarks in (H, W, 3) uint8 RGB."""
        corners = Box.around(landmarks)
        box = self._dlib.rectangle(*(round(edge) for edge in (corners.left, corners.top, corners.right, corners.bottom)))
        points = [self._dlib.point(round(float(x)), round(float(y))) for x, y in landmarks[list(_FIVE)]]
        shape = self._dlib.full_object_detection(box, self._dlib.points(points))
        vector = np.asarray(self._network.compute_face_descriptor(np.ascontiguousarray(pixels), shape), np.float32)
        unit: NDArray[np.float32] = vector / np.linalg.norm(vector)
        return unit

    def limit(self, max_similarity: float | None = None) -> float:
        """The highest similarity to the source that may pass: the one asked for, else its own."""
        return self._limit if max_similarity is None else max_similarity

    def set_limit(self, max_similarity: float) -> None:
        """Let up to this similarity pass, in place of its own."""
        self._limit = max_similarity


def open_recogniser(network: Path | str) -> FaceRecogniser:
    """The network in an ONNX file, or dlib's where `DLIB` is named.

    Raises: InputError and WeightsError of either.
    """
    return DlibRecogniser() if str(network) == DLIB else Recogniser(Path(network))


def _weights_path() -> Path:
    """In the package, which is not imported: it needs a setuptools of its own time."""
    spec = find_spec("face_recognition_models")
    if spec is None or not spec.submodule_search_locations:
        raise InputError(_help("face-recognition-models"))
    return Path(spec.submodule_search_locations[0]) / "models" / _WEIGHTS


def _help(package: str) -> str:
    return f"the recogniser dlib needs {package}, which is not installed: pip install {package}"
