"""ComfyUI inside the test process: find and import it, and call nodes as its executor does."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pack import NAME, ROOT, load_pack


def comfyui_dir() -> Path:
    """The checkout to test on; skips the test if there is none."""
    places = [os.environ.get("COMFYUI_DIR"), ROOT.parent.parent, ROOT.parent / "ComfyUI"]
    for place in filter(None, places):
        if (Path(place) / "comfy" / "samplers.py").is_file():
            return Path(place).resolve()
    pytest.skip("no ComfyUI found; name its folder in COMFYUI_DIR")


def need_requirements_of_comfyui() -> None:
    """Skip the test where ComfyUI cannot be imported."""
    if importlib.util.find_spec("torchsde") is None or importlib.util.find_spec("einops") is None:
        pytest.skip("this Python lacks ComfyUI's requirements; run the tests with ComfyUI's own Python")


def import_bridge(comfyui: Path) -> Any:
    """The pack's comfy_bridge; from then on ComfyUI's modules can be imported."""
    need_requirements_of_comfyui()
    sys.path.insert(0, str(comfyui))
    from comfy.cli_args import args

    args.cpu = not torch.cuda.is_available()
    load_pack()
    return importlib.import_module(f"{NAME}.nodes.comfy_bridge")


def run_node(name: str, /, **inputs: Any) -> Any:
    """Outputs of one of the pack's nodes; inputs not given have their defaults."""
    node = load_pack().NODE_CLASS_MAPPINGS[f"FaceAnon_{name}"]
    shown = [part for kind, part in node.INPUT_TYPES().items() if kind != "hidden"]
    options = {key: spec[1] for part in shown for key, spec in part.items()}
    values = {key: spec["default"] for key, spec in options.items() if "default" in spec}
    with torch.inference_mode():
        return getattr(node(), node.FUNCTION)(**{**values, **inputs})


def run_stock_node(name: str, /, **inputs: Any) -> Any:
    """Outputs of one of ComfyUI's own nodes."""
    from comfy_extras import nodes_custom_sampler, nodes_model_advanced

    import nodes  # ComfyUI's

    known: dict[str, Any] = {}
    for module in (nodes, nodes_custom_sampler, nodes_model_advanced):
        schemas = [thing for thing in vars(module).values() if hasattr(thing, "GET_SCHEMA")]  # of newer versions
        known |= {node.GET_SCHEMA().node_id: node for node in schemas if node.__module__ == module.__name__}
        known |= getattr(module, "NODE_CLASS_MAPPINGS", {})
    with torch.inference_mode():
        outputs = getattr(known[name](), known[name].FUNCTION)(**inputs)
        return getattr(outputs, "args", outputs)


@contextlib.contextmanager
def progress_hook(hook: Callable[[int, int, Any], None]) -> Iterator[None]:
    """Call `hook` (value, total, preview) where the server shows a node's progress; ends an interruption it asked for."""
    import comfy.model_management
    import comfy.utils

    comfy.utils.set_progress_bar_global_hook(lambda value, total, preview=None, **_: hook(value, total, preview))
    try:
        yield
    finally:
        comfy.utils.set_progress_bar_global_hook(None)
        comfy.model_management.interrupt_current_processing(False)
