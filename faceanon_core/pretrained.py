"""Networks the user brings: weights that are read without running code, and ONNX files. The only use of onnxruntime.

transformers, which builds some of them, is optional: ComfyUI has it, the command line gets it with
`pip install faceanon[transformers]`; onnxruntime likewise, with `pip install onnxruntime`.
"""

from __future__ import annotations

import contextlib
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from .errors import InputError, WeightsError

SUFFIXES = (".safetensors", ".sft", ".pth", ".pt", ".bin")  # the last three are read with weights_only


def open_onnx(path: Path, what: str) -> Any:
    """An onnxruntime session on the CPU.

    Args:
        what: kind of network, for the sentences.
    Raises: InputError if onnxruntime is missing; WeightsError if the file is, or is no such network.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError(f"a {what} in ONNX needs onnxruntime; install it with pip install onnxruntime") from error
    if not path.is_file():
        raise WeightsError(f"{path} is missing; name a {what} in ONNX")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()  # else one for every core, in each of many processes
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no common base but Exception
        raise WeightsError(f"{path} is no network onnxruntime can read") from error


def weights_file(path: Path) -> Path:
    """The file itself, or model.safetensors of a folder in transformers' layout.

    Raises: WeightsError if there is no such file.
    """
    file = path / "model.safetensors" if path.is_dir() else path
    if not file.is_file():
        raise WeightsError(f"{file} is missing; name a weights file, or a folder with model.safetensors")
    return file


def read_state(path: Path) -> dict[str, Tensor]:
    """Named tensors in float32, out of a `state_dict` wrapper if there is one. Nothing in the file is ever run.

    Raises: WeightsError if it is damaged or holds anything but tensors.
    """
    try:
        if path.suffix in (".safetensors", ".sft"):
            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, EOFError, RuntimeError) as error:
        raise WeightsError(f"{path} is damaged or no weights file; safetensors and PyTorch state dicts are read") from error
    except pickle.UnpicklingError as error:
        raise WeightsError(f"{path} holds more than weights, which is not read because it could run code") from error
    state = state.get("state_dict", state) if isinstance(state, dict) else None
    if not isinstance(state, dict) or not state:
        raise WeightsError(f"{path} holds no state dict, but {type(state).__name__}")
    return {name: value.float() for name, value in state.items() if isinstance(value, Tensor)}


def fill_weights(network: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Copy the tensors a network needs out of `state`; others are passed over.

    Args:
        path: where `state` came from, for the message.
    Raises: WeightsError naming a tensor and both shapes if one is missing or of another shape.
    """
    used = {}
    for name, wanted in network.state_dict().items():
        if name.endswith("num_batches_tracked"):
            used[name] = wanted  # not needed, and absent in converted files
        elif name not in state or state[name].shape != wanted.shape:
            found = tuple(state[name].shape) if name in state else "missing"
            raise WeightsError(f"{path} is of another architecture: {name} is {found}, expected {tuple(wanted.shape)}")
        else:
            used[name] = state[name]
    network.load_state_dict(used)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; {} where there is no such file.

    Raises: WeightsError if it is damaged.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise WeightsError(f"{path} is damaged and cannot be read") from error
    return found if isinstance(found, dict) else {}


def build_pretrained(kind: str, config: dict[str, Any], state: dict[str, Tensor], path: Path) -> Any:
    """One of transformers' models with these weights, frozen; key layouts of its older versions are understood.

    Args:
        kind: the class, e.g. "CLIPVisionModel"; its config class is found by name.
        path: where `state` came from, for the message.
    Raises: InputError if transformers is missing; WeightsError naming a tensor and both shapes if `state` is of another
        architecture.
    """
    try:
        import transformers
    except ImportError as error:
        raise InputError(f"{path} needs the package transformers; install it with pip install transformers") from error
    model: type[Any] = getattr(transformers, kind)
    with _quiet(transformers.utils.logging):
        network, report = model.from_pretrained(
            None, config=model.config_class(**config), state_dict=state, output_loading_info=True,
            ignore_mismatched_sizes=True, dtype=torch.float32,
        )  # fmt: skip
    for name, found, wanted in report["mismatched_keys"]:
        raise WeightsError(f"{path} is of another architecture: {name} is {tuple(found)}, expected {tuple(wanted)}")
    if report["missing_keys"]:
        name = min(report["missing_keys"])
        wanted = tuple(network.state_dict()[name].shape)
        raise WeightsError(f"{path} is of another architecture: it has no {name}, expected with shape {wanted}")
    frozen: nn.Module = network.eval().requires_grad_(False)
    return frozen


@contextlib.contextmanager
def _quiet(logging: Any) -> Iterator[None]:
    """Without transformers' progress bar and report: what is wrong is raised instead."""
    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()
