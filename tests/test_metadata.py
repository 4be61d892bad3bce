"""Metadata planted in every format is found, and nothing of it is left in what we write."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms, PngImagePlugin, TiffImagePlugin

from faceanon_core.errors import InputError
from faceanon_core.image import SUFFIXES, load_picture, save_picture
from faceanon_core.metadata import find_metadata

SECRET = "Alice-at-home"
BESIDE = "data beside the picture"
XMP = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><dc:creator>{SECRET}</dc:creator></x:xmpmeta>'
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.fixture(scope="module")
def picture(portrait: np.ndarray) -> Image.Image:
    return Image.fromarray(portrait)


def exif() -> Image.Exif:
    made = Image.Exif()
    made[ExifTags.Base.Artist] = SECRET
    made[ExifTags.IFD.GPSInfo] = {1: "N", 2: (52.0, 31.0, 0.0), 29: SECRET}
    return made


def exif_with_thumbnail(picture: Image.Image) -> bytes:
    """EXIF whose second directory holds a small JPEG of the picture; PIL cannot write one."""
    stream = io.BytesIO()
    picture.resize((64, 64)).save(stream, "JPEG")
    small = stream.getvalue()
    first = struct.pack("<2sHIH", b"II", 42, 8, 0) + struct.pack("<I", 14)
    second = struct.pack("<HHHIIHHIII", 2, 0x201, 4, 1, 44, 0x202, 4, 1, len(small), 0)
    return b"Exif\0\0" + first + second + small


def after(path: Path, more: bytes) -> None:
    path.write_bytes(path.read_bytes() + more)


def with_jpeg_segment(path: Path, marker: int, body: bytes) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:2] + struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body + data[2:])


def with_webp_chunk(path: Path, kind: bytes, body: bytes) -> None:
    body += b"\0" * (len(body) % 2)
    data = path.read_bytes() + kind + struct.pack("<I", len(body)) + body
    path.write_bytes(data[:4] + struct.pack("<I", len(data) - 8) + data[8:])


def with_jfif_thumbnail(picture: Image.Image, path: Path) -> None:
    picture.save(path)
    data = path.read_bytes()
    small = picture.resize((8, 8)).tobytes()
    header = b"JFIF\0\1\1\0\0\1\0\1" + bytes([8, 8]) + small
    path.write_bytes(data[:2] + struct.pack(">BBH", 0xFF, 0xE0, len(header) + 2) + header + data[20:])


def png_texts() -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    info.add_text("workflow", SECRET)
    info.add_itxt("XML:com.adobe.xmp", XMP)
    return info


def tiff_tags(**values: object) -> TiffImagePlugin.ImageFileDirectory_v2:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    for number, value in values.items():
        tags[int(number[1:])] = value
    return tags


Plant = Callable[[Image.Image, Path], object]
PLANTED: dict[str, tuple[str, Plant, set[str]]] = {
    "jpeg exif and place": (".jpg", lambda p, f: p.save(f, exif=exif()), {"EXIF"}),
    "jpeg thumbnail": (".jpg", lambda p, f: p.save(f, exif=exif_with_thumbnail(p)), {"EXIF"}),
    "jpeg jfif thumbnail": (".jpg", with_jfif_thumbnail, {"thumbnail"}),
    "jpeg xmp": (
        ".jpg",
        lambda p, f: (p.save(f), with_jpeg_segment(f, 0xE1, b"http://ns.adobe.com/xap/1.0/\0" + XMP.encode())),
        {"XMP"},
    ),
    "jpeg iptc": (
        ".jpg",
        lambda p, f: (p.save(f), with_jpeg_segment(f, 0xED, b"Photoshop 3.0\0" + SECRET.encode())),
        {"IPTC"},
    ),
    "jpeg unheard of": (
        ".jpg",
        lambda p, f: (p.save(f), with_jpeg_segment(f, 0xE5, SECRET.encode())),
        {"segment E5"},
    ),
    "jpeg comment": (".jpeg", lambda p, f: p.save(f, comment=SECRET.encode(), progressive=True), {"comment"}),
    "jpeg profile": (".jpg", lambda p, f: p.save(f, icc_profile=PROFILE), {"colour profile"}),
    "jpeg trailer": (".jpg", lambda p, f: (p.save(f), after(f, SECRET.encode())), {"data after the picture's end"}),
    "png texts": (".png", lambda p, f: p.save(f, pnginfo=png_texts()), {"text 'workflow'", "XMP"}),
    "png exif and place": (".png", lambda p, f: p.save(f, exif=exif()), {"EXIF"}),
    "png thumbnail": (".png", lambda p, f: p.save(f, exif=exif_with_thumbnail(p)), {"EXIF"}),
    "png profile": (".png", lambda p, f: p.save(f, icc_profile=PROFILE, dpi=(72, 72)), {"colour profile", "resolution"}),
    "png trailer": (".png", lambda p, f: (p.save(f), after(f, SECRET.encode())), {"data after the picture's end"}),
    "png animation": (
        ".png",
        lambda p, f: p.save(f, save_all=True, append_images=[p.rotate(90)]),
        {"chunk acTL", "chunk fcTL", "chunk fdAT", "further pictures"},
    ),
    "webp exif and place": (".webp", lambda p, f: p.save(f, exif=exif()), {"EXIF"}),
    "webp thumbnail": (".webp", lambda p, f: p.save(f, exif=exif_with_thumbnail(p)), {"EXIF"}),
    "webp xmp and profile": (
        ".webp",
        lambda p, f: p.save(f, xmp=XMP.encode(), icc_profile=PROFILE),
        {"XMP", "colour profile"},
    ),
    "webp unheard of": (".webp", lambda p, f: (p.save(f), with_webp_chunk(f, b"NOTE", SECRET.encode())), {"chunk NOTE"}),
    "tiff exif and place": (".tif", lambda p, f: p.save(f, exif=exif().tobytes()), {"GPS", "tag Artist", BESIDE}),
    "tiff xmp, iptc and text": (
        ".tiff",
        lambda p, f: p.save(f, tiffinfo=tiff_tags(_700=XMP.encode(), _33723=SECRET.encode(), _270=SECRET)),
        {"XMP", "IPTC", "tag ImageDescription"},
    ),
    "tiff profile": (".tif", lambda p, f: p.save(f, icc_profile=PROFILE), {"colour profile"}),
    "tiff second picture": (
        ".tif",
        lambda p, f: p.save(f, save_all=True, append_images=[p.resize((64, 64))]),
        {"further pictures"},
    ),
    "tiff trailer": (".tif", lambda p, f: (p.save(f), after(f, SECRET.encode() * 9)), {BESIDE}),
    "bmp trailer": (".bmp", lambda p, f: (p.save(f), after(f, SECRET.encode())), {"data after the picture's end"}),
}


REFUSED = ("png animation", "tiff second picture")


@pytest.mark.parametrize("what", REFUSED)
def test_further_pictures_are_found_and_their_file_is_no_source(picture: Image.Image, tmp_path: Path, what: str) -> None:
    suffix, plant, expected = PLANTED[what]
    plant(picture, tmp_path / f"source{suffix}")
    assert set(find_metadata(tmp_path / f"source{suffix}")) == expected
    with pytest.raises(InputError, match="holds 2 pages or frames"):
        load_picture(tmp_path / f"source{suffix}")


@pytest.mark.parametrize("what", [what for what in PLANTED if what not in REFUSED])
def test_what_was_planted_is_found_and_none_of_it_is_left_in_what_we_write(
    picture: Image.Image, tmp_path: Path, what: str
) -> None:
    suffix, plant, expected = PLANTED[what]
    source = tmp_path / f"source{suffix}"
    plant(picture, source)
    assert set(find_metadata(source)) == expected
    for written_as in SUFFIXES:
        written = tmp_path / f"written{written_as}"
        save_picture(load_picture(source), written)
        assert find_metadata(written) == [], written_as
        content = written.read_bytes()
        assert SECRET.encode() not in content and b"xmpmeta" not in content and b"Exif" not in content


def small_jpeg(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.resize((64, 64)).save(stream, "JPEG")
    return stream.getvalue()


def with_previews(picture: Image.Image, path: Path) -> None:
    """As cameras and Photoshop write: a small copy of the picture in the maker note, in XMP and in Photoshop's data."""
    small = small_jpeg(picture)
    if path.suffix == ".tif":
        tags = tiff_tags(_315="Jane", _306="2026:01:02 03:04:05", _700=small, _34377=small, _33723=small, _34675=small)
        picture.save(path, tiffinfo=tags)
        return
    made = Image.Exif()
    made[ExifTags.Base.Artist], made[ExifTags.Base.DateTime] = "Jane", "2026:01:02 03:04:05"
    made[ExifTags.Base.ImageDescription] = small.decode("latin-1").replace("\0", "0")
    made[ExifTags.IFD.Exif] = {0x829A: 0.01, 0x927C: b"OLYMP\0" + small, 0x9286: small, 0xA434: "Lens"}
    made[ExifTags.IFD.GPSInfo] = {1: "N", 2: (52.0, 31.0, 0.0)}
    picture.save(path, exif=made, xmp=small)


@pytest.mark.parametrize("written_as", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".tif"])
def test_metadata_that_is_kept_tells_of_camera_author_and_place_and_shows_no_face(
    picture: Image.Image, tmp_path: Path, suffix: str, written_as: str
) -> None:
    source, written = tmp_path / f"source{suffix}", tmp_path / f"written{written_as}"
    with_previews(picture, source)
    assert small_jpeg(picture) in source.read_bytes()
    save_picture(load_picture(source, keep_metadata=True), written)
    assert not {"XMP", "IPTC", "Photoshop data", "colour profile", "thumbnail"} & set(find_metadata(written))
    assert small_jpeg(picture)[100:200] not in written.read_bytes()
    with Image.open(written) as opened:
        kept = opened.getexif()
        assert (kept[ExifTags.Base.Artist], kept[ExifTags.Base.DateTime]) == ("Jane", "2026:01:02 03:04:05")
        assert ExifTags.Base.ImageDescription not in kept
        if suffix != ".tif":
            assert set(kept.get_ifd(ExifTags.IFD.Exif)) == {0x829A, 0xA434}
            assert kept.get_ifd(ExifTags.IFD.GPSInfo)[2] == (52.0, 31.0, 0.0)


@pytest.mark.parametrize("kind", ["turned", "16 bit", "compressed"])
def test_a_tiff_keeps_its_metadata_and_not_how_its_own_pixels_lay(picture: Image.Image, tmp_path: Path, kind: str) -> None:
    source, written = tmp_path / "source.tif", tmp_path / "written.tif"
    tags = tiff_tags(_315="Jane", **({"_274": 6} if kind == "turned" else {}))
    image = picture.crop((0, 0, 200, 120)) if kind == "turned" else picture
    if kind == "16 bit":
        image = Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257)
    image.save(source, tiffinfo=tags, compression="jpeg" if kind == "compressed" else "tiff_lzw")
    loaded = load_picture(source, keep_metadata=True)
    save_picture(loaded, written)
    assert loaded.pixels.shape == ((200, 120, 3) if kind == "turned" else (220, 220, 3))
    assert np.array_equal(load_picture(written).pixels, loaded.pixels)
    assert find_metadata(written) == ["tag Artist"]


@pytest.mark.parametrize("mode", ["RGBA", "L", "P", "CMYK", "I;16"])
def test_files_of_other_modes_without_metadata_are_clean(picture: Image.Image, tmp_path: Path, mode: str) -> None:
    for suffix in (".png", ".jpg", ".tif", ".webp"):
        try:
            (picture.convert("L").convert(mode) if mode == "I;16" else picture.convert(mode)).save(tmp_path / f"a{suffix}")
        except (OSError, ValueError, KeyError):
            continue  # the format has no such mode
        assert find_metadata(tmp_path / f"a{suffix}") == [], suffix


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_a_damaged_file_is_not_called_clean(picture: Image.Image, tmp_path: Path, suffix: str) -> None:
    picture.save(tmp_path / f"a{suffix}")
    whole = (tmp_path / f"a{suffix}").read_bytes()
    (tmp_path / f"a{suffix}").write_bytes(whole[: len(whole) // 3])
    assert find_metadata(tmp_path / f"a{suffix}") != []


def test_another_format_is_not_called_clean(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("GIF89a")
    assert find_metadata(tmp_path / "a.png") == ["a format that cannot be searched"]
