"""What is in an archive of an image folder: a tar or a ZIP file.

A tar is read as a stream of bounded length, by pieces of bounded size; a ZIP file (`unzip`) says beforehand how much is in it.
Nothing but plain files comes out of either.
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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from lzma import LZMAError
from pathlib import Path, PurePosixPath
from tempfile import TemporaryFile
from typing import IO, Any, NamedTuple, cast

from rco.core.errors import InputError
from rco.data.config import DataConfig
from rco.data.image_file import Shape, header
from rco.data.images import common_shape
from rco.data.sources import unzip
from rco.data.sources.base import Info, Source
from rco.data.sources.class_folders import files_source, folder_settings, info_of, lay_out_as
from rco.data.sources.places import ZIP
from rco.data.sources.tree import is_image

#: Names the GiB that an archive may unpack to, where the usual limit is too low.
MOST_UNPACKED = "RCO_MOST_UNPACKED"
_LONGEST_READ = 2**20  # tarfile reads files by less, and at once only headers with long names
_IN_MEMORY = 2**24  # bytes of a file whose header is read
_LEAST_MEMBER = 2**13  # bytes that a member costs at least: it may become a file
_COLOURED = 64  # headers of images in colour after which no more are read: in all but odd archives one of them counts


class Member(NamedTuple):
    """A file in an archive.

    Attributes:
        name: its path.
        size: in bytes, unpacked.
        copy: writes its content into a file, and goes to its beginning; of what is not an image by its name, nothing.
    """

    name: str
    size: int
    copy: Callable[[IO[bytes]], None]


def check_archive(config: DataConfig, path: Path) -> Info:
    """What is known of the archive at `path`: names, and the headers of as many images as tell how all are read."""
    for most in (_COLOURED, None):
        names, headers = _names_and_headers(path, config, most)
        layout, paths = lay_out_as(config, names)
        known = [headers[name] for name in paths if name in headers]
        if known or most is None:
            break
    return info_of(layout, common_shape(known, folder_settings(config).image_channels), config)


def extracted_source(config: DataConfig, path: Path, into: Path) -> Source:
    """The source that is in the archive at `path`, whose images are written below `into`."""
    others: list[str] = []
    return files_source(config, extract(path, into, config.dataset, others), others)


@contextmanager
def _members(path: Path, address: str) -> Iterator[Iterator[Member]]:
    """The files of an archive.

    Raises:
        InputError: it cannot be read, or holds more than it may.
    """
    if address.lower().endswith(ZIP):
        with unzip.members(path, address) as (archive, found):
            most = _most_unpacked(path)
            if sum(info.file_size for _, info in found) > most or len(found) * _LEAST_MEMBER > most:
                raise _too_large(path, address, f"{most / 2**30:.3g} GiB, or {len(found):,} files")
            yield _zipped(archive, found, address)
    else:
        with _tar(path, address) as members:
            yield members


def _zipped(archive: Any, found: list[tuple[str, Any]], address: str) -> Iterator[Member]:
    for name, info in found:
        if is_image(name) and not unzip.is_plain(info):
            raise InputError("dataset", address, f"has a member that is a link: {name!r}", "Make it of plain files")
        yield Member(name, info.file_size, partial(unzip.copy, archive, info))


def _too_large(path: Path, address: str, what: object) -> InputError:
    return InputError(
        "dataset",
        address,
        f"unpacks to more than {what}, from {path.stat().st_size / 2**20:.3g} MiB: it may be a bomb",
        f"If it is not, set {MOST_UNPACKED} to the GiB that it may have",
    )


@contextmanager
def _tar(path: Path, address: str) -> Iterator[Iterator[Member]]:
    """The files of a tar.

    A tar is read as a stream of bounded length, by pieces of bounded size, and nothing but plain files comes out of it.
    """
    try:
        with _decompressed(path) as stream, tarfile.open(fileobj=cast(IO[bytes], stream), mode="r:") as tar:
            yield _files_of(tar, stream, address)
            # All members have been read, and with them the empty block that ends a tar: tarfile would not mind its absence.
            if stream.tell() != tar.offset + tarfile.BLOCKSIZE:
                raise tarfile.ReadError("it breaks off")
    except InputError:
        raise
    except _TooLargeError as error:
        raise _too_large(path, address, error) from None
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


def _files_of(tar: tarfile.TarFile, stream: _Decompressed, address: str) -> Iterator[Member]:
    while (member := tar.next()) is not None:
        cast(Any, tar).members.clear()  # it would remember all of them, and there may be millions
        stream.count_member()
        if member.isdir():
            continue
        # What is absolute is taken as relative, as tar itself does; ".." begins with a dot, so that it is no image's folder.
        name = member.name.lstrip("/")
        if not is_image(member.name):
            yield Member(name, member.size, lambda file: None)
            continue
        if not member.isreg() or member.issparse():
            kind = "a link" if member.islnk() or member.issym() else "no plain file"
            raise InputError(
                "dataset", address, f"has a member that is {kind}: {member.name!r}", "Make it with tar --hard-dereference -h"
            )
        yield Member(name, member.size, partial(_copy, tar, member))


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
        if self.members * _LEAST_MEMBER > self.most:
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
        """Go to a position; in a compressed tar, by reading up to it."""
        self._require(position)
        return self.file.seek(position)

    def tell(self) -> int:
        """The position."""
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
    """Bytes that an archive may unpack to: images hardly shrink, so a hundred times its own size, and 1 GiB in any case."""
    setting = os.environ.get(MOST_UNPACKED, "")
    try:
        return float(setting) * 2**30 if setting else max(2**30, 100 * path.stat().st_size)
    except ValueError:
        raise InputError(MOST_UNPACKED, setting, "is not a number", "Give the GiB that an archive may unpack to") from None


def _names_and_headers(path: Path, config: DataConfig, most: int | None) -> tuple[list[str], dict[str, Callable[[], Shape]]]:
    """Names of the files in an archive; of its images, by their paths, what gives their shapes or says what is wrong.

    Args:
        most: images in colour after which no more headers are read; None: all are.
    """
    decoding = folder_settings(config).decoding
    names: list[str] = []
    headers: dict[str, Callable[[], Shape]] = {}
    coloured = 0
    with _members(path, config.dataset) as members:
        for member in members:
            names.append(member.name)
            if not is_image(member.name) or (most is not None and coloured >= most):
                continue
            with BytesIO() if member.size <= _IN_MEMORY else TemporaryFile() as file:
                member.copy(file)
                try:
                    shape = header(file, member.name, decoding)
                except InputError as error:
                    headers[str(PurePosixPath(member.name))] = partial(_refuse, error)
                else:
                    headers[str(PurePosixPath(member.name))] = partial(tuple, shape)  # type: ignore[assignment]
                    coloured += shape[0] == 3
    return names, headers


def _refuse(error: InputError) -> Shape:
    raise error


def extract(path: Path, into: Path, address: str, others: list[str] | None = None) -> Path:
    """Write the image files of an archive below `into`. A file is made, never followed or overwritten.

    Args:
        others: receives the names of all other files, if it is given.
    """
    into.mkdir(parents=True)
    with _members(path, address) as members:
        for member in members:
            if not is_image(member.name):
                if others is not None:
                    others.append(member.name)
                continue
            target = into / member.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)  # the later of two members of one name holds
            with open(target, "xb") as file:
                member.copy(file)
    return into


def _copy(tar: tarfile.TarFile, member: tarfile.TarInfo, file: IO[bytes]) -> None:
    content = tar.extractfile(member)
    assert content is not None  # it is for files
    shutil.copyfileobj(content, file)
    file.seek(0)
