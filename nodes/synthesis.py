"""Make target faces: a prompt from attributes, portraits by the demo model, the choice among candidates, a gallery."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..faceanon_core.attributes import VOCABULARY, Attributes, check_consistent, describe, parse_attributes, prompt
from ..faceanon_core.errors import InputError
from ..faceanon_core.names import split_names
from .convert import CATEGORY, SEEDS, from_pixels, one_by_one, seed_input, to_image, to_pixels
from .folders import model_folders, own_gallery, target_galleries

_ASKED = 'What the new face shows, e.g. "age=60s, sex=female, hair=gray". Empty: nothing asked. Known: ' + ", ".join(
    attribute.name for attribute in VOCABULARY
)
_ENCODER = ("FACE_ENCODER", {"tooltip": "From Load Demo Model: it estimates what the faces show."})


class TargetPrompt:
    """Attributes in words that SD and SDXL checkpoints understand."""

    TITLE = "Target Prompt"
    CATEGORY = CATEGORY
    FUNCTION = "write"
    RETURN_TYPES = ("STRING", "STRING", "STRING")
    RETURN_NAMES = ("positive", "negative", "attributes")
    DESCRIPTION = (
        "Writes the prompts for a target face from attributes, for CLIP Text Encode and any checkpoint; sample several and "
        "let Pick Target choose. Attributes of the source can be carried over, so that age or expression stay."
    )
    SEARCH_ALIASES = ("prompt builder", "attributes to text", "synthetic face")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        keep = 'Needs crops: attributes taken from the first source face, e.g. "age, expression, skin". Empty: none.'
        return {
            "required": {
                "attributes": ("STRING", {"default": "", "tooltip": _ASKED}),
                "text": ("STRING", {"default": "", "multiline": True, "tooltip": "Free text, put after the attributes."}),
                "keep": ("STRING", {"default": "", "tooltip": keep}),
            },
            "optional": {
                "crops": ("FACE_CROP", {"tooltip": "The source faces, for keep."}),
                "encoder": _ENCODER,
            },
        }

    def write(self, attributes: str, text: str, keep: str, crops: Any = None, encoder: Any = None) -> tuple[str, str, str]:
        asked = _kept(keep, crops, encoder) | parse_attributes(attributes)
        check_consistent(asked)
        return (*prompt(asked, text), describe(asked))


def _kept(names: str, crops: Any, encoder: Any) -> Attributes:
    wanted = split_names(names)
    if not wanted:
        return {}
    if crops is None or encoder is None:
        raise InputError("keep takes attributes from the source; connect crops and encoder, or leave it empty")
    from ..faceanon_core.target import source_attributes
    from . import comfy_bridge

    with comfy_bridge.ready_encoder(encoder) as network:
        return source_attributes(crops[0][1], network, wanted)


class SynthesizeTarget:
    """Portraits of people who do not exist, by the demo model."""

    TITLE = "Synthesize Target (demo model)"
    CATEGORY = CATEGORY
    FUNCTION = "make"
    RETURN_TYPES = ("IMAGE",)
    DESCRIPTION = (
        "Candidates for a target face from attributes alone, 256 px, with no checkpoint; about ten seconds each on a CPU. "
        "Give them to Pick Target."
    )
    SEARCH_ALIASES = ("generate face", "synthetic face", "portrait")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "attributes": ("STRING", {"default": "", "tooltip": _ASKED + ". The last four only by other models."}),
                "count": ("INT", {"default": 4, "min": 1, "max": 64, "tooltip": "How many candidates to choose among."}),
                "seed": seed_input("Same seed, same faces.", renew=True),
            }
        }

    def make(self, attributes: str, count: int, seed: int) -> tuple[Tensor]:
        from ..faceanon_core.synthesis import synthesize_picture
        from . import comfy_bridge

        asked, model = parse_attributes(attributes), comfy_bridge.demo_synthesizer()
        made = [synthesize_picture(model, asked, (seed + number) % SEEDS) for number in one_by_one(range(count))]
        return (from_pixels(made),)


class PickTarget:
    """The best of several candidates as TARGET_FACE, and a sheet that says why."""

    TITLE = "Pick Target"
    CATEGORY = CATEGORY
    FUNCTION = "pick"
    RETURN_TYPES = ("TARGET_FACE", "IMAGE", "IMAGE", "STRING")
    RETURN_NAMES = ("target", "image", "sheet", "report")
    OUTPUT_TOOLTIPS = (
        "The chosen face.",
        "Its picture.",
        "All candidates: green as asked, red not.",
        "What is wrong with each.",
    )
    DESCRIPTION = (
        "Checks each candidate: exactly one face, frontal enough, shows what was asked, and is not the source again. "
        "Stops if none will do."
    )
    SEARCH_ALIASES = ("choose face", "candidates", "contact sheet", "best of")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        sources = "The source faces, for recogniser: candidates must not look like them."
        number = "0 = the best by these checks. 1 and up: this one of the sheet, if it is one face and not the source's."
        return {
            "required": {
                "candidates": ("IMAGE", {"tooltip": "A batch of portraits, from any model."}),
                "encoder": _ENCODER,
                "attributes": ("STRING", {"default": "", "tooltip": _ASKED}),
                "number": ("INT", {"default": 0, "min": 0, "max": 4096, "tooltip": number}),
            },
            "optional": {
                "crops": (
                    "FACE_CROP",
                    {"tooltip": sources},
                ),
                "recogniser": ("FACE_RECOGNISER", {"tooltip": "From Load Recogniser; needs crops."}),
            },
        }

    def pick(
        self, candidates: Tensor, encoder: Any, attributes: str, number: int, crops: Any = None, recogniser: Any = ()
    ) -> tuple[Any, Tensor, Tensor, str]:
        from ..faceanon_core.faces import FaceDetector
        from ..faceanon_core.identity import excess_similarity
        from ..faceanon_core.synthesis import best_candidate, candidate_sheet, describe_candidates, judge_candidate
        from . import comfy_bridge

        if bool(recogniser) != (crops is not None):
            raise InputError("to refuse candidates that look like the source, connect both crops and recogniser, or neither")
        if number > len(candidates):
            raise InputError(f"number is {number} but there are {len(candidates)} candidates")
        asked = parse_attributes(attributes)
        sources = [(crop.pixels, crop.landmarks) for _, crop in crops or ()]
        excess = (lambda crop: excess_similarity(recogniser, crop, sources)) if sources else None
        with FaceDetector(task_folders=model_folders()) as detector, comfy_bridge.ready_encoder(encoder) as network:
            judged = [judge_candidate(p, asked, detector, network, excess) for p in one_by_one(to_pixels(candidates))]
        best = best_candidate(judged if number == 0 else [judged[number - 1]])
        sheet = from_pixels([candidate_sheet(judged)])
        return [best.target], to_image(best.target.image), sheet, describe_candidates(judged, asked)


class SaveTarget:
    """Keep a target for other graphs: Target Face (gallery) then lists it."""

    TITLE = "Save Target"
    CATEGORY = CATEGORY
    FUNCTION = "save"
    RETURN_TYPES = ()
    OUTPUT_NODE = True
    DESCRIPTION = "Adds a target to your own gallery, models/faceanon/gallery. Nothing is overwritten."
    SEARCH_ALIASES = ("gallery", "store face")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                "target": ("TARGET_FACE", {"tooltip": "One target, of a person who does not exist."}),
                "name": ("STRING", {"default": "", "tooltip": "Letters, digits, - and _; a name that is not taken yet."}),
            }
        }

    def save(self, target: Any, name: str) -> dict[str, Any]:
        from ..faceanon_core.target import gallery_index, save_target

        if len(target) != 1:
            raise InputError(f"{len(target)} targets are connected; save them one by one")
        path = save_target(target[0], name, own_gallery(), gallery_index(target_galleries()))
        return {"ui": {"text": [f"saved {path}"]}}


NODES = (TargetPrompt, SynthesizeTarget, PickTarget, SaveTarget)
