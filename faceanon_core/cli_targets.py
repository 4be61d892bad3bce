"""The verbs of the command line about target faces: `faceanon targets` and `synthesize`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import cli_check
from .attributes import VOCABULARY, Attributes, describe, parse_attributes
from .console import say
from .errors import InputError, NoFaceError
from .image import Picture, load_picture, refuse_existing, save_picture
from .names import split_names
from .optional import model_folder
from .weights import GALLERY

if TYPE_CHECKING:
    from .crop import FaceCrop
    from .encoder import DemoEncoder
    from .faces import FaceDetector
    from .synthesis import Candidate


def add_verbs(verbs: Any) -> None:
    """Add the verbs to the command line's subparsers."""
    targets = verbs.add_parser("targets", help="list the gallery of target faces and the attributes one can ask for")
    targets.add_argument("-o", "--output", type=Path, help="also draw them, with names and attributes, into this picture")
    add_gallery(targets)
    targets.set_defaults(run=_run_targets)
    synthesize = verbs.add_parser("synthesize", help="make target faces from attributes with the demo model")
    synthesize.add_argument("-o", "--output", type=Path, required=True, help="contact sheet of the candidates, .png")
    synthesize.add_argument("--attributes", default="", help='what the face shows, e.g. "age=60s,sex=female"')
    synthesize.add_argument("--like", type=Path, help="photograph of the source, for --keep-attributes and --recogniser")
    synthesize.add_argument("--keep-attributes", default="", help="attributes taken from --like, e.g. age,expression,skin")
    synthesize.add_argument("--count", type=int, default=8, help="how many candidates, 1 to 100 (default: 8)")
    synthesize.add_argument("--seed", type=read_seed, default=0, help="same seed, same faces (default: 0)")
    synthesize.add_argument("--save", metavar="NAME", help="add the best, or the one of --pick, to the gallery as NAME")
    synthesize.add_argument("--pick", type=int, help="number of the candidate to save (default: the best)")
    add_gallery(synthesize)
    cli_check.add_recognisers(synthesize)
    synthesize.set_defaults(run=_run_synthesize)


def read_seed(text: str, more: str = "") -> int:
    """A seed on the command line.

    Args:
        more: what else could stand there, for the error.
    """
    if not (text.isdecimal() and int(text) < 2**63):
        raise argparse.ArgumentTypeError(f"a seed is a whole number of 0 to 2^63 - 1{more}, got {text!r}")
    return int(text)


def add_gallery(parser: argparse.ArgumentParser) -> None:
    """Add the option for the folder of the user's own targets."""
    folder = "~/.faceanon/gallery, or the folder gallery where FACEANON_MODELS points"
    parser.add_argument("--gallery", type=Path, help=f"folder of your own target faces (default: {folder})")


def galleries(options: argparse.Namespace) -> tuple[Path, ...]:
    """Folders of target faces: the user's own, then the shipped one."""
    return (_own_gallery(options), GALLERY)


def _own_gallery(options: argparse.Namespace) -> Path:
    own: Path = options.gallery or model_folder() / "gallery"
    return own


def _run_targets(options: argparse.Namespace) -> int:
    from .target import gallery_index, gallery_sheet

    if options.output is not None:
        save_picture(Picture(gallery_sheet(galleries(options))), options.output)
    for name, attributes in sorted(gallery_index(galleries(options)).items()):
        say(f"{name:12} {describe(attributes)}")
    say("\nattributes that --attributes takes:")
    for attribute in VOCABULARY:
        if attribute.learned:
            say(f"{attribute.name:12} {', '.join(attribute.values)} ({attribute.meaning})")
    if options.output is not None:
        say(f"\nwrote {options.output}")
    return 0


def _run_synthesize(options: argparse.Namespace) -> int:
    from .encoder import load_demo_encoder
    from .faces import FaceDetector
    from .synthesis import best_candidate, candidate_sheet, describe_candidates
    from .target import check_new_name, gallery_index, save_target
    from .weights import ASSETS

    refuse_existing(options.output)
    if options.output.suffix.lower() != ".png":
        raise InputError(f"the contact sheet is a .png file, got {options.output.name}")
    if not 1 <= options.count <= 100:
        raise InputError(f"count must be 1 to 100, got {options.count}")
    if options.pick is not None and not 1 <= options.pick <= options.count:
        raise InputError(f"pick must be the number of a candidate, 1 to {options.count}, got {options.pick}")
    own, taken = _own_gallery(options), gallery_index(galleries(options))
    if options.save is not None:
        check_new_name(options.save, own, taken)
    encoder = load_demo_encoder(ASSETS / "encoder.safetensors")
    with FaceDetector() as detector:
        source, asked = _source_and_attributes(options, detector, encoder)
        candidates = _make_candidates(options, detector, encoder, source, asked)
    save_picture(Picture(candidate_sheet(candidates)), options.output)
    say(describe_candidates(candidates, asked))
    say(f"wrote {options.output}")
    if options.save is not None:
        chosen = best_candidate(candidates if options.pick is None else [candidates[options.pick - 1]])
        assert chosen.target is not None
        path = save_target(chosen.target, options.save, own, taken)
        say(f"saved {path}; use it with --target {options.save}")
    return 0


def _source_and_attributes(
    options: argparse.Namespace, detector: FaceDetector, encoder: DemoEncoder
) -> tuple[FaceCrop | None, Attributes]:
    from .crop import crop_face
    from .target import source_attributes

    kept = split_names(options.keep_attributes)
    asked = parse_attributes(options.attributes)
    if options.like is None:
        if kept or options.recogniser:
            raise InputError("--keep-attributes and --recogniser need the source: name its photograph with --like")
        return None, asked
    pixels = load_picture(options.like).pixels
    faces = detector.detect(pixels)
    if not faces:
        raise NoFaceError(f"no face was found in {options.like}")
    source = crop_face(pixels, faces[0], 256)
    found = source_attributes(source, encoder, kept)
    if unsure := [name for name in kept if name not in found]:
        say(f"{', '.join(unsure)} of the source cannot be told for sure and may be anything")
    return source, found | asked


def _make_candidates(
    options: argparse.Namespace, detector: FaceDetector, encoder: DemoEncoder, source: FaceCrop | None, asked: Attributes
) -> list[Candidate]:
    from tqdm import tqdm

    from .diffusion import DemoModel
    from .identity import excess_similarity
    from .synthesis import judge_candidate, synthesize_picture
    from .weights import ASSETS

    recognisers, model = cli_check.open_recognisers(options), DemoModel(ASSETS)

    def excess(crop: FaceCrop) -> float:
        assert source is not None
        return excess_similarity(recognisers, crop, [(source.pixels, source.landmarks)], options.max_similarity)

    numbers = tqdm(range(options.count), unit="face", disable=None)
    made = (synthesize_picture(model, asked, options.seed + number) for number in numbers)
    return [judge_candidate(pixels, asked, detector, encoder, excess if recognisers else None) for pixels in made]
