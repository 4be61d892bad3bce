"""The English locale file, made from the node classes: `python tests/locale_tools.py` writes it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from pack import ROOT, load_pack

LOCALES = ROOT / "locales"


def english() -> dict[str, dict[str, Any]]:
    """What nodeDefs.json holds of every node.

    Outputs named like their type are left out: ComfyUI takes those from `dataTypes` in main.json.
    """
    texts = {}
    for node_id, node in load_pack().NODE_CLASS_MAPPINGS.items():
        shown = [part for kind, part in node.INPUT_TYPES().items() if kind != "hidden"]
        inputs = {name: spec[1] for part in shown for name, spec in part.items()}
        outputs = enumerate(zip(getattr(node, "RETURN_NAMES", node.RETURN_TYPES), node.RETURN_TYPES, strict=True))
        texts[node_id] = {
            "display_name": node.TITLE,
            "description": node.DESCRIPTION,
            "inputs": {name: {"name": name, "tooltip": options["tooltip"]} for name, options in inputs.items()},
            "outputs": {str(index): {"name": name} for index, (name, kind) in outputs if name != kind},
        }
    return texts


def own_sockets() -> set[str]:
    """Types of outputs that ComfyUI does not know and so has no translation of."""
    stock = {"MODEL", "VAE", "CONDITIONING", "LATENT", "IMAGE", "MASK", "INT", "SAMPLER", "STRING", "BOOLEAN"}
    return {kind for node in load_pack().NODE_CLASS_MAPPINGS.values() for kind in node.RETURN_TYPES} - stock


if __name__ == "__main__":
    path = LOCALES / "en" / "nodeDefs.json"
    path.write_text(json.dumps(english(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
