"""Find everything a picture file holds besides its pixels, and read what of it may be kept.

The containers are read piece by piece, and whatever is not known to hold pixels only is named: what a list of known
metadata formats would miss is found as well.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image, TiffTags

_JPEG_PIXELS = {*range(0xC0, 0xD0), 0xDA, 0xDB, 0xDC, 0xDD}  # frames, tables and scans
_JPEG_NAMES = {b"Exif\0\0": "EXIF", b"http://ns.adobe.com/xap/": "XMP", b"ICC_PROFILE\0": "colour profile",
    b"Photoshop 3.0\0": "IPTC", b"MPF\0": "further pictures"}  # fmt: skip
_PNG_PIXELS = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"sRGB", b"gAMA"}
_PNG_NAMES = {b"eXIf": "EXIF", b"iCCP": "colour profile", b"tIME": "time", b"pHYs": "resolution"}
_WEBP_PIXELS = {b"VP8 ", b"VP8L", b"VP8X", b"ALPH"}
_WEBP_NAMES = {b"EXIF": "EXIF", b"XMP ": "XMP", b"ICCP": "colour profile"}
# width, height, bits, compression, photometric, strips, samples, rows, counts, planes, predictor, palette, extra, format
_TIFF_PIXELS = {256, 257, 258, 259, 262, 273, 277, 278, 279, 284, 317, 320, 338, 339, 322, 323, 324, 325, 530, 531, 532}
_TIFF_NAMES = {34665: "EXIF", 34853: "GPS", 700: "XMP", 34675: "colour profile", 33723: "IPTC", 34377: "Photoshop data"}
_TIFF_SIZES = {279, 325}  # bytes of each strip or tile of pixels
_TIFF_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}  # of a value, by type
_TIFF_SLACK = 64  # bytes that aligning the parts may take
_TIFF_PLAIN = {274: 1, 254: 0}  # orientation and kind of picture where they say nothing


# What Pillow raises for damaged files, and for EXIF whose entries are not of the type that it takes for granted.
DAMAGED = (
    ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, SyntaxError, TypeError, ValueError, struct.error,
)  # fmt: skip
# Entries that say by whom, when, where and with what a picture was taken, by the directory that holds them: none shows
# anything of it, as thumbnails, maker notes, XMP and Photoshop's data do, or says how its pixels are stored.
_DESCRIPTIVE: dict[int | None, Iterable[int]] = {
    None: (270, 271, 272, 305, 306, 315, 33432),  # description, make, model, software, date, artist, copyright
    ExifTags.IFD.Exif: (
        0x829A, 0x829D, 0x8822, 0x8827, *range(0x9003, 0x9005), *range(0x9010, 0x9013),  # exposure and dates
        *range(0x9201, 0x920B), *range(0x9290, 0x9293),  # exposure, flash and focal length; parts of a second
        *range(0xA402, 0xA40B), *range(0xA432, 0xA435),  # modes, zoom and contrast; lens
    ),
    ExifTags.IFD.GPSInfo: range(32),
}  # fmt: skip
_LONGEST = 1000  # letters or numbers of an entry; a longer one could be a picture


def descriptive_exif(opened: Image.Image) -> bytes:
    """EXIF with the descriptive entries of a picture's own alone; b"" if there are none. What is broken is left out."""
    kept = Image.Exif()
    with suppress(*DAMAGED):
        exif = opened.getexif()
        for directory, tags in _DESCRIPTIVE.items():
            with suppress(*DAMAGED):
                _copy_entries(exif if directory is None else exif.get_ifd(directory), kept, directory, tags)
    return kept.tobytes() if len(kept) else b""


def _copy_entries(source: Any, kept: Image.Exif, directory: int | None, tags: Iterable[int]) -> None:
    found = {}
    for tag in tags:
        with suppress(*DAMAGED):
            value = source[tag]
            trial = Image.Exif()
            trial.update({tag: value} if directory is None else {directory: {tag: value}})
            trial.tobytes()  # fails where the value is not of the entry's type
            if not isinstance(value, (str, bytes, tuple)) or len(value) <= _LONGEST:
                found[tag] = value
    if found:
        kept.update(found if directory is None else {directory: found})


def find_metadata(path: Path) -> list[str]:
    """What a JPEG, PNG, WebP, TIFF or BMP file holds besides its pixels, one short phrase each; [] if nothing.

    A file that is none of these or is damaged is said to be so, since nothing is known about it then.
    """
    data = path.read_bytes()
    for magic, read in _READERS:
        if data.startswith(magic) and (magic != b"RIFF" or data[8:12] == b"WEBP"):
            try:
                return list(dict.fromkeys([*read(data), *_more_pictures(path)]))
            except DAMAGED:
                return ["damaged content that cannot be read"]
    return ["a format that cannot be searched"]


def _more_pictures(path: Path) -> Iterator[str]:
    with Image.open(path) as opened:
        if getattr(opened, "n_frames", 1) > 1:
            yield "further pictures"


def _read_jpeg(data: bytes) -> Iterator[str]:
    place = 2
    while True:
        if data[place] != 0xFF:
            raise ValueError("no marker")
        marker = data[place + 1]
        if marker == 0xFF:  # a fill byte
            place += 1
            continue
        if marker == 0xD9:
            break
        size = struct.unpack_from(">H", data, place + 2)[0]
        yield from _jpeg_segment(marker, data[place + 4 : place + 2 + size])
        place += 2 + size
        if marker == 0xDA:
            place = _end_of_scan(data, place)
    if place + 2 < len(data):
        yield "data after the picture's end"


def _end_of_scan(data: bytes, place: int) -> int:
    """Where the next marker after compressed pixels stands."""
    while True:
        place = data.index(b"\xff", place)
        if data[place + 1] != 0 and not 0xD0 <= data[place + 1] <= 0xD7:
            return place
        place += 2


def _jpeg_segment(marker: int, body: bytes) -> Iterator[str]:
    if marker in _JPEG_PIXELS or (marker == 0xEE and body.startswith(b"Adobe") and len(body) == 12):
        return
    if marker == 0xE0 and body.startswith(b"JFIF\0") and len(body) == 14:
        return
    if marker == 0xE0 and body.startswith((b"JFIF\0", b"JFXX\0")):
        yield "thumbnail"
    elif marker == 0xFE:
        yield "comment"
    else:
        yield next((said for head, said in _JPEG_NAMES.items() if body.startswith(head)), f"segment {marker:02X}")


def _read_png(data: bytes) -> Iterator[str]:
    place, kind = 8, b""
    while kind != b"IEND":
        size, kind = struct.unpack_from(">I4s", data, place)
        if kind not in _PNG_PIXELS:
            body = data[place + 8 : place + 8 + size]
            text = kind in (b"tEXt", b"zTXt", b"iTXt")
            yield _png_text(body) if text else _PNG_NAMES.get(kind, f"chunk {kind.decode('latin-1')}")
        place += 12 + size
    if place < len(data):
        yield "data after the picture's end"


def _png_text(body: bytes) -> str:
    keyword = body.split(b"\0")[0].decode("latin-1")
    return "XMP" if keyword == "XML:com.adobe.xmp" else f"text {keyword!r}"


def _read_webp(data: bytes) -> Iterator[str]:
    end, place = 8 + struct.unpack_from("<I", data, 4)[0], 12
    while place < end:
        kind, size = struct.unpack_from("<4sI", data, place)
        if kind not in _WEBP_PIXELS:
            yield _WEBP_NAMES.get(kind, f"chunk {kind.decode('latin-1').strip()}")
        place += 8 + size + size % 2
    if end < len(data):
        yield "data after the picture's end"


def _read_tiff(data: bytes) -> Iterator[str]:
    order = "<" if data.startswith(b"II") else ">"
    place = struct.unpack_from(f"{order}I", data, 4)[0]
    count = struct.unpack_from(f"{order}H", data, place)[0]
    known = 8 + 2 + 12 * count + 4  # bytes: header and directory, then values and pixels
    for at in range(place + 2, place + 2 + 12 * count, 12):
        tag, values, size = _tiff_entry(data, order, at)
        known += size if size > 4 else 0
        if tag in _TIFF_SIZES:
            known += sum(values)
        if tag not in _TIFF_PIXELS and (tag not in _TIFF_PLAIN or values != (_TIFF_PLAIN[tag],)):
            yield _TIFF_NAMES.get(tag) or f"tag {TiffTags.lookup(tag).name}"
    if struct.unpack_from(f"{order}I", data, place + 2 + 12 * count)[0]:
        yield "further pictures"
    elif known > len(data):
        raise ValueError("truncated")
    elif known + _TIFF_SLACK < len(data):
        yield "data beside the picture"


def _tiff_entry(data: bytes, order: str, at: int) -> tuple[int, tuple[int, ...], int]:
    """A directory entry's tag, its values where they are whole numbers, and their size in bytes."""
    tag, kind, count = struct.unpack_from(f"{order}HHI", data, at)
    size = count * _TIFF_BYTES[kind]
    start = at + 8 if size <= 4 else struct.unpack_from(f"{order}I", data, at + 8)[0]
    letter = {3: "H", 4: "I"}.get(kind)
    return tag, struct.unpack_from(f"{order}{count}{letter}", data, start) if letter else (), size


def _read_bmp(data: bytes) -> Iterator[str]:
    size, header = struct.unpack_from("<I", data, 2)[0], struct.unpack_from("<I", data, 14)[0]
    if header > 56:
        yield "colour profile"
    if size < len(data):
        yield "data after the picture's end"


_READERS: tuple[tuple[bytes, Callable[[bytes], Iterator[str]]], ...] = (
    (b"\xff\xd8", _read_jpeg), (b"\x89PNG\r\n\x1a\n", _read_png), (b"RIFF", _read_webp),
    (b"II*\0", _read_tiff), (b"MM\0*", _read_tiff), (b"BM", _read_bmp),
)  # fmt: skip
