"""The pack's own model folder: models/faceanon, and those that extra_model_paths.yaml names under `faceanon`.

Weights are named "faceanon/..." or "clip_vision/...", by the folder they lie in.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from ..faceanon_core.errors import InputError, WeightsError
from ..faceanon_core.weights import GALLERY

NAME = "faceanon"
TORCH_WEIGHTS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")


def model_folders() -> list[Path]:
    """Folders for optional models, those of extra_model_paths.yaml first. Registers them with ComfyUI; [] outside of it."""
    if sys.modules.get("folder_paths") is None:  # ComfyUI loads it before any pack, so nothing of it is imported here
        return []
    import folder_paths

    folder_paths.add_model_folder_path(NAME, str(Path(folder_paths.models_dir) / NAME))
    paths, _ = folder_paths.folder_names_and_paths[NAME]
    folder_paths.folder_names_and_paths[NAME] = (paths, folder_paths.supported_pt_extensions | {".task", ".onnx"})
    return [Path(path) for path in paths]


def weights_names(folders: Sequence[str] = (NAME,), suffixes: tuple[str, ...] = TORCH_WEIGHTS) -> list[str]:
    """Every file in ComfyUI's model folders of these names that ends in one of the suffixes; [] outside of ComfyUI."""
    if not model_folders():
        return []
    import folder_paths

    files = [f"{folder}/{name}" for folder in folders for name in folder_paths.get_filename_list(folder)]
    return [name.replace("\\", "/") for name in files if name.endswith(suffixes)]


def weights_path(name: str) -> Path:
    """The file that `weights_names` calls `name`.

    Raises: WeightsError if it is gone.
    """
    import folder_paths

    folder, _, rest = name.partition("/")
    found = folder_paths.get_full_path(folder, rest) if folder in folder_paths.folder_names_and_paths else None
    if found is None:
        raise WeightsError(f"there is no weights file {name!r} any more; press R to refresh the lists and choose another")
    return Path(found)


def approximate_vae(name: str) -> Path | None:
    """The file of that name, whatever its suffix, in ComfyUI's folder of small decoders; None if there is none."""
    import folder_paths

    found = (file for file in folder_paths.get_filename_list("vae_approx") if file.startswith(f"{name}."))
    return next((Path(folder_paths.get_full_path_or_raise("vae_approx", file)) for file in found), None)


def file_stamps(*files: Path) -> list[tuple[int, int] | None]:
    """When each file was last written and how long it is, None where there is none: for IS_CHANGED."""
    return [(file.stat().st_mtime_ns, file.stat().st_size) if file.is_file() else None for file in files]


def output_place(prefix: str) -> tuple[Path, str, str]:
    """The folder in ComfyUI's output that a prefix names, what is left of the prefix, and the subfolder for the preview."""
    import folder_paths

    folder, stem, _, subfolder, _ = folder_paths.get_save_image_path(prefix, folder_paths.get_output_directory())
    return Path(folder), stem, subfolder


def own_gallery() -> Path:
    """Folder of the user's own target faces.

    Raises: InputError outside of ComfyUI, which knows where models lie.
    """
    if not (folders := model_folders()):
        raise InputError("targets can only be saved inside ComfyUI, into its models folder")
    return folders[-1] / "gallery"


def target_galleries() -> tuple[Path, ...]:
    """Folders of target faces: the user's own, then the shipped one."""
    return (*(folder / "gallery" for folder in model_folders()), GALLERY)
