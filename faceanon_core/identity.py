"""Whether two faces are the same person to a face-recognition network that the user brings.

Nothing here decides what similarity is too high: that depends on the network and on the population (the same network needs
0.30 on photographs of real people and 0.60 on one set of generated faces). Measure it on pairs of different people.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from .errors import InputError, WeightsError
from .geometry import FloatArray, eye_centers

# ArcFace's five points in a 112 px crop: right eye, left eye, nose tip, mouth corners (subject's right first)
_ARCFACE = np.array([[38.29, 51.70], [73.53, 51.50], [56.03, 71.74], [41.55, 92.37], [70.73, 92.20]], np.float32)
_MEAN, _SPREAD = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)


class Recogniser:
    """A face-recognition network in ONNX: (1, 3, 112, 112) RGB with ImageNet's mean and spread -> embedding.

    Needs the optional package onnxruntime (`pip install faceanon[identity]`).

    Raises: InputError if onnxruntime is missing; WeightsError if the file is no such network.
    """

    def __init__(self, path: Path) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise InputError("the identity check needs onnxruntime; install it with pip install onnxruntime") from error
        if not path.is_file():
            raise WeightsError(f"{path} is missing; name an ONNX face-recognition network")
        try:
            self._session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors have no common base but Exception
            raise WeightsError(f"{path} is no network onnxruntime can read") from error
        shape = self._session.get_inputs()[0].shape
        if list(shape[1:]) != [3, 112, 112]:
            raise WeightsError(f"{path} takes {shape}, not (1, 3, 112, 112) face crops")
        self._input = self._session.get_inputs()[0].name

    def embed(self, pixels: NDArray[np.uint8], landmarks: FloatArray) -> NDArray[np.float32]:
        """Unit-norm embedding (D,) of one face; `landmarks` (478, 2) in pixels of (H, W, 3) uint8 RGB."""
        right, left = eye_centers(landmarks)
        points = np.stack([right, left, landmarks[1], landmarks[61], landmarks[291]]).astype(np.float32)
        matrix, _ = cv2.estimateAffinePartial2D(points, _ARCFACE, method=cv2.LMEDS)
        face = (cv2.warpAffine(pixels, matrix, (112, 112)).astype(np.float32) / 255 - _MEAN) / _SPREAD
        vector = self._session.run(None, {self._input: face.transpose(2, 0, 1)[None]})[0][0]
        unit: NDArray[np.float32] = vector / np.linalg.norm(vector)
        return unit
