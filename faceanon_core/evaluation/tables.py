"""The figures as tables of text: what the documentation quotes and the page shows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .harness import Figures

_NOTHING = "-"
_SPREAD_TITLES = {
    "landmark_distance": ("landmark distance / inter-ocular", "mean", "{:.3f}"),
    "pose_error_degrees": ("pose error, degrees", "mean", "{:.1f}"),
    "expression_error": ("expression error, share of the feature's width", "mean", "{:.3f}"),
    "gaze_error": ("gaze error, eye widths", "mean", "{:.3f}"),
    "attribute_agreement": ("attributes that agree", "mean", "{:.0%}"),
    "sharpness_ratio": ("sharpness over the source's", "median", "{:.2f}"),
    "seconds": ("seconds per picture", "median", "{:.1f}"),
    "peak_memory_mb": ("peak memory, MiB", "most", "{:.0f}"),
}
ATTACK_TITLES = {
    "sharpen": "Re-identification after sharpening and after enlarging",
    "average": "Averaging several results of one source",
    "link": "Linking two photographs of a person through their results",
    "start": "What the start latent hands on",
    "regions": "What a kept region tells",
}


@dataclass(frozen=True)
class Table:
    """`rows` are as long as `columns`; the first column names the row."""

    columns: list[str]
    rows: list[list[str]]


def method_table(figures: Figures) -> Table:
    """One column per method."""
    methods: dict[str, Figures] = figures["methods"]
    rows = [_row("faces measured", methods, lambda f: str(f["faces"]))]
    rows.append(_row("refused to be made", methods, lambda f: str(len(f["failed_closed"]))))
    for network in figures["made_with"]["thresholds"]:
        rows += [
            _row(title, methods, lambda f, network=network, read=read: read(f["identity"][network]))
            for title, read in _identity_reads(network)
        ]
    rows.append(_row("a face is detected", methods, lambda f: say_share(f["detected"])))
    for name, (title, which, form) in _SPREAD_TITLES.items():
        rows.append(_row(f"{title} ({which})", methods, lambda f, n=name, w=which, s=form: _say_spread(f[n], w, s)))
    features = figures["made_with"]["features"]
    rows.append(_row(f"FID on {features}'s features", methods, lambda f: _say_distance(f, "frechet", "{:.1f}")))
    rows.append(
        _row(f"Visual-DNA distance on {features}'s features", methods, lambda f: _say_distance(f, "visual_dna", "{:.2f}"))
    )
    return Table(["", *methods], rows)


def attack_table(lines: list[Figures]) -> Table:
    """One row per line of an attack."""
    networks = list(lines[0]["identity"])
    reads = [(network, *read) for network in networks for read in _identity_reads(network)]
    columns = ["", "faces", *(title for _, title, _ in reads)]
    rows = [[line["label"], str(line["faces"]), *(read(line["identity"][net]) for net, _, read in reads)] for line in lines]
    return Table(columns, rows)


def write_tables(figures: Figures, path: Path) -> None:
    """Every table as Markdown."""
    parts = [_markdown("Methods", method_table(figures))] if figures["methods"] else []
    parts += [_markdown(ATTACK_TITLES[name], attack_table(lines)) for name, lines in figures["attacks"].items()]
    path.write_text("\n".join(parts), "utf-8")


def leakage_table(kept: list[Figures], start: list[Figures]) -> dict[str, Any]:
    """What `leakage.measured_leakage` reads: the attacks on kept regions and on the start, by their first network."""
    network = next(iter(kept[0]["identity"]))

    def entry(line: Figures) -> dict[str, Any]:
        identity = line["identity"][network]
        return {
            "similarity": round(identity["similarity"]["mean"], 3),
            "found": identity["rank1"]["hits"],
            "same_person": identity["same_person"]["0.01"]["hits"],
        }

    return {
        "network": network,
        "faces": kept[0]["faces"],
        "searched_among": kept[0]["identity"][network]["searched_among"],
        "kept": {line["label"]: entry(line) for line in kept},
        "start": {f"{line['share']:g}": entry(line) for line in start if "share" in line},
    }


def say_share(share: dict[str, float] | None) -> str:
    """A share with its interval, as people read it: "2.1% (0.4 to 5.9), 3 of 144"."""
    if share is None or not share["of"]:
        return _NOTHING
    return f"{share['share']:.1%} ({share['low'] * 100:.1f} to {share['high'] * 100:.1f}), {share['hits']} of {share['of']}"


def _identity_reads(network: str) -> list[tuple[str, Any]]:
    return [
        (f"{network}: same person at 1% false accepts", lambda i: say_share(i["same_person"]["0.01"])),
        (f"{network}: same person at 0.1% false accepts", lambda i: say_share(i["same_person"]["0.001"])),
        (f"{network}: source found at rank 1", lambda i: f"{say_share(i['rank1'])}, chance {1 / i['searched_among']:.1%}"),
        (f"{network}: mean similarity", _say_similarity),
    ]


def _say_similarity(identity: Figures) -> str:
    own, others = (_say_spread(identity.get(name), "mean", "{:.3f}") for name in ("similarity", "others"))
    return own if others == _NOTHING else f"{own} (of different people {others})"


def _row(title: str, methods: dict[str, Figures], read: Any) -> list[str]:
    return [title, *(read(figures) for figures in methods.values())]


def _say_spread(spread: dict[str, float] | None, which: str, form: str) -> str:
    return _NOTHING if spread is None else form.format(spread[which])


def _say_distance(figures: Figures, name: str, form: str) -> str:
    return _NOTHING if figures["distribution"] is None else form.format(figures["distribution"][name])


def _markdown(title: str, table: Table) -> str:
    head = [f"### {title}", "", f"| {' | '.join(table.columns)} |", f"|{'---|' * len(table.columns)}"]
    return "\n".join([*head, *(f"| {' | '.join(row)} |" for row in table.rows)]) + "\n"
