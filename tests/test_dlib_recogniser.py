"""dlib's recogniser, which checks what the command line makes."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from faceanon_core import cli, cli_check
from faceanon_core.dlib_recogniser import DLIB, LIMIT, DlibRecogniser
from faceanon_core.errors import InputError
from faceanon_core.pipeline import Anonymizer, Settings
from faceanon_core.target import gallery_index, gallery_target

COMMAND = ["anonymize", "a.png", "-o", "b.png"]


def chosen(words: list[str]) -> list[str]:
    options = cli._parser().parse_args(words)
    cli_check.choose_recognisers(options)
    return [str(path) for path in options.recogniser]


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ([], [DLIB]),
        (["--recogniser", "none"], ["none"]),
        (["--recogniser", "a.onnx"], ["a.onnx"]),
        (["--keep", "eyes"], []),  # stays alike on purpose
        (["--regions", "nose"], []),
        (["--regions", "face,glasses"], [DLIB]),
        (["--regions", "face,hair"], [DLIB]),
        (["--regions", "face "], [DLIB]),
        (["--regions", "skin,nose,eyes,brows,mouth"], [DLIB]),
        (["--keep", "hair"], [DLIB]),  # none of the face
        (["--keep", "glasses"], [DLIB]),
        (["--keep", " "], [DLIB]),
        (["--preset", "reference"], []),
        (["--preset", "reference", "--recogniser", DLIB], [DLIB]),
    ],
)
def test_whole_faces_are_checked_unless_that_is_switched_off_aloud(words: list[str], wanted: list[str], capsys) -> None:
    for command in (COMMAND, ["demo"]):
        assert chosen([*command, *words]) == wanted
        unchecked = wanted in ([], ["none"])
        assert capsys.readouterr().err.count("no recogniser checks the results") == unchecked


def test_a_broken_installation_without_dlib_makes_nothing_unchecked(
    portrait_file: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setitem(sys.modules, "dlib", None)
    assert cli.main(["anonymize", str(portrait_file), "-o", str(tmp_path / "new.png"), "--steps", "1"]) == 2
    assert "dlib-bin, which is not installed: pip install dlib-bin" in capsys.readouterr().err
    assert not (tmp_path / "new.png").exists()


def test_the_check_is_not_switched_off_and_asked_for_at_once() -> None:
    options = cli._parser().parse_args([*COMMAND, "--recogniser", "none", "--recogniser", DLIB])
    with pytest.raises(InputError, match="--recogniser none switches the check off; leave it out where a network is named"):
        cli_check.open_recognisers(options)


def test_the_command_line_writes_nothing_that_it_still_knows(portrait_file: Path, tmp_path: Path, capsys) -> None:
    words = ["anonymize", str(portrait_file), "-o", str(tmp_path / "new.png"), "--steps", "1", "--tries", "1"]
    assert cli.main([*words, "--max-similarity", "-1"]) == 1 and not (tmp_path / "new.png").exists()
    assert "it still looks like the source (dlib: similarity" in capsys.readouterr().err


def test_a_person_in_a_darker_and_coarser_picture_is_known_and_more_alike_than_any_other(anonymizer: Anonymizer) -> None:
    network = DlibRecogniser()
    pictures = [(gallery_target(name).image[0].permute(1, 2, 0).numpy() * 255).astype(np.uint8) for name in gallery_index()]
    places = [anonymizer.detector.detect(pixels)[0].landmarks for pixels in pictures]
    coarser = [np.asarray(Image.fromarray(pixels // 4 * 3).resize((100, 100)).resize((256, 256))) for pixels in pictures]
    before, after = (
        np.stack([network.embed(pixels, place) for pixels, place in zip(some, places, strict=True)])
        for some in (pictures, coarser)
    )
    scores = before @ after.T
    assert (scores.argmax(1) == np.arange(len(pictures))).all() and scores.diagonal().min() > network.limit()


def test_another_process_gets_the_same_network_and_limit() -> None:
    strict = DlibRecogniser()
    strict.set_limit(0.1)
    copy = pickle.loads(pickle.dumps(strict))
    assert (copy.name, copy.key, copy.limit()) == (DLIB, strict.key, 0.1)
    assert DlibRecogniser().limit() == LIMIT and strict.limit(0.7) == 0.7


def test_features_start_near_where_people_have_them_only_where_a_recogniser_checks(
    anonymizer: Anonymizer, astronaut
) -> None:
    checked = Anonymizer(recognisers=[DlibRecogniser()])
    checked.__dict__.update(model=anonymizer.model, encoder=anonymizer.encoder)

    def made(by: Anonymizer, **more: float) -> list[object]:
        return by.anonymize(astronaut, Settings(steps=2, **more)).pixels.tolist()

    natural, hiding = made(anonymizer, proportions=0.45), made(anonymizer, proportions=0.9)
    assert natural != hiding
    assert made(checked, max_similarity=1.0) == natural and made(anonymizer) == hiding
