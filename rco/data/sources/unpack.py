"""What is in a tar of an image folder.

A tar is read as a stream of bounded length, by pieces of bounded size, and nothing but plain files comes out of it.
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
from lzma import LZMAError
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, cast

from rco.core.errors import InputError
from rco.data.config import DataConfig
from rco.data.images import Shape, header
from rco.data.sources.base import Info
from rco.data.sources.class_folders import info_of, is_image, lay_out

#: Names the GiB that a tar may unpack to, where the usual limit is too low.
MOST_UNPACKED = "RCO_MOST_UNPACKED"
_LONGEST_READ = 2**20  # tarfile reads files by less, and at once only headers with long names


def check_tar(config: DataConfig, path: Path) -> Info:
    """What is known of the tar at `path`; only its first image is opened, and only that image's header."""
    names, shape = _names_and_shape(path, config.dataset)
    layout, _ = lay_out(config.dataset, names, config.open_classes)
    return info_of(layout, shape, config)


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
        if not is_image(member.name) or member.isdir():
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
    """Bytes that a tar may unpack to: images hardly shrink, so a hundred times its own size, and 1 GiB in any case."""
    setting = os.environ.get(MOST_UNPACKED, "")
    try:
        return float(setting) * 2**30 if setting else max(2**30, 100 * path.stat().st_size)
    except ValueError:
        raise InputError(MOST_UNPACKED, setting, "is not a number", "Give the GiB that a tar may unpack to") from None


def _names_and_shape(path: Path, address: str) -> tuple[list[str], Shape]:
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


def extract(path: Path, into: Path, address: str) -> Path:
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
