"""The pack's own model folder: models/faceanon, and those that extra_model_paths.yaml names under `faceanon`."""

from __future__ import annotations

import sys
from pathlib import Path

NAME = "faceanon"


def model_folders() -> list[Path]:
    """Folders for optional models, those of extra_model_paths.yaml first. Registers them with ComfyUI; [] outside of it."""
    if sys.modules.get("folder_paths") is None:  # ComfyUI loads it before any pack, so nothing of it is imported here
        return []
    import folder_paths

    folder_paths.add_model_folder_path(NAME, str(Path(folder_paths.models_dir) / NAME))
    paths, _ = folder_paths.folder_names_and_paths[NAME]
    folder_paths.folder_names_and_paths[NAME] = (paths, folder_paths.supported_pt_extensions | {".task"})
    return [Path(path) for path in paths]
