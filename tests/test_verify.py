"""`faceanon verify`: a good folder passes, and each thing that must not leave is named."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from faceanon_core import cli
from faceanon_core.folder import JOURNAL, make_namer
from faceanon_core.image import load_picture
from faceanon_core.pipeline import Anonymizer, Settings
from faceanon_core.redact import redact_face

KEY = b"0123456789abcdef"
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def made(anonymizer: Anonymizer, astronaut, portrait, tmp_path_factory) -> Path:
    """sources/ and results/: a portrait and, in a subfolder, a larger picture whose face was covered."""
    folder = tmp_path_factory.mktemp("made")
    for part in ("sources/trip", "results/trip"):
        (folder / part).mkdir(parents=True)
    Image.fromarray(portrait).save(folder / "sources" / "a.png")
    Image.fromarray(astronaut).save(folder / "sources" / "trip" / "b.jpg", quality=95)
    new = anonymizer.anonymize(portrait, Settings(steps=4)).pixels
    Image.fromarray(new).save(folder / "results" / "a.png")
    (face,) = anonymizer.detector.detect(astronaut)
    Image.fromarray(redact_face(astronaut, face)).save(folder / "results" / "trip" / "b.jpg", quality=95)
    (folder / "results" / JOURNAL).write_text("{}")
    return folder


@pytest.fixture
def album(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "album")
    return tmp_path / "album"


def verify(album: Path, *words: object) -> int:
    return cli.main(["verify", str(album / "sources"), str(album / "results"), *map(str, words)])


def test_a_good_folder_passes_and_the_reports_are_written(album: Path, capsys) -> None:
    assert verify(album, "-o", album / "report.json") == 0
    said = capsys.readouterr().out
    assert "2 sources, 2 faces: passed" in said and "no recogniser was named" in said
    report = json.loads((album / "report.json").read_text())
    assert report["passed"] and [p["result"] for p in report["pictures"]] == ["a.png", "trip/b.jpg"]
    assert all(face["likeness"] < 0.8 and face["problem"] == "" for p in report["pictures"] for face in p["faces"])
    assert (album / "report.txt").read_text() == said
    assert verify(album, "-o", album / "report.json") == 2  # never overwritten
    assert verify(album, "-o", album / "results" / "report.json") == 2  # it names the sources


def recompressed(album: Path) -> None:
    darker = (load_picture(album / "sources" / "a.png").pixels * 0.8).astype(np.uint8)
    Image.fromarray(cv2.GaussianBlur(darker, (0, 0), 0.8)).save(album / "results" / "a.png")


def blurred(album: Path) -> None:
    """A face that still is one for the detector, but is too soft to be compared by its fine structure."""
    Image.fromarray(cv2.GaussianBlur(load_picture(album / "sources" / "a.png").pixels, (0, 0), 4)).save(
        album / "results" / "a.png"
    )


def blurred_at_the_border(album: Path) -> None:
    """Half a face, which nothing can replace."""
    half = np.ascontiguousarray(load_picture(album / "sources" / "a.png").pixels[:, 95:])
    Image.fromarray(half).save(album / "sources" / "a.png")
    Image.fromarray(cv2.GaussianBlur(half, (0, 0), 5)).save(album / "results" / "a.png")


def swapped(album: Path) -> None:
    shutil.copy(album / "sources" / "a.png", album / "results" / "trip" / "b.jpg")


def another_size(album: Path) -> None:
    Image.fromarray(load_picture(album / "results" / "a.png").pixels[:200]).save(album / "results" / "a.png")


def with_transparency(album: Path) -> None:
    """The result itself on white, and something else on black."""
    pixels = load_picture(album / "results" / "a.png").pixels
    alpha = np.where(np.indices(pixels.shape[:2]).sum(0) < 100, 0, 255).astype(np.uint8)
    Image.fromarray(np.dstack([pixels, alpha])).save(album / "results" / "a.png")


def with_exif(album: Path) -> None:
    exif = Image.Exif()
    exif[0x8825] = {1: "N", 2: (52.0, 31.0, 0.0)}
    picture = album / "results" / "trip" / "b.jpg"
    Image.open(picture).save(picture, exif=exif, quality=95)


def overlooked(album: Path) -> None:
    """A second face, in both pictures as it is, that hides from the detector in the source."""
    after = load_picture(album / "results" / "a.png").pixels
    new = np.hstack([after, load_picture(album / "sources" / "a.png").pixels])
    Image.fromarray(new).save(album / "results" / "a.png")
    Image.fromarray(np.hstack([load_picture(album / "sources" / "a.png").pixels] * 2)).save(album / "sources" / "a.png")


PLANTED = {
    "the source itself": (lambda album: shutil.copy(album / "sources" / "a.png", album / "results" / "a.png"), "near copy"),
    "a disguised copy": (recompressed, "a.png: face near x"),
    "a blurred copy": (blurred, "it is the source's face, blurred"),
    "a blurred face at the border": (blurred_at_the_border, "nothing can replace it, and no solid shape covers it"),
    "another source": (swapped, "trip/b.jpg: it is pixel for pixel the source a.png"),
    "another size": (another_size, "the result is 220x200 but its source is 220x220"),
    "transparency": (with_transparency, "a.png: the file holds transparency, which can show a face on another background"),
    "metadata": (with_exif, "trip/b.jpg: the file holds EXIF"),
    "a face left beside": (overlooked, "near copy"),
    "a lost result": (lambda album: (album / "results" / "a.png").unlink(), "a.png: it has no result"),
    "a broken result": (lambda album: (album / "results" / "a.png").write_bytes(b"\x89PNG"), "a.png: the file holds"),
    "a stray picture": (
        lambda album: shutil.copy(album / "sources" / "a.png", album / "results" / "left.png"),
        "left.png: comes from no source",
    ),
    "a link to a folder": (
        lambda album: (album / "results" / "more").symlink_to(album / "sources", target_is_directory=True),
        "more is a link to a folder, which is not looked into",
    ),
    "a picture under the name of the journal": (
        lambda album: shutil.copy(album / "sources" / "a.png", album / "results" / "trip" / JOURNAL),
        f"trip/{JOURNAL}: comes from no source",
    ),
    "a source that cannot be read": (
        lambda album: (album / "sources" / "trip" / "c.heic").touch(),
        "trip/c.heic: .heic is a format this program does not read",
    ),
    "a leftover": (
        lambda album: (album / "results" / ".faceanon-1-ab.partial").write_bytes(b"half"),
        ".faceanon-1-ab.partial: comes from no source",
    ),
}


@pytest.mark.parametrize("what", PLANTED)
def test_what_must_not_leave_is_named_and_exits_with_1(album: Path, capsys, what: str) -> None:
    plant, message = PLANTED[what]
    plant(album)
    assert verify(album) == 1
    said = capsys.readouterr().out
    assert message in said and "FAILED" in said.splitlines()[-1]


def test_a_source_without_a_face_has_nothing_to_prove_its_result(album: Path, coffee, capsys) -> None:
    for part in ("sources", "results"):
        Image.fromarray(coffee).save(album / part / "cup.png")
    assert verify(album) == 1
    assert "cup.png: no face was found in it, so nothing could be checked" in capsys.readouterr().out


def test_pictures_held_back_on_purpose_are_named_but_no_problem(album: Path, capsys) -> None:
    (album / "results" / "a.png").unlink()
    (album / "sources" / "c.heic").touch()
    (album / "sources" / "notes.txt").touch()
    assert verify(album, "--allow-missing") == 0
    said = capsys.readouterr().out
    assert "without a result: c.heic, a.png" in said and "1 files that are no pictures are left alone (.txt)" in said


def test_hashed_names_are_paired_by_the_key_and_random_ones_by_their_looks(album: Path, capsys) -> None:
    (album / "key").write_bytes(KEY)
    for style, key in (("hashed", album / "key"), ("random", None)):
        namer = make_namer(style, key)
        (album / "named").mkdir()
        for name in ("a.png", "trip/b.jpg"):
            shutil.copy(album / "results" / name, album / "named" / namer(name))
        words = [album / "sources", album / "named", "--names", style, *(["--name-key", key] if key else [])]
        assert cli.main(["verify", *map(str, words)]) == 0, style
        (album / "named" / JOURNAL).write_text('{"name": "alice.png", "warnings": []}')
        assert cli.main(["verify", *map(str, words)]) == 1, style
        assert f"{JOURNAL} names sources" in capsys.readouterr().out
        (album / "named" / JOURNAL).unlink()
        (album / "key").write_bytes(KEY[::-1])  # another key pairs nothing
        if key:
            assert cli.main(["verify", *map(str, words)]) == 1
        shutil.rmtree(album / "named")


@pytest.mark.faces
def test_a_recogniser_must_take_every_face_for_another_person(album: Path, network: Path, capsys) -> None:
    assert verify(album, "--recogniser", network, "--max-similarity", 1) == 0
    assert "recognisers: MobileFaceNet (at most 1.00)" in capsys.readouterr().out
    assert verify(album, "--recogniser", network, "--max-similarity", -1) == 1
    assert "MobileFaceNet takes it for the same person" in capsys.readouterr().out
    assert verify(album, "--recogniser", network) == 2  # it has no card here


def test_folders_that_are_none_are_refused(album: Path, capsys) -> None:
    assert cli.main(["verify", str(album / "none"), str(album / "results")]) == 2
    shutil.rmtree(album / "sources")
    (album / "sources").mkdir()
    assert verify(album) == 2
    assert "holds no pictures" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-o", "."], ". is a folder; name a file in it for the report"),
        (["-o", "/"], "/ is a folder; name a file in it for the report"),
        (["--recogniser", "dlib", "--max-similarity", "5"], "max-similarity must be -1 to 1, got 5.0"),
        (["--max-similarity", "nan"], "max-similarity must be -1 to 1, got nan"),
    ],
)
def test_a_check_that_cannot_start_says_why(album: Path, capsys, words: list[str], message: str) -> None:
    assert verify(album, *words) == 2
    assert f"faceanon: {message}" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="names are bytes on Linux alone")
def test_names_that_are_no_text_are_reported_all_the_same(album: Path) -> None:
    source = Path(os.fsdecode(os.fsencode(album / "sources") + b"/caf\xe9.png"))
    shutil.copy(album / "sources" / "a.png", source)
    words = [sys.executable, "-m", "faceanon_core.cli", "verify", "sources", "results", "-o", "report"]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8:strict", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, cwd=album, env=environment, capture_output=True, check=False)
    assert done.returncode == 1 and b"Traceback" not in done.stderr
    named = "without a result: caf\\udce9.png"
    assert named in done.stdout.decode() and named in (album / "report.txt").read_text("utf-8")
