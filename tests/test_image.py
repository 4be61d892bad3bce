"""Pictures in and out: orientation, colour modes, metadata, bad files."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageCms, TiffImagePlugin

from faceanon_core.errors import InputError
from faceanon_core.image import (
    SUFFIXES,
    Picture,
    is_transparent,
    load_picture,
    pixels_to_tensor,
    save_picture,
    tensor_to_pixels,
)

GPS, MAKE, ORIENTATION = 0x8825, 0x010F, 0x0112
# how an upright picture is stored by a camera held that way
STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def thumbnail_exif(thumbnail: bytes) -> bytes:
    """EXIF as a camera writes it: maker, orientation, GPS, and a JPEG thumbnail in the second directory."""
    head = b"Exif\0\0" + b"II*\0" + struct.pack("<I", 8)
    first_at, gps_at = 8, 8 + 2 + 3 * 12 + 4
    second_at = gps_at + 2 + 12 + 4
    thumb_at = second_at + 2 + 2 * 12 + 4
    entry = struct.Struct("<HHI4s")
    first = struct.pack("<H", 3)
    first += entry.pack(MAKE, 2, 4, b"Cam\0")
    first += entry.pack(ORIENTATION, 3, 1, struct.pack("<HH", 1, 0))
    first += entry.pack(GPS, 4, 1, struct.pack("<I", gps_at))
    first += struct.pack("<I", second_at)
    gps = struct.pack("<H", 1) + entry.pack(1, 2, 2, b"N\0\0\0") + struct.pack("<I", 0)
    second = struct.pack("<H", 2)
    second += entry.pack(0x0201, 4, 1, struct.pack("<I", thumb_at))
    second += entry.pack(0x0202, 4, 1, struct.pack("<I", len(thumbnail)))
    second += struct.pack("<I", 0)
    assert first_at + len(first) == gps_at
    return head + first + gps + second + thumbnail


def jpeg(pixels: np.ndarray, **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", **options)
    return stream.getvalue()


@pytest.fixture
def camera_file(portrait, tmp_path: Path) -> Path:
    """A JPEG with maker, GPS position and a thumbnail of the face."""
    path = tmp_path / "camera.jpg"
    path.write_bytes(jpeg(portrait, exif=thumbnail_exif(jpeg(portrait[::4, ::4])), comment=b"a secret"))
    with Image.open(path) as opened:
        exif = opened.getexif()
        assert exif.get_ifd(ExifTags.IFD.GPSInfo)
        assert exif.get_ifd(ExifTags.IFD.IFD1)
    return path


@pytest.mark.parametrize("orientation", STORED)
def test_exif_orientation_is_applied(portrait, tmp_path: Path, orientation: int) -> None:
    upright = portrait[:, :150]  # not square, so that a wrong turn shows in the shape too
    image = Image.fromarray(upright)
    if (change := STORED[orientation]) is not None:
        image = image.transpose(change)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    image.save(tmp_path / "turned.png", exif=exif)
    loaded = load_picture(tmp_path / "turned.png", keep_metadata=True)
    assert np.array_equal(loaded.pixels, upright)
    save_picture(loaded, tmp_path / "out.png")
    with Image.open(tmp_path / "out.png") as written:
        assert ORIENTATION not in written.getexif()  # or a viewer would turn it once more


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "YCbCr"])
def test_every_colour_mode_becomes_rgb_with_the_same_look(portrait, tmp_path: Path, mode: str) -> None:
    grey = Image.fromarray(portrait).convert("L")
    if mode == "I;16":
        image = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    elif mode == "I":
        image = Image.fromarray(np.asarray(grey).astype(np.int32) * 257)
    else:
        image = grey.quantize(256) if mode == "P" else grey.convert("RGB").convert(mode)
    path = tmp_path / ("picture.tif" if mode in ("CMYK", "I", "YCbCr") else "picture.png")
    image.save(path)
    loaded = load_picture(path)
    assert loaded.pixels.shape == (220, 220, 3)
    assert loaded.pixels.dtype == np.uint8
    difference = np.abs(loaded.pixels.astype(int) - np.asarray(grey).astype(int)[..., None])
    assert difference.mean() < 1.5


def test_black_and_white_pictures_are_read(tmp_path: Path) -> None:
    Image.new("1", (100, 80), 1).save(tmp_path / "white.png")
    assert (load_picture(tmp_path / "white.png").pixels == 255).all()


def test_the_colours_of_an_embedded_profile_are_converted(portrait, tmp_path: Path) -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = srgb.replace(b"rXYZ", b"????").replace(b"bXYZ", b"rXYZ").replace(b"????", b"bXYZ")  # red means blue
    Image.fromarray(portrait).save(tmp_path / "swapped.png", icc_profile=swapped)
    assert np.abs(load_picture(tmp_path / "swapped.png").pixels.astype(int) - portrait[..., ::-1]).mean() < 2


def test_a_damaged_profile_is_ignored(portrait, tmp_path: Path) -> None:
    Image.fromarray(portrait).save(tmp_path / "damaged.png", icc_profile=b"not a profile")
    assert np.array_equal(load_picture(tmp_path / "damaged.png").pixels, portrait)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "WebP", "TIFF"])
def test_what_transparency_draws_is_seen_and_what_it_hides_is_not(portrait, tmp_path: Path, mode: str) -> None:
    """A face in the transparency alone over black, and one in pixels that nobody sees."""
    grey = np.asarray(Image.fromarray(portrait).convert("L"))
    black = np.zeros_like(portrait)
    drawn = Image.fromarray(np.dstack([black, 255 - grey]))
    hidden = Image.fromarray(np.dstack([portrait, np.zeros_like(grey)]))
    for image, seen in ((drawn, grey), (hidden, np.full_like(grey, 255))):
        path = tmp_path / f"a.{ {'WebP': 'webp', 'TIFF': 'tif'}.get(mode, 'png') }"
        if mode == "P":  # 256 grades of transparency, one for each number of the palette
            paletted = Image.fromarray(np.asarray(image)[..., 3], "P")
            paletted.putpalette([0] * 768)
            paletted.save(path, transparency=bytes(range(256)))
        else:
            image.convert("LA" if mode == "LA" else "RGBA").save(path, **({"lossless": True} if mode == "WebP" else {}))
        loaded = load_picture(path)
        assert np.abs(loaded.pixels.astype(int) - seen[..., None]).max() <= 1
        with Image.open(path) as opened:
            assert is_transparent(opened)
        save_picture(loaded, path, overwrite=True)
        with Image.open(path) as written:
            assert not is_transparent(written)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_format_is_written_and_read_back(portrait, tmp_path: Path, suffix: str) -> None:
    save_picture(Picture(portrait), tmp_path / f"out{suffix}")
    loaded = load_picture(tmp_path / f"out{suffix}").pixels
    assert np.abs(loaded.astype(int) - portrait).mean() < 3
    if suffix not in (".jpg", ".jpeg", ".webp"):
        assert np.array_equal(loaded, portrait)


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".png", ".webp", ".tif"])
def test_nothing_of_the_metadata_is_written_unasked(camera_file: Path, tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"out{suffix}"
    save_picture(load_picture(camera_file), out)
    assert b"Cam" not in out.read_bytes()
    assert b"a secret" not in out.read_bytes()
    with Image.open(out) as written:
        assert MAKE not in written.getexif()
        assert not written.getexif().get_ifd(ExifTags.IFD.GPSInfo)
        assert not set(written.info) & {"exif", "xmp", "icc_profile", "comment"}


def test_metadata_kept_on_request_lacks_the_thumbnail_of_the_face(camera_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jpg"
    save_picture(load_picture(camera_file, keep_metadata=True), out)
    with Image.open(out) as written:
        exif = written.getexif()
        assert exif[MAKE] == "Cam"
        assert exif.get_ifd(ExifTags.IFD.GPSInfo)[1] == "N"
        assert not exif.get_ifd(ExifTags.IFD.IFD1)
    assert out.read_bytes().count(b"\xff\xd8\xff") == 1  # one JPEG, none inside it


def exif_entry(tag: int, kind: int, count: int, value: bytes) -> bytes:
    """EXIF of one entry, whether or not it makes sense."""
    return b"Exif\0\0II*\0" + struct.pack("<IHHHI", 8, 1, tag, kind, count) + value.ljust(8, b"\0")


BROKEN_EXIF = {
    "orientation in words": exif_entry(ORIENTATION, 2, 4, b"six\0"),
    "a resolution that is none": exif_entry(0x011A, 7, 4, b"abcd"),
    "a name of no type": exif_entry(MAKE, 99, 4, b"Cam\0"),
    "text for an exposure": exif_entry(0x829A, 2, 4, b"fast"),
    "a place that is none": exif_entry(GPS, 2, 4, b"far\0"),
    "directory beyond the end": exif_entry(0x8769, 4, 1, b"\xff\xff\xff\x7f"),
    "no header": b"Exif\0\0XX*\0" + bytes(8),
    "cut": b"Exif\0\0II",
}


@pytest.mark.parametrize("what", BROKEN_EXIF)
@pytest.mark.parametrize("keep_metadata", [False, True])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF data", "ignore:Truncated File Read", "ignore:Possibly corrupt")
def test_a_picture_whose_exif_is_broken_is_read_as_it_lies(portrait, tmp_path: Path, what: str, keep_metadata) -> None:
    (tmp_path / "odd.jpg").write_bytes(jpeg(portrait, exif=BROKEN_EXIF[what], quality=95))
    loaded = load_picture(tmp_path / "odd.jpg", keep_metadata)
    assert np.abs(loaded.pixels.astype(int) - portrait).mean() < 4
    save_picture(loaded, tmp_path / "out.jpg")
    assert np.abs(load_picture(tmp_path / "out.jpg").pixels.astype(int) - portrait).mean() < 5


def test_an_existing_file_is_never_overwritten(portrait_file: Path, portrait) -> None:
    before = portrait_file.read_bytes()
    with pytest.raises(InputError, match="exists already; choose another name"):
        save_picture(Picture(portrait[::-1]), portrait_file)
    assert portrait_file.read_bytes() == before


def test_an_unknown_format_is_refused_by_name(portrait, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"unknown picture format '\.xyz'; use one of \.jpg"):
        save_picture(Picture(portrait), tmp_path / "out.xyz")
    assert not list(tmp_path.iterdir())


def test_a_place_below_a_file_cannot_be_written(portrait, portrait_file: Path) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        save_picture(Picture(portrait), portrait_file / "folder" / "out.png")


def test_a_failed_write_leaves_no_half_file(portrait, tmp_path: Path) -> None:
    wide = np.repeat(portrait[:16], 80, axis=1).repeat(4, axis=1)  # more than the 65535 px a JPEG can hold
    with pytest.raises(InputError, match="cannot be written"):
        save_picture(Picture(wide), tmp_path / "out.jpg")
    assert not list(tmp_path.iterdir())


BAD_FILES = {
    "missing": (lambda path, _: None, "does not exist or is not a file"),
    "a folder": (lambda path, _: path.mkdir(), "does not exist or is not a file"),
    "empty": (lambda path, _: path.write_bytes(b""), r"is empty \(0 bytes\)"),
    "text": (lambda path, _: path.write_text("hello"), "is not an image this program can read"),
    "truncated": (lambda path, pixels: path.write_bytes(jpeg(pixels)[:3000]), "is damaged or truncated"),
    "cut header": (lambda path, pixels: path.write_bytes(jpeg(pixels)[:12]), "is damaged|is not an image"),
    "1x1": (lambda path, _: Image.new("RGB", (1, 1)).save(path), "1x1; the shorter side must be at least 64"),
    "63 px": (lambda path, _: Image.new("RGB", (63, 500)).save(path), "63x500; the shorter side must be at least 64"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_bad_file_is_refused_with_one_sentence_that_names_it(portrait, tmp_path: Path, kind: str) -> None:
    write, message = BAD_FILES[kind]
    path = tmp_path / "photo.jpg"
    write(path, portrait)
    with pytest.raises(InputError, match=message) as error:
        load_picture(path)
    assert "photo.jpg" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", [".tif", ".png", ".webp"])
def test_a_file_of_several_pictures_is_refused_with_their_number(portrait, tmp_path: Path, suffix: str) -> None:
    first, second = Image.fromarray(portrait), Image.fromarray(portrait[::-1].copy())
    first.save(tmp_path / f"scan{suffix}", save_all=True, append_images=[second])
    with pytest.raises(InputError, match=f"^scan{suffix}: the file holds 2 pages or frames; save each of them as a file"):
        load_picture(tmp_path / f"scan{suffix}")


def test_the_smaller_copy_in_a_tiff_is_no_page(portrait, tmp_path: Path) -> None:
    kind = TiffImagePlugin.ImageFileDirectory_v2()
    kind[0x00FE] = 1
    with TiffImagePlugin.AppendingTiffWriter(tmp_path / "a.tif", new=True) as pages:
        Image.fromarray(portrait).save(pages, "TIFF")
        pages.newFrame()
        Image.fromarray(portrait[::2, ::2].copy()).save(pages, "TIFF", tiffinfo=kind)
    with Image.open(tmp_path / "a.tif") as opened:
        assert opened.n_frames == 2
    assert np.array_equal(load_picture(tmp_path / "a.tif").pixels, portrait)


def test_of_a_phones_jpeg_with_further_pictures_the_first_is_read(portrait, tmp_path: Path) -> None:
    depth = Image.fromarray(255 - portrait)
    Image.fromarray(portrait).save(tmp_path / "a.jpg", "MPO", quality=95, save_all=True, append_images=[depth])
    with Image.open(tmp_path / "a.jpg") as opened:
        assert opened.n_frames == 2
    assert np.abs(load_picture(tmp_path / "a.jpg").pixels.astype(int) - portrait).mean() < 5


def test_a_hundred_megapixels_are_refused_by_the_stated_limit(tmp_path: Path) -> None:
    Image.new("1", (10000, 10001)).save(tmp_path / "huge.png")
    with pytest.raises(InputError, match=r"huge.png: the picture has 100 megapixels and the limit is 80"):
        load_picture(tmp_path / "huge.png")


def test_the_smallest_size_is_accepted(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "small.png")
    assert load_picture(tmp_path / "small.png").pixels.shape == (64, 64, 3)


# ---- pixels and tensors ----


def test_pixels_survive_the_way_to_a_tensor_and_back(portrait) -> None:
    tensor = pixels_to_tensor(portrait)
    assert tensor.shape == (1, 3, *portrait.shape[:2]) and tensor[0, 1, 5, 7] == portrait[5, 7, 1] / 255
    assert np.array_equal(tensor_to_pixels(torch.cat([tensor, 1 - tensor])), np.stack([portrait, 255 - portrait]))


def test_values_are_rounded_and_those_out_of_range_are_clipped() -> None:
    values = torch.tensor([-0.1, 0.6 / 255, 254.4 / 255, 1.1]).expand(1, 3, 1, 4)
    assert tensor_to_pixels(values)[0, 0, :, 0].tolist() == [0, 1, 254, 255]
