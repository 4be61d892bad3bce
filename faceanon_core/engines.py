"""Where the pictures of a folder are made: in this process, or by the workers of a Ray cluster (the only use of ray).

An engine yields every source with what came of it, as it finishes, and writes nothing: results come back encoded and the one
process that reads them keeps them. So a worker that is killed leaves nothing half written, and one that outlives its run
cannot write a picture a second time.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import AnonymizationError, FaceAnonError, InputError
from .image import encode_picture, load_picture

if TYPE_CHECKING:
    from .pipeline import Anonymizer, Settings

log = logging.getLogger(__name__)

MAX_DEATHS = 3  # of workers over the same picture
HEAD_S = 15.0  # between two looks whether the cluster's head is still there
PATIENCE = 8  # looks without news before the user is told that the run is waiting for the cluster


@dataclass(frozen=True)
class Made:
    """A finished picture: what its file shall hold, and one sentence for every face that was not anonymized."""

    content: bytes
    warnings: list[str]


Outcome = Made | FaceAnonError
Maker = Callable[[Path], Made]
Outcomes = Generator[tuple[Path, Outcome], None, None]
Engine = Callable[[Sequence[Path]], Outcomes]


@dataclass(frozen=True)
class Staff:
    """Who works on the cluster.

    `threads` and `gpus` are for each worker; `count` is None for as many as the cluster has room for.
    """

    count: int | None = None
    threads: int = 1
    gpus: int = 0

    @property
    def cpus(self) -> int:
        """What a worker reserves; none beside a GPU, so that every GPU gets its worker on machines of few cores."""
        return 0 if self.gpus else self.threads


def make_picture(anonymizer: Anonymizer, settings: Settings, keep_metadata: bool, source: Path) -> Made:
    """Read, anonymize and encode one picture, in the source's own format."""
    picture = load_picture(source, keep_metadata)
    result = anonymizer.anonymize(picture.pixels, settings)
    return Made(encode_picture(replace(picture, pixels=result.pixels), source.suffix), result.warnings)


def run_here(maker: Maker, sources: Sequence[Path]) -> Outcomes:
    """The engine of one process: one picture after the other."""
    for source in sources:
        yield source, _attempt(maker, source)


def _attempt(maker: Maker, source: Path) -> Outcome:
    try:
        return maker(source)
    except FaceAnonError as error:
        return error
    except Exception as error:  # whatever one picture meets must not stop the others
        log.info("%s", source, exc_info=True)
        return FaceAnonError(f"unexpected {type(error).__name__}: {error}")


def check_ray() -> None:
    """Raises: InputError if Ray is not installed."""
    try:
        import ray  # noqa: F401
    except ImportError as error:
        raise InputError('the engine ray needs Ray, which is not installed: pip install "faceanon[ray]"') from error


def run_on_ray(open_maker: Callable[[], Maker], staff: Staff, sources: Sequence[Path]) -> Outcomes:
    """The engine of many processes: every worker opens the models once and has one picture at a time.

    A picture whose worker dies is given to another one, until MAX_DEATHS have died over it. The cluster is the one that
    RAY_ADDRESS names, else one on this machine that lives as long as the run. Workers change to this process's working
    directory.

    Args:
        open_maker: called in every worker; must be picklable.
    Raises: InputError if no cluster answers, or what `open_maker` raises; FaceAnonError if workers cannot start.
    """
    if sources:
        with _cluster(staff) as count:
            yield from _Crew(staff, open_maker, sources).work(min(count, len(sources)))


@contextmanager
def _cluster(staff: Staff) -> Iterator[int]:
    """Connect; yields how many workers there is room for."""
    import ray

    address = os.environ.get("RAY_ADDRESS")
    own_size = max(usable_cores(), (staff.count or 1) * staff.cpus)
    options = {} if address else {"num_cpus": own_size, "include_dashboard": False}
    on_terminate = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address or "local", log_to_driver=log.isEnabledFor(logging.INFO), logging_level=logging.WARNING, **options)
    except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        raise InputError(f"no Ray cluster can be used (RAY_ADDRESS={address}): {error}") from error
    signal.signal(signal.SIGTERM, on_terminate)  # ray has put its own in its place
    try:
        cluster = ray.cluster_resources()
        room = cluster.get("GPU", 0) // staff.gpus if staff.gpus else cluster.get("CPU", 0) // staff.cpus
        yield staff.count or max(1, int(room))
    finally:
        ray.shutdown()


def usable_cores() -> int:
    """How many cores this process may use, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check_head() -> None:
    """Raises: FaceAnonError if the cluster's head is gone; Ray would go on for a minute and then end this process."""
    import ray

    address = ray.get_runtime_context().gcs_address
    host, port = address.rsplit(":", 1)
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=HEAD_S).close()
    except OSError as error:
        raise FaceAnonError(
            f"the Ray cluster's head {address} does not answer any more; start the cluster again, then run the same command "
            "again to go on"
        ) from error


class _Worker:
    """Lives in a process of its own and holds the models."""

    def start(self, open_maker: Callable[[], Maker], threads: int, folder: Path) -> FaceAnonError | None:
        import torch

        try:
            os.chdir(folder)  # so that relative paths mean the same files
            torch.set_num_threads(threads)
            self._maker = open_maker()
        except OSError as error:
            return InputError(f"a Ray worker cannot enter {folder} ({error.strerror}); every machine needs the same folders")
        except FaceAnonError as error:
            return error
        return None

    def make(self, source: Path) -> Outcome:
        return _attempt(self._maker, source)


class _Crew:
    """The workers, what each of them is at, and what is left to do."""

    def __init__(self, staff: Staff, open_maker: Callable[[], Maker], sources: Sequence[Path]) -> None:
        self._staff, self._open_maker, self._queue = staff, open_maker, deque(sources)
        self._calls: dict[Any, tuple[Any, Path | None]] = {}  # the worker and its picture; None while it starts
        self._deaths = Counter[Path | None]()
        self._looked = time.monotonic()  # for the cluster's head

    def work(self, count: int) -> Outcomes:
        """Keep `count` workers busy until nothing is left to do."""
        for _ in range(count):
            self._hire()
        while self._queue or any(source for _, source in self._calls.values()):
            source, outcome = self._next()
            if source is not None and outcome is not None:
                yield source, outcome
            elif isinstance(outcome, FaceAnonError):
                raise outcome

    def _hire(self) -> None:
        import ray

        worker = ray.remote(_Worker).options(num_cpus=self._staff.cpus, num_gpus=self._staff.gpus).remote()
        call = worker.start.remote(self._open_maker, self._staff.threads, Path.cwd())
        self._calls[call] = (worker, None)

    def _next(self) -> tuple[Path | None, Outcome | None]:
        """Wait for a worker and give it the next picture.

        Returns: the picture it had and what came of it; no picture if it has just started, no outcome if that is still open.
        """
        import ray

        call = self._wait()
        worker, source = self._calls.pop(call)
        try:
            outcome = ray.get(call)
        except ray.exceptions.RayError as error:
            _check_head()
            ray.kill(worker)
            self._hire()
            return source, self._bury(source, error)
        if self._queue:
            following = self._queue.popleft()
            self._calls[worker.make.remote(following)] = (worker, following)
        else:
            ray.kill(worker)
        if source is None:
            del self._deaths[None]
        return source, outcome

    def _wait(self) -> Any:
        import ray

        silent = 0
        while True:
            if time.monotonic() - self._looked >= HEAD_S:
                _check_head()
                self._looked = time.monotonic()
            if finished := ray.wait(list(self._calls), num_returns=1, timeout=HEAD_S)[0]:
                return finished[0]
            silent += 1
            if silent % PATIENCE == 0 and not any(source for _, source in self._calls.values()):
                need = f"{self._staff.gpus} GPUs" if self._staff.gpus else f"{self._staff.cpus} CPUs"
                log.warning("waiting for the Ray cluster to start workers with %s each", need)

    def _bury(self, source: Path | None, error: Exception) -> FaceAnonError | None:
        """Put a dead worker's picture back to the front, unless workers keep dying over it."""
        log.info("a worker died: %s", error)
        self._deaths[source] += 1
        if self._deaths[source] < MAX_DEATHS:
            self._queue.extendleft([source] if source else [])
            return None
        if source is None:
            return FaceAnonError(f"Ray's workers die before they are ready: {str(error).strip().splitlines()[-1]}")
        return AnonymizationError(f"{MAX_DEATHS} workers died over this picture; it may need more memory than they have")
