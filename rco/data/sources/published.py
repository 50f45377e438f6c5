"""Data sets that are published as a few files of a known layout: how they are fetched, and what is in them.

torchvision knows where they lie, fetches them and checks their MD5. The files are read here, and none of them is unpickled:
of the CIFAR sets it is the binary distribution. SVHN's MATLAB files are read by SciPy, after their MD5 has been checked.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rco.core.errors import InputError
from rco.core.storage.local import content_digest
from rco.data.config import DataConfig
from rco.data.images import ArrayImages, Pixels, Rows, Shape
from rco.data.sources.base import Info, Source, laid_out, resized

_IDX_IMAGES, _IDX_LABELS = 2051, 2049  # the formats' magic numbers
_CIFAR_MD5 = {"CIFAR10": "c32a1d4ab5d03f1284b67883e8d87530", "CIFAR100": "03b5dce01913d631647c71ecec9e9cb8"}


@dataclass(frozen=True, kw_only=True)
class Published:
    """One data set.

    Attributes:
        reader: the class of torchvision that knows its addresses.
        num_classes: K.
        shape: (C, H, W).
        counts: images for training and test.
        files: relative to data_root; those with images in the order in which they are read.
        archive: what the files come in, if it is one file.
        folder: of the files, relative to data_root.
    """

    reader: str
    num_classes: int
    shape: Shape
    counts: tuple[int, int]
    files: tuple[str, ...]
    archive: str = ""
    folder: str = ""


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


def _mnist(name: str) -> Published:
    folder = f"{name}/raw"
    parts = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
    return Published(
        reader=name,
        num_classes=10,
        shape=(1, 28, 28),
        counts=(60_000, 10_000),
        files=tuple(f"{folder}/{part}-ubyte" for part in parts),
        folder=folder,
    )


def _cifar(name: str, classes: int, folder: str, archive: str, files: tuple[str, ...]) -> Published:
    return Published(
        reader=name,
        num_classes=classes,
        shape=(3, 32, 32),
        counts=(50_000, 10_000),
        files=tuple(f"{folder}/{file}" for file in files),
        archive=archive,
        folder=folder,
    )


PUBLISHED = {
    "mnist": _mnist("MNIST"),
    "fashionmnist": _mnist("FashionMNIST"),
    "cifar10": _cifar(
        "CIFAR10",
        10,
        "cifar-10-batches-bin",
        "cifar-10-binary.tar.gz",
        ("batches.meta.txt", *(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"),
    ),
    "cifar100": _cifar(
        "CIFAR100", 100, "cifar-100-binary", "cifar-100-binary.tar.gz", ("fine_label_names.txt", "train.bin", "test.bin")
    ),
    "svhn": Published(
        reader="SVHN",
        num_classes=10,
        shape=(3, 32, 32),
        counts=(73_257, 26_032),
        files=("train_32x32.mat", "test_32x32.mat"),
    ),
}


class PublishedFiles:
    """The data sets of `PUBLISHED`, whose files lie in `config.data_root`."""

    @property
    def names(self) -> tuple[str, ...]:
        """As in `PUBLISHED`."""
        return tuple(PUBLISHED)

    def accepts(self, config: DataConfig) -> bool:
        return config.dataset in PUBLISHED

    def digest(self, config: DataConfig) -> str:
        """Of the files' content; what is missing is downloaded first."""
        if _missing(config):
            _read_source(config)
        return content_digest(Path(config.data_root), sorted(PUBLISHED[config.dataset].files))

    def check(self, config: DataConfig) -> Info:
        known = PUBLISHED[config.dataset]
        if not config.download and (missing := _missing(config)):
            raise _not_there(config, missing)
        classes = known.num_classes - len(config.open_classes)
        if classes < 2:
            raise InputError(
                "open_classes", config.open_classes, f"leaves {classes} of {config.dataset}'s classes", "Leave two or more"
            )
        return Info(classes, (), resized(known.shape, config), dict(zip(("train", "test"), known.counts, strict=True)))

    @contextmanager
    def open(self, config: DataConfig, scratch: Path) -> Iterator[Source]:
        yield _read_source(config)


def _missing(config: DataConfig) -> list[str]:
    root = Path(config.data_root)
    return [name for name in PUBLISHED[config.dataset].files if not (root / name).is_file()]


def _not_there(config: DataConfig, missing: list[str]) -> InputError:
    known = PUBLISHED[config.dataset]
    come = f"unpack {known.archive} there" if known.archive else "put torchvision's files of this data set there"
    pickled = " (the Python distribution is pickled, and not read)" if known.archive else ""
    return InputError(
        "data_root",
        config.data_root,
        f"lacks files of {config.dataset} (such as {missing[0]}){pickled}, and download is off",
        f"Set download = true, or {come}",
    )


def _read_source(config: DataConfig) -> Source:
    known = PUBLISHED[config.dataset]
    root = Path(config.data_root)
    missing = _missing(config)
    if missing and not config.download:
        raise _not_there(config, missing)
    from filelock import FileLock

    try:
        if missing:
            root.mkdir(parents=True, exist_ok=True)
            with FileLock(root / f".{config.dataset}.lock"):  # the second process finds what the first has fetched
                if _missing(config):
                    download(known, root)
        content = read(known, root)
    except Exception as error:  # a broken download or file can raise almost anything
        what = "could not be downloaded" if missing else "has files that cannot be read"
        raise InputError(
            "dataset",
            config.dataset,
            f"{what} ({' '.join(str(error).split())})",
            f"Put {known.archive or 'the files of this data set'} into data_root ({config.data_root}), "
            + ("unpacked" if known.archive else "as torchvision does")
            + ", or remove damaged ones",
        ) from error
    train, test = np.split(np.arange(len(content.labels)), [content.train])
    layout = laid_out(config.dataset, content.class_names, content.labels, {"train": train, "test": test}, config.open_classes)
    return Source(layout, ArrayImages(content.pixels, config.image_size))


def download(known: Published, root: Path) -> None:
    """Fetch the files that are not there, and check what came against the published MD5.

    Raises:
        RuntimeError, OSError, ValueError: as torchvision does.
    """
    from torchvision import datasets
    from torchvision.datasets.utils import download_and_extract_archive

    reader = getattr(datasets, known.reader)
    if known.reader in _CIFAR_MD5:
        url = reader.url.replace("-python", "-binary")
        download_and_extract_archive(url, str(root), filename=known.archive, md5=_CIFAR_MD5[known.reader])
    elif known.reader == "SVHN":
        for split in ("train", "test"):
            reader(root, split=split, download=True)
    else:
        for file, md5 in reader.resources:
            for mirror in reader.mirrors:
                try:
                    download_and_extract_archive(f"{mirror}{file}", str(root / known.folder), filename=file, md5=md5)
                    break
                except OSError:  # what urllib raises is one
                    if mirror == reader.mirrors[-1]:
                        raise


def read(known: Published, root: Path) -> Content:
    """Read the files.

    Raises:
        ValueError: a file is not what was published under its name.
        OSError: it cannot be read.
    """
    if known.reader == "SVHN":
        return _read_svhn(root)
    if known.reader in _CIFAR_MD5:
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
