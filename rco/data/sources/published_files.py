"""What is in the files of published data sets. None of them is unpickled: of the CIFAR sets it is the binary distribution.
SVHN's MATLAB files are read by SciPy, after their MD5 has been checked."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rco.data.config import DataConfig
from rco.data.images import ArrayImages, Pixels, Rows
from rco.data.sources.base import Source
from rco.data.sources.layout import laid_out
from rco.data.sources.published import CIFAR_MD5, Published

_IDX_IMAGES, _IDX_LABELS = 2051, 2049  # the formats' magic numbers


@dataclass(frozen=True)
class Content:
    """What is in the files.

    Attributes:
        pixels: (N, C, H, W) uint8, the training images first.
        labels: (N,) int64.
        train: how many are training images.
        class_names: by label.
    """

    pixels: Pixels
    labels: Rows
    train: int
    class_names: tuple[str, ...]


def source_of(content: Content, config: DataConfig) -> Source:
    """The source that the files' content makes."""
    train, test = np.split(np.arange(len(content.labels)), [content.train])
    layout = laid_out(config.dataset, content.class_names, content.labels, {"train": train, "test": test}, config.open_classes)
    return Source(layout, ArrayImages(content.pixels, config.image_size))


def read(known: Published, root: Path) -> Content:
    """Read the files.

    Raises:
        ValueError: a file is not what was published under its name.
        OSError: it cannot be read.
    """
    if known.reader == "SVHN":
        return _read_svhn(root)
    if known.reader in CIFAR_MD5:
        return _read_cifar(known, root)
    return _read_mnist(known, root)


def _read_mnist(known: Published, root: Path) -> Content:
    from torchvision import datasets

    images, labels = [], []
    for k, count in enumerate(known.counts):
        pixels = _records(root / known.files[2 * k], (_IDX_IMAGES, count, *known.shape[1:]), known.shape)
        images.append(pixels)
        labels.append(_records(root / known.files[2 * k + 1], (_IDX_LABELS, count), ()))
    return _content(known, images, labels, tuple(getattr(datasets, known.reader).classes))


def _records(path: Path, head: tuple[int, ...], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """The (N, *shape) bytes of an IDX file that begins with the big-endian numbers `head`, of which the second is N."""
    expected = np.array(head, ">u4").tobytes()
    size = len(expected) + head[1] * math.prod(shape)
    with open(path, "rb") as file:
        _require_size(path, size)
        if file.read(len(expected)) != expected:
            raise ValueError(f"{path.name} does not begin as it was published")
        return np.fromfile(file, np.uint8).reshape(head[1], *shape)


def _read_cifar(known: Published, root: Path) -> Content:
    names_file, *batches, last = known.files
    extra = 2 if known.num_classes == 100 else 1  # bytes before the pixels: of CIFAR-100 coarse label and label
    images, labels = [], []
    for file, count in [(file, known.counts[0] // len(batches)) for file in batches] + [(last, known.counts[1])]:
        record = extra + math.prod(known.shape)
        _require_size(root / file, count * record)
        rows = np.fromfile(root / file, np.uint8).reshape(count, record)
        images.append(rows[:, extra:].reshape(count, *known.shape))
        labels.append(rows[:, extra - 1])
    with open(root / names_file, encoding="utf-8") as text:
        names = tuple(line.strip() for line in text.read(2**16).splitlines() if line.strip())
    if len(names) != known.num_classes:
        raise ValueError(f"{Path(names_file).name} names {len(names)} classes, not {known.num_classes}")
    return _content(known, images, labels, names)


def _require_size(path: Path, size: int) -> None:
    if (actual := path.stat().st_size) != size:
        raise ValueError(f"{path.name} has {actual:,} bytes; as it was published it has {size:,}")


def _read_svhn(root: Path) -> Content:
    from torchvision import datasets

    parts: list[Any] = [datasets.SVHN(root, split=split) for split in ("train", "test")]
    return Content(
        np.concatenate([part.data for part in parts]),
        np.concatenate([part.labels for part in parts]).astype(np.int64),
        len(parts[0].labels),
        tuple("0123456789"),
    )


def _content(
    known: Published, images: list[NDArray[np.uint8]], labels: list[NDArray[np.uint8]], names: tuple[str, ...]
) -> Content:
    joined = np.concatenate(labels).astype(np.int64)
    if joined.max() >= known.num_classes:
        raise ValueError(f"there is a label {joined.max()}, but there are {known.num_classes} classes")
    return Content(np.concatenate(images), joined, known.counts[0], names)
