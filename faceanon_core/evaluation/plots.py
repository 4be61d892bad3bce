"""The report's plots, as SVG text."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .harness import Figures, Row

# Okabe and Ito's colours, which people with colour blindness can tell apart
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#444444", "#8B8000")
_BOXES = {
    "landmark_distance": "landmark distance / inter-ocular", "pose_error_degrees": "pose error, degrees",
    "expression_error": "expression error", "gaze_error": "gaze error, eye widths",
    "attribute_agreement": "attributes that agree", "sharpness_ratio": "sharpness over the source's",
}  # fmt: skip


def similarity_plot(rows: list[Row], network: str, others: NDArray[np.float32], thresholds: dict[str, Any]) -> str:
    """The share of faces more alike than x: results to their sources, and different sources to each other.

    Args:
        others: cosines of different people.
        thresholds: by rate of false accepts, with "value".
    """
    figure, axes = _figure(8.5, 3.6)
    few = np.quantile(others, np.linspace(0, 1, 1001))  # every pair would be a step in the file
    axes.ecdf(few, complementary=True, color="#bbbbbb", linewidth=4, label="different sources")
    for colour, (method, values) in zip(_COLOURS, _by_method(rows, f"similarity {network}"), strict=False):
        if values:
            axes.ecdf(values, complementary=True, linewidth=1.6, color=colour, label=f"{method} to its source")
    for far, style in zip(thresholds, ("--", ":"), strict=False):
        axes.axvline(thresholds[far]["value"], color="black", linestyle=style, linewidth=1, label=f"FAR {float(far):.1%}")
    axes.set(xlabel=f"cosine similarity, {network}", ylabel="share of faces more alike", xlim=(-0.4, 1))
    axes.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return _svg(figure)


def share_plot(labels: list[str], shares: dict[str, list[dict[str, float]]]) -> str:
    """Shares with their 95% intervals, one colour for each of `shares`, one line for each label."""
    figure, axes = _figure(8.5, 1.1 + 0.34 * len(labels))
    places = np.arange(len(labels), dtype=float)
    for number, (title, values) in enumerate(shares.items()):
        offset = (number - (len(shares) - 1) / 2) * 0.22
        middle = np.array([value["share"] for value in values])
        reach = [middle - [value["low"] for value in values], [value["high"] for value in values] - middle]
        axes.errorbar(
            100 * middle, places + offset, xerr=100 * np.clip(reach, 0, None), fmt="o", markersize=5, capsize=3,
            color=_COLOURS[number], label=title,
        )  # fmt: skip
    axes.set_yticks(places, labels, fontsize=8)
    axes.invert_yaxis()
    axes.set(xlabel="percent of faces, with 95% intervals", xlim=(-2, 102))
    axes.grid(axis="x", color="#eeeeee")
    axes.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return _svg(figure)


def utility_plot(rows: list[Row]) -> str:
    """What is left of pose, expression and picture, one box per method."""
    from matplotlib.figure import Figure

    figure = Figure((8.5, 4.6), layout="constrained")
    for place, (name, title) in zip(figure.subplots(2, 3).flat, _BOXES.items(), strict=True):
        groups = _by_method(rows, name)
        place.boxplot([values for _, values in groups], showfliers=True, flierprops={"markersize": 2}, widths=0.6)
        place.set_xticks(range(1, len(groups) + 1), [method for method, _ in groups], rotation=30, fontsize=7, ha="right")
        place.set_title(title, fontsize=8)
        place.tick_params(axis="y", labelsize=7)
    return _svg(figure)


def identity_shares(lines: list[Figures], network: str) -> dict[str, list[dict[str, float]]]:
    """What `share_plot` shows of methods or of an attack's lines."""
    identities = [line["identity"][network] for line in lines]
    return {
        "same person at 1% FAR": [identity["same_person"]["0.01"] for identity in identities],
        "same person at 0.1% FAR": [identity["same_person"]["0.001"] for identity in identities],
        "found at rank 1": [identity["rank1"] for identity in identities],
    }


def _by_method(rows: list[Row], name: str) -> list[tuple[str, list[float]]]:
    methods = dict.fromkeys(row["method"] for row in rows)
    return [(m, [row[name] for row in rows if row["method"] == m and row[name] is not None]) for m in methods]


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure((width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _svg(figure: Any) -> str:
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    return text[text.index("<svg") :]
