"""The command line: `faceanon anonymize`, `download` and `demo`; `cli_check`, `cli_targets` and `evaluation` add more.

Exit codes: 0 everything asked for was written; 1 at least one picture failed or was left with a face as it is;
2 the command could not start (bad arguments or input).
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import logging
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import cli_check, cli_engine, cli_targets
from .attributes import parse_attributes
from .console import say, warn
from .errors import FaceAnonError, InputError, WeightsError
from .evaluation.command import add_evaluate
from .folder import NAMES, Journal, fill_folder, make_namer, names_sources, refuse_unwritable, remove_leftovers
from .image import SUFFIXES, Picture, check_fits, check_suffix, load_picture, refuse_existing, save_picture
from .names import split_names
from .sources import find_sources

if TYPE_CHECKING:
    from .pipeline import Anonymizer, Result, Settings

log = logging.getLogger("faceanon")
EACH = "each"  # in place of a seed: one for each picture, drawn from its pixels


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point. Returns: the exit code."""
    options = _parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be text
    logging.basicConfig(level=logging.INFO if options.verbose else logging.WARNING, format="%(message)s")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that a stopped run, too, leaves no half-written file
    try:
        code: int = options.run(options)
        return code
    except FaceAnonError as error:
        warn(f"faceanon: {error}")
        # a picture that cannot be anonymized is a failure; anything else is a command that could not start
        return 2 if isinstance(error, (InputError, WeightsError)) else 1
    except OSError as error:
        warn(f"faceanon: {error.filename or 'a file'} cannot be read or written: {error.strerror or error}")
        return 2
    except KeyboardInterrupt:
        warn("faceanon: stopped; run the same command again to go on")
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="faceanon", description="Replace faces with faces of people who do not exist.")
    parser.add_argument("-v", "--verbose", action="store_true", help="say more on the way")
    verbs = parser.add_subparsers(
        required=True,
        metavar="anonymize | verify | calibrate | evaluate | targets | synthesize | download | benchmark | demo",
    )
    anonymize = verbs.add_parser("anonymize", help="anonymize a photograph or a folder of photographs")
    anonymize.add_argument("source", type=Path, help="photograph, or folder (searched recursively)")
    anonymize.add_argument("-o", "--output", type=Path, required=True, help="file or folder to write; never a source")
    anonymize.add_argument("--keep-metadata", action="store_true", help="copy camera, author, place and time from the EXIF")
    anonymize.add_argument("--names", choices=NAMES, default="keep", help="file names of the results (default: keep)")
    anonymize.add_argument("--name-key", type=Path, help="file with the key of --names hashed")
    anonymize.add_argument("--chart", type=Path, help="picture to draw losses and sigma over the steps into, per face")
    cli_engine.add_engine(anonymize)
    _add_settings(anonymize)
    anonymize.set_defaults(run=_run_anonymize)
    cli_targets.add_verbs(verbs)
    download = verbs.add_parser("download", help="fetch an optional model and check that it is the right one")
    download.add_argument("name", help="face_landmarker or yunet")
    download.add_argument("-o", "--output", type=Path, help="folder (default: ~/.faceanon, or what FACEANON_MODELS names)")
    download.set_defaults(run=_run_download)
    add_evaluate(verbs)
    benchmark = verbs.add_parser("benchmark", help="measure on this machine what guidance and the rest cost, as tables")
    benchmark.add_argument(
        "case", choices=("demo", "sd15", "levers", "solvers", "pipeline"),
        help="guidance with the shipped model or SD-1.5-shaped random weights at 512 px; each lever alone; solvers with "
        "fewer steps; the rest of the pipeline",
    )  # fmt: skip
    benchmark.add_argument("--precision", choices=("fp32", "bf16", "fp16"), help="of sd15 and levers (default: fp32)")
    benchmark.add_argument("--steps", type=int, default=20, help="of each image of demo and sd15 (default: 20)")
    benchmark.add_argument("--runs", type=int, default=3, help="of each line (default: 3; 1 of an image over 10 minutes)")
    benchmark.add_argument(
        "--ways", type=split_names, metavar="WAY,...",
        help="of demo and sd15: unguided, reference, kept, reduced, seldom, ours, unguided-cfg, ours-cfg (default: all)",
    )  # fmt: skip
    benchmark.add_argument("--device", default="cpu", help="torch device, e.g. cuda (default: cpu)")
    benchmark.set_defaults(run=_run_benchmark)
    demo = verbs.add_parser("demo", help="anonymize a portrait that comes with scikit-image, before and after in one file")
    demo.add_argument("-o", "--output", type=Path, default=Path("faceanon-demo.png"))
    _add_settings(demo)
    demo.set_defaults(run=_run_demo)
    cli_check.add_verbs(verbs)
    return parser


def _add_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--regions", default="face", help="regions to regenerate, e.g. face or eyes,nose (default: face)")
    parser.add_argument("--keep", default="", help="regions to leave untouched, e.g. eyes,mouth")
    parser.add_argument(
        "--parser", type=Path, help="SegFormer (a folder) or BiSeNet (a file): finds glasses, ears, hair, neck"
    )
    parser.add_argument("--target", help="gallery name or picture of a person who does not exist")
    parser.add_argument("--attributes", default="", help='attributes of the new face, e.g. "age=60s,sex=female"')
    parser.add_argument("--keep-attributes", help="attributes taken from the source (default: expression,skin)")
    parser.add_argument("--emphasis", type=float, help="how hard what is asked is told, 1 = once, and faster (default: 3)")
    cli_targets.add_gallery(parser)
    parser.add_argument("--encoder", type=Path, help="FaRL, CLIP or DINOv2, file or folder, to pull with")
    parser.add_argument(
        "--tokens", choices=("all", "class", "patches", "region"),
        help="what of the encoder's view is compared; region: patches in the new face only (default: all)",
    )  # fmt: skip
    parser.add_argument("--strength", type=float, help="pull towards the target, 0 = none (default: 1)")
    parser.add_argument("--identity-network", type=Path, help="IResNet or MobileFaceNet weights to push off the source")
    parser.add_argument("--away-identity", type=float, help="how hard, 0 = not at all (default: 1 with --identity-network)")
    parser.add_argument("--hold-pose", type=float, default=0.0, help="hold pose and expression, 1 = firmly (default: 0)")
    parser.add_argument(
        "--proportions", type=float,
        help="how far the features move from the source's places, 0 = stay (default: 0.45 where a recogniser checks, "
        "further with every try; else 0.9, which looks drawn)",
    )  # fmt: skip
    parser.add_argument(
        "--drawn", type=float,
        help="share of the steps, from the first, in which the model sees the features' lines, then their light alone: "
        "below about 0.5 faces look natural, and more like their sources (default: 1)",
    )  # fmt: skip
    parser.add_argument("--steps", type=int, help="denoising steps (default: 20)")
    parser.add_argument(
        "--seed", type=_seed,
        help="same seed, same picture; each: every picture has its own, so that a person's are harder to link (default: "
        "each for a folder, 0 for a picture or the reference preset)",
    )  # fmt: skip
    parser.add_argument(
        "--preset", choices=("default", "reference"), default="default",
        help="reference: the paper's settings to the letter, slower and without the defaults' care for pose",
    )  # fmt: skip
    parser.add_argument("--faces", default="all", help="all, largest, or how many of the largest (default: all)")
    parser.add_argument(
        "--on-failure", choices=("error", "redact", "keep"), default="error",
        help="a face that cannot be anonymized: stop, cover it, or leave it (default: error)",
    )  # fmt: skip
    cli_check.add_recognisers(parser, usual=cli_check.USUAL)
    parser.add_argument("--tries", type=int, default=4, help="how often, before the face counts as failed (default: 4)")
    parser.add_argument("--device", default="cpu", help="torch device, e.g. cuda (default: cpu)")


def _seed(text: str) -> int | str:
    return text if text == EACH else cli_targets.read_seed(text, f" or {EACH}")


def _settings(options: argparse.Namespace) -> Settings:
    from .encoder import DemoEncoder
    from .guidance import TermSettings
    from .pipeline import Settings, reference_settings
    from .regions import RegionChoice

    preset = Settings()
    if options.preset == "reference":
        preset = reference_settings((cli_engine.open_guide(options.encoder) or DemoEncoder).unit_strength)
    guidance, away = preset.guidance, options.away_identity
    if options.strength is not None:
        guidance = replace(guidance, strength=options.strength)
    if options.tokens is not None:
        guidance = replace(guidance, tokens=options.tokens)
    return replace(
        preset,
        regions=RegionChoice(split_names(options.regions), split_names(options.keep)),
        guidance=guidance,
        away_identity=TermSettings(float(options.identity_network is not None) if away is None else away),
        hold_pose=TermSettings(options.hold_pose),
        target=options.target,
        attributes=parse_attributes(options.attributes),
        keep_attributes=preset.keep_attributes if options.keep_attributes is None else split_names(options.keep_attributes),
        proportions=preset.proportions if options.proportions is None else options.proportions,
        drawn=preset.drawn if options.drawn is None else options.drawn,
        emphasis=preset.emphasis if options.emphasis is None else options.emphasis,
        steps=preset.steps if options.steps is None else options.steps,
        seed=options.seed if isinstance(options.seed, int) else 0,
        own_seed=_has_own_seeds(options),
        faces=options.faces,
        on_failure=options.on_failure,
        max_similarity=options.max_similarity,
        tries=options.tries,
    )


def _has_own_seeds(options: argparse.Namespace) -> bool:
    """Whether every picture has a seed of its own: asked for, or a folder, whose pictures may be of one person."""
    if options.seed is not None:
        return bool(options.seed == EACH)
    return options.run is _run_anonymize and options.source.is_dir() and options.preset != "reference"


def _run_download(options: argparse.Namespace) -> int:
    from tqdm import tqdm

    from .optional import download, find_optional, model_folder

    model = find_optional(options.name)
    warn(f"{model.file}, {model.licence}: {model.purpose}")
    with tqdm(unit="B", unit_scale=True, disable=None) as bar:
        path = download(model, options.output or model_folder(), bar.update)
    say(str(path))
    return 0


def _run_benchmark(options: argparse.Namespace) -> int:
    for line in _benchmark(options):
        say(line)
    return 0


def _benchmark(options: argparse.Namespace) -> list[str]:
    if options.case == "levers":
        from .benchmark_levers import benchmark_levers

        return benchmark_levers(options.precision, options.runs, options.device)
    if options.case == "solvers":
        from .benchmark_solvers import benchmark_solvers

        return benchmark_solvers(options.device)
    if options.case == "pipeline":
        from .benchmark_pipeline import benchmark_pipeline

        return benchmark_pipeline(_demo_portrait(), options.runs, options.device)
    from .benchmark import WAYS, benchmark

    return benchmark(options.case, options.precision, options.steps, options.runs, options.ways or WAYS, options.device)


def _demo_portrait() -> Any:
    try:
        from skimage.data import astronaut
    except ImportError as error:
        raise InputError('the demo portrait comes with scikit-image: pip install "faceanon[demo]"') from error
    return astronaut()


def _run_demo(options: argparse.Namespace) -> int:
    import numpy as np

    cli_check.choose_recognisers(options)
    before = _demo_portrait()
    refuse_existing(options.output)
    refuse_unwritable(options.output)
    result = cli_engine.open_anonymizer(options).anonymize(before, _settings(options), _bar())
    save_picture(Picture(np.hstack([before, result.pixels])), options.output)
    say(f"wrote {options.output}: before on the left, after on the right")
    return _report(options.output, result)


def _run_anonymize(options: argparse.Namespace) -> int:
    if not options.source.exists():
        raise InputError(f"{options.source} does not exist")
    cli_engine.use_threads(options)
    cli_check.choose_recognisers(options)
    settings = _settings(options)
    if options.source.is_dir():
        if options.chart is not None:
            raise InputError("--chart draws what became of one picture; leave it out for a folder")
        return _run_folder(options, settings)
    namer, output = make_namer(options.names, options.name_key), options.output
    if output.suffix.lower() not in SUFFIXES:
        output = output / namer(options.source.name)
    elif options.names != "keep":
        raise InputError(f"{options.names} names need a folder as output, but {output} is a file")
    written = [output] if options.chart is None else [output, options.chart]
    if len({path.resolve() for path in written}) < len(written):
        raise InputError(f"{output} cannot be both the picture and the chart; choose another file for one of them")
    for path in written:
        check_suffix(path.suffix)
        refuse_existing(path)
        refuse_unwritable(path)
    picture = load_picture(options.source, options.keep_metadata)
    check_fits(picture, output.suffix)
    result = cli_engine.open_anonymizer(options).anonymize(picture.pixels, settings, _bar())
    save_picture(replace(picture, pixels=result.pixels), output)
    say(f"wrote {output}")
    if options.chart is not None:
        _save_chart(result, options.chart)
    return _report(options.source, result)


def _save_chart(result: Result, path: Path) -> None:
    import numpy as np

    from .chart import draw_chart

    sampled = [(number, face.readout) for number, face in enumerate(result.faces, 1) if face.readout]
    if not sampled:
        warn(f"{path} is not written: no face was replaced, so there is nothing to draw")
        return
    save_picture(Picture(np.vstack([draw_chart(steps, whose=f"face {number}, ") for number, steps in sampled])), path)
    say(f"wrote {path}")


def _run_folder(options: argparse.Namespace, settings: Settings) -> int:
    source, output = options.source.resolve(), options.output.resolve()
    if output.exists() and any(output.samefile(folder) for folder in (source, *source.parents)):  # whatever it is spelled
        raise InputError(f"the output {options.output} would lie among the sources; choose another folder")
    found = find_sources(source, output)
    files = found.pictures
    if not files and not found.unread:
        raise InputError(f"{options.source} holds no pictures ({', '.join(SUFFIXES)})")
    namer = make_namer(options.names, options.name_key)
    if options.names == "random" and output.is_dir() and any(output.iterdir()):
        raise InputError(f"{options.output} is not empty, and random names cannot tell what is done; choose a new folder")
    if options.names != "keep" and names_sources(output):
        raise InputError(f"the journal in {options.output} names sources; choose a new folder for {options.names} names")
    anonymizer = cli_engine.open_anonymizer(cli_engine.driver_options(options))
    anonymizer.check(settings)
    engine = cli_engine.open_engine(options, anonymizer, settings)
    others = [options.encoder, options.parser, options.identity_network, *([options.gallery] if options.gallery else [])]
    resolved = [path and path.resolve() for path in others]  # the same file under another spelling is the same setting
    journal = Journal(output, _fingerprint(settings, options.keep_metadata, anonymizer, *resolved), namer)
    names = {path: namer(path.relative_to(source).as_posix()) for path in files}
    for note in found.notes:
        warn(note)

    def tell(path: Path, why: str) -> None:
        warn(f"failed: {path.relative_to(source).as_posix()}: {why}")

    for path, why in found.unread.items():
        tell(path, why)
    with journal.hold():
        remove_leftovers(output)
        problems = fill_folder(names, journal, engine, tell)
    count = len(found.unread) + sum(map(len, problems.values()))
    say(f"{len(files)} pictures, {count} problems, written to {options.output}")
    return 1 if count else 0


def _fingerprint(settings: Settings, keep_metadata: bool, anonymizer: Anonymizer, *others: object) -> str:
    """Of everything that decides what a result looks like or whether it may be written."""
    checks = [[network.key, network.limit(settings.max_similarity)] for network in anonymizer.recognisers]
    seen = anonymizer.detector.key
    text = json.dumps([asdict(settings), keep_metadata, checks, seen, *map(str, others)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _bar() -> Any:
    from tqdm import tqdm

    bar = tqdm(unit="step", disable=None)

    def progress(face: int, faces: int, step: Any) -> None:
        bar.total = faces * step.count
        bar.set_description(f"face {face + 1} of {faces}")
        bar.update(1)
        if bar.n >= bar.total:
            bar.close()

    return progress


def _report(source: Path, result: Result) -> int:
    for warning in result.warnings:
        warn(f"{source.name}: {warning}")
    return 1 if result.warnings else 0


if __name__ == "__main__":
    sys.exit(main())
