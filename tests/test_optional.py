"""Optional models: fetched only on request, and only the right file is kept."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from faceanon_core import optional
from faceanon_core.cli import main
from faceanon_core.optional import OPTIONAL_MODELS, OptionalModel

CONTENT = b"weights" * 50_000


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[OptionalModel]:
    """A model on a server of our own, known to the command line as "small"."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    (shelf / "small.task").write_bytes(CONTENT)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(shelf)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/small.task"
    known = OptionalModel("small.task", url, hashlib.sha256(CONTENT).hexdigest(), "MIT", "testing")
    monkeypatch.setitem(optional.OPTIONAL_MODELS, "small", known)
    yield known
    server.shutdown()
    server.server_close()


def test_the_right_file_arrives_and_is_not_fetched_twice(model, tmp_path: Path, capsys) -> None:
    assert main(["download", "small", "-o", str(tmp_path / "new")]) == 0
    said = capsys.readouterr()
    assert said.out.strip() == str(tmp_path / "new" / "small.task") and "MIT: testing" in said.err
    assert (tmp_path / "new" / "small.task").read_bytes() == CONTENT
    (tmp_path / "shelf" / "small.task").unlink()
    assert main(["download", "small", "-o", str(tmp_path / "new")]) == 0


def test_without_a_folder_it_goes_where_the_detector_looks(model, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("FACEANON_MODELS", str(tmp_path / "mine"))
    assert main(["download", "small"]) == 0
    assert (optional.model_folder() / "small.task").is_file()


def test_another_file_than_the_known_one_is_not_kept(model, tmp_path: Path, capsys) -> None:
    (tmp_path / "shelf" / "small.task").write_bytes(b"something else")
    assert main(["download", "small", "-o", str(tmp_path / "new")]) == 2
    assert "is not the known small.task; nothing was kept" in capsys.readouterr().err
    assert list((tmp_path / "new").iterdir()) == []


def test_a_file_of_the_users_is_never_overwritten(model, tmp_path: Path, capsys) -> None:
    (tmp_path / "small.task").write_bytes(b"mine")
    assert main(["download", "small", "-o", str(tmp_path)]) == 2
    assert "move it away and run this again" in capsys.readouterr().err
    assert (tmp_path / "small.task").read_bytes() == b"mine"


def test_a_server_without_the_file_and_an_unknown_name_are_told(model, tmp_path: Path, capsys) -> None:
    (tmp_path / "shelf" / "small.task").unlink()
    assert main(["download", "small", "-o", str(tmp_path / "new")]) == 1
    assert "small.task could not be fetched from http://127.0.0.1" in capsys.readouterr().err
    assert main(["download", "yolo"]) == 2
    assert "there is no optional model 'yolo'; known: face_landmarker" in capsys.readouterr().err


def test_every_known_model_names_licence_place_and_checksum() -> None:
    for known in OPTIONAL_MODELS.values():
        assert known.url.startswith("https://") and known.licence and len(bytes.fromhex(known.sha256)) == 32
