"""The command line: `faceanon anonymize`, `targets`, `download` and `demo`.

Exit codes: 0 everything asked for was written; 1 at least one picture failed or was left with a face as it is;
2 the command could not start (bad arguments or input).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .attributes import describe, parse_attributes
from .errors import FaceAnonError, InputError, WeightsError
from .image import SUFFIXES, Picture, load_picture, save_picture

if TYPE_CHECKING:
    from .encoder import AttributeEncoder
    from .pipeline import Anonymizer, Result, Settings

log = logging.getLogger("faceanon")
JOURNAL = "faceanon-journal.jsonl"


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point. Returns: the exit code."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO if options.verbose else logging.WARNING, format="%(message)s")
    try:
        code: int = options.run(options)
        return code
    except FaceAnonError as error:
        _say(f"faceanon: {error}")
        # a picture that cannot be anonymized is a failure; anything else is a command that could not start
        return 2 if isinstance(error, (InputError, WeightsError)) else 1
    except KeyboardInterrupt:
        _say("faceanon: stopped; run the same command again to go on")
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="faceanon", description="Replace faces with faces of people who do not exist.")
    parser.add_argument("-v", "--verbose", action="store_true", help="say more on the way")
    verbs = parser.add_subparsers(required=True, metavar="anonymize | targets | download | demo")
    anonymize = verbs.add_parser("anonymize", help="anonymize a photograph or a folder of photographs")
    anonymize.add_argument("source", type=Path, help="photograph, or folder (searched recursively)")
    anonymize.add_argument("-o", "--output", type=Path, required=True, help="file or folder to write; never a source")
    anonymize.add_argument("--keep-metadata", action="store_true", help="copy the source's EXIF (may hold place and time)")
    _add_settings(anonymize)
    anonymize.set_defaults(run=_run_anonymize)
    targets = verbs.add_parser("targets", help="list the gallery of target faces and the attributes one can ask for")
    targets.set_defaults(run=_run_targets)
    download = verbs.add_parser("download", help="fetch an optional model and check that it is the right one")
    download.add_argument("name", help="face_landmarker")
    download.add_argument("-o", "--output", type=Path, help="folder (default: ~/.faceanon, or what FACEANON_MODELS names)")
    download.set_defaults(run=_run_download)
    demo = verbs.add_parser("demo", help="anonymize a portrait that comes with scikit-image, before and after in one file")
    demo.add_argument("-o", "--output", type=Path, default=Path("faceanon-demo.png"))
    _add_settings(demo)
    demo.set_defaults(run=_run_demo)
    return parser


def _add_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--regions", default="face", help="regions to regenerate, e.g. face or eyes,nose (default: face)")
    parser.add_argument("--keep", default="", help="regions to leave untouched, e.g. eyes,mouth")
    parser.add_argument("--parser", type=Path, help="SegFormer face parser, a folder: finds glasses, ears, hair, hat, neck")
    parser.add_argument("--target", help="gallery name or picture of a person who does not exist")
    parser.add_argument("--attributes", default="", help='attributes of the new face, e.g. "age=60s,sex=female"')
    parser.add_argument("--encoder", type=Path, help="FaRL, CLIP or DINOv2, file or folder, to pull with")
    parser.add_argument("--strength", type=float, help="pull towards the target, 0 = none (default: 1)")
    parser.add_argument("--identity-network", type=Path, help="IResNet or MobileFaceNet weights to push off the source")
    parser.add_argument("--away-identity", type=float, help="how hard, 0 = not at all (default: 1 with --identity-network)")
    parser.add_argument("--hold-pose", type=float, default=0.0, help="hold pose and expression, 1 = firmly (default: 0)")
    parser.add_argument(
        "--proportions", type=float, help="how far the features move from the source's places, 0 = stay (default: 1)"
    )
    parser.add_argument("--steps", type=int, help="denoising steps (default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same picture (default: 0)")
    parser.add_argument(
        "--preset", choices=("default", "reference"), default="default",
        help="reference: the paper's settings to the letter, slower and without the defaults' care for pose",
    )  # fmt: skip
    parser.add_argument("--faces", default="all", help="all, largest, or how many of the largest (default: all)")
    parser.add_argument(
        "--on-failure", choices=("error", "redact", "keep"), default="error",
        help="a face that cannot be anonymized: stop, cover it, or leave it (default: error)",
    )  # fmt: skip
    parser.add_argument("--recogniser", type=Path, help="ONNX face-recognition network that checks every result")
    parser.add_argument(
        "--max-similarity", type=float, help="to the source, -1 to 1, by --recogniser; above, the face is made again"
    )
    parser.add_argument("--tries", type=int, default=4, help="how often, before the face counts as failed (default: 4)")
    parser.add_argument("--device", default="cpu", help="torch device, e.g. cuda (default: cpu)")


def _settings(options: argparse.Namespace) -> Settings:
    from .encoder import DemoEncoder
    from .guidance import TermSettings
    from .pipeline import Settings, reference_settings
    from .regions import RegionChoice

    preset = Settings()
    if options.preset == "reference":
        preset = reference_settings((_guide(options.encoder) or DemoEncoder).unit_strength)
    guidance, away = preset.guidance, options.away_identity
    if options.strength is not None:
        guidance = replace(guidance, strength=options.strength)
    return replace(
        preset,
        regions=RegionChoice(regenerate=_names(options.regions), keep=_names(options.keep)),
        guidance=guidance,
        away_identity=TermSettings(float(options.identity_network is not None) if away is None else away),
        hold_pose=TermSettings(options.hold_pose),
        target=options.target,
        attributes=parse_attributes(options.attributes),
        proportions=preset.proportions if options.proportions is None else options.proportions,
        steps=preset.steps if options.steps is None else options.steps,
        seed=options.seed,
        faces=options.faces,
        on_failure=options.on_failure,
        max_similarity=options.max_similarity,
        tries=options.tries,
    )


@cache
def _guide(path: Path | None) -> AttributeEncoder | None:
    """The encoder the user brings."""
    if path is None:
        return None
    from .vision_encoders import load_vision_encoder

    return load_vision_encoder(path)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _run_download(options: argparse.Namespace) -> int:
    from tqdm import tqdm

    from .optional import download, find_optional, model_folder

    model = find_optional(options.name)
    _say(f"{model.file}, {model.licence}: {model.purpose}")
    with tqdm(unit="B", unit_scale=True, disable=None) as bar:
        path = download(model, options.output or model_folder(), bar.update)
    _say(str(path), sys.stdout)
    return 0


def _run_targets(options: argparse.Namespace) -> int:
    from .attributes import VOCABULARY
    from .target import gallery_index

    for name, attributes in sorted(gallery_index().items()):
        _say(f"{name:12} {describe(attributes)}", sys.stdout)
    _say("\nattributes that --attributes takes:", sys.stdout)
    for attribute in VOCABULARY:
        _say(f"{attribute.name:12} {', '.join(attribute.values)}", sys.stdout)
    return 0


def _run_demo(options: argparse.Namespace) -> int:
    import numpy as np

    try:
        from skimage.data import astronaut
    except ImportError as error:
        raise InputError('the demo portrait comes with scikit-image: pip install "faceanon[demo]"') from error
    _refuse_existing(options.output)
    _refuse_unwritable(options.output)
    before = astronaut()
    result = _open_anonymizer(options).anonymize(before, _settings(options), _bar())
    save_picture(Picture(np.hstack([before, result.pixels])), options.output)
    _say(f"wrote {options.output}: before on the left, after on the right", sys.stdout)
    return _report(options.output, result)


def _run_anonymize(options: argparse.Namespace) -> int:
    if not options.source.exists():
        raise InputError(f"{options.source} does not exist")
    settings = _settings(options)
    if options.source.is_dir():
        return _run_folder(options, settings)
    output = options.output
    if output.suffix.lower() not in SUFFIXES:
        output = output / options.source.name
    _refuse_existing(output)
    _refuse_unwritable(output)
    picture = load_picture(options.source)
    result = _open_anonymizer(options).anonymize(picture.pixels, settings, _bar())
    save_picture(replace(picture, pixels=result.pixels), output, options.keep_metadata)
    _say(f"wrote {output}", sys.stdout)
    return _report(options.source, result)


def _run_folder(options: argparse.Namespace, settings: Settings) -> int:
    source, output = options.source.resolve(), options.output.resolve()
    if output == source or output in source.parents:
        raise InputError(f"the output {options.output} would lie among the sources; choose another folder")
    files = [path for path in _pictures(source) if output not in path.parents]
    if not files:
        raise InputError(f"{options.source} holds no pictures ({', '.join(SUFFIXES)})")
    anonymizer = _open_anonymizer(options)
    anonymizer.check(settings)
    _make_folder(output)
    key = _fingerprint(settings, options.keep_metadata, options.encoder, options.parser, options.identity_network)
    done = _read_journal(output / JOURNAL, key)
    failures: list[str] = []
    from tqdm import tqdm

    for path in tqdm(files, unit="picture", disable=None):
        name = path.relative_to(source).as_posix()
        if name in done and (output / name).is_file():
            failures += done[name]
            continue
        try:
            _refuse_existing(output / name)
            picture = load_picture(path)
            result = anonymizer.anonymize(picture.pixels, settings)
            save_picture(replace(picture, pixels=result.pixels), output / name, options.keep_metadata)
        except FaceAnonError as error:
            failures.append(f"{name}: {error}")
            continue
        warnings = [f"{name}: {warning}" for warning in result.warnings]
        _append_journal(output / JOURNAL, name, key, warnings)
        failures += warnings
    for failure in failures:
        _say(f"failed: {failure}")
    _say(f"{len(files)} pictures, {len(failures)} problems, written to {options.output}", sys.stdout)
    return 1 if failures else 0


def _pictures(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in SUFFIXES and path.is_file() and not path.name.startswith("."):
            yield path


def _refuse_existing(path: Path) -> None:
    if path.exists():
        raise InputError(f"{path} exists already; choose another name or remove it first")


def _refuse_unwritable(path: Path) -> None:
    """Find out before the work is done, and without making anything."""
    existing = next(parent for parent in path.absolute().parents if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise InputError(f"{path} cannot be written: {existing} is no folder you may write to")


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / JOURNAL).touch()
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error.strerror}") from error


def _fingerprint(settings: Settings, *others: object) -> str:
    text = json.dumps([asdict(settings), *map(str, others)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _read_journal(path: Path, key: str) -> dict[str, list[str]]:
    """Names already written with the same settings and their warnings; a half-written last line is ignored."""
    done = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        if entry.get("settings") == key:
            done[entry["name"]] = entry["warnings"]
    return done


def _append_journal(path: Path, name: str, key: str, warnings: list[str]) -> None:
    with path.open("a", encoding="utf-8") as journal:
        journal.write(json.dumps({"name": name, "settings": key, "warnings": warnings}) + "\n")


def _open_anonymizer(options: argparse.Namespace) -> Anonymizer:
    import torch

    from .identity import Recogniser
    from .pipeline import Anonymizer
    from .recognition import load_recognition
    from .semantic_parser import load_segformer

    try:
        torch.empty(0, device=options.device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"there is no device {options.device!r} here; use cpu, or cuda with a CUDA build of torch"
        ) from error
    if options.recogniser is not None and options.max_similarity is None:
        raise InputError("--recogniser needs --max-similarity, the highest similarity to the source that may pass")
    recogniser = Recogniser(options.recogniser) if options.recogniser is not None else None
    face_parser = load_segformer(options.parser).to(options.device) if options.parser is not None else None
    recognition = load_recognition(options.identity_network) if options.identity_network is not None else None
    return Anonymizer(
        device=options.device, parser=face_parser, recogniser=recogniser, guide=_guide(options.encoder),
        recognition=recognition,
    )  # fmt: skip


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
        _say(f"{source.name}: {warning}")
    return 1 if result.warnings else 0


def _say(text: str, stream: Any = None) -> None:
    (stream or sys.stderr).write(text + "\n")


if __name__ == "__main__":
    sys.exit(main())
