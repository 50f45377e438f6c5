"""Files of a local folder, and digests of them."""

from __future__ import annotations

import errno
import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from rco.core.errors import InputError
from rco.core.files import sha256_of

_HASHED_BYTES = 4 * 2**30
_READERS = 4
_WAYS = 100  # to one folder, over links: two in each folder of a chain make millions
_DEEPEST = 200


def list_files(folder: Path, broken_links: list[str] | None = None, empty_folders: list[str] | None = None) -> list[str]:
    """Relative POSIX paths of all files below `folder`, sorted. Links are followed, but not back to a folder above.

    Args:
        broken_links: receives the relative paths of links that lead nowhere, if it is given; else nothing is said of them.
        empty_folders: likewise, of folders with nothing in them.

    Raises:
        InputError: a folder that cannot be read, or links that lead to one folder in too many ways.
    """
    found: list[str] = []
    visits: Counter[str] = Counter()

    def visit(path: str, prefix: str, above: frozenset[str]) -> None:
        with os.scandir(path) as entries:
            empty = True
            for entry in entries:
                empty = False
                kind = _kind(entry)
                if kind == "file":
                    found.append(prefix + entry.name)
                elif kind == "folder" and (real := os.path.realpath(entry.path)) not in above:
                    visits[real] += 1
                    if visits[real] > _WAYS or len(above) > _DEEPEST:
                        problem = (
                            "is reached through links in too many ways" if visits[real] > _WAYS else "is nested too deeply"
                        )
                        raise InputError("uri", entry.path, problem, "Make the data set of plain files and folders")
                    visit(entry.path, f"{prefix}{entry.name}/", above | {real})
                elif kind == "" and broken_links is not None and entry.is_symlink():
                    broken_links.append(prefix + entry.name)
            if empty and empty_folders is not None:
                empty_folders.append(prefix.rstrip("/"))

    with reads_of(folder):
        visit(str(folder), "", frozenset({os.path.realpath(folder)}))
    return sorted(found)


def _kind(entry: os.DirEntry[str]) -> str:
    try:
        return "file" if entry.is_file() else "folder" if entry.is_dir() else ""
    except OSError as error:
        if error.errno == errno.ELOOP:  # a link to itself
            return ""
        raise


@contextmanager
def reads_of(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = os.fsdecode(error.filename) if error.filename else str(path)
        raise InputError("uri", where, f"cannot be read ({error.strerror})", "Check its permissions") from None


def content_digest(folder: Path, names: Sequence[str]) -> str:
    """Hex sha256 over the names and contents of files in `folder`; above 4 GiB in all, over names, sizes and times of change.

    Args:
        names: relative to `folder`, sorted.
    """
    stats = [os.stat(folder / name) for name in names]
    if sum(stat.st_size for stat in stats) > _HASHED_BYTES:
        return digest_of((name, f"{stat.st_size} {stat.st_mtime_ns}") for name, stat in zip(names, stats, strict=True))

    def hashes(start: int) -> list[str]:
        return [sha256_of(folder / name) for name in names[start : start + 256]]

    with ThreadPoolExecutor(_READERS) as pool:
        contents = [content for part in pool.map(hashes, range(0, len(names), 256)) for content in part]
    return digest_of(zip(names, contents, strict=True))


def digest_of(items: Iterable[tuple[str, str]]) -> str:
    digest = hashlib.sha256()
    for name, content in items:
        digest.update(os.fsencode(name) + b"\0" + content.encode() + b"\n")
    return digest.hexdigest()
