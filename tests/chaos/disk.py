"""What a campaign needs of the system: a file system that is too small, a clock that is wrong."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def small(folder: Path, kilobytes: int) -> Iterator[Callable[[int], None]]:
    """A file system of so many kB at `folder`; gives a function that makes it as large as it is told. Needs root."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k,mode=755", "rco-chaos", str(folder)], check=True)

    def grow(to: int) -> None:
        subprocess.run(["mount", "-o", f"remount,size={to}k", str(folder)], check=True)

    try:
        yield grow
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def faketime() -> str:
    """The library that tells a process another time.

    Raises:
        RuntimeError: it is not installed.
    """
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    if not found:
        raise RuntimeError("libfaketime is not installed (Debian: apt install faketime)")
    return str(found[0])
