"""What lies in a folder of sources: pictures, what may be one and cannot be read, and what is left alone."""

from __future__ import annotations

import os
import stat
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from .folder import JOURNAL
from .image import SUFFIXES

FOREIGN = (  # of pictures that this program does not read
    ".apng", ".arw", ".avif", ".cr2", ".cr3", ".crw", ".dib", ".dng", ".exr", ".gif", ".heic", ".heics", ".heif", ".hif",
    ".j2k", ".jfif", ".jp2", ".jpe", ".jpf", ".jpx", ".jxl", ".jxr", ".mpo", ".nef", ".nrw", ".orf", ".pbm", ".pef", ".pgm",
    ".pnm", ".ppm", ".psb", ".psd", ".raf", ".raw", ".rw2", ".srw", ".tga", ".xcf",
)  # fmt: skip


@dataclass(frozen=True)
class Sources:
    """The files below a folder; hidden ones, and those in hidden folders, are none.

    `pictures` are in the order of names, `unread` says why a path that may hold pictures cannot be read, and `notes` are one
    line each about what is left alone.
    """

    pictures: list[Path] = field(default_factory=list)
    unread: dict[Path, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def find_sources(folder: Path, results: Path | None = None) -> Sources:
    """Search a folder and all below it, but not its `results`, nor those of earlier runs. Its path is resolved."""
    found, others = Sources(), Counter[str]()

    def name_unreadable(error: OSError) -> None:
        found.unread[Path(error.filename)] = f"the folder cannot be read: {error.strerror}"

    for parent, folders, files in os.walk(folder, onerror=name_unreadable):
        place = Path(parent)
        if place != folder and JOURNAL in files:
            found.notes.append(f"{place.relative_to(folder).as_posix()}: left alone, as it holds results of an earlier run")
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if not _is_hidden(name) and not _is_same(place / name, results))
        links = [place / name for name in folders if (place / name).is_symlink()]  # which os.walk does not follow
        found.unread.update(dict.fromkeys(links, "a link to a folder is not followed; give that folder by itself"))
        for path in (place / name for name in files if not _is_hidden(name)):
            if why := _why_unread(path):
                found.unread[path] = why
            elif path.suffix.lower() in SUFFIXES:
                found.pictures.append(path)
            else:
                others[path.suffix.lower() or "no suffix"] += 1
    found.pictures.sort()
    if others:
        found.notes.append(f"{others.total()} files that are no pictures are left alone ({', '.join(sorted(others))})")
    return found


def _is_same(folder: Path, other: Path | None) -> bool:
    """Whatever they are spelled, as disks that take capitals for small letters allow."""
    try:
        return other is not None and folder.samefile(other)
    except OSError:  # one of them is not there or may not be looked at
        return False


def _is_hidden(name: str) -> bool:
    return name.startswith(".")


def _why_unread(path: Path) -> str | None:
    """Why a file cannot be a source although it may be a picture; None if nothing is known against it."""
    suffix = path.suffix.lower()
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return "the link leads nowhere"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if suffix in FOREIGN:
        return f"{suffix} is a format this program does not read; convert it to one of {', '.join(SUFFIXES)}"
    return "is no regular file" if suffix in SUFFIXES and not stat.S_ISREG(mode) else None
