"""The command line as a user meets it: files, exit codes, messages. All but one run are in this process."""

from __future__ import annotations

import hmac
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image
from skimage import data

from faceanon_core import cli, cli_engine
from faceanon_core.attributes import LEARNED
from faceanon_core.check import check_picture
from faceanon_core.diffusion import has_native_bfloat16
from faceanon_core.faces import FaceDetector
from faceanon_core.folder import JOURNAL
from faceanon_core.pipeline import Settings
from faceanon_core.sketch import DRAWN
from faceanon_core.target import gallery_index

ROOT = Path(__file__).resolve().parent.parent
MAKE = 0x010F


@pytest.fixture(autouse=True)
def loaded_once(anonymizer, monkeypatch) -> None:
    """Every run uses the one model loaded for all tests; the subprocess test loads its own."""
    monkeypatch.setattr(cli_engine, "open_anonymizer", lambda options: anonymizer)


def run(*words: object) -> int:
    return cli.main([str(word) for word in words])


def anonymize(source: Path, output: Path, *words: object) -> int:
    return run("anonymize", source, "-o", output, "--steps", 1, *words)


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as opened:
        return np.asarray(opened.convert("RGB"))


@pytest.fixture
def photo(portrait, tmp_path: Path) -> Path:
    """A JPEG with camera and place in its EXIF."""
    exif = Image.Exif()
    exif[MAKE] = "Camera"
    exif[ExifTags.IFD.GPSInfo] = {1: "N", 2: (52.0, 31.0, 0.0)}
    Image.fromarray(portrait).save(tmp_path / "photo.jpg", quality=95, exif=exif, comment=b"a secret")
    return tmp_path / "photo.jpg"


def test_a_photograph_is_written_with_another_face_and_without_metadata(photo, tmp_path: Path, capsys) -> None:
    before = photo.read_bytes()
    assert anonymize(photo, tmp_path / "out.jpg") == 0
    assert photo.read_bytes() == before
    assert f"wrote {tmp_path / 'out.jpg'}" in capsys.readouterr().out
    assert np.abs(pixels(tmp_path / "out.jpg").astype(int) - pixels(photo))[60:160, 70:150].mean() > 5
    with Image.open(tmp_path / "out.jpg") as written:
        assert not written.getexif()
        assert "comment" not in written.info


def test_metadata_is_kept_on_request_into_a_folder_under_the_sources_name(photo, tmp_path: Path) -> None:
    assert anonymize(photo, tmp_path / "folder", "--keep-metadata") == 0
    with Image.open(tmp_path / "folder" / "photo.jpg") as written:
        assert written.getexif()[MAKE] == "Camera"
        assert written.getexif().get_ifd(ExifTags.IFD.GPSInfo)[1] == "N"
        assert "comment" not in written.info


def test_a_real_process_gives_the_same_picture_as_the_library(portrait_file, tmp_path: Path, anonymizer) -> None:
    from faceanon_core.pipeline import Settings

    command = [sys.executable, "-m", "faceanon_core.cli", "anonymize", portrait_file, "-o", tmp_path / "out.png"]
    options = ["--steps", "1", "--seed", "4", "--recogniser", "none"]
    done = subprocess.run([*map(str, command), *options], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    expected = anonymizer.anonymize(pixels(portrait_file), Settings(steps=1, seed=4)).pixels
    assert np.array_equal(pixels(tmp_path / "out.png"), expected)


def test_the_demo_shows_before_and_after_side_by_side(tmp_path: Path, astronaut) -> None:
    assert run("demo", "-o", tmp_path / "demo.png", "--steps", 1) == 0
    sheet = pixels(tmp_path / "demo.png")
    assert sheet.shape == (512, 1024, 3)
    assert np.array_equal(sheet[:, :512], astronaut)
    assert not np.array_equal(sheet[:, 512:], astronaut)


def test_the_chart_has_panels_for_every_face_and_changes_nothing_else(two_faces, tmp_path: Path, capsys) -> None:
    Image.fromarray(two_faces).save(tmp_path / "two.png")
    words = (tmp_path / "two.png", "--steps", 3)
    assert run("anonymize", *words, "-o", tmp_path / "plain.png") == 0
    assert run("anonymize", *words, "-o", tmp_path / "new.png", "--chart", tmp_path / "chart.png") == 0
    assert f"wrote {tmp_path / 'chart.png'}" in capsys.readouterr().out
    assert np.array_equal(pixels(tmp_path / "plain.png"), pixels(tmp_path / "new.png"))
    chart = pixels(tmp_path / "chart.png")
    panels = chart.reshape(4, -1, chart.shape[1], 3)  # of each face the pull and sigma
    ink = [(panel != 255).any(-1) for panel in panels]
    assert all(panel[30:].any() for panel in ink)
    titles = [panel[:28] for panel in ink]
    assert all(not np.array_equal(titles[0], other) for other in titles[1:])


@pytest.mark.parametrize(
    ("chart", "message"),
    [
        ("photo.jpg", "exists already"),
        ("out.png", "out.png cannot be both the picture and the chart"),
        ("chart.pdf", "unknown picture format '.pdf'"),
        ("photo.jpg/chart.png", "is no folder you may write to"),
    ],
)
def test_a_chart_that_cannot_be_written_is_refused_before_any_work(photo, tmp_path: Path, capsys, chart, message) -> None:
    assert anonymize(photo, tmp_path / "out.png", "--chart", tmp_path / chart) == 2
    assert message in capsys.readouterr().err
    assert files_below(tmp_path) == {"photo.jpg"}


def test_a_chart_is_of_one_picture_and_of_faces_that_were_made(photo, cut_portrait, tmp_path: Path, capsys) -> None:
    assert anonymize(photo.parent, tmp_path / "out", "--chart", tmp_path / "chart.png") == 2
    assert "--chart draws what became of one picture" in capsys.readouterr().err
    Image.fromarray(cut_portrait).save(tmp_path / "cut.png")
    words = ("--chart", tmp_path / "chart.png", "--on-failure", "redact")
    assert anonymize(tmp_path / "cut.png", tmp_path / "out.png", *words) == 1
    assert "no face was replaced, so there is nothing to draw" in capsys.readouterr().err
    assert files_below(tmp_path) == {"photo.jpg", "cut.png", "out.png"}


def test_the_targets_and_every_attribute_are_listed(capsys) -> None:
    assert run("targets") == 0
    listed = capsys.readouterr().out
    for name in gallery_index():
        assert name in listed
    for attribute in LEARNED:
        assert f"{attribute.name:12} {', '.join(attribute.values)}" in listed


def test_the_targets_are_drawn_into_a_new_picture_only(tmp_path: Path, capsys) -> None:
    sheet = tmp_path / "sheet.png"
    assert run("targets", "-o", sheet) == 0
    assert f"wrote {sheet}" in capsys.readouterr().out
    width, height = Image.open(sheet).size
    assert width > 6 * 192 and height > 192 * -(-len(gallery_index()) // 6)
    before = sheet.read_bytes()
    assert run("targets", "-o", sheet) == 2
    assert "exists already; choose another name" in capsys.readouterr().err
    assert run("targets", "-o", tmp_path / "sheet.txt") == 2
    assert sheet.read_bytes() == before and files_below(tmp_path) == {"sheet.png"}


def test_a_preset_sets_what_the_user_does_not(capsys) -> None:
    parse = cli._parser().parse_args
    common = ["anonymize", "a.png", "-o", "b.png"]
    reference = cli._settings(parse([*common, "--preset", "reference", "--keep", "eyes", "--seed", "3"]))
    assert (reference.steps, reference.describe, reference.seed) == (45, False, 3)
    assert reference.regions.keep == ("eyes",)
    overridden = cli._settings(parse([*common, "--preset", "reference", "--steps", "7", "--strength", "0"]))
    assert (overridden.steps, overridden.guidance.strength, overridden.guidance.normalise) == (7, 0, False)
    default = cli._settings(parse([*common, "--target", "x", "--attributes", "age=60s", "--faces", "2"]))
    assert (default.steps, default.guidance.strength, default.target) == (20, 1, "x")
    assert (default.attributes, default.faces, default.on_failure) == ({"age": "senior"}, "2", "error")


def test_how_long_the_drawing_is_shown_can_be_chosen_and_makes_another_result(anonymizer, capsys) -> None:
    parse = cli._parser().parse_args
    common = ["anonymize", "a.png", "-o", "b.png"]
    default, asked = (cli._settings(parse([*common, *more])) for more in ([], ["--drawn", "0.28"]))
    assert (default.drawn, asked.drawn) == (DRAWN, 0.28)
    assert cli._fingerprint(default, False, anonymizer) != cli._fingerprint(asked, False, anonymizer)
    with pytest.raises(SystemExit):
        run("anonymize", "--help")
    told = " ".join(capsys.readouterr().out.split())
    assert f"more like their sources (default: {DRAWN:g})" in told


def test_a_folder_is_looked_at_again_with_a_detector_that_finds_other_faces(anonymizer, monkeypatch) -> None:
    before = cli._fingerprint(Settings(), False, anonymizer)
    assert cli._fingerprint(Settings(), False, anonymizer) == before
    monkeypatch.setattr(anonymizer, "detector", FaceDetector(cross_check=False))
    assert cli._fingerprint(Settings(), False, anonymizer) != before


# nothing is ever overwritten, and nothing is written on failure


@pytest.mark.parametrize("output", ["photo.jpg", "."])
def test_the_source_is_never_overwritten(photo, tmp_path: Path, capsys, output: str) -> None:
    before = photo.read_bytes()
    assert anonymize(photo, tmp_path / output) == 2
    assert "exists already; choose another name" in capsys.readouterr().err
    assert photo.read_bytes() == before
    assert files_below(tmp_path) == {"photo.jpg"}


BAD_SOURCES = {
    "missing": (lambda path, whole: None, 2, "does not exist"),
    "empty": (lambda path, whole: path.write_bytes(b""), 2, "is empty (0 bytes)"),
    "truncated": (lambda path, whole: path.write_bytes(whole[:2500]), 2, "is damaged or truncated"),
    "text": (lambda path, whole: path.write_text("hello"), 2, "is not an image this program can read"),
    "1x1": (lambda path, whole: Image.new("RGB", (1, 1)).save(path), 2, "the shorter side must be at least 64 pixels"),
    "no face": (lambda path, whole: Image.fromarray(data.coffee()).save(path), 1, "no face was found"),
    "cut face": (
        lambda path, whole: Image.fromarray(data.astronaut()[:, 210:]).save(path),
        1,
        "cut by the picture's border",
    ),
}


@pytest.mark.parametrize("kind", BAD_SOURCES)
def test_a_bad_source_is_one_sentence_an_exit_code_and_no_output(photo, tmp_path: Path, capsys, kind: str) -> None:
    make, code, message = BAD_SOURCES[kind]
    source, output = tmp_path / "in" / "source.jpg", tmp_path / "new" / "out.jpg"
    source.parent.mkdir()
    make(source, photo.read_bytes())
    assert anonymize(source, output) == code
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("faceanon: ")
    assert message in said
    assert not output.parent.exists()


def test_a_hundred_megapixels_are_refused_by_the_stated_limit(tmp_path: Path, capsys) -> None:
    Image.new("1", (10000, 10001)).save(tmp_path / "huge.png")
    assert anonymize(tmp_path / "huge.png", tmp_path / "out.png") == 2
    assert "100 megapixels and the limit is 80" in capsys.readouterr().err


BAD_OPTIONS = [
    (["--regions", "knee"], "no region named 'knee'"),
    (["--keep", "eyes,knee"], "no region named 'knee'"),
    (["--keep", "hair"], "the active face parser cannot find hair"),
    (["--regions", "eyes", "--keep", "eyes"], "the mask excludes everything"),
    (["--keep", "face"], "the mask excludes everything"),
    (["--target", "nobody"], "no target named 'nobody'"),
    (["--target", "missing.png"], "missing.png does not exist"),
    (["--attributes", "agee=20s"], "did you mean age?"),
    (["--attributes", "female"], "cannot read the attribute 'female'"),
    (["--emphasis", "0"], "emphasis must be 1 to 20"),
    (["--steps", "0"], "steps must be 1 to 1000"),
    (["--keep-attributes", "exprssion"], "there is no attribute named 'exprssion' (did you mean expression?)"),
    (["--drawn", "1.5"], "drawn must be 0 to 1, got 1.5"),
    (["--strength", "-1"], "guidance strength must be a number of at least 0"),
    (["--strength", "nan"], "guidance strength must be a number of at least 0"),
    (["--faces", "none"], "faces must be all, largest or a number"),
]


@pytest.mark.parametrize(
    ("words", "message"), BAD_OPTIONS, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_a_bad_option_is_one_sentence_exit_code_2_and_no_output(photo, tmp_path: Path, capsys, words, message) -> None:
    assert anonymize(photo, tmp_path / "out.jpg", *words) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("faceanon: ")
    assert message in said
    assert files_below(tmp_path) == {"photo.jpg"}


def test_a_target_picture_without_a_face_fails_and_writes_nothing(photo, tmp_path: Path, capsys) -> None:
    Image.fromarray(data.coffee()).save(tmp_path / "cup.png")
    assert anonymize(photo, tmp_path / "out.jpg", "--target", tmp_path / "cup.png") == 2
    assert "the target picture cup.png shows no face" in capsys.readouterr().err
    assert not (tmp_path / "out.jpg").exists()


@pytest.mark.parametrize(
    "words",
    [["--on-failure", "hide"], ["--preset", "best"], ["--steps", "many"], ["--seed", "-1"], ["--seed", str(2**63)]],
)
def test_arguments_that_cannot_be_read_exit_with_2(photo, tmp_path: Path, words: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        anonymize(photo, tmp_path / "out.jpg", *words)
    assert stopped.value.code == 2


def test_the_largest_seed_is_taken_and_a_negative_one_refused_everywhere(photo, tmp_path: Path, capsys) -> None:
    assert anonymize(photo, tmp_path / "out.jpg", "--seed", 2**63 - 1) == 0
    with pytest.raises(SystemExit):
        run("synthesize", "-o", tmp_path / "sheet.png", "--seed", -5)
    assert "a seed is a whole number of 0 to 2^63 - 1, got '-5'" in capsys.readouterr().err


def test_a_name_that_is_too_long_is_one_sentence(photo, tmp_path: Path, capsys) -> None:
    long = "a" * 300 + ".png"
    for source, output in ((tmp_path / long, tmp_path / "out.png"), (photo, tmp_path / long)):
        assert anonymize(source, output) == 2
        (said,) = capsys.readouterr().err.strip().splitlines()[-1:]
        assert said.startswith("faceanon: ") and "cannot be read or written: " in said


def test_a_picture_too_wide_for_the_format_is_refused_before_the_work(
    tmp_path: Path, anonymizer, monkeypatch, capsys
) -> None:
    Image.new("RGB", (16400, 64)).save(tmp_path / "wide.png")
    monkeypatch.setattr(anonymizer, "anonymize", None)
    assert anonymize(tmp_path / "wide.png", tmp_path / "out.webp") == 2
    assert "it is 16400x64, and that format holds at most 16383 pixels a side; choose .png" in capsys.readouterr().err


def test_an_output_below_a_regular_file_is_refused(photo, tmp_path: Path, capsys) -> None:
    (tmp_path / "file").write_text("in the way")
    assert anonymize(photo, tmp_path / "file" / "out.jpg") == 2
    assert "cannot be written" in capsys.readouterr().err
    assert files_below(tmp_path) == {"photo.jpg", "file"}


@pytest.mark.parametrize("policy", ["redact", "keep"])
def test_a_picture_with_an_unprocessed_face_is_written_by_policy_and_exits_1(
    cut_portrait, tmp_path: Path, capsys, policy: str
) -> None:
    Image.fromarray(cut_portrait).save(tmp_path / "cut.png")
    assert anonymize(tmp_path / "cut.png", tmp_path / "out.png", "--on-failure", policy) == 1
    assert "cut by the picture's border" in capsys.readouterr().err
    assert np.array_equal(pixels(tmp_path / "out.png"), cut_portrait) == (policy == "keep")


# folders


@pytest.fixture
def album(photo, portrait_file, tmp_path: Path) -> Path:
    """Two good pictures, one of them nested; a broken one, one without a face, and a file that is no picture."""
    folder = tmp_path / "album"
    (folder / "trip").mkdir(parents=True)
    shutil.copy(photo, folder / "b.jpg")
    shutil.copy(portrait_file, folder / "trip" / "c.png")
    (folder / "a-broken.jpg").write_bytes(photo.read_bytes()[:2000])
    Image.fromarray(data.coffee()).save(folder / "d-cup.png")
    (folder / "notes.txt").write_text("no picture")
    return folder


def test_a_folder_run_goes_on_past_bad_files_lists_them_and_resumes(album, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    assert anonymize(album, out) == 1
    said = capsys.readouterr()
    assert files_below(out) == {"b.jpg", "trip/c.png", JOURNAL}
    assert "failed: a-broken.jpg" in said.err
    assert "failed: d-cup.png: no face was found" in said.err
    assert "4 pictures, 2 problems" in said.out
    written = {name: (out / name).stat().st_mtime_ns for name in ("b.jpg", "trip/c.png")}

    before = (album / "b.jpg").stat()
    (album / "b.jpg").write_bytes(b"would fail if it were read again".ljust(before.st_size))
    os.utime(album / "b.jpg", ns=(before.st_atime_ns, before.st_mtime_ns))
    shutil.copy(album / "trip" / "c.png", album / "a-mended.png")
    (album / "a-broken.jpg").unlink()
    (album / "d-cup.png").unlink()
    assert anonymize(album, out) == 0
    assert files_below(out) == {"a-mended.png", "b.jpg", "trip/c.png", JOURNAL}
    assert {name: (out / name).stat().st_mtime_ns for name in written} == written


def test_a_run_cut_off_while_writing_its_journal_resumes(album, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    for name in ("a-broken.jpg", "d-cup.png", "trip/c.png"):
        (album / name).unlink()
    assert anonymize(album, out) == 0
    with (out / JOURNAL).open("a") as journal:
        journal.write('{"name": "half a li')
    assert anonymize(album, out) == 0
    (out / "b.jpg").unlink()
    assert anonymize(album, out) == 0  # a result that was deleted is made again
    assert (out / "b.jpg").is_file()
    assert anonymize(album, out) == 0


def test_a_result_remade_with_other_settings_is_not_taken_for_the_first_ones(album, tmp_path: Path, capsys) -> None:
    for name in ("a-broken.jpg", "d-cup.png", "trip/c.png"):
        (album / name).unlink()
    out = tmp_path / "out"
    assert anonymize(album, out) == 0
    (out / "b.jpg").unlink()
    assert anonymize(album, out, "--seed", 9) == 0
    assert anonymize(album, out) == 1
    assert "failed: b.jpg" in capsys.readouterr().err


def test_other_settings_do_not_pass_for_finished_work(album, tmp_path: Path, capsys) -> None:
    for name in ("a-broken.jpg", "d-cup.png", "trip/c.png"):
        (album / name).unlink()
    assert anonymize(album, tmp_path / "out") == 0
    before = (tmp_path / "out" / "b.jpg").read_bytes()
    assert anonymize(album, tmp_path / "out", "--seed", 9) == 1
    assert "failed: b.jpg" in capsys.readouterr().err
    assert (tmp_path / "out" / "b.jpg").read_bytes() == before


@pytest.mark.parametrize("output", [".", ".."])
def test_results_are_never_put_among_the_sources(album, capsys, output: str) -> None:
    before = files_below(album)
    assert anonymize(album, album / output) == 2
    assert "would lie among the sources; choose another folder" in capsys.readouterr().err
    assert files_below(album) == before


def test_results_in_a_folder_below_the_sources_are_not_taken_for_sources(album, capsys) -> None:
    for name in ("a-broken.jpg", "d-cup.png", "trip/c.png"):
        (album / name).unlink()
    assert anonymize(album, album / "out") == 0
    assert anonymize(album, album / "out") == 0
    assert "1 pictures, 0 problems" in capsys.readouterr().out


def test_a_folder_without_pictures_is_refused(tmp_path: Path, capsys) -> None:
    (tmp_path / "empty").mkdir()
    assert anonymize(tmp_path / "empty", tmp_path / "out") == 2
    assert "holds no pictures" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_cannot_be_written_below_a_regular_file(album, tmp_path: Path, capsys) -> None:
    (tmp_path / "file").write_text("in the way")
    assert anonymize(album, tmp_path / "file" / "out") == 2
    assert "cannot be written" in capsys.readouterr().err


# names that tell nothing


@pytest.fixture
def small_album(photo, portrait_file, tmp_path: Path) -> Path:
    """Two pictures with telling names, one of them in a folder."""
    folder = tmp_path / "patients"
    (folder / "ward").mkdir(parents=True)
    shutil.copy(photo, folder / "alice.jpg")
    shutil.copy(portrait_file, folder / "ward" / "bob.PNG")
    return folder


@pytest.fixture
def key(tmp_path: Path) -> Path:
    (tmp_path / "key").write_bytes(b"0123456789abcdef\n")
    return tmp_path / "key"


def test_hashed_names_can_be_repeated_with_the_key_alone_and_a_run_resumes(small_album, key, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    assert anonymize(small_album, out, "--names", "hashed", "--name-key", key) == 0
    expected = {
        hmac.new(b"0123456789abcdef", name.encode(), "sha256").hexdigest()[:32] + suffix
        for name, suffix in (("alice.jpg", ".jpg"), ("ward/bob.PNG", ".png"))
    }
    assert files_below(out) == {*expected, JOURNAL}
    assert "alice" not in (out / JOURNAL).read_text()
    written = {name: (out / name).stat().st_mtime_ns for name in expected}
    assert anonymize(small_album, out, "--names", "hashed", "--name-key", key) == 0
    assert {name: (out / name).stat().st_mtime_ns for name in expected} == written


def test_random_names_tell_nothing_and_need_a_new_folder(small_album, photo, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    assert anonymize(small_album, out, "--names", "random") == 0
    names = files_below(out) - {JOURNAL}
    assert len(names) == 2 and all(re.fullmatch(r"[0-9a-f]{32}\.(jpg|png)", name) for name in names)
    assert "alice" not in (out / JOURNAL).read_text()
    assert anonymize(small_album, out, "--names", "random") == 2
    assert "is not empty, and random names cannot tell what is done" in capsys.readouterr().err
    assert anonymize(photo, tmp_path / "single", "--names", "random") == 0
    assert "photo.jpg" not in files_below(tmp_path / "single")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--names", "hashed"], "hashed names need a key"),
        (["--name-key", "key"], "hashed names need a key, and only they do"),
        (["--names", "hashed", "--name-key", "missing"], "the key missing cannot be read"),
        (["--names", "hashed", "--name-key", "short"], "has 5 bytes and would be guessed"),
    ],
)
def test_a_key_that_is_missing_or_weak_is_refused(
    small_album, key, tmp_path: Path, monkeypatch, capsys, words, message
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "short").write_text("12345")
    assert anonymize(small_album, tmp_path / "out", *words) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_name_of_another_style_needs_a_folder(photo, tmp_path: Path, capsys) -> None:
    assert anonymize(photo, tmp_path / "out.png", "--names", "random") == 2
    assert "random names need a folder as output" in capsys.readouterr().err


# nothing half written is left


def test_what_a_killed_run_left_half_written_is_removed_by_the_next(small_album, tmp_path: Path) -> None:
    left = tmp_path / "out" / "ward" / ".faceanon-123-abcd.partial"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half a picture")
    assert anonymize(small_album, tmp_path / "out") == 0
    assert files_below(tmp_path / "out") == {"alice.jpg", "ward/bob.PNG", JOURNAL}


STOPPED = """
import os, pathlib, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that started the tests in the background ignores it
from faceanon_core import cli, image
def stop(self, target):
    os.kill(os.getpid(), {signal})
    raise SystemExit("not reached")
pathlib.Path.replace = stop
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_run_stopped_while_it_writes_leaves_nothing_half_written(photo, tmp_path: Path, name: str) -> None:
    code = STOPPED.format(signal=f"signal.{name}")
    words = ["anonymize", str(photo), "-o", str(tmp_path / "out" / "a.jpg"), "--steps", "1", "--recogniser", "none"]
    command = [sys.executable, "-c", code, *words]
    temp = tmp_path / "temp"
    temp.mkdir()
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, env={**os.environ, "TMPDIR": str(temp)}
    )
    assert done.returncode == 1 and "stopped; run the same command again" in done.stderr
    assert files_below(tmp_path / "out") == set() and files_below(temp) == set()


def test_each_picture_of_a_folder_has_a_seed_of_its_own_that_it_also_has_alone_on_request(
    portrait, tmp_path: Path, capsys
) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        Image.fromarray(portrait if name == "a" else 255 - (255 - portrait) // 2).save(tmp_path / "in" / f"{name}.png")
    assert anonymize(tmp_path / "in", tmp_path / "folder") == 0
    assert anonymize(tmp_path / "in" / "a.png", tmp_path / "alone.png", "--seed", "each") == 0
    assert anonymize(tmp_path / "in" / "a.png", tmp_path / "zero.png") == 0
    assert np.array_equal(pixels(tmp_path / "folder" / "a.png"), pixels(tmp_path / "alone.png"))
    assert not np.array_equal(pixels(tmp_path / "alone.png"), pixels(tmp_path / "zero.png"))
    assert anonymize(tmp_path / "in", tmp_path / "same", "--seed", 0) == 0  # one for all, where a number is given
    assert np.array_equal(pixels(tmp_path / "same" / "a.png"), pixels(tmp_path / "zero.png"))
    with pytest.raises(SystemExit):
        anonymize(tmp_path / "in", tmp_path / "other", "--seed", "some")
    assert "a seed is a whole number of 0 to 2^63 - 1 or each, got 'some'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "own"),
    [
        ([], True), (["--seed", "each"], True), (["--seed", "0"], False), (["--seed", "7"], False),
        (["--engine", "ray"], True), (["--engine", "ray", "--seed", "7"], False), (["--preset", "reference"], False),
    ],
)  # fmt: skip
def test_the_pictures_of_a_folder_share_a_seed_only_if_it_is_given(small_album, tmp_path: Path, words, own: bool) -> None:
    options = cli._parser().parse_args(["anonymize", str(small_album), "-o", str(tmp_path), *words])
    assert cli._settings(options).own_seed == own


def test_a_face_drawn_by_transparency_alone_is_replaced_too(portrait, tmp_path: Path, anonymizer) -> None:
    """Beside a plain face; the pixels under the second one are black."""
    grey = np.asarray(Image.fromarray(portrait).convert("L"))
    colour, alpha = np.hstack([portrait, np.zeros_like(portrait)]), np.hstack([np.full_like(grey, 255), 255 - grey])
    Image.fromarray(np.dstack([colour, alpha])).save(tmp_path / "in.png")
    assert anonymize(tmp_path / "in.png", tmp_path / "out.png", "--on-failure", "redact") in (0, 1)
    with Image.open(tmp_path / "out.png") as written:
        assert written.mode == "RGB"
    seen = np.hstack([portrait, np.repeat(grey[..., None], 3, 2)])
    scan = anonymizer.detector.scan(seen)
    checks = check_picture(seen, pixels(tmp_path / "out.png"), scan, [], anonymizer.detector)
    assert len(checks) == 2 and not any("near copy" in check.problem or "blurred" in check.problem for check in checks)


def test_the_benchmark_prints_unguided_first_and_ours_last(capsys) -> None:
    assert run("benchmark", "demo", "--steps", 1, "--runs", 1, "--ways", "unguided,reference,ours") == 0
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [row[1].strip().split(":")[0] for row in rows[1:]] == ["unguided", "reference", "ours"]
    assert float(rows[1][4]) == 1 and float(rows[3][4]) > 0.5


def test_the_benchmark_says_what_it_cannot_measure(capsys) -> None:
    assert run("benchmark", "demo", "--precision", "bf16") == 2
    assert "the demo model has a precision of its own" in capsys.readouterr().err
    assert run("benchmark", "sd15", "--precision", "fp16") == 2
    assert "fp16 is for GPUs; on the CPU choose bf16 or fp32" in capsys.readouterr().err
    for emulating in (case for case in ("sd15", "levers") if not has_native_bfloat16(torch.device("cpu"))):
        assert run("benchmark", emulating, "--precision", "bf16") == 2
        assert "this cpu only emulates bf16" in capsys.readouterr().err
    assert run("benchmark", "demo", "--device", "meta") == 2
    assert "time and memory are measured on the CPU and on CUDA GPUs, not on 'meta'" in capsys.readouterr().err
