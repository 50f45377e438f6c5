"""Images to be read: pixels that lie in memory, or files that are decoded when asked for. NumPy and Pillow, no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from rco.core.errors import InputError

Pixels = NDArray[np.uint8]
Rows = NDArray[np.int64]
Shape = tuple[int, int, int]  # (C, H, W)

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
# What those suffixes promise, and nothing else: some of Pillow's other readers start programs.
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
_CHUNK = 64


class Images(Protocol):
    """Images that are read by row."""

    @property
    def shape(self) -> Shape:
        """(C, H, W) of every image, as read."""

    def read(self, rows: Rows, threads: int = 1) -> Pixels:
        """The images of `rows`: (len(rows), C, H, W) uint8."""


@dataclass(frozen=True)
class ArrayImages:
    """Images in memory.

    Args:
        pixels: (N, C, H, W) uint8.
        size: resize to so many pixels square; 0 leaves them as they are.
    """

    pixels: Pixels
    size: int = 0

    @property
    def shape(self) -> Shape:
        """(C, H, W) of every image, as read."""
        channels, height, width = self.pixels.shape[1:]
        return channels, self.size or height, self.size or width

    def read(self, rows: Rows, threads: int = 1) -> Pixels:
        """The images of `rows`: (len(rows), C, H, W) uint8."""
        if self.shape == self.pixels.shape[1:]:
            return self.pixels[rows]

        out = np.empty((len(rows), *self.shape), np.uint8)

        def resize(i: int) -> None:
            pixels = self.pixels[rows[i]]
            out[i] = _pixels(_square(Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)), self.size))

        _each(len(rows), resize, threads)
        return out


@dataclass(frozen=True)
class FileImages:
    """Image files.

    Args:
        root: their folder.
        paths: relative to it.
        shape: (C, H, W) as which they are read; one channel is grey, three are RGB.
        resize: whether an image of another size is brought to this one (then square), or refused.
    """

    root: Path
    paths: Sequence[str]
    shape: Shape
    resize: bool

    @classmethod
    def of(cls, root: Path, paths: Sequence[str], size: int) -> FileImages:
        """Files as they are: grey if every one is, else RGB; of the first one's size unless a `size` is given.

        Raises:
            InputError: the first image cannot be read.
        """
        channels, height, width = header(root / paths[0])
        if channels == 1 and not all(header(root / path)[0] == 1 for path in paths):
            channels = 3
        return cls(root, paths, (channels, size or height, size or width), resize=size > 0)

    def check(self, threads: int = 1) -> None:
        """Look at the header of every file, without decoding.

        Raises:
            InputError: a file is not a readable image, or has a size that it must not have.
        """

        def look(row: int) -> None:
            path = self.root / self.paths[row]
            self._refuse_other_size(path, header(path)[1:])

        _each(len(self.paths), look, threads)

    def read(self, rows: Rows, threads: int = 1) -> Pixels:
        """The images of `rows`: (len(rows), C, H, W) uint8.

        Raises:
            InputError: a file cannot be read, or has a size that it must not have.
        """
        out = np.empty((len(rows), *self.shape), np.uint8)

        def decode(i: int) -> None:
            out[i] = self._decoded(self.root / self.paths[rows[i]])

        _each(len(rows), decode, threads)
        return out

    def _decoded(self, path: Path) -> Pixels:
        mode = "L" if self.shape[0] == 1 else "RGB"
        with _opened(path) as image:
            self._refuse_other_size(path, (image.height, image.width))
            if self.resize:
                # JPEG can be decoded at a fraction of its size: much faster for photographs, and never below twice ours.
                image.draft(None, (2 * self.shape[2], 2 * self.shape[1]))
            whole = image if image.mode == mode else image.convert(mode)
            return _pixels(whole if (whole.height, whole.width) == self.shape[1:] else _square(whole, self.shape[1]))

    def _refuse_other_size(self, path: Path, size: tuple[int, int]) -> None:
        if size != self.shape[1:] and not self.resize:
            has, want = (f"{width}x{height}" for height, width in (size, self.shape[1:]))
            raise InputError("image_size", 0, f"{path} is {has} pixels, but the first image is {want}", "Set image_size")


def header(source: Path | IO[bytes], name: str = "") -> Shape:
    """(C, H, W) of an image file by its header; C is 1 for 8-bit grey and 3 for all else.

    Raises:
        InputError: no readable image of 8 bits a channel.
    """
    with _opened(source, name) as image:
        return 1 if image.mode == "L" else 3, image.height, image.width


@contextmanager
def _opened(source: Path | IO[bytes], name: str = "") -> Iterator[Image.Image]:
    name = name or str(source)
    try:
        with Image.open(source, formats=_FORMATS) as image:
            # Pillow itself only warns at this limit, and refuses at twice as much.
            if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
                raise InputError("dataset", name, f"is too large: {image.width}x{image.height} pixels", "Shrink or remove it")
            if image.mode[0] in "IF":
                raise InputError("dataset", name, f"has more than 8 bits a channel (mode {image.mode})", "Convert it to 8 bits")
            yield image
    except InputError:
        raise
    except Image.DecompressionBombError:
        raise InputError("dataset", name, "is too large: it may be a decompression bomb", "Shrink or remove it") from None
    except Exception as error:  # Pillow's readers raise as many kinds as there are ways in which a file can be broken
        raise InputError("dataset", name, f"is not a readable image ({error})", "Repair or remove it") from error


def _square(image: Image.Image, size: int) -> Image.Image:
    """The largest centred square, resized: shorter side and centre crop in one step."""
    return ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)


def _pixels(image: Image.Image) -> Pixels:
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _each(count: int, act: Callable[[int], None], threads: int) -> None:
    """act(0), ..., act(count - 1), in chunks over `threads` (Pillow lets go of the interpreter while it decodes)."""

    def chunk(start: int) -> None:
        for i in range(start, min(start + _CHUNK, count)):
            act(i)

    if threads == 1:
        for i in range(count):
            act(i)
        return
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(chunk, range(0, count, _CHUNK)):
            pass  # raises what a chunk raised
