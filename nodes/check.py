"""Face-recognition networks in the graph: load them, check results with them, and make faces again until they pass."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..faceanon_core.dlib_recogniser import DLIB, open_recogniser
from ..faceanon_core.errors import AnonymizationError, NoFaceError
from ..faceanon_core.proportions import CHECKED
from ..faceanon_core.sketch import DRAWN
from .convert import (
    CATEGORY,
    SEEDS,
    FaceCrops,
    check_found_in,
    check_pair,
    from_image,
    from_mask,
    match_batch,
    one_by_one,
    to_pixels,
)
from .crop import check_cut_from, seams_of, solid_part, stitch_all
from .folders import file_stamps, model_folders, weights_names, weights_path
from .sample import GuidedSampler, InpaintFaces, inpaint_faces

_CARD = -1.0  # as a bound nothing could pass it
_POLICIES = ["stop", "redact"]
_RECOGNISER = ("FACE_RECOGNISER", {"tooltip": "From Load Recogniser; every network in it must pass."})


class LoadRecogniser:
    """dlib's face-recognition network, or one of the user's with its card: one FACE_RECOGNISER socket."""

    TITLE = "Load Recogniser"
    CATEGORY = CATEGORY
    FUNCTION = "load"
    RETURN_TYPES = ("FACE_RECOGNISER",)
    RETURN_NAMES = ("recogniser",)
    DESCRIPTION = (
        "A face-recognition network that decides whether a result still looks like its source: dlib's, or one of "
        "yours (ONNX, 112 px crops) with its card beside it, made by faceanon calibrate."
    )
    SEARCH_ALIASES = ("ArcFace", "SFace", "MobileFaceNet", "insightface", "face recognition")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        bound = {
            "default": _CARD, "min": -1.0, "max": 1.0, "step": 0.01,
            "tooltip": "Highest similarity to the source that may pass. -1: the card's, which 1 of 100 pairs of different "
            "people exceed. 1 lets everything pass!",
        }  # fmt: skip
        return {
            "required": {
                "network": (
                    [DLIB, *weights_names(suffixes=(".onnx",))],
                    {"tooltip": "dlib, or a file in models/faceanon with its card."},
                ),
                "max_similarity": ("FLOAT", bound),
            },
            "optional": {
                "also": ("FACE_RECOGNISER", {"tooltip": "From another Load Recogniser: a result then has to pass both."}),
            },
        }

    @classmethod
    def IS_CHANGED(cls, network: str | None = None, **_: Any) -> Any:
        """A new network or card under the same name is loaded without a restart. None: the name is linked."""
        from ..faceanon_core.identity import card_path

        if network is None:
            return float("nan")  # equal to nothing: load it each time
        return [] if network == DLIB else file_stamps(weights_path(network), card_path(weights_path(network)))

    def load(self, network: str, max_similarity: float, also: Any = ()) -> tuple[Any]:
        recogniser = open_recogniser(DLIB if network == DLIB else weights_path(network))
        if max_similarity != _CARD:
            recogniser.set_limit(max_similarity)
        recogniser.limit()  # so that a missing card stops the graph here
        return ([*also, recogniser],)


class IdentityCheck:
    """IMAGE + IMAGE -> IMAGE: lets a result through only if every face of its source is gone."""

    TITLE = "Identity Check"
    CATEGORY = CATEGORY
    FUNCTION = "check"
    RETURN_TYPES = ("IMAGE", "STRING", "BOOLEAN", "FACE_CHECKS")
    RETURN_NAMES = ("image", "report", "passed", "checks")
    DESCRIPTION = (
        "Finds the faces of the source anew and looks at each in the result: is it a near copy, does a recogniser take it "
        "for the same person, is it a face at all? One that fails stops the graph or is covered; nothing passes unchecked."
    )
    SEARCH_ALIASES = ("verify", "face recognition", "similarity", "re-identification", "privacy")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                # first, since a bypassed node hands on the input beside its output: never the source
                "result": ("IMAGE", {"tooltip": "The same pictures after Stitch Faces; same size and batch as source."}),
                "source": ("IMAGE", {"tooltip": "The pictures as they were, for example from Load Image."}),
                "recogniser": _RECOGNISER,
                "on_failure": (
                    _POLICIES,
                    {
                        "default": "stop",
                        "tooltip": "stop: the graph ends, nothing is saved. redact: solid grey covers the face.",
                    },
                ),
            },
            "optional": {
                "faces": (
                    "FACES",
                    {"tooltip": "Check only these, e.g. from Select Faces. Empty: all of the source, looked for anew."},
                ),
            },
        }

    def check(
        self, result: Tensor, source: Tensor, recogniser: Any, on_failure: str, faces: Any = None
    ) -> tuple[Tensor, str, bool, list[Any]]:
        from ..faceanon_core.check import check_picture
        from ..faceanon_core.faces import FaceDetector, Scan
        from ..faceanon_core.redact import redact_face
        from ..faceanon_core.report import CheckedFace

        before, after = to_pixels(source, "source"), to_pixels(result, "result")
        check_pair(before, after, "source", "result")
        if faces is not None:
            check_found_in(before, faces)
        lines, failures, covered, checks = [], [], list(after), []
        with FaceDetector(task_folders=model_folders()) as detector:
            for number, pixels in enumerate(one_by_one(before)):
                scan = detector.scan(pixels)
                if faces is None and not (scan.faces or scan.unfitted):
                    raise NoFaceError(
                        f"no face was found in picture {number + 1} of the source, so nothing could be checked"
                    )
                chosen = scan if faces is None else Scan(faces[number], [])
                for face in check_picture(pixels, after[number], chosen, recogniser, detector, scan):
                    lines.append(f"picture {number + 1}, face {face}")
                    checks.append(CheckedFace(number, face.face.box, face.verdicts, face.problem))
                    if not face.passed:
                        failures.append(lines[-1])
                        covered[number] = redact_face(covered[number], face.face)
        if failures and on_failure == "stop":
            raise AnonymizationError(f"the identity check failed for {len(failures)} faces: {'; '.join(failures)}")
        return _put_back(result, after, covered), "\n".join(lines), not failures, checks


class RetrySampler:
    """Inpaint, sample, stitch and check, again and again until every recogniser takes every face for another person."""

    TITLE = "Retry Sampler (until anonymous)"
    CATEGORY = CATEGORY
    FUNCTION = "sample"
    RETURN_TYPES = ("IMAGE", "STRING", "FACE_CHECKS")
    RETURN_NAMES = ("image", "report", "checks")
    DESCRIPTION = (
        "Takes the places of Inpaint Faces, Attribute-Guided Sampler, VAE Decode and Stitch Faces, and checks every face. "
        "One that is too similar to its source, or no face, is made again: with another seed, and pushed harder if similar."
    )
    SEARCH_ALIASES = ("KSampler", "anonymize", "loop", "retry", "identity check")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        inpaint, sampler = InpaintFaces.INPUT_TYPES(), GuidedSampler.INPUT_TYPES()["required"]
        hide = inpaint["required"]
        return {
            "required": {
                "image": ("IMAGE", {"tooltip": "The pictures the crops were cut from."}),
                "model": sampler["model"],
                "vae": sampler["vae"],
                "positive": hide["positive"],
                "negative": hide["negative"],
                "crops": hide["crops"],
                "mask": hide["mask"],
                "seam": ("MASK", {"tooltip": "From Region Mask: where the result replaces the picture."}),
                "guidance": sampler["guidance"],
                "recogniser": _RECOGNISER,
                "sketch": hide["sketch"],
                "proportions": (hide["proportions"][0], {**hide["proportions"][1], "default": CHECKED}),
                **{name: sampler[name] for name in ("seed", "steps", "cfg", "scheduler", "denoise")},
                "tries": (
                    "INT",
                    {"default": 4, "min": 1, "max": 100, "tooltip": "How often a face is made before it counts as failed."},
                ),
                "on_failure": (
                    _POLICIES,
                    {
                        "default": "stop",
                        "tooltip": "stop: the graph ends, nothing is saved. redact: solid grey covers the face.",
                    },
                ),
            },
            "optional": inpaint["optional"],
        }

    def sample(
        self, image: Tensor, model: Any, vae: Any, positive: Any, negative: Any, crops: Any, mask: Tensor, seam: Tensor,
        guidance: Any, recogniser: Any, sketch: bool, proportions: float, seed: int, steps: int, cfg: float, scheduler: str,
        denoise: float, tries: int, on_failure: str, drawn: float = DRAWN,
    ) -> tuple[Tensor, str, list[Any]]:  # fmt: skip
        from ..faceanon_core.faces import FaceDetector
        from ..faceanon_core.judge import judge_face
        from ..faceanon_core.retry import TRY_SEED, Push, push_harder, until_anonymous
        from ..faceanon_core.tracking import person_rows
        from . import comfy_bridge

        guidance = comfy_bridge.with_decoder(guidance, vae, model.model)
        check_cut_from(image, crops)
        seams = seams_of(crops, seam)
        sigmas = comfy_bridge.schedule(model, scheduler, steps, denoise)
        callbacks = comfy_bridge.run_callbacks(model, len(sigmas) - 1, tries)
        masks = match_batch(from_mask(mask), len(crops), "mask")[:, 0]

        def make(attempt: int, pushes: int, faces: list[int]) -> Tensor:
            push = push_harder(Push(guidance.settings.strength, proportions, drawn), pushes)
            number = (seed + attempt * TRY_SEED) % SEEDS
            told, made = comfy_bridge.of_faces(model, (positive, negative), faces, len(crops))
            sources = FaceCrops([crops[face] for face in made], crops.pictures)
            conditioning = inpaint_faces(*told, vae, sources, masks[made], sketch, push.proportions, number, push.drawn)
            settings = replace(guidance.settings, strength=push.strength)
            sampler = comfy_bridge.GuidedSampler(replace(guidance.of(made, len(crops)), settings=settings), vae)
            sampled = comfy_bridge.sample(model, sampler, sigmas, *conditioning, number, cfg, next(callbacks))
            images = comfy_bridge.vae_decode(vae, sampled["samples"]).float().cpu().clamp(0, 1)
            return images[[made.index(face) for face in faces]]

        def judge(results: Tensor) -> list[Any]:
            pictures = to_pixels(stitch_all(image, crops, results, seams))
            return [
                judge_face(crop, pictures[index], recogniser, detector, replaced=solid_part(weight))
                for (index, crop), weight in zip(crops, seams.split(1), strict=True)
            ]

        with FaceDetector(task_folders=model_folders()) as detector:
            done = until_anonymous(make, judge, person_rows([crop for _, crop in crops]), tries)
        stitched = stitch_all(image, crops, done.results, seams)
        covered = _cover_failed(stitched, crops, done, on_failure)
        return covered, _retry_report(crops, done), _checked_faces(crops, done)


def _cover_failed(stitched: Tensor, crops: Any, done: Any, on_failure: str) -> Tensor:
    """Raises: AnonymizationError for the policy stop."""
    from ..faceanon_core.redact import redact_crop

    if not done.failed:
        return stitched
    if on_failure == "stop":
        raise AnonymizationError(f"{len(done.failed)} faces failed: {done.reason}; nothing is passed on")
    before = to_pixels(stitched)
    covered = list(before)
    for row in done.failed:
        index, crop = crops[row]
        covered[index] = redact_crop(covered[index], crop)
    return _put_back(stitched, before, covered)


def _retry_report(crops: Any, done: Any) -> str:
    from ..faceanon_core.judge import NO_FACE

    lines = []
    for row, (index, _) in enumerate(crops):
        judgement = done.judgements[row]
        said = ", ".join(f"{v.recogniser} {v.similarity:.2f} (at most {v.limit:.2f})" for v in judgement.verdicts)
        said += "" if judgement.is_face else f"; {NO_FACE}"
        outcome = "FAILED, covered" if row in done.failed else "passed"
        lines.append(f"picture {index + 1}, face {row + 1}: {outcome} after try {done.tries[row]}; {said}")
    return "\n".join(lines)


def _checked_faces(crops: Any, done: Any) -> list[Any]:
    from ..faceanon_core.geometry import Box
    from ..faceanon_core.report import CheckedFace

    return [
        CheckedFace(index, Box.around(crop.frame.to_image(crop.landmarks)), judgement.verdicts, judgement.problem)
        for (index, crop), judgement in zip(crops, done.judgements, strict=True)
    ]


def _put_back(image: Tensor, before: list[NDArray[np.uint8]], after: list[NDArray[np.uint8]]) -> Tensor:
    """IMAGE with the pixels that differ between two 8-bit versions of it taken from the second; the others are untouched."""
    new = torch.from_numpy(np.stack(after))
    changed = (new != torch.from_numpy(np.stack(before))).any(-1, keepdim=True)
    colour = from_image(image).permute(0, 2, 3, 1).cpu()  # BCHW -> BHWC
    return torch.where(changed, new.float() / 255, colour)


NODES = (LoadRecogniser, IdentityCheck, RetrySampler)
