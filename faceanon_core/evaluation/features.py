"""A feature network of the user's, for figures that can be compared with other people's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..errors import WeightsError
from ..pretrained import open_onnx
from .observe import file_hash


class OnnxFeatures:
    """A network in ONNX: (1, 3, S, S) RGB float 0..1 -> (1, D, ...), averaged over what follows D.

    Any normalisation beyond 0..1 must be part of the network. `name` is the file's name.

    Raises: InputError if onnxruntime is missing; WeightsError if the file is no such network.
    """

    def __init__(self, path: Path) -> None:
        self._session = open_onnx(path, "feature network")
        self._input = self._session.get_inputs()[0].name
        shape = list(self._session.get_inputs()[0].shape)
        if len(shape) != 4 or shape[1] != 3 or not isinstance(shape[2], int) or shape[2] != shape[3]:
            raise WeightsError(f"{path} takes {shape}, not (1, 3, S, S) pictures with S stated")
        self._side = shape[2]
        self.name, self.key = path.name, file_hash(path)

    def features(self, crop: Tensor) -> NDArray[np.float32]:
        """(D,) for one crop (1, 3, S, S) float 0..1, any size."""
        image = F.interpolate(crop, (self._side, self._side), mode="bilinear", antialias=True)
        output = self._session.run(None, {self._input: image.numpy()})[0][0]
        vector: NDArray[np.float32] = output.reshape(len(output), -1).mean(1).astype(np.float32)
        return vector
