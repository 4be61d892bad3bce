"""Save pictures from which nothing but their pixels can be learned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from ..faceanon_core.errors import InputError
from .convert import CATEGORY, to_pixels
from .folders import output_place

_COUNTER, _RANDOM, _HASHED = "counter", "random", "keyed hash"


class PrivateSave:
    """IMAGE -> files without metadata, workflow or telling names; the only copies that are made."""

    TITLE = "Private Save"
    CATEGORY = CATEGORY
    FUNCTION = "save"
    RETURN_TYPES = ()
    OUTPUT_NODE = True
    DESCRIPTION = (
        "Saves without workflow, prompt, EXIF, place, thumbnail or colour profile, which Save Image would embed. "
        "Names can be random or keyed hashes. Nothing is overwritten, and the preview shows the saved file itself."
    )
    SEARCH_ALIASES = ("SaveImage", "save without metadata", "strip EXIF", "privacy")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        key = "keyed hash only: path of a file with a key of at least 16 bytes. Its holder can tell whose picture is whose."
        return {
            "required": {
                "images": ("IMAGE", {"tooltip": "The finished pictures, for example from Identity Check."}),
                "prefix": (
                    "STRING",
                    {"default": "faceanon", "tooltip": "How names begin; may name a subfolder, as in set/a."},
                ),
                "format": (
                    ["png", "jpeg", "webp"],
                    {"default": "png", "tooltip": "png keeps every pixel; jpeg and webp are smaller, at quality 95."},
                ),
                "names": (
                    [_COUNTER, _RANDOM, _HASHED],
                    {
                        "default": _COUNTER,
                        "tooltip": "counter: numbers. random: nothing leads back to the source. keyed hash: of source_name, "
                        "which the holder of the key alone can repeat.",
                    },
                ),
                "key_file": ("STRING", {"default": "", "tooltip": key}),
                "source_name": (
                    "STRING",
                    {"default": "", "tooltip": "keyed hash only: what is hashed, for example the source's file name."},
                ),
                "embed_workflow": (
                    "BOOLEAN",
                    {"default": False, "tooltip": "On: workflow and prompt go into the png, with the source's file name!"},
                ),
            },
            "hidden": {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"},
        }

    def save(
        self, images: Tensor, prefix: str, format: str, names: str, key_file: str, source_name: str, embed_workflow: bool,
        prompt: Any = None, extra_pnginfo: Any = None,
    ) -> dict[str, Any]:  # fmt: skip
        from ..faceanon_core.image import Picture, save_picture

        if embed_workflow and format != "png":
            raise InputError(f"a workflow can be embedded in png only, not in {format}; change the format or embed_workflow")
        texts = {"prompt": prompt, **(extra_pnginfo or {})} if embed_workflow else {}
        folder, stem, subfolder = output_place(prefix)
        saved = []
        for index, pixels in enumerate(to_pixels(images, "images")):
            words = _words(names, key_file, source_name, index, len(images))
            name = _next_name(folder, stem, words, "." + format.replace("jpeg", "jpg"))
            save_picture(Picture(pixels), folder / name, texts={key: json.dumps(text) for key, text in texts.items()})
            saved.append({"filename": name, "subfolder": subfolder, "type": "output"})
        return {"ui": {"images": saved}}


def _words(names: str, key_file: str, source_name: str, index: int, count: int) -> str | None:
    """What stands after the prefix; None: the next number.

    Raises: InputError if the key or what to hash is missing.
    """
    from ..faceanon_core.folder import keyed_hash, random_name, read_key

    if names == _COUNTER:
        return None
    if names == _RANDOM:
        return random_name()
    if not source_name:
        raise InputError("a keyed hash needs source_name, which it is the hash of")
    if not key_file:
        raise InputError("a keyed hash needs key_file, the path of a file that holds the key")
    return keyed_hash(read_key(Path(key_file)), source_name if count == 1 else f"{source_name}#{index + 1}")


def _next_name(folder: Path, stem: str, words: str | None, suffix: str) -> str:
    if words is not None:
        return f"{stem}_{words}{suffix}"
    number = 1
    while (folder / f"{stem}_{number:05}{suffix}").exists():
        number += 1
    return f"{stem}_{number:05}{suffix}"


NODES = (PrivateSave,)
