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
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps, PngImagePlugin, UnidentifiedImageError

from .checks import MAX_PIXELS, check_size
from .errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

Pixels = NDArray[np.uint8]
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp")
PARTIAL_GLOB = ".faceanon-*.partial"  # files while they are written; a killed process may leave one
_ORIENTATION_TAG = 0x0112
_JPEG = {"quality": 95, "subsampling": 0}
_ENCODING = {".jpg": _JPEG, ".jpeg": _JPEG, ".webp": {"quality": 95}}


@dataclass(frozen=True)
class Picture:
    """An upright picture in memory.

    `pixels` is (H, W, 3) uint8 RGB; `metadata` holds what `save_picture` writes back only on request (key "exif").
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


def load_picture(path: Path) -> Picture:
    """Read a picture, apply its EXIF orientation, and convert gray, palette, 16-bit, CMYK or RGBA to RGB on white.

    Raises: InputError with one sentence if the file is missing, empty, truncated, no image, too small or too large.
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
                return _to_picture(opened)
    except InputError as error:
        raise InputError(f"{path.name}: {error}") from error
    except UnidentifiedImageError as error:
        raise InputError(f"{path} is not an image this program can read ({', '.join(SUFFIXES)})") from error
    except Image.DecompressionBombError as error:
        raise InputError(
            f"{path.name}: the picture is larger than the limit of {MAX_PIXELS / 1e6:.0f} megapixels"
        ) from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise InputError(f"{path} is damaged or truncated and cannot be read: {error}") from error


def _to_picture(opened: Image.Image) -> Picture:
    opened.load()
    exif = opened.getexif()
    metadata = {}
    upright = ImageOps.exif_transpose(opened)
    exif.pop(_ORIENTATION_TAG, None)  # the pixels are upright now
    if len(exif):
        metadata["exif"] = exif.tobytes()
    upright = _to_srgb(upright)
    if upright.mode.startswith("I;16") or upright.mode in ("I", "F"):
        upright = _to_8_bit(upright)
    if is_transparent(upright):
        upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright.convert("RGBA"))
    return Picture(np.asarray(upright.convert("RGB")).copy(), metadata)


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
    picture: Picture, path: Path, keep_metadata: bool = False, overwrite: bool = False,
    texts: Mapping[str, str] = MappingProxyType({}),
) -> None:  # fmt: skip
    """Write a picture without any metadata, in the format of the suffix; the file appears whole or not at all.

    Args:
        keep_metadata: write the source's EXIF back, without its thumbnail, which would show the source's face.
        overwrite: replace an existing file.
        texts: written into a PNG for those who ask for it, by keyword.
    Raises: InputError if the suffix is unknown, the file exists or the place cannot be written.
    """
    check_suffix(path.suffix)
    if not overwrite:
        refuse_existing(path)
    write_file(path, encode_picture(picture, path.suffix, keep_metadata, texts))


def encode_picture(
    picture: Picture, suffix: str, keep_metadata: bool = False, texts: Mapping[str, str] = MappingProxyType({})
) -> bytes:
    """What `save_picture` writes into a file of that suffix.

    Raises: InputError if the suffix is unknown or the format cannot hold the picture.
    """
    check_suffix(suffix)
    suffix = suffix.lower()
    options: dict[str, object] = dict(_ENCODING.get(suffix, {}))
    if keep_metadata:
        options = {**options, **picture.metadata}
    if texts:
        options["pnginfo"] = _png_texts(texts)
    encoded = io.BytesIO()
    try:
        Image.fromarray(picture.pixels).save(encoded, Image.registered_extensions()[suffix], **options)
    except OSError as error:
        raise InputError(f"the picture cannot be written as {suffix}: {error}") from error
    return encoded.getvalue()


def check_suffix(suffix: str) -> None:
    """Raises: InputError if no picture can be written under a file ending such as ".png"."""
    if suffix.lower() not in SUFFIXES:
        raise InputError(f"unknown picture format {suffix!r}; use one of {', '.join(SUFFIXES)}")


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


def list_pictures(folder: Path) -> Iterator[Path]:
    """Every picture file below a folder, in the order of names; hidden files are none."""
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in SUFFIXES and path.is_file() and not path.name.startswith("."):
            yield path


def refuse_existing(path: Path) -> None:
    """Raises: InputError if there is a file already."""
    if path.exists():
        raise InputError(f"{path} exists already; choose another name or remove it first")
