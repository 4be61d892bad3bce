"""Turn a workflow saved by ComfyUI's editor into the API format that POST /prompt takes.

`python tests/workflow_tools.py http://127.0.0.1:8188 FOLDER` writes the API twins of all workflows of the pack.
"""

from __future__ import annotations

import json
import sys
import urllib.request
from pathlib import Path
from typing import Any

_WIDGET_TYPES = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}
_SWITCHED_OFF = (2, 4)  # muted, bypassed; only nodes at the end of a graph are in our workflows
_EDITOR_ONLY = {"MarkdownNote", "Note", "Reroute"}


def ui_to_api(workflow: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """Convert a UI workflow.

    Args:
        definitions: the server's /object_info, or the same shape built from our node classes.
    Raises: KeyError for a node type without a definition.
    """
    sources = {link[0]: (str(link[1]), link[2]) for link in workflow["links"]}
    prompt = {}
    for node in workflow["nodes"]:
        if node["type"] in _EDITOR_ONLY or node.get("mode") in _SWITCHED_OFF:
            continue
        values = iter(node.get("widgets_values") or [])
        linked = {entry["name"]: entry["link"] for entry in node["inputs"] if entry.get("link") is not None}
        inputs: dict[str, Any] = {}
        for name, kind, options in declared_inputs(definitions[node["type"]]):
            if isinstance(kind, list) or kind in _WIDGET_TYPES:
                inputs[name] = next(values, options.get("default"))  # as the editor, for inputs newer than the file
                if any(options.get(extra) for extra in ("control_after_generate", "image_upload", "video_upload")):
                    next(values, None)  # the editor stores its own extra widget after these
            if name in linked:
                inputs[name] = list(sources[linked[name]])
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return prompt


def declared_inputs(definition: dict[str, Any]) -> list[tuple[str, Any, dict[str, Any]]]:
    """(name, type, options) of every input of an /object_info entry, required ones first."""
    rows: list[tuple[str, Any, dict[str, Any]]] = []
    for part in ("required", "optional"):
        for name, spec in definition["input"].get(part, {}).items():
            rows.append((name, spec[0], spec[1] if len(spec) > 1 else {}))
    return rows


def write_twins(server: str, folder: Path) -> list[Path]:
    """Write `<name>.api.json` for every workflow of the pack, with the definitions of a running server."""
    with urllib.request.urlopen(f"{server.rstrip('/')}/object_info", timeout=60) as answer:
        definitions = json.load(answer)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for source in sorted((Path(__file__).resolve().parent.parent / "workflows").glob("*.json")):
        twin = folder / f"{source.stem}.api.json"
        prompt = ui_to_api(json.loads(source.read_text(encoding="utf-8")), definitions)
        twin.write_text(json.dumps(prompt, indent=1) + "\n", encoding="utf-8")
        written.append(twin)
    return written


if __name__ == "__main__":
    for path in write_twins(sys.argv[1], Path(sys.argv[2])):
        sys.stdout.write(f"{path}\n")
