"""The model folder, in ComfyUI's own list of folders."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LOAD = """
import json, sys
root, comfyui, config = sys.argv[1:]
sys.argv = ["main.py"]  # ComfyUI reads the command line
sys.path[:0] = [comfyui, root + "/tests"]
import folder_paths
from utils.extra_config import load_extra_path_config
load_extra_path_config(config)
from pack import load_pack
load_pack()
print(json.dumps([folder_paths.get_folder_paths("faceanon"), folder_paths.get_filename_list("faceanon")]))
"""


@pytest.mark.comfyui
def test_comfyui_lists_our_folder_and_those_of_extra_model_paths_first(tmp_path: Path) -> None:
    comfyui = os.environ.get("COMFYUI_DIR")
    if comfyui is None:
        pytest.skip("needs ComfyUI; name its folder in COMFYUI_DIR")
    (tmp_path / "shared").mkdir()
    for name in ("face_landmarker.task", "encoder.safetensors", "readme.txt"):
        (tmp_path / "shared" / name).touch()
    config = tmp_path / "extra_model_paths.yaml"
    config.write_text(f"ours:\n  base_path: {tmp_path}\n  faceanon: shared\n")
    python = os.environ.get("COMFYUI_PYTHON", sys.executable)
    done = subprocess.run([python, "-c", LOAD, str(ROOT), comfyui, str(config)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    folders, files = json.loads(done.stdout.splitlines()[-1])
    assert folders == [str(tmp_path / "shared"), str(Path(comfyui).resolve() / "models" / "faceanon")]
    assert sorted(files) == ["encoder.safetensors", "face_landmarker.task"]
