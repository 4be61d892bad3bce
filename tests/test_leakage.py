"""What the tool says of kept regions, in every place where they are chosen."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
from pack import load_pack

from faceanon_core import cli, cli_engine
from faceanon_core.errors import UnknownNameError
from faceanon_core.evaluation.attacks import REGIONS
from faceanon_core.leakage import NOTHING, kept_region_warning, late_start_warning, measured_leakage
from faceanon_core.regions import RegionChoice


def test_every_region_was_measured() -> None:
    table = measured_leakage()
    assert set(table["kept"]) == {NOTHING, *REGIONS}
    for line in table["kept"].values():
        assert 0 <= line["found"] <= table["faces"] and -1 <= line["similarity"] <= 1


def test_a_face_replaced_as_a_whole_needs_no_warning() -> None:
    assert kept_region_warning(RegionChoice()) is None


@pytest.mark.parametrize(
    ("choice", "told"),
    [
        (RegionChoice(keep=("eyes",)), {"eyes"}),
        (RegionChoice(keep=("left_eye", "mouth")), {"eyes", "mouth"}),
        (RegionChoice(regenerate=("skin", "eyes", "brows")), {"nose", "mouth"}),
        (RegionChoice(keep=("skin",)), set()),
    ],
)
def test_the_warning_states_the_figures_of_what_stays(choice: RegionChoice, told: set[str]) -> None:
    warning, table = kept_region_warning(choice), measured_leakage()
    assert warning is not None
    assert {region for region in REGIONS if f"with the {region} kept" in warning} == told
    for region in told:
        line = table["kept"][region]
        assert f"{line['found']} of {table['faces']} results were traced" in warning
        assert f"(mean similarity {line['similarity']:.2f})" in warning


def test_all_of_the_noise_needs_no_warning_and_less_states_what_was_measured_nearest() -> None:
    assert late_start_warning(1.0) is None
    for denoise in (0.95, 0.5, 0.05):
        warning, table = late_start_warning(denoise), measured_leakage()
        assert warning is not None and warning.startswith(f"denoise {denoise:g} starts from the source")
        nearest = min(set(table["start"]) - {"1"}, key=lambda share: abs(float(share) - denoise))
        line = table["start"][nearest]
        assert f"{line['found']} of {table['faces']} results were traced" in warning


@pytest.mark.comfyui
def test_sampler_nodes_warn_of_a_late_start(bridge, demo, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        assert len(bridge.schedule(demo["model"], "sgm_uniform", 4, 1.0)) == 5
        assert not caplog.records
        assert len(bridge.schedule(demo["model"], "sgm_uniform", 4, 0.5)) == 5
    assert ["denoise 0.5 starts from the source" in record.getMessage() for record in caplog.records] == [True]


def test_unknown_regions_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="no region named 'ear lobe'"):
        kept_region_warning(RegionChoice(keep=("ear lobe",)))


def test_the_command_line_warns_once_for_a_whole_folder(anonymizer, portrait, tmp_path, monkeypatch, caplog) -> None:
    monkeypatch.setattr(cli_engine, "open_anonymizer", lambda options: anonymizer)
    anonymizer._warned.clear()
    (tmp_path / "in").mkdir()
    for name in ("a.png", "b.png"):
        Image.fromarray(portrait).save(tmp_path / "in" / name)
    command = ["anonymize", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--steps", "1", "--keep", "nose"]
    with caplog.at_level(logging.WARNING):
        assert cli.main(command) == 0
    assert [record.getMessage().count("with the nose kept") for record in caplog.records] == [1]


def test_the_region_node_warns(crop, caplog) -> None:
    node = load_pack().NODE_CLASS_MAPPINGS["FaceAnon_RegionMask"]
    toggles = {name: True for name, spec in node.INPUT_TYPES()["required"].items() if spec[0] == "BOOLEAN"}
    with caplog.at_level(logging.WARNING):
        node().mask([(0, crop)], "", 20.0, 12.0, **toggles)
        assert not caplog.records
        node().mask([(0, crop)], "eyes", 20.0, 12.0, **toggles)
    assert any("with the eyes kept" in record.getMessage() for record in caplog.records)
