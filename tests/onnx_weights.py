"""The weights inside an ONNX file, read by hand: the package onnx needs another protobuf than mediapipe."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

_GRAPH, _INITIALIZER = 7, 5  # field numbers of onnx.proto
_DIMS, _RAW, _EXTERNAL = 1, 9, 13


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 128:
            return value, at


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        if key & 7 == 0:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        if key & 7 == 2:
            size, at = _varint(data, at)
        else:
            size = {1: 8, 5: 4}[key & 7]
        yield key >> 3, data[at : at + size]
        at += size


def _dims(value: Any) -> list[int]:
    """One number, or several packed into bytes."""
    if isinstance(value, int):
        return [value]
    found, at = [], 0
    while at < len(value):
        number, at = _varint(value, at)
        found.append(number)
    return found


def read_onnx_weights(path: Path) -> list[Tensor]:
    """The float32 initializers in the file's order."""
    (graph,) = (value for number, value in _fields(path.read_bytes()) if number == _GRAPH)
    weights = []
    for tensor in (value for number, value in _fields(graph) if number == _INITIALIZER):
        parts = list(_fields(tensor))
        shape = [size for number, value in parts if number == _DIMS for size in _dims(value)]
        entries = [dict(_fields(value)) for number, value in parts if number == _EXTERNAL]
        where = {entry[1].decode(): entry[2].decode() for entry in entries}
        raw = b"".join(value for number, value in parts if number == _RAW)
        if where:
            start = int(where.get("offset", 0))
            raw = (path.parent / where["location"]).read_bytes()[start : start + int(where["length"])]
        weights.append(torch.from_numpy(np.frombuffer(raw, np.float32).copy()).reshape(shape))
    return weights
