"""The script of docs/SCALING.md that spreads pictures over ComfyUI servers, run as it stands, against servers that fail."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread

import pytest

pytest.importorskip("requests", reason="the script needs it")
PAGE = (Path(__file__).resolve().parent.parent / "docs" / "SCALING.md").read_text(encoding="utf-8")
WORKFLOW = {"1": {"class_type": "LoadImage", "inputs": {"image": ""}}, "2": {"class_type": "SaveImage", "inputs": {}}}


class Comfy(BaseHTTPRequestHandler):
    """A server that has made every picture at once."""

    outcome = "success"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.answer({"name": "a.png", "prompt_id": "job"})

    def do_GET(self) -> None:
        if self.path.startswith("/view"):
            return self.view()
        messages = [["execution_error", {"exception_message": "no face was found"}]]
        status = {"status_str": self.outcome, "messages": messages}
        done = {"status": status, "outputs": {"2": {"images": [{"filename": "r.png"}]}}}
        self.answer({"job": done} if self.path.startswith("/history") else {})

    def view(self) -> None:
        self.answer({"a": "picture"})

    def answer(self, body: object) -> None:
        content = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


class Refusing(Comfy):
    """Cannot make any picture."""

    outcome = "error"


class Cutting(Comfy):
    """Sends half of every picture."""

    def view(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b"half")


class Last(Comfy):
    """Made its picture, but goes away when the other server has nothing left to do."""

    busy, others_done = Event(), Event()

    def view(self) -> None:
        self.busy.set()
        self.others_done.wait(5)


class First(Comfy):
    """The server beside it."""

    def view(self) -> None:
        Last.busy.wait(5)
        super().view()
        Last.others_done.set()


@contextmanager
def server(kind: type[Comfy]) -> Iterator[str]:
    """Its address."""
    running = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}"
    running.shutdown()
    running.server_close()


@pytest.fixture
def spread(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the script over in/ into out/ with servers of these kinds."""
    (script,) = [code for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "spread.py" in code]
    (tmp_path / "spread.py").write_text(script)
    (tmp_path / "workflow.json").write_text(json.dumps(WORKFLOW))
    (tmp_path / "in").mkdir()
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / "in" / name).write_bytes(b"source")

    def run(*kinds: type[Comfy]) -> subprocess.CompletedProcess[str]:
        with ExitStack() as stack:
            words = ["spread.py", "workflow.json", "in", "out", *(stack.enter_context(server(kind)) for kind in kinds)]
            return subprocess.run(
                [sys.executable, *words], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60
            )

    return run


def results(folder: Path) -> set[str]:
    return {path.name for path in (folder / "out").glob("[!.]*")}


def test_every_picture_gets_its_result_and_a_subfolder_is_named(spread, tmp_path: Path) -> None:
    done = spread(Comfy, Comfy)
    assert (done.returncode, done.stdout) == (0, "0 pictures left, 0 failed\n")
    assert results(tmp_path) == {"a.jpg.png", "b.jpg.png"}
    (tmp_path / "in" / "trip").mkdir()
    done = spread(Comfy)
    assert done.returncode == 1 and "failed: trip: a folder" in done.stderr


def test_a_server_that_cuts_the_connection_gives_its_picture_back(spread, tmp_path: Path) -> None:
    done = spread(Cutting, Comfy)
    assert done.returncode == 0 and results(tmp_path) == {"a.jpg.png", "b.jpg.png"}
    (tmp_path / "in" / "c.jpg").write_bytes(b"source")
    done = spread(Cutting)
    assert "is gone" in done.stderr and "Traceback" not in done.stderr
    assert (done.returncode, done.stdout) == (1, "1 pictures left, 0 failed\n")


def test_the_picture_of_a_server_that_goes_away_last_is_made_by_another(spread, tmp_path: Path) -> None:
    done = spread(First, Last)
    assert "is gone" in done.stderr
    assert done.returncode == 0 and results(tmp_path) == {"a.jpg.png", "b.jpg.png"}


def test_what_a_server_or_this_machine_cannot_do_fails_alone(spread, tmp_path: Path) -> None:
    done = spread(Refusing)
    assert done.returncode == 1 and "failed: b.jpg: ['no face was found']" in done.stderr
    (tmp_path / "in" / "gone.jpg").symlink_to("nowhere")
    done = spread(Comfy)
    assert done.returncode == 1 and "failed: gone.jpg:" in done.stderr
    assert results(tmp_path) == {"a.jpg.png", "b.jpg.png"}
