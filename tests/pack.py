"""Import the pack the way ComfyUI does: by path, under a made-up module name."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent
NAME = "faceanon_pack_under_test"


def load_pack() -> ModuleType:
    """The pack's package; its parts are `sys.modules[f"{NAME}.nodes"]` and so on."""
    if NAME in sys.modules:
        return sys.modules[NAME]
    spec = importlib.util.spec_from_file_location(NAME, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    assert spec is not None and spec.loader is not None
    module = sys.modules[NAME] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def definitions() -> dict[str, dict[str, object]]:
    """Our nodes in the shape of the server's /object_info, as far as the tests need it."""
    return {
        node_id: {"input": node.INPUT_TYPES(), "output": list(node.RETURN_TYPES)}
        for node_id, node in load_pack().NODE_CLASS_MAPPINGS.items()
    }
