"""Images to be read: pixels that lie in memory, or files that are decoded when asked for. NumPy and Pillow, no torch."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import IO, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from rco.core.errors import InputError
from rco.data.decoding import Decoding
from rco.data.image_file import TRANSPARENT, Shape, header, in_mode, opened, square, traits_of, upright

Pixels = NDArray[np.uint8]
Rows = NDArray[np.int64]
LARGE_MEGAPIXELS = 24

_CHUNK = 64
_large = threading.Lock()  # a decoded image above LARGE_MEGAPIXELS waits for the one before: memory is bounded


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
            out[i] = _pixels(square(Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)), self.size))

        _each(len(rows), resize, threads)
        return out


@dataclass(frozen=True)
class Survey:
    """What was seen of image files when all of them were decoded.

    Attributes:
        digests: (N,) uint64: of each file's bytes; 0 where it cannot be read.
        traits: (N,) uint8: what there is to note of it, as bits (`TURNED`, ...).
        sha256: (N, 32) uint8: of each file's bytes; of images in memory, none.
        problems: position -> what is wrong with the file.
        other_sizes: position -> the same, of files that are not of the size that all must have.
    """

    digests: NDArray[np.uint64]
    traits: NDArray[np.uint8]
    problems: dict[int, str] = field(default_factory=dict)
    other_sizes: dict[int, str] = field(default_factory=dict)
    sha256: NDArray[np.uint8] = field(default_factory=lambda: np.zeros((0, 32), np.uint8))


@dataclass(frozen=True)
class FileImages:
    """Image files.

    Args:
        root: their folder.
        paths: relative to it.
        shape: (C, H, W) as which they are read; one channel is grey, three are RGB.
        resize: whether an image of another size is brought to this one (then square), or refused.
        decoding: how files become pixels.
    """

    root: Path
    paths: Sequence[str]
    shape: Shape
    resize: bool
    decoding: Decoding = field(default_factory=Decoding)

    @classmethod
    def of(cls, root: Path, paths: Sequence[str], size: int, decoding: Decoding | None = None, channels: int = 0) -> FileImages:
        """Files as they are: grey if every one is, else RGB; of the first one's size unless a `size` is given.

        Args:
            channels: 1 or 3: read them so, whatever they are; 0: as the files are.

        Raises:
            InputError: no image can be read.
        """
        decoding = decoding or Decoding()
        shape = common_shape((partial(header, root / path, decoding=decoding) for path in paths), channels)
        channels, height, width = shape
        return cls(root, paths, (channels, size or height, size or width), resize=size > 0, decoding=decoding)

    def check(self, threads: int = 1) -> None:
        """Look at the header of every file, without decoding.

        Raises:
            InputError: a file is not a readable image, or has a size that it must not have.
        """

        def look(row: int) -> None:
            path = self.root / self.paths[row]
            self._refuse_other_size(str(path), header(path, decoding=self.decoding)[1:])

        _each(len(self.paths), look, threads)

    def read(self, rows: Rows, threads: int = 1) -> Pixels:
        """The images of `rows`: (len(rows), C, H, W) uint8.

        Raises:
            InputError: a file cannot be read, or has a size that it must not have.
        """
        out = np.empty((len(rows), *self.shape), np.uint8)

        def decode(i: int) -> None:
            path = self.root / self.paths[rows[i]]
            out[i] = _pixels(self._decoded(path, str(path))[0])

        _each(len(rows), decode, threads)
        return out

    def survey(self, rows: Rows, threads: int = 1, out: Pixels | None = None) -> Survey:
        """Decode all of `rows`, whatever is wrong with some of them.

        Args:
            out: (len(rows), C, H, W) uint8: receives the images; those that cannot be read are left as they are.
        """
        seen = Survey(np.zeros(len(rows), np.uint64), np.zeros(len(rows), np.uint8), sha256=np.zeros((len(rows), 32), np.uint8))

        def look(i: int) -> None:
            path = self.root / self.paths[rows[i]]
            try:
                content = path.read_bytes()
                image, seen.traits[i] = self._decoded(BytesIO(content), str(path), len(content))
                digest = hashlib.sha256(content).digest()
                seen.sha256[i] = np.frombuffer(digest, np.uint8)
                seen.digests[i] = int.from_bytes(digest[:8]) or 1
                if out is not None:
                    out[i] = _pixels(image)
            except OSError as error:
                seen.problems[i] = f"cannot be read ({error.strerror})"
            except OtherSizeError as error:
                seen.other_sizes[i] = error.problem
            except InputError as error:
                seen.problems[i] = error.problem

        _each(len(rows), look, threads)
        return seen

    def _decoded(self, source: Path | IO[bytes], name: str, length: int | None = None) -> tuple[Image.Image, int]:
        """The image in a file as it is read, and what there is to note of it."""
        with opened(source, name, self.decoding, length) as image:
            traits = traits_of(image)
            if self.resize:
                # JPEG can be decoded at a fraction of its size: much faster for photographs, and never below twice ours.
                image.draft(None, (2 * self.shape[2], 2 * self.shape[1]))
            with _large if image.width * image.height > LARGE_MEGAPIXELS * 10**6 else nullcontext():
                whole = upright(image)
                self._refuse_other_size(name, (whole.height, whole.width))
                whole, transparent = in_mode(whole, "L" if self.shape[0] == 1 else "RGB", self.decoding)
                if (whole.height, whole.width) != self.shape[1:]:
                    whole = square(whole, self.shape[1], self.decoding.fit)
                whole.load()
                return whole, traits | (TRANSPARENT if transparent else 0)

    def _refuse_other_size(self, name: str, size: tuple[int, int]) -> None:
        if size != self.shape[1:] and not self.resize:
            has, want = (f"{width}x{height}" for height, width in (size, self.shape[1:]))
            raise OtherSizeError("image_size", 0, f"{name} is {has} pixels, but the first image is {want}", "Set image_size")


class OtherSizeError(InputError):
    """A file of another size than all must have."""


def common_shape(headers: Iterable[Callable[[], Shape]], channels: int = 0) -> Shape:
    """The shape (C, H, W) as which files are read: the first readable one's height and width; grey if all are, else RGB.

    No more headers are looked at than it takes: of coloured images, one.

    Args:
        headers: of each file, in order, what reads its shape.
        channels: as for `FileImages.of`.

    Raises:
        InputError: what is wrong with the first file, if none can be read.
    """
    first: Shape | None = None
    problem: InputError | None = None
    for read in headers:
        try:
            shape = read()
        except InputError as error:
            problem = problem or error
            continue
        first = first or shape
        if channels or shape[0] == 3:
            return channels or 3, first[1], first[2]
    if first is None:
        raise problem or InputError("dataset", "", "holds no images", "Name another")
    return first


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
