"""Pictures to look at while iterating: before and after, and what seed and strength do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from ..faceanon_core.errors import InputError
from .convert import (
    CATEGORY,
    SEEDS,
    check_pair,
    check_side,
    from_mask,
    from_pixels,
    match_batch,
    seed_input,
    to_image,
    to_pixels,
)
from .sample import GuidedSampler

_MAX_STRENGTHS = 16


class BeforeAfter:
    """Two IMAGEs -> IMAGE: every pair of pictures side by side, labelled."""

    TITLE = "Before and After"
    CATEGORY = CATEGORY
    FUNCTION = "compare"
    RETURN_TYPES = ("IMAGE",)
    DESCRIPTION = "Puts two pictures side by side with the labels before and after; of batches, each pair."
    SEARCH_ALIASES = ("compare images", "side by side", "preview")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {
            "required": {
                # first, since a bypassed node hands on the input beside its output: never the source
                "after": ("IMAGE", {"tooltip": "The same pictures after Stitch Faces; same size and batch as before."}),
                "before": ("IMAGE", {"tooltip": "The pictures as they were, for example from Load Image."}),
            }
        }

    def compare(self, before: Tensor, after: Tensor) -> tuple[Tensor]:
        from ..faceanon_core.report import contact_sheet

        old, new = to_pixels(before, "before"), to_pixels(after, "after")
        check_pair(old, new, "before", "after")
        return (from_pixels([contact_sheet([list(pair)], ["before", "after"]) for pair in zip(old, new, strict=True)]),)


class ReportPreview:
    """FACE_CHECKS + IMAGE -> IMAGE: a table of what a check found, worst first."""

    TITLE = "Report Preview"
    CATEGORY = CATEGORY
    FUNCTION = "draw"
    RETURN_TYPES = ("IMAGE", "STRING")
    RETURN_NAMES = ("table", "report")
    DESCRIPTION = (
        "Draws what Identity Check or Retry Sampler found as a table: every face with its similarity to the source, the "
        "highest that may pass, and the verdict. Failures come first."
    )
    SEARCH_ALIASES = ("report", "verdicts", "identity check", "table")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        rows = {
            "default": 20, "min": 1, "max": 200,
            "tooltip": "How many faces the table shows, the worst of them; the report has all.",
        }  # fmt: skip
        source = "Shows the source's faces beside! A preview then leaves a copy of them in ComfyUI's temp folder."
        return {
            "required": {
                "checks": ("FACE_CHECKS", {"tooltip": "From Identity Check or Retry Sampler (until anonymous)."}),
                "result": ("IMAGE", {"tooltip": "The pictures that were checked: the image output of the same node."}),
                "rows": ("INT", rows),
            },
            "optional": {"source": ("IMAGE", {"tooltip": source})},
        }

    def draw(self, checks: Any, result: Tensor, rows: int, source: Tensor | None = None) -> tuple[Tensor, str]:
        from ..faceanon_core.report import verdict_table, verdict_text, worst_first

        after, before = to_pixels(result, "result"), None if source is None else to_pixels(source, "source")
        if before is not None:
            check_pair(before, after, "source", "result")
        if any(face.picture >= len(after) for face in checks):
            raise InputError(
                f"the checks are of more pictures than the {len(after)} in result; connect those that were checked"
            )
        worst = worst_first(checks)
        return from_pixels([verdict_table(worst[:rows], after, before)]), verdict_text(worst)


class SeedStrengthSheet:
    """Samples the first face with every combination of seed and strength: one labelled IMAGE."""

    TITLE = "Contact Sheet (seeds x strengths)"
    CATEGORY = CATEGORY
    FUNCTION = "draw"
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("sheet",)
    DESCRIPTION = (
        "Samples the first face with several seeds (rows) and guidance strengths (columns) and puts the results on one "
        "sheet, to find good values for the Attribute-Guided Sampler. Strength 0 is the sample without guidance."
    )
    SEARCH_ALIASES = ("XY plot", "grid", "compare seeds", "parameter sweep")

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        sampler = GuidedSampler.INPUT_TYPES()["required"]
        return {
            "required": {
                **sampler,
                # no new seed after a run: a sheet is compared with the one before
                "seed": seed_input("The seed of the first row.", renew=False),
                "guidance": ("GUIDANCE", {"tooltip": "From Attribute Guidance; strengths replaces its strength."}),
                "crops": ("FACE_CROP", {"tooltip": "From Crop Faces; the first face is shown."}),
                "seam": ("MASK", {"tooltip": "From Region Mask: where the result replaces the crop."}),
                "seeds": (
                    "INT",
                    {"default": 4, "min": 1, "max": 16, "tooltip": "Number of rows: seed, seed + 1 and so on."},
                ),
                "strengths": (
                    "STRING",
                    {
                        "default": "0, 0.5, 1, 2",
                        "tooltip": "The columns: up to 16 guidance strengths of at least 0, separated by commas.",
                    },
                ),
            }
        }

    def draw(
        self, model: Any, vae: Any, positive: Any, negative: Any, latent: Any, guidance: Any, seed: int, steps: int,
        cfg: float, scheduler: str, denoise: float, crops: Any, seam: Tensor, seeds: int, strengths: str,
    ) -> tuple[Tensor]:  # fmt: skip
        from ..faceanon_core.report import contact_sheet
        from . import comfy_bridge

        weight = match_batch(from_mask(seam, "seam"), len(crops), "seam")[:1]
        check_side(weight, crops, "seam")
        first, source = _first_face(latent, len(crops)), crops[0][1].tensor
        columns, numbers = _strengths(strengths), [(seed + row) % SEEDS for row in range(seeds)]
        alone = guidance.of([0], len(crops))
        specs = [replace(alone, settings=replace(alone.settings, strength=strength)) for strength in columns]
        strongest = max(specs, key=lambda spec: spec.settings.strength)
        decoder = comfy_bridge.with_decoder(strongest, vae, model.model).decoder
        specs = [replace(spec, decoder=decoder) for spec in specs]
        sigmas = comfy_bridge.schedule(model, scheduler, steps, denoise)
        callbacks = comfy_bridge.run_callbacks(model, len(sigmas) - 1, len(numbers) * len(specs))
        cells = []
        for number in numbers:
            for spec in specs:
                sampler = comfy_bridge.GuidedSampler(spec, vae)
                sampled = comfy_bridge.sample(
                    model, sampler, sigmas, positive, negative, first, number, cfg, next(callbacks)
                )
                result = comfy_bridge.vae_decode(vae, sampled["samples"]).to(source)
                check_side(result, crops, "result")
                cells += to_pixels(to_image(source + weight * (result - source)))
        rows = [cells[start : start + len(columns)] for start in range(0, len(cells), len(columns))]
        titles = [f"strength {strength:g}" for strength in columns]
        return (from_pixels([contact_sheet(rows, titles, [f"seed {number}" for number in numbers])]),)


def _first_face(latent: dict[str, Any], faces: int) -> dict[str, Any]:
    """The LATENT of the first face alone; ComfyUI itself cuts conditioning to the latent's batch.

    Raises: InputError if the latent holds another number of faces.
    """
    if len(latent["samples"]) != faces:
        raise InputError(
            f"the latent holds {len(latent['samples'])} faces but there are {faces} crops; connect those of Inpaint Faces"
        )
    return {name: latent[name][:1] for name in ("samples", "noise_mask", "batch_index") if name in latent}


def _strengths(text: str) -> list[float]:
    try:
        values = [float(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise InputError(f'strengths must be numbers such as "0, 0.5, 1, 2", got {text!r}') from error
    if not 1 <= len(values) <= _MAX_STRENGTHS:
        raise InputError(f"strengths must hold 1 to {_MAX_STRENGTHS} numbers, got {len(values)}")
    return values


NODES = (BeforeAfter, SeedStrengthSheet, ReportPreview)
