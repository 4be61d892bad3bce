"""A folder's journal: what is done, what is made again, what is never overwritten. The pictures are a few bytes each."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from faceanon_core.engines import Made, Outcomes
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
    assert len(mark_source(source, plain)) == 8
