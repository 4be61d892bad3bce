"""The face crops the demo model is trained on: images, landmarks, split and known attributes."""

from __future__ import annotations

import csv
import io
import tarfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..errors import FaceAnonError


@dataclass(frozen=True)
class FaceRecord:
    """One aligned 256 px crop of a generated (not real) face."""

    name: str
    source: str
    licence: str
    sex: str  # "female", "male" or "" where unknown
    ethnicity: str  # folder name of the source set or ""
    caption: str  # text query under which the picture was published, or ""


class FaceSet:
    """The crops of one split, read from `faces256.tar`, `landmarks.npz` and `metadata.csv`.

    Args:
        root: folder that holds the three files.
        split: "train" or "test".
    Raises: FaceAnonError if a file is missing or the split is empty.
    """

    def __init__(self, root: Path, split: str) -> None:
        for needed in ("faces256.tar", "landmarks.npz", "metadata.csv"):
            if not (root / needed).is_file():
                raise FaceAnonError(f"{root / needed} is missing; --faces must name the folder that holds it")
        with (root / "metadata.csv").open(newline="", encoding="utf-8") as handle:
            rows = [row for row in csv.DictReader(handle) if row["split"] == split]
        self.records = [
            FaceRecord(r["name"], r["source"], r["license"], r["sex"], r["ethnicity"], r["caption"]) for r in rows
        ]
        if not self.records:
            raise FaceAnonError(f"no rows of split {split!r} in {root / 'metadata.csv'}")
        archive = np.load(root / "landmarks.npz")
        index = {str(name): i for i, name in enumerate(archive["names"])}
        order = [index[record.name] for record in self.records]
        self.landmarks = archive["landmarks"][order].astype(np.float32)  # (N, 478, 2) crop pixels
        self._images = _read_images(root / "faces256.tar", [record.name for record in self.records])

    def __len__(self) -> int:
        return len(self.records)

    def image(self, i: int) -> NDArray[np.uint8]:
        """Decode crop `i`. Returns: (256, 256, 3) uint8 RGB."""
        return unpack(self._images[i])

    def packed(self, i: int) -> bytes:
        """Crop `i` as its file, for `unpack` in another process."""
        return self._images[i]

    def pixels(self, indices: Sequence[int], side: int = 256) -> Tensor:
        """Decode several crops, shrunk where `side` is less than theirs. Returns: (B, 3, side, side) uint8."""

        def shrunk(i: int) -> NDArray[np.uint8]:
            image = self.image(i)
            return image if len(image) == side else cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)

        with ThreadPoolExecutor() as pool:  # decoders let go of Python's lock
            stack = np.stack(list(pool.map(shrunk, indices)))
        return torch.from_numpy(stack).permute(0, 3, 1, 2)

    def images(self, indices: Sequence[int]) -> Tensor:
        """Decode several crops. Returns: (B, 3, 256, 256) float 0..1."""
        return self.pixels(indices).float() / 255


def unpack(data: bytes) -> NDArray[np.uint8]:
    """Decode a picture file. Returns: (H, W, 3) uint8 RGB."""
    with Image.open(io.BytesIO(data)) as picture:
        return np.array(picture.convert("RGB"))  # a writable copy


def _read_images(tar_path: Path, names: list[str]) -> list[bytes]:
    wanted = set(names)
    found: dict[str, bytes] = {}
    with tarfile.open(tar_path) as archive:
        for member in archive:
            stem = Path(member.name).stem
            if member.isfile() and stem in wanted:
                handle = archive.extractfile(member)
                assert handle is not None
                found[stem] = handle.read()
    missing = wanted - set(found)
    if missing:
        raise FaceAnonError(f"{tar_path} lacks {len(missing)} images named in metadata.csv, e.g. {sorted(missing)[0]}")
    return [found[name] for name in names]


def batch_at(count: int, batch: int, seed: int, step: int) -> list[int]:
    """Shuffled indices of one step's batch; the same (seed, step) always gives the same, so a run resumes exactly."""
    epoch, position = divmod(step, max(1, count // batch))
    order = np.random.default_rng([seed, epoch]).permutation(count)
    return [int(i) for i in order[position * batch : (position + 1) * batch]]
