"""Find the faces of every picture in a batch, and load a parser for their regions."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..faceanon_core.errors import AnonymizationError, NoFaceError, UnknownNameError
from .convert import CATEGORY, FoundFaces, check_found_in, one_by_one, to_pixels
from .folders import model_folders, weights_names, weights_path

_ORDERS = ("largest first", "left to right", "top to bottom")


class ParseFaces:
    """IMAGE -> FACES: for every picture of the batch, its faces with 478 landmarks."""

    TITLE = "Parse Faces"
    CATEGORY = CATEGORY
    FUNCTION = "parse"
    RETURN_TYPES = ("FACES", "IMAGE", "INT")
    RETURN_NAMES = ("faces", "preview", "count")
    DESCRIPTION = "Detects every face with 478 landmarks. The preview draws boxes, numbers, landmarks and regions."
    SEARCH_ALIASES = ("face detection", "landmarks", "face mesh", "mediapipe")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        score = {
            "default": 0.5, "min": 0.05, "max": 0.95, "step": 0.05,
            "tooltip": "Confidence a detection needs. Lower finds more faces and more false ones; higher misses faces.",
        }  # fmt: skip
        return {
            "required": {
                "image": ("IMAGE", {"tooltip": "One picture or a batch, at least 64 px on the shorter side."}),
                "min_score": ("FLOAT", score),
            },
            "optional": {
                # last: saved workflows store widget values by position
                "allow_empty": (
                    "BOOLEAN",
                    {
                        "default": False,
                        "tooltip": "Off: a picture without a face stops the graph. On, for video frames: such a picture "
                        "passes unchanged, also where the detector missed a face in it! Track Faces fills gaps.",
                    },
                ),
            },
        }

    def parse(self, image: Tensor, min_score: float, allow_empty: bool = False) -> tuple[Any, Tensor, int]:
        from ..faceanon_core.faces import FaceDetector

        pictures = to_pixels(image)
        # in video frames Track Faces fills the gaps that a second detector would stop at
        with FaceDetector(min_score, task_folders=model_folders(), cross_check=not allow_empty) as detector:
            scans = [detector.scan(pixels) for pixels in one_by_one(pictures)]
        lost = [one for scan in scans for one in scan.unfitted]
        if lost:
            reasons = " or ".join(sorted({one.reason for one in lost}))
            raise AnonymizationError(
                f"{len(lost)} faces were found that cannot be replaced ({reasons}); crop or cover them first"
            )
        height, width = pictures[0].shape[:2]
        faces = FoundFaces([scan.faces for scan in scans], (width, height))
        empty = [str(i + 1) for i, found in enumerate(faces) if not found]
        if empty and not (allow_empty and any(faces)):
            where = "the picture" if len(faces) == 1 else f"picture {', '.join(empty)} of the batch"
            more = "" if len(empty) == len(faces) else "; for video frames allow_empty lets such pictures pass"
            raise NoFaceError(f"no face was found in {where}; lower min_score, or use a larger or clearer picture{more}")
        return faces, _drawn(pictures, faces), sum(len(found) for found in faces)


class SelectFaces:
    """FACES -> FACES: choose which faces are worked on."""

    TITLE = "Select Faces"
    CATEGORY = CATEGORY
    FUNCTION = "select"
    RETURN_TYPES = ("FACES",)
    DESCRIPTION = "Chooses faces by size, order or number. Faces that are not selected stay as they are in the picture."
    SEARCH_ALIASES = ("largest face", "filter faces")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "faces": ("FACES", {"tooltip": "From Parse Faces."}),
                "order": (list(_ORDERS), {"tooltip": "How faces are numbered, from 1."}),
                "numbers": ("STRING", {"default": "all", "tooltip": '"all", or numbers such as "1,3" in that order.'}),
                "min_size": (
                    "INT",
                    {
                        "default": 0,
                        "min": 0,
                        "max": 8192,
                        "tooltip": "Pixels: smaller faces are dropped. 0 keeps all. Dropped faces stay unchanged!",
                    },
                ),
            }
        }

    def select(self, faces: Any, order: str, numbers: str, min_size: int) -> tuple[Any]:
        keys = {
            "largest first": lambda face: -face.box.area,
            "left to right": lambda face: face.box.left,
            "top to bottom": lambda face: face.box.top,
        }
        selected = []
        for picture, found in enumerate(faces, 1):
            ordered = sorted((f for f in found if max(f.box.width, f.box.height) >= min_size), key=keys[order])
            everyone = not ordered or numbers.strip().lower() == "all"  # of a picture without faces no number can be asked
            wanted = range(len(ordered)) if everyone else _numbers(numbers, len(ordered), picture)
            selected.append([ordered[i] for i in wanted])
        if not any(selected):
            raise NoFaceError("no face is left after the selection; choose other numbers or a smaller min_size")
        return (FoundFaces(selected, faces.size),)


class TrackFaces:
    """FACES -> FACES: which faces of a batch of video frames are one person."""

    TITLE = "Track Faces"
    CATEGORY = CATEGORY
    FUNCTION = "track"
    RETURN_TYPES = ("FACES", "IMAGE", "INT")
    RETURN_NAMES = ("faces", "preview", "people")
    DESCRIPTION = (
        "For video frames as a batch: follows every person through the frames by place and size, so that each keeps one "
        "target and one noise. Only for frames of one shot. The preview shows every person's number."
    )
    SEARCH_ALIASES = ("video", "face tracking", "frames", "person")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        gap = {
            "default": 12, "min": 0, "max": 1000,
            "tooltip": "Frames a person may be missing and still be the same one. 0: a new one after one missed frame.",
        }  # fmt: skip
        fill = {
            "default": True,
            "tooltip": "On: a face missed between two frames is replaced at the place in between. "
            "Off: it stays as it is in those frames!",
        }
        return {
            "required": {
                "image": ("IMAGE", {"tooltip": "The frames the faces were found in, in the order of time."}),
                "faces": ("FACES", {"tooltip": "From Parse Faces or Select Faces."}),
                "max_gap": ("INT", gap),
                "fill_gaps": ("BOOLEAN", fill),
            }
        }

    def track(self, image: Tensor, faces: Any, max_gap: int, fill_gaps: bool) -> tuple[Any, Tensor, int]:
        from ..faceanon_core import tracking

        pictures = to_pixels(image)
        check_found_in(pictures, faces)
        tracked = tracking.track_faces(faces, max_gap)
        people = len({face.person for found in tracked for face in found})
        if fill_gaps:
            tracked = tracking.fill_gaps(tracked)
        return FoundFaces(tracked, faces.size), _drawn(pictures, tracked), people


def _drawn(pictures: list[NDArray[np.uint8]], faces: Any) -> Tensor:
    from ..faceanon_core.report import draw_faces

    drawn = np.stack([draw_faces(pixels, found) for pixels, found in zip(pictures, faces, strict=True)])
    return torch.from_numpy(drawn).float() / 255


def _numbers(text: str, count: int, picture: int) -> list[int]:
    """Places from 0 in a list of `count` faces, each once."""
    try:
        wanted = [int(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise UnknownNameError(f'numbers must be "all" or like "1,3", got {text!r}') from error
    for number in wanted:
        if not 1 <= number <= count:
            raise UnknownNameError(
                f"face {number} was asked for, but in picture {picture} there are {count} after sorting out small ones"
            )
    return [number - 1 for number in dict.fromkeys(wanted)]


class LoadFaceParser:
    """A face parser the user brings, as FACE_PARSER."""

    TITLE = "Load Face Parser"
    CATEGORY = CATEGORY
    FUNCTION = "load"
    RETURN_TYPES = ("FACE_PARSER",)
    RETURN_NAMES = ("parser",)
    DESCRIPTION = (
        "A SegFormer or BiSeNet trained on CelebAMask-HQ, for Region Mask: it also finds glasses, ears, hair, hat and neck."
    )
    SEARCH_ALIASES = ("face parsing", "segmentation", "SegFormer", "BiSeNet", "hair mask", "glasses")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        tip = "SegFormer: model.safetensors in a folder of its own in models/faceanon, with config.json. BiSeNet: its file."
        return {"required": {"file": (weights_names(), {"tooltip": tip})}}

    def load(self, file: str) -> tuple[Any]:
        from . import comfy_bridge

        return (comfy_bridge.load_face_parser(weights_path(file)),)


NODES = (ParseFaces, SelectFaces, TrackFaces, LoadFaceParser)
