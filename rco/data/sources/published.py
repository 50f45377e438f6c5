"""Data sets that are published as a few files of a known layout: how they are fetched, and what is known of them.

torchvision knows where they lie, fetches them and checks their MD5. `published_files` reads them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from rco.core.errors import InputError
from rco.core.settings import setting
from rco.data.sources.base import SOURCES, Info, Source, SourceKind, resized

if TYPE_CHECKING:
    from rco.data.config import DataConfig
    from rco.data.image_file import Shape

CIFAR_MD5 = {"CIFAR10": "c32a1d4ab5d03f1284b67883e8d87530", "CIFAR100": "03b5dce01913d631647c71ecec9e9cb8"}


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


@SOURCES.register("torchvision")
@dataclass(frozen=True, kw_only=True)
class PublishedFiles(SourceKind):
    """The data sets of `PUBLISHED`, whose files lie in `data_root`."""

    summary: ClassVar[str] = "a published set: mnist, fashionmnist, cifar10, cifar100 or svhn"
    names: ClassVar[tuple[str, ...]] = tuple(PUBLISHED)

    data_root: str = setting(".rco/data", "directory that holds (or receives) torchvision data sets")
    download: bool = setting(False, "let torchvision download the data set into data_root if it is missing")

    def digest(self, config: DataConfig) -> str:
        """Of the files' content; what is missing is downloaded first."""
        from rco.core.storage.local import content_digest

        if self._missing(config.dataset):
            self._read(config)
        return content_digest(Path(self.data_root), sorted(PUBLISHED[config.dataset].files))

    def check(self, config: DataConfig) -> Info:
        known = PUBLISHED[config.dataset]
        if not self.download and (missing := self._missing(config.dataset)):
            raise self._not_there(config.dataset, missing)
        classes = known.num_classes - len(config.open_classes)
        if classes < 2:
            raise InputError(
                "open_classes", config.open_classes, f"leaves {classes} of {config.dataset}'s classes", "Leave two or more"
            )
        return Info(classes, (), resized(known.shape, config), dict(zip(("train", "test"), known.counts, strict=True)))

    @contextmanager
    def open(self, config: DataConfig, scratch: Path) -> Iterator[Source]:
        yield self._read(config)

    def _missing(self, dataset: str) -> list[str]:
        root = Path(self.data_root)
        return [name for name in PUBLISHED[dataset].files if not (root / name).is_file()]

    def _not_there(self, dataset: str, missing: list[str]) -> InputError:
        known = PUBLISHED[dataset]
        come = f"unpack {known.archive} there" if known.archive else "put torchvision's files of this data set there"
        pickled = " (the Python distribution is pickled, and not read)" if known.archive else ""
        return InputError(
            "data_root",
            self.data_root,
            f"lacks files of {dataset} (such as {missing[0]}){pickled}, and download is off",
            f"Set download = true, or {come}",
        )

    def _read(self, config: DataConfig) -> Source:
        dataset, root = config.dataset, Path(self.data_root)
        known = PUBLISHED[dataset]
        missing = self._missing(dataset)
        if missing and not self.download:
            raise self._not_there(dataset, missing)
        from filelock import FileLock

        from rco.data.sources.published_files import read, source_of

        try:
            if missing:
                root.mkdir(parents=True, exist_ok=True)
                with FileLock(root / f".{dataset}.lock"):  # the second process finds what the first has fetched
                    if self._missing(dataset):
                        download(known, root)
            content = read(known, root)
        except Exception as error:  # a broken download or file can raise almost anything
            what = "could not be downloaded" if missing else "has files that cannot be read"
            raise InputError(
                "dataset",
                dataset,
                f"{what} ({' '.join(str(error).split())})",
                f"Put {known.archive or 'the files of this data set'} into data_root ({self.data_root}), "
                + ("unpacked" if known.archive else "as torchvision does")
                + ", or remove damaged ones",
            ) from error
        return source_of(content, config)


def download(known: Published, root: Path) -> None:
    """Fetch the files that are not there, and check what came against the published MD5.

    Raises:
        RuntimeError, OSError, ValueError: as torchvision does.
    """
    from torchvision import datasets
    from torchvision.datasets.utils import download_and_extract_archive

    reader = getattr(datasets, known.reader)
    if known.reader in CIFAR_MD5:
        url = reader.url.replace("-python", "-binary")
        download_and_extract_archive(url, str(root), filename=known.archive, md5=CIFAR_MD5[known.reader])
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
