"""Reading and writing pictures: orientation, gray, transparency, metadata. Nothing of the source travels along unasked.

Transparency is flattened onto white when a picture is read: it can draw a face by itself, and hide one in pixels that no
viewer shows. So what is looked at is what people see, and what is written is opaque.
"""

from __future__ import annotations

import contextlib
import io
import os
import secrets
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, PngImagePlugin, TiffImagePlugin, UnidentifiedImageError

from .checks import MAX_PIXELS, check_size
from .errors import InputError
from .metadata import DAMAGED, descriptive_exif

if TYPE_CHECKING:
    from torch import Tensor

Pixels = NDArray[np.uint8]
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp")
PARTIAL_GLOB = ".faceanon-*.partial"  # files while they are written; a killed process may leave one
_ORIENTATION_TAG = 0x0112
_KIND_OF_PAGE_TAG = 0x00FE  # of a TIFF, in bits: a smaller copy, a page, a mask
_UPRIGHT = {  # by orientation, what undoes how the camera was held
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_JPEG = {"quality": 95, "subsampling": 0}
_LARGEST_PX = {".jpg": 65500, ".jpeg": 65500, ".webp": 16383}  # a side of what the encoder takes
_ENCODING = {".jpg": _JPEG, ".jpeg": _JPEG, ".webp": {"quality": 95}}


@dataclass(frozen=True)
class Picture:
    """An upright picture in memory.

    `pixels` is (H, W, 3) uint8 RGB; `metadata` (key "exif") is written with it, and read only on request.
    """

    pixels: Pixels
    metadata: dict[str, bytes] = field(default_factory=dict)


def tensor_to_pixels(images: Tensor) -> Pixels:
    """(B, 3, H, W) float 0..1 -> (B, H, W, 3) uint8 RGB, rounded; values outside the range are clipped."""
    pixels: Pixels = (images.permute(0, 2, 3, 1).clamp(0, 1) * 255).round().byte().cpu().numpy()
    return pixels


def pixels_to_tensor(pixels: Pixels) -> Tensor:
    """(H, W, 3) uint8 RGB -> (1, 3, H, W) float 0..1."""
    import torch  # not at the top, so that the command line starts without it

    return torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255


def load_picture(path: Path, keep_metadata: bool = False) -> Picture:
    """Read a picture, apply its EXIF orientation, and convert gray, palette, 16-bit, CMYK or RGBA to RGB on white.

    Where the EXIF is broken the picture is taken as upright.

    Args:
        keep_metadata: fill `Picture.metadata` as `descriptive_exif` does.
    Raises: InputError with one sentence if the file is missing, empty, truncated, no image, too small or too large, or
        holds several pictures.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist or is not a file")
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty (0 bytes)")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as opened:
                check_size(*opened.size)
                _refuse_further_pages(opened)
                return _to_picture(opened, keep_metadata)
    except InputError as error:
        raise InputError(f"{path.name}: {error}") from error
    except UnidentifiedImageError as error:
        raise InputError(f"{path} is not an image this program can read ({', '.join(SUFFIXES)})") from error
    except Image.DecompressionBombError as error:
        raise InputError(
            f"{path.name}: the picture is larger than the limit of {MAX_PIXELS / 1e6:.0f} megapixels"
        ) from error
    except DAMAGED as error:
        raise InputError(f"{path} is damaged or truncated and cannot be read: {error}") from error


def _refuse_further_pages(opened: Image.Image) -> None:
    """Raises: InputError if there is more to see than the first picture.

    What phones put behind a JPEG (MPO: depth, brightness, the other eye's view) is not.
    """
    count = 1 if opened.format == "MPO" else getattr(opened, "n_frames", 1)
    if count > 1 and isinstance(opened, TiffImagePlugin.TiffImageFile):
        count = sum(_is_page(opened, number) for number in range(count))
        opened.seek(0)
    if count > 1:
        raise InputError(f"the file holds {count} pages or frames; save each of them as a file of its own")


def _is_page(opened: TiffImagePlugin.TiffImageFile, number: int) -> bool:
    """Whether a TIFF's picture is neither a smaller copy nor a mask of another one."""
    opened.seek(number)
    return not opened.tag_v2.get(_KIND_OF_PAGE_TAG, 0) & 0b101


def _to_picture(opened: Image.Image, keep_metadata: bool) -> Picture:
    opened.load()
    metadata = {}
    if keep_metadata and (exif := descriptive_exif(opened)):
        metadata["exif"] = exif
    upright = _to_srgb(_turn_upright(opened))
    if upright.mode.startswith("I;16") or upright.mode in ("I", "F"):
        upright = _to_8_bit(upright)
    if is_transparent(upright):
        upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright.convert("RGBA"))
    return Picture(np.asarray(upright.convert("RGB")).copy(), metadata)


def _turn_upright(image: Image.Image) -> Image.Image:
    try:
        turn = _UPRIGHT.get(image.getexif().get(_ORIENTATION_TAG, 1))
    except DAMAGED:
        turn = None
    return image if turn is None else image.transpose(turn)


def is_transparent(image: Image.Image) -> bool:
    """Whether a picture can show what lies behind it."""
    return image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info


def _to_srgb(image: Image.Image) -> Image.Image:
    """Apply an embedded colour profile, since the output carries none."""
    profile = image.info.get("icc_profile")
    if not profile or image.mode not in ("RGB", "RGBA", "CMYK", "L"):
        return image
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = "RGBA" if image.mode == "RGBA" else "RGB"
        converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode=mode)
    except (ImageCms.PyCMSError, OSError):
        return image  # a damaged profile: show the numbers as they are, like every viewer does
    return image if converted is None else converted


def _to_8_bit(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.float64)
    top = 65535.0 if values.max() > 255 else 255.0
    return Image.fromarray(np.clip(values / top * 255, 0, 255).astype(np.uint8))


def save_picture(
    picture: Picture, path: Path, overwrite: bool = False, texts: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Write a picture in the format of the suffix; the file appears whole or not at all.

    Args:
        overwrite: replace an existing file.
        texts: written into a PNG for those who ask for it, by keyword.
    Raises: InputError if the suffix is unknown, the file exists or the place cannot be written.
    """
    check_suffix(path.suffix)
    if not overwrite:
        refuse_existing(path)
    write_file(path, encode_picture(picture, path.suffix, texts))


def encode_picture(picture: Picture, suffix: str, texts: Mapping[str, str] = MappingProxyType({})) -> bytes:
    """What `save_picture` writes into a file of that suffix.

    Raises: InputError if the suffix is unknown or the format cannot hold the picture.
    """
    check_fits(picture, suffix)
    suffix = suffix.lower()
    options: dict[str, object] = {**_ENCODING.get(suffix, {}), **picture.metadata}
    if texts:
        options["pnginfo"] = _png_texts(texts)
    encoded = io.BytesIO()
    try:
        Image.fromarray(picture.pixels).save(encoded, Image.registered_extensions()[suffix], **options)
    except (OSError, ValueError) as error:
        raise InputError(f"the picture cannot be written as {suffix}: {error}") from error
    return encoded.getvalue()


def check_suffix(suffix: str) -> None:
    """Raises: InputError if no picture can be written under a file ending such as ".png"."""
    if suffix.lower() not in SUFFIXES:
        raise InputError(f"unknown picture format {suffix!r}; use one of {', '.join(SUFFIXES)}")


def check_fits(picture: Picture, suffix: str) -> None:
    """Raises: InputError if a file ending such as ".webp" cannot hold a picture as large as this, or no picture at all."""
    check_suffix(suffix)
    height, width = picture.pixels.shape[:2]
    largest = _LARGEST_PX.get(suffix.lower(), max(height, width))
    if max(height, width) > largest:
        raise InputError(
            f"the picture cannot be written as {suffix}: it is {width}x{height}, and that format holds at most {largest} "
            "pixels a side; choose .png"
        )


def _png_texts(texts: Mapping[str, str]) -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    for keyword, text in texts.items():
        info.add_text(keyword, text)
    return info


def write_file(path: Path, content: bytes) -> None:
    """The file appears whole or not at all, and replaces one that is there. Missing folders are made.

    Raises: InputError if the place cannot be written.
    """
    # the partial file has a name of its own, since that of the picture may be what must not be seen
    partial = path.with_name(PARTIAL_GLOB.replace("*", f"{os.getpid()}-{secrets.token_hex(4)}"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def refuse_existing(path: Path) -> None:
    """Raises: InputError if there is a file already."""
    if path.exists():
        raise InputError(f"{path} exists already; choose another name or remove it first")
