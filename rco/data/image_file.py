"""One image file: opened, upright, in 8 bits, square. Pillow, no torch."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from rco.core.errors import InputError
from rco.data.decoding import Decoding

Shape = tuple[int, int, int]  # (C, H, W)

SUFFIXES = (
    *(".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp"),
    *(".jfif", ".jpe", ".jif", ".mpo", ".pbm", ".pnm", ".dib", ".apng", ".avif"),
)
# What those suffixes promise, and nothing else: some of Pillow's other readers start programs.
_FORMATS = (
    *("JPEG", "PNG", "BMP", "DIB", "GIF", "PPM", "TIFF", "WEBP"),
    *(("AVIF",) if find_spec("PIL.AvifImagePlugin") else ()),  # older versions have it not
)
_ORIENTATION = 0x0112  # the EXIF tag
_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
_FEW_BYTES = 1000  # pixels in one byte of a file: above Pillow's own limit, a file that has more is a bomb
_limit = threading.Lock()
# Our own limit is a setting, and its refusal names it.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

#: What can be noted of a file, as bits.
TURNED, TRANSPARENT, SIXTEEN, NOT_SQUARE, LARGE, FRAMES = (1 << bit for bit in range(6))


def header(source: Path | IO[bytes], name: str = "", decoding: Decoding | None = None) -> Shape:
    """(C, H, W) of an image file by its header, upright; C is 1 for grey and 3 for all else.

    Raises:
        InputError: no readable image.
    """
    with opened(source, name, decoding or Decoding()) as image:
        height, width = image.height, image.width
        if _turn(image) >= 5:
            height, width = width, height
        return 1 if image.mode in ("L", "I", *_SIXTEEN_BITS) else 3, height, width


@contextmanager
def opened(source: Path | IO[bytes], name: str, decoding: Decoding, length: int | None = None) -> Iterator[Image.Image]:
    """A file as an image whose pixels are not read yet; what goes wrong in the block is the file's fault.

    Args:
        name: for messages.
        length: of the file, in bytes, if it is known.

    Raises:
        InputError: it is not a readable image, is too large, or has pixels of an unknown range.
    """
    name = name or str(source)
    try:
        with _open(source) as image:
            _refuse_large(image, source, name, decoding, length)
            if image.mode == "F" or (image.mode[0] == "I" and not _has_sixteen_bits(image)):
                raise InputError(
                    "dataset", name, f"has pixels whose range is not known (mode {image.mode})", "Convert it to 8 or 16 bits"
                )
            yield image
    except InputError:
        raise
    except UnidentifiedImageError as error:  # its own words name an object in memory
        reason = "its content is of no format that is read"
        raise InputError("dataset", name, f"is not a readable image ({reason})", "Repair or remove it") from error
    except Exception as error:  # Pillow's readers raise as many kinds as there are ways in which a file can be broken
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError("dataset", name, f"is not a readable image ({reason})", "Repair or remove it") from error


def _open(source: Path | IO[bytes]) -> Image.Image:
    try:
        return Image.open(source, formats=_FORMATS)
    except Image.DecompressionBombError:
        if not isinstance(source, Path):
            source.seek(0)
        with _limit:  # the limit is Pillow's, for a whole process; ours is asked next
            limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            try:
                return Image.open(source, formats=_FORMATS)
            finally:
                Image.MAX_IMAGE_PIXELS = limit


def _refuse_large(image: Image.Image, source: Path | IO[bytes], name: str, decoding: Decoding, length: int | None) -> None:
    pixels = image.width * image.height
    if pixels > decoding.max_megapixels * 10**6:
        megapixels = -(-pixels // 10**6)
        raise InputError(
            "dataset",
            name,
            f"is too large: {image.width}x{image.height} pixels, and max_megapixels is {decoding.max_megapixels:g}",
            f"Set max_megapixels = {megapixels}, or shrink or remove it",
        )
    if Image.MAX_IMAGE_PIXELS is not None and pixels > Image.MAX_IMAGE_PIXELS:
        if length is None:
            length = source.stat().st_size if isinstance(source, Path) else None
        if length is not None and pixels > _FEW_BYTES * length:
            raise InputError(
                "dataset",
                name,
                f"is too large: {image.width}x{image.height} pixels from {length:,} bytes, so it may be a decompression bomb",
                "Shrink or remove it",
            )


def _has_sixteen_bits(image: Image.Image) -> bool:
    return image.mode in _SIXTEEN_BITS or (image.mode == "I" and image.format in ("PNG", "PPM"))


def _has_alpha(image: Image.Image) -> bool:
    return image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info


def _orientation(image: Image.Image) -> int:
    """As EXIF has it, 1 to 8. Of PNG, if it stands before the pixels: they are not read for it."""
    if image.format == "PNG" and "exif" not in image.info:
        return 1
    value = image.getexif().get(_ORIENTATION, 1)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _turn(image: Image.Image) -> int:
    """The orientation from which the image must be turned; Pillow turns TIFF itself."""
    return 1 if image.format == "TIFF" else _orientation(image)


def upright(image: Image.Image) -> Image.Image:
    return image if (orientation := _turn(image)) == 1 else image.transpose(_TURNS[orientation])


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def traits_of(image: Image.Image) -> int:
    traits = TURNED if _orientation(image) != 1 else 0
    traits |= SIXTEEN if _has_sixteen_bits(image) else 0
    traits |= FRAMES if _has_frames(image) else 0
    traits |= NOT_SQUARE if image.width != image.height else 0
    return traits | (LARGE if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS else 0)


def _has_frames(image: Image.Image) -> bool:
    """Whether there are frames or pages after the first; a phone's MPO has previews there, which nobody misses."""
    if image.format not in ("GIF", "PNG", "WEBP", "TIFF", "AVIF"):
        return False
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # the second frame is damaged, which is not read
        return True


def in_mode(image: Image.Image, mode: str, decoding: Decoding) -> tuple[Image.Image, bool]:
    """An image as 8-bit grey or RGB: 16 bits scaled, transparent pixels laid on a background; and whether there were any."""
    transparent = False
    if image.mode[0] == "I":
        values = np.asarray(image).astype(np.float32) * np.float32(255 / decoding.white_level)
        image = Image.fromarray(np.rint(values.clip(0, 255)).astype(np.uint8))
    elif _has_alpha(image):
        image = image.convert("RGBA")
        lowest, _ = image.getchannel("A").getextrema()
        transparent = bool(lowest < 255)  # type: ignore[operator]
        if transparent:
            image = Image.alpha_composite(Image.new("RGBA", image.size, (*decoding.background, 255)), image)
        image = image.convert("RGB")
    return image if image.mode == mode else image.convert(mode), transparent


def square(image: Image.Image, size: int, fit: str = "crop") -> Image.Image:
    """An image as a square of `size`: its largest centred square (shorter side and centre crop in one step), the whole of it
    between black bars, or the whole of it, squashed."""
    if fit == "pad":
        return ImageOps.pad(image, (size, size), Image.Resampling.BILINEAR, color=0 if image.mode == "L" else (0, 0, 0))
    if fit == "squash":
        return image.resize((size, size), Image.Resampling.BILINEAR)
    return ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)
