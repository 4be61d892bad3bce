"""The report: one HTML file with everything inside, no script, nothing loaded from elsewhere."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from ..image import load_picture
from .harness import Figures, Gallery, Method, Row
from .measures import impostor_scores
from .observe import face_crop
from .plots import identity_shares, share_plot, similarity_plot, utility_plot
from .tables import ATTACK_TITLES, attack_table, method_table

_CASES = 6  # best and worst shown of each kind
_CASE_PX = 128


@dataclass(frozen=True)
class Case:
    """One face before and after, as data URIs, and what is said of it."""

    before: str
    after: str
    caption: str


def write_page(figures: Figures, rows: list[Row], methods: list[Method], gallery: Gallery, path: Path) -> None:
    """Write the report; everything it shows is in `figures` and `rows`, or read from the pictures."""
    from jinja2 import Environment, FileSystemLoader

    templates = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True)
    text = templates.get_template("report.html").render(
        made_with=figures["made_with"],
        methods=method_table(figures) if rows else None,
        plots=_method_plots(figures, rows, gallery) if rows else [],
        attacks=[_attack(name, lines) for name, lines in figures["attacks"].items()],
        cases=[(method.name, _cases(method, rows, gallery, figures)) for method in methods],
    )
    path.write_text(text, "utf-8")


def _method_plots(figures: Figures, rows: list[Row], gallery: Gallery) -> list[tuple[str, Markup]]:
    plots = []
    methods = figures["methods"]
    for network, thresholds in figures["made_with"]["thresholds"].items():
        others = impostor_scores(gallery.embeddings(network))
        plots.append((f"Similarity to the source, {network}", similarity_plot(rows, network, others, thresholds)))
        shares = share_plot(list(methods), identity_shares(list(methods.values()), network))
        plots.append((f"Identity, {network}", shares))
    plots.append(("What stays of the face", utility_plot(rows)))
    return [(title, Markup(svg)) for title, svg in plots]  # our own SVG; the texts in it are escaped by matplotlib


def _attack(name: str, lines: list[Figures]) -> dict[str, object]:
    labels = [line["label"] for line in lines]
    plots = [Markup(share_plot(labels, identity_shares(lines, network))) for network in lines[0]["identity"]]
    return {"title": ATTACK_TITLES[name], "table": attack_table(lines), "plots": plots}


def _cases(method: Method, rows: list[Row], gallery: Gallery, figures: Figures) -> list[tuple[str, list[Case]]]:
    own = [row for row in rows if row["method"] == method.name]
    network = next(iter(figures["made_with"]["thresholds"]))
    alike = sorted(own, key=lambda row: -row[f"similarity {network}"])
    bent = sorted((row for row in own if row["detected"]), key=lambda row: -row["landmark_distance"])
    groups = [
        ("most like the source (worst)", alike[:_CASES]),
        ("least like the source (best)", alike[::-1][:_CASES]),
        ("landmarks furthest from the source's (worst)", bent[:_CASES]),
        ("landmarks nearest to the source's (best)", bent[::-1][:_CASES]),
        ("no face is found in the result", [row for row in own if not row["detected"]][:_CASES]),
    ]
    return [(title, [_case(method, row, gallery, network) for row in chosen]) for title, chosen in groups if chosen]


def _case(method: Method, row: Row, gallery: Gallery, network: str) -> Case:
    name = row["picture"]
    place = gallery.of(name)[row["face"] - 1].place
    source, result = load_picture(gallery.root / name).pixels, load_picture(method.results[name]).pixels
    if result.shape != source.shape:
        result = cv2.resize(result, (source.shape[1], source.shape[0]), interpolation=cv2.INTER_AREA)
    shift = "" if row["landmark_distance"] is None else f", landmarks {row['landmark_distance']:.3f}"
    caption = f"{name}, face {row['face']}: similarity {row[f'similarity {network}']:.2f}{shift}"
    before, after = (_data_uri(face_crop(pixels, place).pixels) for pixels in (source, result))
    return Case(before, after, caption)


def _data_uri(pixels: NDArray[np.uint8]) -> str:
    small = cv2.resize(pixels, (_CASE_PX, _CASE_PX), interpolation=cv2.INTER_AREA)
    _, encoded = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 88])
    return f"data:image/jpeg;base64,{base64.b64encode(encoded.tobytes()).decode()}"
