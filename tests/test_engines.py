"""Folders made by a real Ray cluster of two workers: the same files as by one process, whatever is killed on the way."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from faceanon_core import cli, cli_engine, engines
from faceanon_core.engines import Made, Maker, Staff, run_on_ray
from faceanon_core.errors import AnonymizationError, FaceAnonError, WeightsError
from faceanon_core.folder import JOURNAL
from faceanon_core.image import PARTIAL_GLOB

ROOT = Path(__file__).resolve().parent.parent
GOOD = {"a.png", "b.jpg", "trip/c.png", "trip/d.png"}
needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None or sys.platform == "win32",
    reason='needs Ray, pip install "faceanon[ray]", and signals of POSIX',
)


def command(album: Path, out: Path, *words: object) -> list[str]:
    return [
        str(word) for word in ("anonymize", album, "-o", out, "--steps", 2, "--threads", 2, "--recogniser", "none", *words)
    ]


def on_ray(album: Path, out: Path) -> subprocess.Popen[str]:
    words = command(album, out, "--engine", "ray", "--workers", 2)
    process = [sys.executable, "-m", "faceanon_core.cli", *words]
    return subprocess.Popen(process, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def results(folder: Path) -> dict[str, Path]:
    """Finished pictures of a folder."""
    files = [path for path in folder.rglob("[!.]*") if path.is_file() and path.name != JOURNAL]
    return {path.relative_to(folder).as_posix(): path for path in files}


def at_work(driver: int) -> list[int]:
    """Process ids of a driver's workers that are making a picture just now."""
    shown = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in shown.splitlines()]
    parents = {int(pid): int(parent) for pid, parent, _ in rows}

    def descends(pid: int) -> bool:
        return pid == driver or (pid in parents and descends(parents[pid]))

    return [int(pid) for pid, _, title in rows if title.startswith("ray::_Worker.make") and descends(int(pid))]


def wait_for(what: Callable[[], Any], process: subprocess.Popen[str]) -> Any:
    """What `what` returns as soon as that is something."""
    for _ in range(1800):
        if found := what():
            return found
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    pytest.fail("nothing happened for three minutes")


@dataclass(frozen=True)
class Story:
    """A driver killed after its first result, then another one that loses a worker at work."""

    local: Path
    ray: Path
    before: dict[str, int]  # results the killed driver left, and when they were written
    code: int
    said: str


@pytest.fixture(scope="module")
def story(portrait, tmp_path_factory) -> Story:
    folder = tmp_path_factory.mktemp("ray")
    album, local, out = folder / "album", folder / "local", folder / "out"
    (album / "trip").mkdir(parents=True)
    for number, name in enumerate(sorted(GOOD)):
        Image.fromarray(np.roll(portrait, 2 * number, 0)).save(album / name)
    (album / "a-broken.jpg").write_bytes((album / "b.jpg").read_bytes()[:2000])
    threads = torch.get_num_threads()
    cli.main(command(album, local))
    torch.set_num_threads(threads)
    first = on_ray(album, out)
    wait_for(lambda: out.is_dir() and results(out), first)
    first.kill()
    first.communicate()
    before = {name: path.stat().st_mtime_ns for name, path in results(out).items()}
    second = on_ray(album, out)
    busy = wait_for(lambda: at_work(second.pid), second)
    os.kill(busy[0], signal.SIGKILL)
    said = "".join(second.communicate())
    return Story(local, out, before, second.returncode, said)


@needs_ray
def test_a_killed_driver_leaves_whole_results_only_and_the_next_one_keeps_them(story: Story) -> None:
    assert story.before and set(story.before) < GOOD
    assert {name: (story.ray / name).stat().st_mtime_ns for name in story.before} == story.before


@needs_ray
def test_a_killed_worker_loses_nothing_and_a_damaged_picture_fails_alone(story: Story) -> None:
    assert story.code == 1
    assert "failed: a-broken.jpg" in story.said and "is damaged or truncated" in story.said
    assert "5 pictures, 1 problems" in story.said
    assert set(results(story.ray)) == GOOD
    assert not list(story.ray.rglob(PARTIAL_GLOB))


@needs_ray
def test_nothing_is_done_twice(story: Story) -> None:
    entries = [json.loads(line)["name"] for line in (story.ray / JOURNAL).read_text().splitlines()]
    assert sorted(entries) == sorted(GOOD)


@needs_ray
def test_the_files_are_those_of_the_local_engine_bit_for_bit(story: Story) -> None:
    assert set(results(story.local)) == GOOD
    for name in GOOD:
        assert (story.ray / name).read_bytes() == (story.local / name).read_bytes(), name


# a cluster that is there already


@contextmanager
def running_cluster() -> Iterator[str]:
    """Address of a cluster of two processors that says it has two GPUs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = ["-m", "ray.scripts.scripts", "start", "--head", "--block", "--include-dashboard=false"]
    start += ["--num-cpus=2", "--num-gpus=2"]
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
    process = subprocess.Popen(
        [sys.executable, *start, f"--port={port}", "--node-ip-address=127.0.0.1"],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        assert any("Ray runtime started" in line for line in process.stdout or ())
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def head_of(address: str) -> int:
    """Process id of a cluster's head."""
    shown = subprocess.run(["ps", "-ewwo", "pid=,args="], capture_output=True, text=True, check=True).stdout
    (found,) = [line for line in shown.splitlines() if "gcs_server" in line and f"port={address.split(':')[1]} " in line]
    return int(found.split()[0])


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """Address of a cluster."""
    with running_cluster() as address:
        yield address


def open_fragile() -> Maker:
    """A maker that dies of some pictures."""

    def make(source: Path) -> Made:
        if source.name == "deadly":
            os.kill(os.getpid(), signal.SIGKILL)
        if source.name == "odd":
            raise RuntimeError("out of luck")
        return Made(f"{source} in {Path.cwd()} with {torch.get_num_threads()}".encode(), [])

    return make


def open_nothing() -> Maker:
    raise WeightsError("the weights are missing")


@needs_ray
def test_a_picture_that_kills_its_workers_or_breaks_the_code_fails_alone_on_a_running_cluster(cluster, monkeypatch) -> None:
    from ray import cloudpickle

    monkeypatch.setenv("RAY_ADDRESS", cluster)
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    sources = [Path(name) for name in ("1", "deadly", "2", "odd", "3")]
    outcomes = dict(run_on_ray(open_fragile, Staff(), sources))
    assert set(outcomes) == set(sources)
    for name in "123":
        assert outcomes[Path(name)] == Made(f"{name} in {Path.cwd()} with 1".encode(), [])
    assert isinstance(outcomes[Path("deadly")], AnonymizationError)
    assert "3 workers died over this picture" in str(outcomes[Path("deadly")])
    assert str(outcomes[Path("odd")]) == "unexpected RuntimeError: out of luck"


def open_patient(folder: Path, workers: int) -> Maker:
    """A maker that goes on when so many workers are at work at once."""

    def make(source: Path) -> Made:
        (folder / str(os.getpid())).touch()
        for _ in range(1200):
            if len(list(folder.iterdir())) >= workers:
                return Made(b"", [])
            time.sleep(0.1)
        raise AnonymizationError("the others never came")

    return make


@needs_ray
def test_every_gpu_gets_a_worker_however_many_threads_each_has(cluster, tmp_path: Path, monkeypatch) -> None:
    from ray import cloudpickle

    monkeypatch.setenv("RAY_ADDRESS", cluster)
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    staff = Staff(threads=2, gpus=1)
    outcomes = dict(run_on_ray(partial(open_patient, tmp_path, 2), staff, [Path("1"), Path("2")]))
    assert outcomes == {Path("1"): Made(b"", []), Path("2"): Made(b"", [])}


def test_where_a_cluster_makes_the_pictures_this_machine_needs_no_gpu(tmp_path: Path, monkeypatch) -> None:
    words = command(tmp_path, tmp_path / "out", "--engine", "ray", "--device", "cuda")
    options = cli._parser().parse_args(words)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert cli_engine.driver_options(options).device == "cuda"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert cli_engine.driver_options(options).device == "cpu" and options.device == "cuda"


@needs_ray
def test_workers_that_cannot_start_stop_the_run_with_their_reason(cluster, monkeypatch) -> None:
    from ray import cloudpickle

    monkeypatch.setenv("RAY_ADDRESS", cluster)
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with pytest.raises(FaceAnonError, match=r"^the weights are missing$"):
        list(run_on_ray(open_nothing, Staff(), [Path("1")]))


@needs_ray
def test_a_run_whose_cluster_is_stopped_ends_with_one_sentence(tmp_path: Path, monkeypatch) -> None:
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with running_cluster() as address:
        monkeypatch.setenv("RAY_ADDRESS", address)
        outcomes = run_on_ray(partial(open_patient, tmp_path, 1), Staff(1), [Path(str(number)) for number in range(1000)])
        assert next(outcomes)[1] == Made(b"", [])
        monkeypatch.setattr(engines, "HEAD_S", 0.5)
        os.kill(head_of(address), signal.SIGKILL)
        with pytest.raises(FaceAnonError, match=r"does not answer any more; .* run the same command again to go on"):
            list(outcomes)


# options


def test_without_ray_one_sentence_says_how_to_get_it_and_nothing_is_written(
    portrait_file, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert cli.main(command(portrait_file.parent, tmp_path / "out" / "new", "--engine", "ray")) == 2
    assert 'not installed: pip install "faceanon[ray]"' in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--workers", 2], "--workers belongs to --engine ray"),
        (["--engine", "ray", "--workers", 0], "workers must be at least 1, got 0"),
        (["--threads", 0], "threads must be at least 1, got 0"),
        (["--engine", "ray"], "--engine ray is for folders"),
    ],
)
def test_options_that_make_no_sense_are_one_sentence(portrait_file, tmp_path: Path, capsys, words, message) -> None:
    arguments = ["anonymize", portrait_file, "-o", tmp_path / "out.png", *words]
    assert cli.main([str(word) for word in arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out.png").exists()
