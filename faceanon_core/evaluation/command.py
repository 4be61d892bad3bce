"""The verb `faceanon evaluate`. Imports nothing heavy until it runs."""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..console import say, warn
from ..errors import InputError
from ..names import split_names

if TYPE_CHECKING:
    from ..identity import FaceRecogniser
    from .attacks import Bench
    from .baselines import Workshop
    from .harness import Figures, Gallery, Method, Row
    from .observe import Observer

_NEEDED = ("torchmetrics", "matplotlib", "jinja2")
_SEEN, _MADE = "seen", "made"  # folders in the output that make a run resumable


def add_evaluate(verbs: Any) -> None:
    """Add the verb to an argparse subparsers object."""
    parser = verbs.add_parser("evaluate", help="measure anonymized pictures against their sources, and attack them")
    parser.add_argument("sources", type=Path, help="folder of originals; each face is taken for another person")
    parser.add_argument("results", type=Path, nargs="?", help="folder of anonymized pictures under the sources' names")
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for report, figures and what was made")
    parser.add_argument(
        "--recogniser", type=Path, nargs="+", action="extend", required=True,
        help="ONNX face-recognition networks; dlib: dlib's. Who checked is no judge",
    )  # fmt: skip
    parser.add_argument(
        "--baselines", default="", help="also run, on the same pictures: blur,pixelate,solid,unguided,reference,default"
    )
    parser.add_argument("--attacks", default="", help="also attack: sharpen,average,link,start,regions")
    parser.add_argument("--limit", type=int, help="baselines and attacks take this many sources, drawn at random")
    parser.add_argument("--features", type=Path, help="ONNX network for the distribution distances (default: demo encoder)")
    parser.add_argument("--device", default="cpu", help="torch device for baselines and attacks (default: cpu)")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Measure and write `rows.csv`, `figures.json`, `tables.md` and `report.html`, anew after every method and attack.

    Returns: the exit code.
    Raises: InputError for folders that do not fit, a lacking package, or nothing to measure.
    """
    _check(options)
    from ..dlib_recogniser import open_recogniser
    from .attacks import Bench, run_attack
    from .harness import Gallery, find_thresholds

    networks = [open_recogniser(path) for path in options.recogniser]
    observer = _observer(networks, options)
    gallery = Gallery(options.sources, observer, options.results)
    for line in (*(f"not measured: {name}: {why}" for name, why in gallery.unread.items()), *gallery.notes):
        warn(line)
    thresholds = {network.name: find_thresholds(gallery, network.name, network.thresholds) for network in networks}
    bench = Bench(_workshop(options, gallery), gallery, observer, thresholds)
    methods: list[Method] = []
    rows: list[Row] = []
    figures: Figures = {"made_with": _made_with(bench), "methods": {}, "attacks": {}}
    for method in _methods(options, bench):
        measured, figures["methods"][method.name] = bench.measure(method)
        methods.append(method)
        rows += measured
        say(identity_text(method.name, figures["methods"][method.name]["identity"]))
        write_report(figures, rows, methods, gallery, options.output)
    for name in split_names(options.attacks):
        lines = run_attack(name, bench, methods)
        if lines:
            figures["attacks"][name] = lines
        write_report(figures, rows, methods, gallery, options.output)
    return 0


def write_report(figures: Figures, rows: list[Row], methods: list[Method], gallery: Gallery, folder: Path) -> None:
    """Everything that is known so far, as CSV, JSON, Markdown and HTML."""
    from ..leakage import FILE
    from .page import write_page
    from .tables import leakage_table, write_tables

    write_rows(rows, folder / "rows.csv")
    (folder / "figures.json").write_text(json.dumps(figures, indent=1) + "\n", "utf-8")
    write_tables(figures, folder / "tables.md")
    kept, start = (figures["attacks"].get(name, []) for name in ("regions", "start"))
    if kept and start and all(line["faces"] for line in [*kept, *start]):
        (folder / FILE).write_text(json.dumps(leakage_table(kept, start), indent=1) + "\n", "utf-8")
    write_page(figures, rows, methods, gallery, folder / "report.html")


def _check(options: argparse.Namespace) -> None:
    from .attacks import ATTACKS
    from .baselines import BASELINES

    lacking = [name for name in _NEEDED if find_spec(name) is None]
    if lacking:
        raise InputError(f'evaluating needs {", ".join(lacking)}: pip install "faceanon[evaluate]"')
    for folder in filter(None, (options.sources, options.results)):
        if not folder.is_dir():
            raise InputError(f"{folder} is no folder")
    output = options.output.resolve()
    if options.sources.resolve() in (output, *output.parents):
        raise InputError(f"the output {options.output} would lie among the sources; choose another folder")
    if options.results is not None and options.results.resolve() in (output, *output.parents):
        raise InputError(f"the report names the sources, so it must not lie among the results; {options.output} does")
    if output.exists() and any(output.iterdir()) and not (output / _SEEN).is_dir():
        raise InputError(f"{options.output} holds something else than an evaluation; choose another folder")
    if options.results is None and not split_names(options.baselines) and not split_names(options.attacks):
        raise InputError("there is nothing to measure: name a folder of results, or --baselines, or --attacks")
    if options.limit is not None and options.limit < 1:
        raise InputError(f"limit must be at least 1, got {options.limit}")
    for option, known in (("baselines", BASELINES), ("attacks", ATTACKS)):
        unknown = [name for name in split_names(getattr(options, option)) if name not in known]
        if unknown:
            raise InputError(f"there is no {option[:-1]} {unknown[0]!r}; known: {', '.join(known)}")
    if len({path.stem for path in options.recogniser}) < len(options.recogniser):
        raise InputError("two recognisers have the same file name; give them different ones")


def identity_text(method: str, identity: Figures) -> str:
    """For people, one line per network: what it knows of a method's results."""
    from .tables import say_share

    return "\n".join(
        f"{method}, {network}: same person at 1% false accepts {say_share(found['same_person']['0.01'])}; "
        f"source found at rank 1 among {found['searched_among']}: {say_share(found['rank1'])}"
        for network, found in identity.items()
    )


def _observer(networks: list[FaceRecogniser], options: argparse.Namespace) -> Observer:
    from .features import OnnxFeatures
    from .observe import Observer

    features = OnnxFeatures(options.features) if options.features is not None else None
    try:
        (options.output / _SEEN).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{options.output} cannot be written: {error.strerror}") from error
    return Observer(networks, options.output / _SEEN, features)


def _workshop(options: argparse.Namespace, gallery: Gallery) -> Workshop:
    """Baselines and attacks: on the sources with a face, or as many of them as were asked for."""
    import numpy as np

    from ..pipeline import Anonymizer
    from .baselines import Workshop

    names = [name for name in gallery.names if gallery.of(name)]
    drawn = [names[int(i)] for i in np.random.default_rng(0).permutation(len(names))][: options.limit]
    sources = {name: options.sources / name for name in drawn}
    return Workshop(Anonymizer(device=options.device), sources, options.output / _MADE)


def _methods(options: argparse.Namespace, bench: Bench) -> Iterator[Method]:
    """What there is to measure, one after the other as it is made."""
    from .baselines import run_baseline
    from .harness import find_results

    if options.results is not None:
        yield find_results(options.results, bench.gallery.names)
    for name in split_names(options.baselines):
        yield run_baseline(name, bench.workshop)


def _made_with(bench: Bench) -> Figures:
    thresholds = {
        network: {f"{far:g}": {"value": bound.value, "origin": bound.origin} for far, bound in bounds.items()}
        for network, bounds in bench.thresholds.items()
    }
    return {
        "sources": len(bench.gallery.names),
        "source_faces": len(bench.gallery.faces),
        "unread": bench.gallery.unread,
        "without_face": [name for name in bench.gallery.names if not bench.gallery.of(name)],
        "thresholds": thresholds,
        "features": bench.observer.features.name,
    }


def write_rows(rows: list[Row], path: Path) -> None:
    """One line per face and method; empty where a figure does not apply."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with path.open("w", newline="", encoding="utf-8") as handle:
        table = csv.DictWriter(handle, columns)
        table.writeheader()
        table.writerows(rows)
