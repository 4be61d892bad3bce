"""What of a folder is a source, what is named because it cannot be read, and what is left alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from faceanon_core import cli
from faceanon_core.folder import JOURNAL
from faceanon_core.sources import find_sources


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


@pytest.fixture
def album(tmp_path: Path) -> Path:
    touch(tmp_path / "album" / "trip" / "a.JPG")
    touch(tmp_path / "album" / "b.png")
    return tmp_path / "album"


def names(album: Path) -> list[str]:
    """Of the pictures found."""
    return [path.relative_to(album).as_posix() for path in find_sources(album, album / "out").pictures]


def test_pictures_come_in_the_order_of_names_and_hidden_ones_are_none(album: Path) -> None:
    touch(album / ".thumbnails" / "b.png")
    touch(album / ".b.png")
    touch(album / "out" / "b.png")
    assert names(album) == ["b.png", "trip/a.JPG"]
    assert not find_sources(album, album / "out").unread


def linked_folder(album: Path) -> None:
    touch(album.parent / "elsewhere" / "c.png")
    (album / "linked").symlink_to(album.parent / "elsewhere", target_is_directory=True)


UNREAD = {
    "photo.HEIC": (lambda album: touch(album / "photo.HEIC"), ".heic is a format this program does not read; convert it to"),
    "trip/moving.gif": (lambda album: touch(album / "trip" / "moving.gif"), ".gif is a format this program does not read"),
    "small.avif": (lambda album: touch(album / "small.avif"), ".avif is a format"),
    "gone.jpg": (lambda album: (album / "gone.jpg").symlink_to("nowhere.jpg"), "the link leads nowhere"),
    "gone": (lambda album: (album / "gone").symlink_to("no folder"), "the link leads nowhere"),
    "round.jpg": (lambda album: (album / "round.jpg").symlink_to("round.jpg"), "cannot be read: Too many levels"),
    "linked": (linked_folder, "a link to a folder is not followed; give that folder by itself"),
    "pipe.png": (lambda album: os.mkfifo(album / "pipe.png"), "is no regular file"),
}


@pytest.mark.skipif(os.name != "posix", reason="makes links and pipes")
@pytest.mark.parametrize("name", UNREAD)
def test_what_may_be_a_picture_and_cannot_be_read_is_named(album: Path, name: str) -> None:
    plant, why = UNREAD[name]
    plant(album)
    ((path, said),) = find_sources(album, album / "out").unread.items()
    assert path == album / name and said.startswith(why)
    assert names(album) == ["b.png", "trip/a.JPG"]


def test_a_folder_that_cannot_be_read_is_named(album: Path, monkeypatch) -> None:
    listed = os.scandir

    def scandir(path: str) -> object:
        if Path(path).name == "trip":  # as a folder of another user's; root reads all
            raise PermissionError(13, "Permission denied", path)
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert find_sources(album, album / "out").unread == {album / "trip": "the folder cannot be read: Permission denied"}


def test_other_files_and_earlier_results_are_one_line_each(album: Path) -> None:
    for name in ("notes.txt", "trip/film.mov", "LICENSE", f"old/{JOURNAL}", "old/b.png", "old/deep/c.png"):
        touch(album / name)
    assert names(album) == ["b.png", "trip/a.JPG"]
    assert find_sources(album, album / "out").notes == [
        "old: left alone, as it holds results of an earlier run",
        "3 files that are no pictures are left alone (.mov, .txt, no suffix)",
    ]


def test_a_run_over_what_it_cannot_read_names_it_and_exits_with_1(tmp_path: Path, capsys) -> None:
    for name in ("in/photo.heic", f"in/old/{JOURNAL}", "in/old/a.png", "in/notes.txt"):
        touch(tmp_path / name)
    assert cli.main(["anonymize", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--recogniser", "none"]) == 1
    said = capsys.readouterr()
    assert "failed: photo.heic: .heic is a format this program does not read" in said.err
    assert "old: left alone, as it holds results of an earlier run" in said.err
    assert "1 files that are no pictures are left alone (.txt)" in said.err
    assert "0 pictures, 1 problems" in said.out
