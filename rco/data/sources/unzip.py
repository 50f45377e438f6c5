"""What is in a ZIP file of an image folder. Nothing but plain files comes out of it, and no more than it says beforehand."""

from __future__ import annotations

import errno
import logging
import shutil
import stat
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from rco.core.errors import InputError, printable
from rco.core.words import counted

log = logging.getLogger(__name__)
_UTF8 = 1 << 11  # general purpose bit 11: the name is UTF-8 (PKWARE's APPNOTE, 4.4.4)


@contextmanager
def members(path: Path, address: str) -> Iterator[tuple[zipfile.ZipFile, list[tuple[str, zipfile.ZipInfo]]]]:
    """The ZIP file, and its files with their names; of two of one name, the later one.

    Args:
        address: for messages.

    Raises:
        InputError: it is not a readable ZIP file, or has files that are encrypted or packed with LZMA; also for what is read in
            the block.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            found: dict[str, zipfile.ZipInfo] = {}
            for info in archive.infolist():
                # What Windows' own tools have written has its separators.
                name = info.filename.replace("\\", "/") if info.create_system == 0 else info.filename
                if not name:  # zipfile cuts names at a zero byte
                    raise zipfile.BadZipFile("it has a member without a name")
                if info.is_dir() or name.endswith("/"):
                    continue
                if info.flag_bits & 1:
                    raise InputError("dataset", address, f"has encrypted files, such as {name!r}", "Make it without a password")
                if info.compress_type == zipfile.ZIP_LZMA:  # whose header alone says how many GiB are wanted to read it
                    problem = f"has files that are packed with LZMA, such as {name!r}"
                    raise InputError("dataset", address, problem, "Make it with Deflate, which is the usual method")
                found[name.lstrip("/")] = info
            unclear = [name for name, info in found.items() if not info.flag_bits & _UTF8 and not name.isascii()]
            if unclear:
                log.warning(
                    "warning: %s has %s without a word on their encoding, read as code page 437, such as %s: look at the names "
                    "of the classes, and if they are others, make the file with names in UTF-8",
                    address,
                    counted(len(unclear), "name"),
                    printable(unclear[0]),
                )
            yield archive, list(found.items())
    except InputError:
        raise
    # What the decompressors and the reader of the directory make of damage; methods that it does not know; no such names.
    except (
        zipfile.BadZipFile,
        zipfile.LargeZipFile,
        zlib.error,
        EOFError,
        OSError,
        ValueError,
        NotImplementedError,
        RuntimeError,
        OverflowError,
        MemoryError,
    ) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError("dataset", address, f"is not a readable ZIP file ({reason})", "Copy or make it again") from error


def is_plain(info: zipfile.ZipInfo) -> bool:
    """Whether a member is a plain file, and no link."""
    mode = info.external_attr >> 16
    return not stat.S_ISLNK(mode) and (stat.S_IFMT(mode) in (0, stat.S_IFREG))


def copy(archive: zipfile.ZipFile, info: zipfile.ZipInfo, file: IO[bytes]) -> None:
    """A member's content; it is never more than the directory says."""
    with archive.open(info) as content:
        shutil.copyfileobj(content, file)
    file.seek(0)
