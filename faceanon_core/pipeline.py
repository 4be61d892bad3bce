"""The whole path: picture in, the same picture with other faces out. Fails closed.

No face is ever emitted unchanged unless the caller asks for it by name: a face that cannot be anonymized raises, or is
covered by a solid fill, as the policy says.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .attributes import Attributes, check_learned
from .crop import FaceCrop, crop_face, stitch_face
from .diffusion import DemoModel, InpaintCond, last_sigma
from .encoder import AttributeEncoder, DemoEncoder, load_demo_encoder
from .errors import AnonymizationError, Cancelled, FaceAnonError, InputError, NoFaceError
from .faces import Face, FaceDetector, Unfitted
from .geometry import FACE_OVAL, arcface_alignment, warp_square
from .guidance import OFF, AttributeTerm, CombinedGuidance, GuidanceSettings, Term, TermSettings
from .hiding import hide_faces
from .identity import FaceRecogniser, Verdict
from .image import load_picture
from .judge import Judgement, check_finite, judge_face, unchanged_reason
from .leakage import kept_region_warning
from .parsing import FaceParser, LandmarkParser, region_labels
from .proportions import CHECKED, UNCHECKED
from .recognition import RecognitionNetwork
from .redact import redact_face
from .regions import RegionChoice, RegionMask, latent_mask, region_mask, share_left
from .retry import TRY_SEED, Push, push_harder, until_anonymous
from .sampling import Step, sample_guided, seeded_noise
from .sketch import DRAWN
from .target import (
    Target,
    choose_target,
    fitting_attributes,
    gallery_target,
    new_face_attributes,
    target_from_pixels,
)
from .terms import IdentityTerm, PoseTerm
from .weights import ASSETS, GALLERY

log = logging.getLogger(__name__)

_MOST = 0.75  # of a face that no region was asked to keep of
AWAY = 0.25  # of the default guidance: hides the source, costs likeness of expression
Policy = Literal["error", "redact", "keep"]
Start = Literal["source", "noise"]
Status = Literal["anonymized", "redacted", "kept"]


@dataclass(frozen=True)
class Settings:
    """How faces are replaced. The defaults are those the model card's figures were measured with."""

    regions: RegionChoice = field(default_factory=RegionChoice)
    guidance: GuidanceSettings = field(default_factory=lambda: GuidanceSettings(away=AWAY))
    away_identity: TermSettings = OFF  # push off what a recognition network knows the source by
    hold_pose: TermSettings = OFF  # hold pose, expression and gaze at the source's
    target: str | None = None  # gallery name or picture file; None chooses from the gallery
    attributes: Attributes = field(default_factory=dict)  # asked of the new face; override all others
    keep_attributes: tuple[str, ...] = ("expression", "skin")  # taken from the source; override the target's own
    emphasis: float = 3.0  # how hard what is asked is told, against what the surroundings suggest; 1 = once
    steps: int = 20
    seed: int = 0
    eta: float = 1.0
    start: Start = "source"  # what is noised at the first step: the source (as in the paper) or nothing
    describe: bool = True  # tell the model pose, expression and attributes; the reference tells it nothing
    drawn: float = DRAWN  # share of the steps, from the first, in which the model sees the features' lines, then light alone
    # how far eyes, brows, nose and mouth move from the source's places; 0 = not at all, None = as far as hides a person:
    # CHECKED and further with every try where a recogniser checks, else UNCHECKED
    proportions: float | None = None
    same_seed: bool = False  # one seed for every face, as the reference does
    own_seed: bool = False  # add a number of the picture's own to the seed, so that a person's pictures share no noise
    faces: str = "all"  # "all", "largest", or a count of the largest ones
    on_failure: Policy = "error"
    max_similarity: float | None = None  # to the source, in place of the recognisers' own limits; above, it is made again
    tries: int = 4  # how often, before it counts as a failure

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= 1000:
            raise InputError(f"steps must be 1 to 1000, got {self.steps}")
        if not 1 <= self.emphasis <= 20:
            raise InputError(f"emphasis must be 1 to 20, got {self.emphasis}")
        if not 0 <= self.drawn <= 1:
            raise InputError(f"drawn must be 0 to 1, got {self.drawn}")
        if self.proportions is not None and not 0 <= self.proportions <= 2:
            raise InputError(f"proportions must be 0 to 2, got {self.proportions}")
        if self.max_similarity is not None and not -1 <= self.max_similarity <= 1:
            raise InputError(f"max-similarity must be -1 to 1, got {self.max_similarity}")
        if not 1 <= self.tries <= 100:
            raise InputError(f"tries must be 1 to 100, got {self.tries}")
        if self.on_failure not in ("error", "redact", "keep"):
            raise InputError(f"on-failure must be error, redact or keep, got {self.on_failure!r}")
        if self.faces not in ("all", "largest") and not (self.faces.isdigit() and int(self.faces) > 0):
            raise InputError(f"faces must be all, largest or a number of at least 1, got {self.faces!r}")


def reference_settings(unit_strength: float, seed: int = 0) -> Settings:
    """docs/METHOD.md "Sampling (reference settings)" and "Adaptive attribute guidance" to the letter.

    45 steps, eta 1, noised source, one seed, unconditional branch only (no attributes, plain grey in the hole), w_opt 0.8,
    w_sim 1, w_dis 0, all tokens, encoder input not normalised.

    Args:
        unit_strength: the encoder's, divided out so that w_opt is 0.8 itself.
    """
    guidance = GuidanceSettings(strength=0.8 / unit_strength, normalise=False, reuse=1, exact=True, limit=None)
    return Settings(guidance=guidance, steps=45, seed=seed, describe=False, same_seed=True)


@dataclass(frozen=True)
class FaceReport:
    """What became of one face; `Unfitted` is one no mesh fits."""

    face: Face | Unfitted
    status: Status
    target: str | None = None
    reason: str = ""  # why it was redacted or kept
    readout: list[dict[str, float]] = field(default_factory=list)  # per step "sigma", and the losses where it has a gradient
    verdicts: list[Verdict] = field(default_factory=list)  # one per recogniser that checked it
    tries: int = 1  # how often it was made

    @property
    def similarity(self) -> float | None:
        """The highest of source and result, where a recogniser checked it."""
        return max((verdict.similarity for verdict in self.verdicts), default=None)


@dataclass(frozen=True)
class Result:
    """`pixels` (H, W, 3) uint8 RGB and one report per face, largest face first."""

    pixels: NDArray[np.uint8]
    faces: list[FaceReport]

    @property
    def warnings(self) -> list[str]:
        """One sentence for every face that was not anonymized, or for the lack of any face."""
        if not self.faces:
            return ["no face was found, the picture is unchanged"]
        return [f"face {i}: {r.status}, {r.reason}" for i, r in enumerate(self.faces, 1) if r.status != "anonymized"]


FaceProgress = Callable[[int, int, Step], None]  # face index from 0, number of faces, step


class Anonymizer:
    """Holds the loaded models; one instance serves any number of pictures.

    Args:
        assets: folder of the demo model.
        parser: another face parser than the landmark-based default.
        galleries: folders of target faces, see `target.gallery_index`.
        guide: another encoder whose features are matched than the demo model's.
        recognisers: every result has to pass all of them, else it is made again.
        recognition: what `Settings.away_identity` pushes with.
    Raises: WeightsError if the model is missing or damaged.
    """

    def __init__(
        self, assets: Path = ASSETS, device: str = "cpu", parser: FaceParser | None = None,
        recognisers: Sequence[FaceRecogniser] = (), galleries: Sequence[Path] = (GALLERY,),
        guide: AttributeEncoder | None = None, recognition: RecognitionNetwork | None = None,
    ) -> None:  # fmt: skip
        self.detector = FaceDetector()
        self.recognisers = tuple(recognisers)
        self.parser = parser or LandmarkParser()
        self._assets, self._device, self._galleries = assets, device, galleries
        self._guide = guide.to(device) if isinstance(guide, nn.Module) else guide
        self._recognition = recognition.to(device) if recognition is not None else None
        self.sampler: Callable[..., Tensor] = sample_guided  # another one of its form, to measure with
        self._named: dict[str, Target] = {}  # targets the user named, read once
        self._warned: set[RegionChoice] = set()

    @cached_property
    def model(self) -> DemoModel:
        """The inpainting model, loaded when first needed."""
        return DemoModel(self._assets, self._device)

    @cached_property
    def encoder(self) -> DemoEncoder:
        """The attribute encoder, loaded when first needed."""
        return load_demo_encoder(self._assets / "encoder.safetensors").to(self._device)

    def anonymize(self, pixels: NDArray[np.uint8], settings: Settings, progress: FaceProgress | None = None) -> Result:
        """Replace the faces of one picture.

        Args:
            pixels: (H, W, 3) uint8 RGB.
        Returns: the new picture; pixels outside every face's seam are bit-identical.
        Raises: NoFaceError or AnonymizationError under the policy "error"; InputError for unusable settings.
        """
        self.check(settings)
        if settings.own_seed:
            settings = replace(settings, seed=settings.seed + _number_of(pixels))
        scan = self.detector.scan(pixels)
        if not scan.faces and not scan.unfitted:
            if settings.on_failure == "keep":
                return Result(pixels.copy(), [])
            raise NoFaceError("no face was found, so nothing could be anonymized and nothing is written")
        chosen = _chosen_count(settings.faces, len(scan.faces))
        count = len(scan.faces) + len(scan.unfitted)
        output, reports, used = pixels.copy(), [], frozenset[str]()
        for index, face in enumerate(scan.faces):
            if index >= chosen:
                reports.append(FaceReport(face, "kept", reason=f"left as it is because faces={settings.faces} was asked"))
                continue
            try:
                callback = partial(progress, index, chosen) if progress else None
                output, report = self._replace_face(pixels, output, face, index, settings, used, callback)
            except (InputError, Cancelled):
                raise
            except FaceAnonError as error:
                output, report = _apply_policy(output, face, index, count, settings.on_failure, error)
            reports.append(report)
            used |= {report.target or ""}
        for index, lost in enumerate(scan.unfitted, len(scan.faces)):
            unfitted = AnonymizationError(lost.reason)
            output, report = _apply_policy(output, lost, index, count, settings.on_failure, unfitted)
            reports.append(report)
        return Result(output, reports)

    def check(self, settings: Settings) -> None:
        """Refuse unknown regions and targets before any work is done.

        Raises: UnknownNameError; InputError for a target picture without exactly one face, or a check without recogniser or
            limit.
        """
        if settings.max_similarity is not None and not self.recognisers:
            raise InputError("max-similarity needs a face-recognition network to measure it; name one as the recogniser")
        check_learned((*settings.attributes, *settings.keep_attributes))
        for recogniser in self.recognisers:
            recogniser.limit(settings.max_similarity)
        if settings.away_identity.strength > 0 and self._recognition is None:
            raise InputError("pushing away from the source's identity needs a recognition network; name its weights")
        region_labels(settings.regions.keep, self.parser)
        if not region_labels(settings.regions.regenerate, self.parser) & region_labels(("face",)):
            named = ", ".join(settings.regions.regenerate) or "none"
            raise InputError(f"the regions asked for ({named}) leave the whole face as it is; add face or parts of it")
        self._warn(settings.regions)
        if settings.target is not None:
            self._named_target(settings.target)

    def _warn(self, choice: RegionChoice) -> None:
        """Say once for each choice of regions what the kept ones tell."""
        warning = kept_region_warning(choice)
        if warning is not None and choice not in self._warned:
            log.warning("%s", warning)
            self._warned.add(choice)

    def find_target(self, settings: Settings, source: FaceCrop, seed: int, used: frozenset[str] = frozenset()) -> Target:
        """The target for one face: named, from a file, or the gallery face that fits what was asked and the source."""
        if settings.target is not None:
            return self._named_target(settings.target)
        guessed, _ = self.encoder.predict(source.tensor)[0]
        return choose_target(fitting_attributes(source, guessed) | settings.attributes, seed, self._galleries, used)

    def _named_target(self, name: str) -> Target:
        if name not in self._named:
            if _is_file_name(name):
                pixels = load_picture(Path(name)).pixels
                found = target_from_pixels(pixels, Path(name).name, self.detector, self.encoder, self.model.size_px)
            else:
                found = gallery_target(name, self._galleries)
            self._named[name] = found
        return self._named[name]

    def regenerate(
        self, crop: FaceCrop, mask: RegionMask, target: Target, settings: Settings, seed: int,
        callback: Callable[[Step], None] | None = None,
    ) -> Tensor:  # fmt: skip
        """Sample one new crop. Returns: (1, 3, S, S) float 0..1."""
        model = self.model
        drawn = settings.drawn if settings.describe else None
        skin = settings.attributes.get("skin")
        hidden = hide_faces([crop], mask.core, [seed], self._proportions(settings), drawn, skin)
        source_latent, masked_latent = model.encode(crop.tensor), model.encode(hidden[0].image)
        hole = latent_mask(mask.core, source_latent.shape[-1]).to(model.device)
        told: Attributes = {}
        away = None
        if settings.describe:
            told, opposite = new_face_attributes(crop, target, settings.attributes, settings.keep_attributes, self.encoder)
            away = model.tokens.encode(opposite) if opposite is not None and settings.emphasis > 1 else None
        noise, sigmas = seeded_noise(seed), model.sigmas(settings.steps).to(model.device)
        cond = InpaintCond(model.tokens.encode(told), hole, masked_latent, source_latent, away, settings.emphasis)
        for later in hidden[1:]:
            cond = replace(cond, plain_latent=model.encode(later.image), plain_below=last_sigma(sigmas, later.start))
        start = source_latent if settings.start == "source" else source_latent * (1 - hole)
        x = start + sigmas[0] * noise(start)
        terms = self._terms(crop, mask, target, settings)
        decode = model.decode if settings.guidance.exact else model.decode_rough
        guidance = CombinedGuidance(decode, terms, settings.guidance.reuse, settings.guidance.limit)
        latent = self.sampler(model.denoise, x, sigmas, cond, noise, guidance, settings.eta, callback)
        with torch.no_grad():
            return model.decode(latent).clamp(0, 1).cpu()

    def _proportions(self, settings: Settings) -> float:
        if settings.proportions is not None:
            return settings.proportions
        return CHECKED if self.recognisers else UNCHECKED

    def _pushed(self, settings: Settings, pushes: int) -> Settings:
        pushed = push_harder(Push(settings.guidance.strength, self._proportions(settings), settings.drawn), pushes)
        guidance = replace(settings.guidance, strength=pushed.strength)
        return replace(settings, guidance=guidance, proportions=pushed.proportions, drawn=pushed.drawn)

    def _terms(self, crop: FaceCrop, mask: RegionMask, target: Target, settings: Settings) -> list[Term]:
        source, wanted, core = (images.to(self.model.device) for images in (crop.tensor, target.image, mask.core))
        terms: list[Term] = [AttributeTerm(self._guide or self.encoder, settings.guidance, wanted, source, core)]
        if settings.away_identity.strength > 0 and self._recognition is not None:
            places = torch.from_numpy(arcface_alignment(crop.landmarks))[None].to(source)
            terms.append(IdentityTerm(self._recognition, settings.away_identity, source, places))
        if settings.hold_pose.strength > 0:
            terms.append(PoseTerm(self.encoder, settings.hold_pose, source))
        return terms

    def _replace_face(
        self, source: NDArray[np.uint8], image: NDArray[np.uint8], face: Face, index: int, settings: Settings,
        used: frozenset[str], callback: Callable[[Step], object] | None,
    ) -> tuple[NDArray[np.uint8], FaceReport]:  # fmt: skip
        """A face of `source` replaced in `image`, where others may be replaced already."""
        original = crop_face(source, face, self.model.size_px)
        crop = crop_face(image, face, self.model.size_px)
        mask = region_mask(self.parser.parse(crop.pixels, crop.landmarks), settings.regions, self.parser)
        left = share_left(mask.core, crop.landmarks[list(FACE_OVAL)])
        if left > _MOST and kept_region_warning(settings.regions) is None:
            raise AnonymizationError(f"the face parser takes {left:.0%} of the face for something else, which would stay")
        seed = settings.seed + (0 if settings.same_seed else index)
        target = self.find_target(settings, crop, seed, used)
        readout: list[dict[str, float]] = []

        def on_step(step: Step) -> None:
            readout.append({"sigma": step.sigma, **step.losses})
            if callback is not None:
                callback(step)

        def make(attempt: int, pushes: int, _: list[int]) -> Tensor:
            readout.clear()
            result = self.regenerate(crop, mask, target, self._pushed(settings, pushes), seed + attempt * TRY_SEED, on_step)
            check_finite(result)
            return result

        def judge(result: Tensor) -> list[Judgement]:
            stitched = stitch_face(image, crop, result, mask.seam)
            judgement = judge_face(original, stitched, self.recognisers, self.detector, settings.max_similarity, mask.core)
            # nor may what the model was given come back, in which a neighbour may be covered already
            given = unchanged_reason(crop, warp_square(stitched, crop.frame.matrix, crop.frame.size_px), mask.core)
            return [replace(judgement, unchanged=judgement.unchanged or given)]

        done = until_anonymous(make, judge, [0], settings.tries)
        if done.failed:
            raise AnonymizationError(done.reason)
        (judgement,) = done.judgements
        report = FaceReport(
            face, "anonymized", target.name, readout=readout, verdicts=judgement.verdicts, tries=done.tries[0]
        )
        return stitch_face(image, crop, done.results, mask.seam), report


def _apply_policy(
    image: NDArray[np.uint8], face: Face | Unfitted, index: int, count: int, policy: Policy, error: FaceAnonError
) -> tuple[NDArray[np.uint8], FaceReport]:
    if policy == "redact":
        return redact_face(image, face), FaceReport(face, "redacted", reason=str(error))
    if policy == "keep":
        return image, FaceReport(face, "kept", reason=str(error))
    x, y = face.box.center
    raise AnonymizationError(
        f"face {index + 1} of {count} (near x {x:.0f}, y {y:.0f}) could not be anonymized: {error}; "
        "nothing is written. Use the failure policy redact to cover such faces instead"
    ) from error


def _number_of(pixels: NDArray[np.uint8]) -> int:
    """48 bits that are the same for the same pixels and other ones for others."""
    return int.from_bytes(hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).digest()[:6], "big")


def _chosen_count(faces: str, found: int) -> int:
    if faces == "all":
        return found
    return min(found, 1 if faces == "largest" else int(faces))


def _is_file_name(target: str) -> bool:
    return "." in target or "/" in target or "\\" in target
