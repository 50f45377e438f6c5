"""Where images come from: every kind of source that `DataConfig.dataset` can name, read whole and not yet split.

Image folders, tars of one, and S3 addresses of either are laid out in one of two ways (one folder around it all is allowed):

    train/CLASS/*.jpg, test/CLASS/*.jpg     and, if you like, val/CLASS/*.jpg. A val/ without a test/ (as ImageNet is handed
                                            out) is the test part: validation images are then held out from train/
    CLASS/*.jpg                             validation and test part are held out

Other files, and names that begin with a dot, are passed over.
"""

from __future__ import annotations

import bz2
import errno
import gzip
import lzma
import os
import shutil
import tarfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib.metadata import version
from lzma import LZMAError
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory, TemporaryFile
from typing import IO, Any, cast

import numpy as np

from rco.core.errors import InputError
from rco.core.storage.addresses import is_remote, local_path
from rco.core.storage.contents import fingerprint, listing
from rco.core.storage.local import content_digest, list_files
from rco.core.storage.transfer import fetch
from rco.data import published
from rco.data.config import DataConfig
from rco.data.dataset import PARTS
from rco.data.images import SUFFIXES, ArrayImages, FileImages, Images, Rows, Shape, header
from rco.data.published import PUBLISHED

_TARS = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2")
_DIGITS = tuple("0123456789")
#: Names the GiB that a tar may unpack to, where the usual limit is too low.
MOST_UNPACKED = "RCO_MOST_UNPACKED"
_LONGEST_READ = 2**20  # tarfile reads files by less, and at once only headers with long names


@dataclass(frozen=True)
class Info:
    """What can be told of a source without decoding its images.

    Args:
        num_classes: how many classes, without the open ones.
        class_names: their names; empty if only reading the source tells them.
        image_shape: (C, H, W), as the first image's header promises.
        counts: images of each part that the source has.
    """

    num_classes: int
    class_names: tuple[str, ...]
    image_shape: Shape
    counts: dict[str, int]


@dataclass(frozen=True)
class Layout:
    """Which classes a source has, and which images.

    Args:
        source: its name, for messages.
        class_names: the K classes, by label.
        labels: (N,) int64: 0..K-1 in the parts; of open rows the source's own.
        parts: rows of each part that the source itself tells apart; "train" always, "val" and "test" if it has them.
        open_classes: name -> label of the classes that are held out whole; see `laid_out`.
        open_rows: their rows, whichever part the source has them in.

    Raises:
        InputError: fewer than two classes, or a class with too few images to be in every part.
    """

    source: str
    class_names: tuple[str, ...]
    labels: Rows
    parts: dict[str, Rows]
    open_classes: dict[str, int] = field(default_factory=dict)
    open_rows: Rows = field(default_factory=lambda: np.empty(0, np.int64))

    def __post_init__(self) -> None:
        if len(self.class_names) < 2:
            raise InputError(
                "dataset",
                self.source,
                f"has one class only ({', '.join(self.class_names)})",
                "Classification needs two or more",
            )
        # Parts that are missing are held out from the training part.
        needed = 1 + len(set(PARTS) - set(self.parts))
        counts = np.bincount(self.labels[self.parts["train"]], minlength=len(self.class_names))
        if counts.min() < needed:
            raise InputError(
                "dataset",
                self.source,
                f"class {self.class_names[counts.argmin()]!r} has {counts.min()} images to be trained on or held out",
                f"Each of the parts needs one of every class: give it {needed} or more, or leave the class out",
            )


def laid_out(
    source: str, class_names: tuple[str, ...], labels: Rows, parts: dict[str, Rows], open_classes: Sequence[str] = ()
) -> Layout:
    """The layout of a source, with the open classes taken out of all its parts: nothing may be trained, chosen or normalised
    on them, so that all of their images are unseen. The remaining classes are numbered anew, in their order.

    Args:
        class_names: of all classes, by label.
        labels: (N,) int64.
        open_classes: names or numbers, as `DataConfig.open_classes`.

    Raises:
        InputError: as `open_labels` and `Layout`, or an open class without two images.
    """
    held_out = open_labels(source, class_names, open_classes)
    if not held_out:
        return Layout(source, class_names, labels, parts)
    is_open = np.isin(labels, held_out)
    counts = np.bincount(labels, minlength=len(class_names))
    for label in held_out:
        if counts[label] < 2:
            raise InputError(
                "open_classes", class_names[label], f"has {counts[label]} images", "An image is compared with another: give 2"
            )
    kept = [label for label in range(len(class_names)) if label not in held_out]
    number = np.arange(len(class_names))
    number[kept] = np.arange(len(kept))
    return Layout(
        source,
        tuple(class_names[label] for label in kept),
        np.where(is_open, labels, number[labels]),
        {part: rows[~is_open[rows]] for part, rows in parts.items()},
        {class_names[label]: label for label in held_out},
        np.flatnonzero(is_open),
    )


def open_labels(source: str, class_names: tuple[str, ...], open_classes: Sequence[str]) -> list[int]:
    """The labels that names or numbers of classes mean, sorted. A name goes before a number that is written alike.

    Raises:
        InputError: no such class, one named twice, or fewer than two classes left to train on.
    """
    labels: list[int] = []
    for word in open_classes:
        number = word.removesuffix(".0")  # KFP hands every number over as a float
        if word in class_names:
            label = class_names.index(word)
        elif number in class_names:
            label = class_names.index(number)
        elif number.isdecimal() and int(number) < len(class_names):
            label = int(number)
        else:
            near = get_close_matches(word, class_names, n=1)
            hint = f"Did you mean {near[0]!r}? " if near else ""
            shown = ", ".join(class_names[:20]) + (", ..." if len(class_names) > 20 else "")
            raise InputError(
                "open_classes",
                word,
                f"is no class of {source}",
                f"{hint}Give names or numbers from 0 to {len(class_names) - 1}; the names are {shown}",
            )
        if label in labels:
            raise InputError("open_classes", list(open_classes), f"names class {class_names[label]!r} twice", "Name each once")
        labels.append(label)
    if len(class_names) - len(labels) < 2 and labels:
        left = len(class_names) - len(labels)
        raise InputError("open_classes", list(open_classes), f"leaves {left} of {source}'s classes", "Leave two or more")
    return sorted(labels)


@dataclass(frozen=True)
class Source:
    """A source that is open: its layout, and images whose rows the layout speaks of."""

    layout: Layout
    images: Images


NAMES = ("digits", *PUBLISHED)


def source_digest(config: DataConfig) -> str:
    """What the source holds now, as a cache key: it changes with any file. Cheap: no torch, no decoding.

    For digits, the version of the package that brings them; for the rest, see `rco.core.storage.contents.fingerprint`. A
    torchvision data set that may be downloaded is: what it holds can be told of its files alone.

    Raises:
        InputError: there is no such source, or it cannot be downloaded.
    """
    if config.dataset == "digits":
        return f"scikit-learn {version('scikit-learn')}"
    if config.dataset in PUBLISHED:
        if _missing(config):
            _published(config)
        return content_digest(Path(config.data_root), sorted(PUBLISHED[config.dataset].files))
    address = _address(config)
    with _as_dataset():
        return fingerprint(address)


def check_source(config: DataConfig) -> Info:
    """Look at a source before anything expensive is done with it; only the first image is opened, and only its header.

    A tar in an S3 store is downloaded for that, to a temporary folder.

    Raises:
        InputError: no such source, missing files, no images, a bad layout, or a class too small to be split.
    """
    if config.dataset == "digits":
        held_out = open_labels("digits", _DIGITS, config.open_classes)
        names = tuple(name for label, name in enumerate(_DIGITS) if label not in held_out)
        return Info(len(names), names, _resized((1, 8, 8), config), {"train": 1797})
    if known := PUBLISHED.get(config.dataset):
        if not config.download and (missing := _missing(config)):
            raise _not_there(config, missing)
        classes = known.num_classes - len(config.open_classes)
        if classes < 2:
            raise InputError(
                "open_classes", config.open_classes, f"leaves {classes} of {config.dataset}'s classes", "Leave two or more"
            )
        return Info(classes, (), _resized(known.shape, config), dict(zip(("train", "test"), known.counts, strict=True)))
    address = _address(config)
    with _as_dataset(), TemporaryDirectory() as scratch:
        if _is_tar(address):
            paths, shape = _look_into_tar(fetch(address, Path(scratch)), address)
            layout, _ = lay_out(address, paths, config.open_classes)
        elif is_remote(address):
            layout, paths = lay_out(address, (entry.name for entry in listing(address)), config.open_classes)
            shape = header(fetch(f"{address.rstrip('/')}/{paths[0]}", Path(scratch)), paths[0])
        else:
            folder = local_path(address)
            layout, paths = lay_out(address, list_files(folder), config.open_classes)
            shape = header(folder / paths[0])
    counts = {part: len(rows) for part, rows in layout.parts.items()}
    return Info(len(layout.class_names), layout.class_names, _resized(shape, config), counts)


@contextmanager
def open_source(config: DataConfig, scratch: Path) -> Iterator[Source]:
    """Read a source.

    Args:
        scratch: where files that come out of a store or a tar are kept while the source is open.

    Raises:
        InputError: as `check_source`, a download that fails, or files that cannot be read.
    """
    if config.dataset == "digits":
        yield _digits(config)
        return
    if config.dataset in PUBLISHED:
        yield _published(config)
        return
    address = _address(config)
    with TemporaryDirectory(dir=scratch, prefix=".source-") as temporary:
        with _as_dataset():
            root = fetch(address, Path(temporary) / "fetched")
        if _is_tar(address):
            root = _extracted(root, Path(temporary) / "extracted", address)
        layout, paths = lay_out(address, list_files(root), config.open_classes)
        yield Source(layout, FileImages.of(root, paths, config.image_size))


def lay_out(source: str, names: Iterable[str], open_classes: Sequence[str] = ()) -> tuple[Layout, list[str]]:
    """Tell classes and parts from the relative paths of files alone.

    Args:
        open_classes: see `laid_out`.

    Returns:
        the layout, and the paths that its rows stand for.

    Raises:
        InputError: no images in class folders, parts with different classes, or as `laid_out`.
    """
    paths = sorted(PurePosixPath(name).parts for name in names if _is_image(name))
    if not paths:
        raise InputError(
            "dataset", source, f"holds no images ({', '.join(SUFFIXES)})", "Put them into one folder for each class"
        )
    depth = 0
    while len({p[depth] for p in paths}) == 1 and paths[0][depth] not in PARTS and min(len(p) for p in paths) > depth + 2:
        depth += 1
    split = any(p[depth] == "train" and len(p) > depth + 2 for p in paths)
    found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))  # part -> class -> paths
    for path in paths:
        *folders, _ = path[depth:]
        if not split and folders:
            found["train"][folders[0]].append("/".join(path))
        elif split and len(folders) > 1 and folders[0] in PARTS:
            found[folders[0]][folders[1]].append("/".join(path))
    if not found:
        raise InputError("dataset", source, "has images, but not in class folders", "Put them into one folder for each class")
    if not split and set(found["train"]) <= set(PARTS):
        raise InputError(
            "dataset", source, "has no train/CLASS folders", "Lay it out as train/CLASS/*, test/CLASS/* or CLASS/*"
        )
    if "val" in found and "test" not in found:
        found["test"] = found.pop("val")
    for part, classes in found.items():
        if odd := sorted(set(classes) ^ set(found["train"])):
            raise InputError(
                "dataset",
                source,
                f"train and {part} differ in their classes: {', '.join(odd[:5])}",
                "Give every part all classes",
            )
    names_of_classes = tuple(sorted(found["train"]))
    for name in names_of_classes:
        if not name.isprintable():  # it goes into logs, tables and pictures
            raise InputError("dataset", source, f"has a class folder whose name is no plain text: {name!r}", "Rename it")
    ordered, labels, parts = list[str](), list[int](), dict[str, Rows]()
    for part, classes in found.items():
        start = len(ordered)
        for label, name in enumerate(names_of_classes):
            ordered += classes[name]
            labels += [label] * len(classes[name])
        parts[part] = np.arange(start, len(ordered))
    return laid_out(source, names_of_classes, np.array(labels, np.int64), parts, open_classes), ordered


def _is_image(name: str) -> bool:
    path = PurePosixPath(name)
    return path.suffix.lower() in SUFFIXES and not any(part.startswith((".", "__MACOSX")) for part in path.parts)


def _is_tar(address: str) -> bool:
    return address.lower().endswith(_TARS) and (is_remote(address) or local_path(address).is_file())


def _resized(shape: Shape, config: DataConfig) -> Shape:
    channels, height, width = shape
    return channels, config.image_size or height, config.image_size or width


@contextmanager
def _as_dataset() -> Iterator[None]:
    """Complaints about an address become complaints about the setting it came from."""
    try:
        yield
    except InputError as error:
        raise (error.renamed("dataset") if error.parameter == "uri" else error) from None


def _address(config: DataConfig) -> str:
    """The data set as an address: a store's, or that of a local folder or tar that exists."""
    name = config.dataset
    if is_remote(name):
        return name
    with _as_dataset():
        path = local_path(name)
    if path.is_dir() or _is_tar(name):
        return name
    if path.is_file():
        raise InputError("dataset", name, "is a file, but no tar", f"Give a folder, or a file that ends in {', '.join(_TARS)}")
    near = get_close_matches(name.lower(), NAMES, n=1)
    raise InputError(
        "dataset",
        name,
        "is neither a known data set nor an existing folder or tar",
        (f"Did you mean {near[0]!r}? " if near else "") + f"Known: {', '.join(NAMES)}; else give a path or an s3:// address",
    )


def _digits(config: DataConfig) -> Source:
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)[:, None]
    labels = digits.target.astype(np.int64)
    layout = laid_out("digits", _DIGITS, labels, {"train": np.arange(len(labels))}, config.open_classes)
    return Source(layout, ArrayImages(pixels, config.image_size))


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


def _published(config: DataConfig) -> Source:
    known = PUBLISHED[config.dataset]
    root = Path(config.data_root)
    missing = _missing(config)
    if missing and not config.download:
        raise _not_there(config, missing)
    from filelock import FileLock

    try:
        if missing:
            root.mkdir(parents=True, exist_ok=True)
            with FileLock(root / f".{config.dataset}.lock"):  # who comes second finds what the first has fetched
                if _missing(config):
                    published.download(known, root)
        content = published.read(known, root)
    except Exception as error:  # as many kinds as there are ways in which a download or a file can be broken
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


@contextmanager
def _tar(path: Path, address: str) -> Iterator[Iterator[tuple[str, tarfile.TarInfo, tarfile.TarFile]]]:
    """The image files of a tar: name, member, tar.

    A tar is read as a stream of bounded length, by pieces of bounded size, and nothing but plain files comes out of it.
    """
    try:
        with _decompressed(path) as stream, tarfile.open(fileobj=cast(IO[bytes], stream), mode="r:") as tar:
            yield _images_of(tar, stream, address)
            # All members have been read, and with them the empty block that ends a tar: tarfile would not mind its absence.
            if stream.tell() != tar.offset + tarfile.BLOCKSIZE:
                raise tarfile.ReadError("it breaks off")
    except InputError:
        raise
    except _TooLargeError as error:
        raise InputError(
            "dataset",
            address,
            f"unpacks to more than {error}, from {path.stat().st_size / 2**20:.3g} MiB: it may be a bomb",
            f"If it is not, set {MOST_UNPACKED} to the GiB that it may have",
        ) from None
    # What the decompressors and the reader of headers make of damage; names that no file can have; no room.
    except (
        tarfile.TarError,
        EOFError,
        LZMAError,
        zlib.error,
        OSError,
        ValueError,
        OverflowError,
        MemoryError,
        RecursionError,
    ) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError("dataset", address, f"is not a readable tar ({reason})", "Copy or make it again") from error


def _images_of(
    tar: tarfile.TarFile, stream: _Decompressed, address: str
) -> Iterator[tuple[str, tarfile.TarInfo, tarfile.TarFile]]:
    while (member := tar.next()) is not None:
        cast(Any, tar).members.clear()  # it would remember all of them, and there may be millions
        stream.count_member()
        if not _is_image(member.name) or member.isdir():
            continue
        if not member.isreg() or member.issparse():
            kind = "a link" if member.islnk() or member.issym() else "no plain file"
            raise InputError(
                "dataset", address, f"has a member that is {kind}: {member.name!r}", "Make it with tar --hard-dereference -h"
            )
        # What is absolute is taken as relative, as tar itself does; ".." begins with a dot, so that it is no image's folder.
        yield member.name.lstrip("/"), member, tar


class _TooLargeError(Exception):
    """With the limit, in words."""


class _Decompressed:
    """A tar's stream, decompressed, that ends with an error where it becomes larger than an honest one of its size."""

    def __init__(self, file: IO[bytes], most: float) -> None:
        self.file, self.most = file, most
        self.members = 0

    def count_member(self) -> None:
        """Members cost more than their bytes: each may become a file. An honest one has some hundred bytes, however packed."""
        self.members += 1
        if self.members * 2**13 > self.most:
            raise _TooLargeError(f"{self.members:,} members")

    def _require(self, position: int) -> None:
        if position > self.most:
            raise _TooLargeError(f"{self.most / 2**30:.3g} GiB")

    def read(self, size: int = -1) -> bytes:
        """At most so many bytes."""
        if not 0 <= size <= _LONGEST_READ:
            raise tarfile.ReadError("it has a header of a size that no header has")
        self._require(self.file.tell() + size)
        return self.file.read(size)

    def seek(self, position: int) -> int:
        """Go to a place; in a compressed tar, by reading up to it."""
        self._require(position)
        return self.file.seek(position)

    def tell(self) -> int:
        """The place."""
        return self.file.tell()


@contextmanager
def _decompressed(path: Path) -> Iterator[_Decompressed]:
    with open(path, "rb") as file:
        start = file.read(6)
    openers: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}
    opener = next((opener for magic, opener in openers.items() if start.startswith(magic)), open)
    with opener(path, "rb") as file:
        yield _Decompressed(file, _most_unpacked(path))


def _most_unpacked(path: Path) -> float:
    """Bytes that a tar may unpack to: images hardly shrink, so a hundred times its own size, and 1 GiB in any case."""
    told = os.environ.get(MOST_UNPACKED, "")
    try:
        return float(told) * 2**30 if told else max(2**30, 100 * path.stat().st_size)
    except ValueError:
        raise InputError(MOST_UNPACKED, told, "is not a number", "Give the GiB that a tar may unpack to") from None


def _look_into_tar(path: Path, address: str) -> tuple[list[str], Shape]:
    """Names of the image files in a tar, and the shape of the first."""
    names: list[str] = []
    shape: Shape = (0, 0, 0)
    with _tar(path, address) as images:
        for name, member, tar in images:
            if not names:
                with TemporaryFile() as file:
                    _copy(tar, member, file)
                    shape = header(file, name)
            names.append(name)
    return names, shape


def _extracted(path: Path, into: Path, address: str) -> Path:
    """Write the image files of a tar below `into`. A file is made, never followed or overwritten."""
    into.mkdir(parents=True)
    with _tar(path, address) as images:
        for name, member, tar in images:
            target = into / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)  # the later of two members of one name holds
            with open(target, "xb") as file:
                _copy(tar, member, file)
    return into


def _copy(tar: tarfile.TarFile, member: tarfile.TarInfo, file: IO[bytes]) -> None:
    content = tar.extractfile(member)
    assert content is not None  # it is for files
    shutil.copyfileobj(content, file)
    file.seek(0)
