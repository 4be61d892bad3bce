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
    folder_paths.folder_names_and_paths[NAME] = (paths, folder_paths.supported_pt_extensions | {".task", ".onnx"})
    return [Path(path) for path in paths]


def list_models(suffix: str) -> list[str]:
    """Names of the optional models with this suffix that ComfyUI finds; [] outside of it."""
    if not model_folders():
        return []
    import folder_paths

    return [name for name in folder_paths.get_filename_list(NAME) if name.endswith(suffix)]


def find_model(name: str) -> Path:
    """The path of an optional model by its name in ComfyUI's list."""
    import folder_paths

    return Path(folder_paths.get_full_path_or_raise(NAME, name))


def output_place(prefix: str) -> tuple[Path, str, str]:
    """The folder in ComfyUI's output that a prefix names, what is left of the prefix, and the subfolder for the preview."""
    import folder_paths

    folder, stem, _, subfolder, _ = folder_paths.get_save_image_path(prefix, folder_paths.get_output_directory())
    return Path(folder), stem, subfolder
