"""A folder's journal: what is done, what is made again, what is never overwritten. The pictures are a few bytes each."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from faceanon_core import cli, cli_engine
from faceanon_core import folder as folders
from faceanon_core.engines import Made, Outcomes
from faceanon_core.errors import FaceAnonError
from faceanon_core.folder import JOURNAL, Journal, fill_folder, make_namer, mark_source


def copy(sources: Sequence[Path]) -> Outcomes:
    """An engine whose results hold what their sources held."""
    for source in sources:
        yield source, Made(b"of " + source.read_bytes(), [])


def run(folder: Path) -> dict[str, list[str]]:
    """A run over album/ into out/ in the folder. Returns: what was wrong, by name."""
    names = {path: path.name for path in sorted((folder / "album").iterdir())}
    problems = fill_folder(names, Journal(folder / "out", "settings"), copy)
    return {path.name: texts for path, texts in problems.items()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """After a first run over a.png and b.png."""
    (tmp_path / "album").mkdir()
    for name in ("a", "b"):
        (tmp_path / "album" / f"{name}.png").write_text(f"first {name}")
    assert run(tmp_path) == {"a.png": [], "b.png": []}
    return tmp_path


def result(folder: Path, name: str) -> str:
    return (folder / "out" / name).read_text()


def change(folder: Path) -> None:
    """Another picture of the same size under the name of a.png."""
    source = folder / "album" / "a.png"
    before = source.stat().st_mtime_ns
    source.write_text("other a")
    os.utime(source, ns=(before, before + 1))


def test_a_picture_whose_source_changed_is_made_again_and_no_other(folder: Path) -> None:
    change(folder)
    untouched = (folder / "out" / "b.png").stat().st_mtime_ns
    for _ in range(2):
        assert run(folder) == {"a.png": [], "b.png": []}
        assert result(folder, "a.png") == "of other a"
    assert (folder / "out" / "b.png").stat().st_mtime_ns == untouched
    assert len((folder / "out" / JOURNAL).read_text().splitlines()) == 3


def test_a_result_that_the_user_changed_is_kept_and_named_if_its_source_changed_too(folder: Path) -> None:
    (folder / "out" / "a.png").write_text("retouched")
    assert run(folder) == {"a.png": [], "b.png": []}
    change(folder)
    assert run(folder) == {
        "a.png": [f"the source has changed, and so has its result {folder / 'out' / 'a.png'}; remove that one first"],
        "b.png": [],
    }
    assert result(folder, "a.png") == "retouched"


def test_a_run_killed_while_it_replaces_a_result_makes_it_in_the_next(folder: Path, monkeypatch) -> None:
    def kill(self: Path, target: Path) -> None:
        raise KeyboardInterrupt

    change(folder)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Path, "replace", kill)
        run(folder)
    assert run(folder) == {"a.png": [], "b.png": []}
    assert result(folder, "a.png") == "of other a"


def test_a_journal_of_an_earlier_version_stays_valid(folder: Path) -> None:
    journal = folder / "out" / JOURNAL
    entries = [json.loads(line) for line in journal.read_text().splitlines()]
    old = [{key: entry[key] for key in ("name", "settings", "warnings")} for entry in entries]
    journal.write_text("".join(json.dumps(entry) + "\n" for entry in old))
    change(folder)
    assert run(folder) == {"a.png": [], "b.png": []}
    assert result(folder, "a.png") == "of first a"


@pytest.mark.parametrize(
    "line", ["null", "[1]", "3", '"a.png"', "{}", '{"name": ["a.png"]}', '{"name": "a.png"}', '{"na', "\xff"]
)
def test_a_damaged_line_is_skipped(folder: Path, line: str) -> None:
    with (folder / "out" / JOURNAL).open("ab") as journal:
        journal.write(line.encode("latin-1"))
    before = (folder / "out" / "a.png").stat().st_mtime_ns
    (folder / "album" / "c.png").write_text("c")
    for _ in range(2):
        assert run(folder) == {"a.png": [], "b.png": [], "c.png": []}
    assert (folder / "out" / "a.png").stat().st_mtime_ns == before


def test_the_journal_says_neither_when_a_picture_was_taken_nor_without_the_key_which_it_was(folder: Path) -> None:
    source = folder / "album" / "a.png"
    assert str(source.stat().st_mtime_ns)[:8] not in (folder / "out" / JOURNAL).read_text()
    (folder / "key").write_text("0123456789abcdef")
    keyed, plain = make_namer("hashed", folder / "key"), make_namer("keep")
    assert mark_source(source, keyed) == mark_source(source, keyed) != mark_source(source, plain)
    assert {len(mark) for mark in mark_source(source, plain).values()} == {8}


@pytest.mark.parametrize("style", ["keep", "hashed"])
def test_a_second_folder_of_sources_does_not_take_the_place_of_the_first_ones_results(tmp_path: Path, style: str) -> None:
    (tmp_path / "key").write_text("0123456789abcdef")
    namer = make_namer(style, tmp_path / "key" if style == "hashed" else None)
    results = []
    for camera in ("one", "two"):
        source = tmp_path / camera / "DSC1.png"
        source.parent.mkdir()
        source.write_text("face of camera " + camera)
        journal = Journal(tmp_path / "out", "settings", namer)
        results.append(fill_folder({source: namer("DSC1.png")}, journal, copy)[source])
    assert results[0] == [] and "was made of a picture in another folder than" in results[1][0]
    assert (tmp_path / "out" / namer("DSC1.png")).read_text() == "of face of camera one"


def test_a_folder_of_sources_that_moved_is_finished_all_the_same(folder: Path) -> None:
    shutil.copytree(folder / "album", folder / "elsewhere")
    shutil.rmtree(folder / "album")
    (folder / "elsewhere").rename(folder / "album")
    before = (folder / "out" / "a.png").stat().st_mtime_ns
    assert run(folder) == {"a.png": [], "b.png": []}
    assert (folder / "out" / "a.png").stat().st_mtime_ns == before


@pytest.mark.parametrize("now", ["", "first a"])
def test_a_result_that_became_empty_or_its_source_is_named(folder: Path, now: str) -> None:
    (folder / "out" / "a.png").write_text(now)
    assert "is empty or a copy of its source by now" in run(folder)["a.png"][0]
    (folder / "out" / "a.png").unlink()
    assert run(folder) == {"a.png": [], "b.png": []} and result(folder, "a.png") == "of first a"


# what is told on the way


def test_a_failure_is_told_as_it_comes_and_once(folder: Path) -> None:
    told: list[tuple[str, str]] = []

    def engine(sources: Sequence[Path]) -> Outcomes:
        yield sources[0], FaceAnonError("no face was found")
        assert told == [("b.png", "half a face"), ("c.png", "no face was found")]
        yield sources[1], Made(b"d", ["covered"])

    with (folder / "out" / JOURNAL).open("a") as journal:
        journal.write(json.dumps({"name": "b.png", "settings": "settings", "warnings": ["half a face"]}) + "\n")
    for name in ("c.png", "d.png"):
        (folder / "album" / name).write_text(name)
    names = {path: path.name for path in sorted((folder / "album").iterdir())}
    fill_folder(names, Journal(folder / "out", "settings"), engine, lambda source, why: told.append((source.name, why)))
    assert told == [("b.png", "half a face"), ("c.png", "no face was found"), ("d.png", "covered")]


def test_without_a_terminal_a_line_from_time_to_time_says_how_far_the_run_is(folder: Path, monkeypatch, caplog) -> None:
    names = {path: path.name for path in sorted((folder / "album").iterdir())}
    for quiet_s, lines in ((0, ["1 of 2 pictures", "2 of 2 pictures"]), (60, [])):
        caplog.clear()
        monkeypatch.setattr(folders, "QUIET_S", quiet_s)
        with caplog.at_level(logging.WARNING):
            fill_folder(names, Journal(folder / str(quiet_s), "settings"), copy)
        assert caplog.messages == lines


def test_a_full_disk_stops_the_run_with_one_sentence(folder: Path, monkeypatch) -> None:
    asked: list[Path] = []

    def engine(sources: Sequence[Path]) -> Outcomes:
        for source in sources:
            asked.append(source)
            yield source, Made(b"of " + source.read_bytes(), [])

    def write_bytes(self: Path, content: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    names = {path: path.name for path in sorted((folder / "album").iterdir())}
    with monkeypatch.context() as full:
        full.setattr(Path, "write_bytes", write_bytes)
        with pytest.raises(
            FaceAnonError, match=r"No space left on device; make room, then run the same command again to go on$"
        ):
            fill_folder(names, Journal(folder / "new", "settings"), engine)
    assert len(asked) == 1
    assert fill_folder(names, Journal(folder / "new", "settings"), engine) == {source: [] for source in names}


# the command line's part, with an engine that copies


@pytest.fixture
def anonymize(folder: Path, anonymizer, monkeypatch):
    """Runs the command over album/ into made/."""
    monkeypatch.setattr(cli_engine, "open_anonymizer", lambda options: anonymizer)
    monkeypatch.setattr(cli_engine, "open_guide", lambda path: None)
    monkeypatch.setattr(cli_engine, "open_engine", lambda *words: copy)
    monkeypatch.chdir(folder)
    return lambda *words: cli.main(["anonymize", "album", "-o", "made", "--recogniser", "none", *map(str, words)])


def test_another_gallery_is_another_setting_and_another_spelling_of_a_path_is_not(anonymize, folder: Path, capsys) -> None:
    for _ in range(2):
        assert anonymize("--encoder", "farl.pth", "--gallery", "mine") == 0
    assert anonymize("--encoder", folder / "album" / ".." / "farl.pth", "--gallery", folder / "mine") == 0
    assert anonymize("--encoder", "farl.pth") == 1
    assert "failed: a.png" in capsys.readouterr().err
    assert anonymize("--encoder", "farl.pth", "--gallery", "yours") == 1


def test_names_are_not_hidden_in_a_folder_whose_journal_tells_them(anonymize, folder: Path, capsys) -> None:
    (folder / "key").write_text("0123456789abcdef")
    assert anonymize() == 0
    assert anonymize("--names", "hashed", "--name-key", "key") == 2
    assert "the journal in made names sources; choose a new folder for hashed names" in capsys.readouterr().err
    assert {path.name for path in (folder / "made").iterdir()} == {"a.png", "b.png", JOURNAL}


@pytest.mark.skipif(sys.platform == "win32", reason="locks of POSIX")
def test_a_second_run_into_the_same_folder_is_refused_while_the_first_one_lasts(anonymize, folder: Path, capsys) -> None:
    hold = "import sys; from pathlib import Path; from faceanon_core.folder import Journal\n"
    hold += "with Journal(Path('made'), '').hold(): print('held', flush=True); sys.stdin.read()"
    first = subprocess.Popen(
        [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(Path(cli.__file__).parent.parent)},
    )  # fmt: skip
    assert first.stdout is not None and first.stdout.readline() == "held\n"
    assert anonymize() == 2
    assert "another run writes into" in capsys.readouterr().err
    first.kill()
    first.communicate()
    assert anonymize() == 0
