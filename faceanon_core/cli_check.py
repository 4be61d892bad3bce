"""The verbs of the command line that check: `faceanon calibrate` and `verify`, and the options of the identity check."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .console import say, warn
from .errors import InputError
from .folder import NAMES, make_namer
from .image import refuse_existing
from .names import split_names

if TYPE_CHECKING:
    from .identity import FaceRecogniser

_NONE = "none"
USUAL = "dlib where the whole face is replaced"

LAYOUT_NAMES = ("mobilefacenet", "insightface", "sface")


def add_verbs(verbs: Any) -> None:
    """Add the verbs to the command line's subparsers."""
    calibrate = verbs.add_parser("calibrate", help="measure which similarity is too high for a face-recognition network")
    calibrate.add_argument("network", type=Path, help="ONNX face-recognition network of 112x112 crops")
    calibrate.add_argument("faces", type=Path, help="pictures, each of another person, or a subfolder for every person")
    calibrate.add_argument("-o", "--output", type=Path, help="card to write (default: NETWORK's own, NETWORK.json)")
    calibrate.add_argument("--layout", choices=LAYOUT_NAMES, help="how the network wants its input, if it has no card yet")
    calibrate.add_argument("--overwrite", action="store_true", help="replace a card that is there already")
    calibrate.set_defaults(run=_run_calibrate)
    verify = verbs.add_parser("verify", help="check a finished folder against its sources; exit code 0 only if it may leave")
    verify.add_argument("sources", type=Path, help="folder of the original pictures")
    verify.add_argument("results", type=Path, help="folder that faceanon anonymize wrote")
    add_recognisers(verify)
    verify.add_argument("--names", choices=NAMES, default="keep", help="as for anonymize; random: paired by their looks")
    verify.add_argument("--name-key", type=Path, help="file with the key of --names hashed")
    verify.add_argument("--allow-missing", action="store_true", help="a source without a result was held back on purpose")
    verify.add_argument("-o", "--output", type=Path, help="report to write as FILE.json and FILE.txt; it names the sources")
    verify.set_defaults(run=_run_verify)


def add_recognisers(parser: argparse.ArgumentParser, usual: str = _NONE) -> None:
    """Add the options of the identity check; `usual` is what checks where none is named."""
    parser.add_argument(
        "--recogniser", type=Path, action="append", default=[],
        help="face-recognition network every result must pass: an ONNX file, at 1%% false accepts by its card; dlib, which "
        f"needs no file; none: no check; may be repeated (default: {usual})",
    )  # fmt: skip
    parser.add_argument(
        "--max-similarity", type=float, help="to the source, -1 to 1, in place of their own; above, the face is made again"
    )


def choose_recognisers(options: argparse.Namespace) -> None:
    """Let dlib check where no network is named, and say so where nothing will.

    What stays of a face on purpose is no failure, and the reference preset is to stay what it is.

    Raises: UnknownNameError for an unknown region.
    """
    from .dlib_recogniser import DLIB

    if not options.recogniser and options.preset != "reference" and _is_whole_face(options):
        options.recogniser = [Path(DLIB)]
    if options.recogniser in ([], [Path(_NONE)]):
        warn("no recogniser checks the results, so people may still be recognisable; see --recogniser")


def _is_whole_face(options: argparse.Namespace) -> bool:
    from .leakage import kept_region_warning
    from .regions import RegionChoice

    return kept_region_warning(RegionChoice(split_names(options.regions), split_names(options.keep))) is None


def open_recognisers(options: argparse.Namespace) -> list[FaceRecogniser]:
    """The networks the options name.

    Raises: InputError if none is named beside others, or no similarity is as high as the one allowed.
    """
    from .dlib_recogniser import open_recogniser

    if options.max_similarity is not None and not -1 <= options.max_similarity <= 1:
        raise InputError(f"max-similarity must be -1 to 1, got {options.max_similarity}")
    if [str(path) for path in options.recogniser] == [_NONE]:
        return []
    if Path(_NONE) in options.recogniser:
        raise InputError(f"--recogniser {_NONE} switches the check off; leave it out where a network is named")
    return [open_recogniser(path) for path in options.recogniser]


def _run_calibrate(options: argparse.Namespace) -> int:
    from .calibration import calibrate
    from .identity import LAYOUTS, Card, Recogniser, card_path, card_text

    if not options.faces.is_dir():
        raise InputError(f"{options.faces} is no folder of pictures")
    output = options.output or card_path(options.network)
    if not options.overwrite:
        refuse_existing(output)
    recogniser = Recogniser(options.network, Card(LAYOUTS[options.layout]) if options.layout else None)

    measured = calibrate(recogniser, options.faces, _show_progress)
    _write(output, card_text(measured.card))
    for rate, bound in measured.card.thresholds.items():
        say(f"{rate:.1%} of {measured.card.measured['pairs']} pairs of different people are above {bound:.3f}")
    for reason in measured.left_out:
        say(reason)
    first, second, similarity = measured.most_alike
    say(f"most alike: {first.name} and {second.name} ({similarity:.3f}); if they are one person, take one out")
    say(f"wrote {output}")
    return 0


def _run_verify(options: argparse.Namespace) -> int:
    from .verify import report_json, report_text, verify_folder

    for folder in (options.sources, options.results):
        if not folder.is_dir():
            raise InputError(f"{folder} is no folder")
    if options.output is not None and not options.output.name:
        raise InputError(f"{options.output} is a folder; name a file in it for the report")
    reports = [options.output.with_suffix(suffix) for suffix in (".json", ".txt")] if options.output else []
    for path in reports:
        refuse_existing(path)
        if options.results.resolve() in path.resolve().parents:
            raise InputError(f"the report names the sources, so it must not lie among the results; {path} does")
    namer = make_namer(options.names, options.name_key)
    recognisers = open_recognisers(options)
    for recogniser in recognisers:
        recogniser.set_limit(recogniser.limit(options.max_similarity))

    report = verify_folder(
        options.sources.resolve(), options.results.resolve(), recognisers,
        None if options.names == "random" else namer, options.allow_missing, _show_progress,
    )  # fmt: skip
    for path, text in zip(reports, (report_json(report), report_text(report)), strict=False):
        _write(path, text)
    sys.stdout.write(report_text(report))
    return 0 if report.passed else 1


def _show_progress(paths: Iterable[Path]) -> Iterable[Path]:
    from tqdm import tqdm

    return tqdm(paths, unit="picture", disable=None)


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", errors="backslashreplace")  # names of files need not be text
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from error
