"""Files that can be trusted: written atomically, checked by sha256."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from rco.core.errors import InputError


def atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write(temporary path)`, flush to disk, then rename to `path`: readers see the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        settle(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def settle(temporary: Path, path: Path) -> None:
    """Flush a file that `mkstemp` made to the disk, and give it its name."""
    with open(temporary, "rb+") as file:
        os.fsync(file.fileno())
    os.chmod(temporary, 0o644)  # mkstemp's 0600 would lock other users out of shared artifacts
    os.replace(temporary, path)


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file, read in blocks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(path: Path, expected: str) -> None:
    """Raise InputError unless the file exists and has this sha256."""
    if not path.is_file():
        raise InputError("file", str(path), "is missing", "Copy the folder again, whole")
    if (actual := sha256_of(path)) != expected:
        raise InputError(
            "file", str(path), f"is damaged: its sha256 is {actual[:12]}..., recorded was {expected[:12]}...", "Copy it again"
        )
