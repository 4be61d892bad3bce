"""Check a finished folder of results against its sources, before it leaves the house."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .check import FaceCheck, check_picture
from .errors import FaceAnonError, InputError
from .faces import FaceDetector
from .folder import JOURNAL, Namer, names_sources
from .identity import FaceRecogniser
from .image import is_transparent, load_picture
from .metadata import DAMAGED, find_metadata
from .sources import find_sources

_LOOKS_PX, _LOOKS_ALIKE = 32, 20.0  # side of the thumbnails results are recognised by, and how far two may differ of 255


@dataclass(frozen=True)
class PictureCheck:
    """One source and its result (None: there is none), what is wrong with it, and what was found about each face."""

    source: str
    result: str | None
    problems: list[str] = field(default_factory=list)
    faces: list[FaceCheck] = field(default_factory=list)


@dataclass(frozen=True)
class Report:
    """Every source, and the files among the results that come from none."""

    pictures: list[PictureCheck]
    strays: list[str]
    recognisers: list[tuple[str, str, float]]  # name, content hash, highest similarity that may pass
    notes: list[str] = field(default_factory=list)  # about what among the sources was left alone
    problems: list[str] = field(default_factory=list)  # of the results as a whole

    @property
    def passed(self) -> bool:
        """Whether the folder may leave: every source has a result, every result a source, and nothing is wrong."""
        return not self.strays and not self.problems and not any(picture.problems for picture in self.pictures)


def verify_folder(
    sources: Path, results: Path, recognisers: Sequence[FaceRecogniser] = (), namer: Namer | None = str,
    may_lack: bool = False, watch: Callable[[Iterable[Path]], Iterable[Path]] = iter,
) -> Report:  # fmt: skip
    """Check that every face changed, nothing travels along, and every file has its counterpart.

    Args:
        recognisers: each must take every face for another person.
        namer: how results are called, by their source's path; None: they are recognised by their looks.
        may_lack: a source without a result was held back and is no problem.
        watch: wraps the sources as they are read, to show progress.
    Raises: InputError if there are no sources, or a recogniser has no limit.
    """
    found = find_sources(sources, results)
    paths = found.pictures
    if not paths and not found.unread:
        raise InputError(f"{sources} holds no pictures")
    files, unsafe = _files_in(results)
    limits = [(recogniser.name, recogniser.sha256, recogniser.limit()) for recogniser in recognisers]
    pairs = _pair_by_looks(paths, files) if namer is None else {p: results / namer(_name(p, sources)) for p in paths}
    originals = {_pixel_hash(path): path for path in paths}
    pictures = [PictureCheck(_name(path, sources), None, [] if may_lack else [why]) for path, why in found.unread.items()]
    with FaceDetector() as detector:
        for path in watch(paths):
            result = pairs.get(path)
            if result is None or not result.is_file():
                problems = [] if may_lack else ["it has no result"]
                pictures.append(PictureCheck(_name(path, sources), None, problems))
                continue
            problems = [f"the file holds {what}" for what in (*find_metadata(result), *_transparency(result))]
            original = originals.get(_pixel_hash(result))
            if original is not None:
                problems.append(f"it is pixel for pixel the source {_name(original, sources)}")
            faces, more = _check_pair(path, result, recognisers, detector)
            pictures.append(PictureCheck(_name(path, sources), _name(result, results), problems + more, faces))
    strays = [_name(path, results) for path in files if path not in pairs.values()]
    telling = namer is not str and names_sources(results)
    if telling:
        unsafe.append(f"{JOURNAL} names sources, which the names of the results are to hide; delete it")
    return Report(pictures, strays, limits, found.notes, unsafe)


def _files_in(results: Path) -> tuple[list[Path], list[str]]:
    """Every file below a folder but its journal, in the order of names; and what of it cannot be looked at."""
    files: list[Path] = []
    problems: list[str] = []

    def name_unreadable(error: OSError) -> None:
        problems.append(f"{error.filename} cannot be read: {error.strerror}")

    for parent, folders, names in os.walk(results, onerror=name_unreadable):
        links = [Path(parent, name) for name in folders if Path(parent, name).is_symlink()]  # which os.walk does not follow
        problems += [f"{_name(path, results)} is a link to a folder, which is not looked into; remove it" for path in links]
        files += [Path(parent, name) for name in names]
    return sorted(path for path in files if path != results / JOURNAL), problems


def _transparency(path: Path) -> list[str]:
    """Said of a file that other backgrounds than white make another picture of."""
    try:
        with Image.open(path) as opened:
            return ["transparency, which can show a face on another background"] if is_transparent(opened) else []
    except DAMAGED:
        return []  # what cannot be read is said elsewhere


def _check_pair(
    source: Path, result: Path, recognisers: Sequence[FaceRecogniser], detector: FaceDetector
) -> tuple[list[FaceCheck], list[str]]:
    """What is found about each face, and what is wrong."""
    try:
        before, after = load_picture(source).pixels, load_picture(result).pixels
        faces = check_picture(before, after, detector.scan(before), recognisers, detector)
    except FaceAnonError as error:
        return [], [str(error)]
    if not faces:
        return [], ["no face was found in it, so nothing could be checked"]
    return faces, [f"face {face}" for face in faces if not face.passed]


def report_json(report: Report) -> str:
    """The report as the text of a JSON file."""
    pictures = [
        {
            "source": picture.source,
            "result": picture.result,
            "problems": picture.problems,
            "faces": [_face_entry(face) for face in picture.faces],
        }
        for picture in report.pictures
    ]
    entries = {
        "passed": report.passed,
        "date": datetime.date.today().isoformat(),
        "recognisers": [{"name": n, "sha256": h, "max_similarity": limit} for n, h, limit in report.recognisers],
        "pictures": pictures,
        "files_without_a_source": report.strays,
        "notes": report.notes,
        "problems": report.problems,
    }
    return json.dumps(entries, indent=2) + "\n"


def _face_entry(face: FaceCheck) -> dict[str, Any]:
    box = face.face.box
    return {
        "box": [round(edge) for edge in (box.left, box.top, box.right, box.bottom)],
        "likeness": round(face.likeness, 3),
        "similarity": {verdict.recogniser: round(verdict.similarity, 3) for verdict in face.verdicts},
        "problem": face.problem,
    }


def report_text(report: Report) -> str:
    """The report for people: everything that is wrong, then a summary."""
    lines = [f"{picture.source}: {problem}" for picture in report.pictures for problem in picture.problems]
    lines += [f"{name}: comes from no source" for name in report.strays]
    lines += report.problems + report.notes
    lacking = [picture.source for picture in report.pictures if picture.result is None]
    if lacking:
        lines.append(f"without a result: {', '.join(lacking)}")
    networks = ", ".join(f"{name} (at most {limit:.2f})" for name, _, limit in report.recognisers)
    lines.append(f"recognisers: {networks}" if networks else "no recogniser was named: people may still be recognisable")
    faces = sum(len(picture.faces) for picture in report.pictures)
    lines.append(f"{len(report.pictures)} sources, {faces} faces: {'passed' if report.passed else 'FAILED'}")
    return "\n".join(lines) + "\n"


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


def _pixel_hash(path: Path) -> str:
    """Of the pixels; of the bytes where no picture can be read."""
    try:
        pixels = load_picture(path).pixels
    except FaceAnonError:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()


def _pair_by_looks(sources: list[Path], results: list[Path]) -> dict[Path, Path]:
    """The result most like each source, of the same size; each result goes to one source."""
    before = [(path, *look) for path in sources if (look := _look(path)) is not None]
    after = [(path, *look) for path in results if (look := _look(path)) is not None]
    candidates = [
        (float(np.abs(thumbnail - other).mean()), source, result)
        for source, size, thumbnail in before
        for result, other_size, other in after
        if size == other_size
    ]
    pairs: dict[Path, Path] = {}
    for distance, source, result in sorted(candidates):
        if distance <= _LOOKS_ALIKE and source not in pairs and result not in pairs.values():
            pairs[source] = result
    return pairs


def _look(path: Path) -> tuple[tuple[int, ...], NDArray[np.float32]] | None:
    try:
        pixels = load_picture(path).pixels
    except FaceAnonError:
        return None
    small = cv2.resize(pixels, (_LOOKS_PX, _LOOKS_PX), interpolation=cv2.INTER_AREA)
    return pixels.shape, small.astype(np.float32)
