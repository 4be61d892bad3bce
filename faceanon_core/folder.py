"""A run over a folder: names for the results, a journal to resume by, no leftovers; engines make the pictures."""

from __future__ import annotations

import errno
import filecmp
import hashlib
import hmac
import json
import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from .errors import FaceAnonError, InputError
from .image import PARTIAL_GLOB, refuse_existing, write_file

if TYPE_CHECKING:
    from .engines import Engine, Outcome

log = logging.getLogger(__name__)

JOURNAL = "faceanon-journal.jsonl"
NAMES = ("keep", "random", "hashed")
MIN_KEY_BYTES = 16
QUIET_S = 60.0  # between two lines about how far a run is, where no terminal shows a bar
_DIGITS = 32  # of a random or hashed name, hexadecimal: 128 bits
_HIDING = re.compile(rf"[0-9a-f]{{{_DIGITS}}}(\.\w+)?")  # a random or hashed name
_MARK_DIGITS = 8  # of what tells that a source has changed: one change of 4 billion is missed

Namer = Callable[[str], str]


def make_namer(style: str, key_file: Path | None = None) -> Namer:
    """How results are called: a function of the source's path relative to its folder, with slashes.

    keep: the same path. random: another name each time, which nothing leads back from. hashed: a keyed hash of the path, so
    that the key's holder alone can tell which result belongs to which source. The last two drop subfolders.

    Raises: InputError for another style, a key that is missing or too short, or a key that would not be used.
    """
    if style not in NAMES:
        raise InputError(f"names must be one of {', '.join(NAMES)}, got {style!r}")
    if (style == "hashed") != (key_file is not None):
        raise InputError("hashed names need a key, and only they do: give both --names hashed and --name-key FILE")
    if style == "keep":
        return str
    if key_file is None:
        return lambda name: random_name() + _suffix(name)
    key = read_key(key_file)
    return lambda name: keyed_hash(key, name) + _suffix(name)


def read_key(path: Path) -> bytes:
    """The key in a file; white space around it does not count.

    Raises: InputError if the file cannot be read or the key is too short to be safe.
    """
    try:
        key = path.read_bytes().strip()
    except OSError as error:
        raise InputError(f"the key {path} cannot be read: {error.strerror}") from error
    if len(key) < MIN_KEY_BYTES:
        raise InputError(
            f"the key in {path} has {len(key)} bytes and would be guessed; it needs at least {MIN_KEY_BYTES}, "
            "for example from: openssl rand -hex 32"
        )
    return key


def random_name() -> str:
    """128 random bits, hexadecimal."""
    return secrets.token_hex(_DIGITS // 2)


def keyed_hash(key: bytes, text: str) -> str:
    """HMAC-SHA256 of a text, cut to 128 bits, hexadecimal."""
    return hmac.new(key, text.encode("utf-8", "surrogateescape"), hashlib.sha256).hexdigest()[:_DIGITS]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:_DIGITS]


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def refuse_unwritable(path: Path) -> None:
    """Find out before the work is done, and without making anything.

    Raises: InputError.
    """
    existing = next(parent for parent in path.absolute().parents if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise InputError(f"{path} cannot be written: {existing} is no folder you may write to")


def remove_file(path: Path) -> None:
    """Raises: InputError if that is not allowed."""
    try:
        path.unlink()
    except OSError as error:
        raise InputError(f"{path} cannot be removed: {error.strerror}") from error


def remove_leftovers(folder: Path) -> None:
    """Delete what killed runs left half written; a run that is still writing into the folder fails."""
    for path in list(folder.rglob(PARTIAL_GLOB)):
        path.unlink(missing_ok=True)


def mark_source(source: Path, namer: Namer) -> dict[str, str]:
    """What an entry says of its source: "source" is another when its size or time of change is, "place" in another folder.

    The journal lies among the results, and when a picture was taken is nobody's business: so the marks are hashes too short
    to lead back to a time, and where names hide the sources, `namer` lets nobody else compare them. A folder is known by its
    number on its disk, which says nothing of its name and stays when it is renamed.

    Raises: InputError if the source is gone.
    """
    try:
        status, folder = source.stat(), source.parent.stat()
    except OSError as error:
        raise InputError(f"{source} cannot be read: {error.strerror}") from error
    told = {"source": f"{status.st_size} {status.st_mtime_ns}", "place": f"{folder.st_dev} {folder.st_ino}"}
    return {name: hashlib.sha256(namer(text).encode()).hexdigest()[:_MARK_DIGITS] for name, text in told.items()}


def _entries(journal: Path) -> Iterator[dict[str, Any]]:
    """Of a journal, but for damaged lines."""
    for line in journal.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(entry, dict) and isinstance(entry.get("name"), str) and isinstance(entry.get("warnings"), list):
            yield entry


def names_sources(folder: Path) -> bool:
    """Whether a folder's journal holds names of sources, not random or hashed ones alone."""
    journal = folder / JOURNAL
    return journal.is_file() and any(not _HIDING.fullmatch(entry["name"]) for entry in _entries(journal))


class Journal:
    """Which results a folder already holds, made with the same settings, from what, and what was wrong with each.

    Args:
        key: identifies the settings; entries of other settings do not count.
        namer: how results are called, see `mark_source`.
    Raises: InputError if the folder cannot be written.
    """

    def __init__(self, folder: Path, key: str, namer: Namer = str) -> None:
        self.folder, self._path, self._key, self._namer = folder, folder / JOURNAL, key, namer
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._path.open("ab").close()
        except OSError as error:
            raise InputError(f"{folder} cannot be written: {error.strerror}") from error
        if self._path.read_bytes()[-1:] not in (b"", b"\n"):  # a line that a killed run left half written
            self._write("\n")
        self._done = self._read()
        self._marks: dict[str, dict[str, str]] = {}

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Keep other runs out of the folder.

        Raises: InputError if one is writing into it.
        """
        with self._path.open("ab") as file:
            try:
                import fcntl

                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise InputError(f"another run writes into {self.folder}; wait for it or choose another folder") from error
            except (ImportError, OSError):
                log.info("nothing keeps a second run out of %s: this system has no locks for it", self.folder)
            yield

    def _read(self) -> dict[str, dict[str, Any]]:
        """The last entry of a name counts."""
        done: dict[str, dict[str, Any]] = {}
        for entry in _entries(self._path):
            done.pop(entry["name"], None)
            if entry.get("settings") == self._key:
                done[entry["name"]] = entry
        return done

    def find(self, name: str, source: Path) -> list[str] | None:
        """What was wrong with a finished result; None if it has still to be made: it is missing, or its source has changed.

        Raises: InputError if another file is in its place, also the result of another source, or the source is gone.
        """
        marks = self._marks[name] = mark_source(source, self._namer)
        path, entry = self.folder / name, self._done.get(name)
        if entry is None or not path.is_file():
            refuse_existing(path)
            return None
        known = marks | entry  # the first versions wrote no marks
        if known["source"] != marks["source"]:
            if known["place"] != marks["place"]:  # the same picture in another place is one that was copied
                raise InputError(
                    f"{path} was made of a picture in another folder than {source}; remove it or choose another folder"
                )
            if not self._is_as_written(name):
                raise InputError(f"the source has changed, and so has its result {path}; remove that one first")
            return None
        warnings: list[str] = entry["warnings"]
        if path.stat().st_size == 0 or (not warnings and filecmp.cmp(path, source, shallow=False)):
            # any other change may be the user's own
            raise InputError(f"{path} is empty or a copy of its source by now; remove it, then it is made again")
        return warnings

    def _is_as_written(self, name: str) -> bool:
        path = self.folder / name
        return name in self._done and path.is_file() and self._done[name].get("result") == _digest(path.read_bytes())

    def keep(self, name: str, content: bytes, warnings: list[str]) -> None:
        """Write a result that `find` did not find. It takes the place of the one of a source that has changed.

        Its entry comes first: a run killed in between makes the picture again, instead of meeting a file it does not know.

        Raises: InputError if there is another such file or it cannot be written.
        """
        path = self.folder / name
        if self._is_as_written(name):
            remove_file(path)
        refuse_existing(path)
        entry = {"name": name, "settings": self._key, "warnings": warnings}
        entry |= {**self._marks[name], "result": _digest(content)}
        self._write(json.dumps(entry) + "\n")
        write_file(path, content)
        self._done[name] = entry

    def _write(self, text: str) -> None:
        try:
            with self._path.open("a", encoding="utf-8") as journal:
                journal.write(text)
        except OSError as error:
            raise InputError(f"{self._path} cannot be written: {error.strerror}") from error


def fill_folder(
    names: Mapping[Path, str], journal: Journal, engine: Engine, tell: Callable[[Path, str], None] = lambda source, why: None
) -> dict[Path, list[str]]:
    """Make every result that is not there yet, under a progress bar, or with a line from time to time where nobody watches.

    Args:
        names: of the results, by source.
        tell: called with a source and what is wrong with it, as soon as that is known.
    Returns: what is wrong with each picture, by source; nothing if every face in it was replaced.
    Raises: FaceAnonError if the disk is full.
    """
    from tqdm import tqdm

    found = {source: _find(journal, name, source) for source, name in names.items()}
    problems = {source: warnings for source, warnings in found.items() if warnings is not None}
    for source, warnings in problems.items():
        _tell_each(tell, source, warnings)
    missing = [source for source in names if source not in problems]
    with closing(engine(missing)) as outcomes:
        bar = tqdm(outcomes, total=len(names), initial=len(problems), unit="picture", disable=None)
        told = time.monotonic()
        for source, outcome in bar:
            problems[source] = _keep(journal, names[source], outcome)
            with bar.external_write_mode():
                _tell_each(tell, source, problems[source])
            if bar.disable and time.monotonic() - told >= QUIET_S:
                told = time.monotonic()
                log.warning("%d of %d pictures", len(problems), len(names))
    return problems


def _tell_each(tell: Callable[[Path, str], None], source: Path, warnings: list[str]) -> None:
    for warning in warnings:
        tell(source, warning)


def _find(journal: Journal, name: str, source: Path) -> list[str] | None:
    try:
        return journal.find(name, source)
    except InputError as error:
        return [str(error)]


def _keep(journal: Journal, name: str, outcome: Outcome) -> list[str]:
    if isinstance(outcome, FaceAnonError):
        return [str(outcome)]
    try:
        journal.keep(name, outcome.content, outcome.warnings)
    except InputError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno in (errno.ENOSPC, errno.EDQUOT):
            raise FaceAnonError(f"{error}; make room, then run the same command again to go on") from error
        return [str(error)]
    return outcome.warnings
