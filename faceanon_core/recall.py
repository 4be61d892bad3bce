"""A detector of another kind than mediapipe's, to notice faces that mediapipe misses.

OpenCV's YuNet where the user has its file, else the frontal-face cascade that comes with OpenCV. The cascade knows upright
faces only; on 302 generated test faces it found 91%, and nothing on 18 faceless pictures of scikit-image.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from .errors import WeightsError
from .geometry import Box, is_same_face
from .optional import OPTIONAL_MODELS, file_sha256

_YUNET = OPTIONAL_MODELS["yunet"]
_YUNET_SCORE = 0.9  # OpenCV's own choice for this network
_YUNET_SIDES = (640, 1600)  # longer side of the pictures it looks at; it knows faces of 10 to 300 px
_CASCADE_SIDE, _CASCADE_FACE_PX = 1024, 30
_CASCADE_NEIGHBOURS = 11  # hits that must agree; patterns in faceless pictures reached 10, most faces 60 to 100


class SecondDetector:
    """Boxes of the faces in a picture, and which network or cascade found them (`name`).

    Args:
        folders: where YuNet's file is looked for.
    Raises: WeightsError if there is such a file but OpenCV cannot read it.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        path = next((folder / _YUNET.file for folder in folders if (folder / _YUNET.file).is_file()), None)
        self.name = "OpenCV's YuNet" if path else "OpenCV's cascade"
        self._path, self._yunet = path, _open_yunet(path) if path else None
        self._cascade = cv2.CascadeClassifier(str(Path(cv2.__file__).parent / "data" / "haarcascade_frontalface_alt2.xml"))

    @property
    def key(self) -> str:
        """Another text where other faces may be found."""
        return file_sha256(self._path) if self._path else f"{self.name} {cv2.__version__}"

    def find(self, image: NDArray[np.uint8]) -> list[Box]:
        """The faces of a picture, (H, W, 3) uint8 RGB, in its pixels."""
        sides = _YUNET_SIDES if self._yunet is not None else (_CASCADE_SIDE,)
        found: list[Box] = []
        for side in sides:
            scale = min(1.0, side / max(image.shape[:2]))
            size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
            view = cv2.resize(image, size, interpolation=cv2.INTER_AREA) if scale < 1 else image
            boxes = [Box(x / scale, y / scale, (x + w) / scale, (y + h) / scale) for x, y, w, h in self._boxes(view)]
            found += [box for box in boxes if not any(is_same_face(box, other) for other in found)]  # seen at both sides
            if scale == 1:  # a larger side gives the same picture
                break
        return found

    def _boxes(self, view: NDArray[np.uint8]) -> list[tuple[float, ...]]:
        if self._yunet is None:
            gray = cv2.cvtColor(view, cv2.COLOR_RGB2GRAY)
            smallest = (_CASCADE_FACE_PX, _CASCADE_FACE_PX)
            rows = self._cascade.detectMultiScale(gray, 1.1, _CASCADE_NEIGHBOURS, minSize=smallest)
        else:
            self._yunet.setInputSize((view.shape[1], view.shape[0]))
            _, rows = self._yunet.detect(cv2.cvtColor(view, cv2.COLOR_RGB2BGR))
        return [tuple(map(float, row[:4])) for row in (() if rows is None else rows)]


def _open_yunet(path: Path) -> cv2.FaceDetectorYN:
    try:
        return cv2.FaceDetectorYN.create(str(path), "", (320, 320), _YUNET_SCORE)
    except cv2.error as error:
        raise WeightsError(
            f"{path} is no face detector OpenCV can read; run faceanon download yunet, or remove it"
        ) from error
