"""A home: the folder in which local runs keep everything. What it knows of itself, and who is at work in it.

    home.json            the home's own path, as it was when it was last used
    .home.lock           held together by whoever begins a run or looks into the cache, alone by whoever removes things or
                         changes paths
    runs/RUN/in-progress held by the processes of a run until they have ended, however they end

Locks are the system's (flock): a process that is killed holds none.
"""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from rco.core.documents import read_json, write_json
from rco.core.errors import InputError

_FILE, _LOCK, _RUNNING = "home.json", ".home.lock", "in-progress"
RUNS, REQUEST = "runs", "request.json"


@contextlib.contextmanager
def locked(home: Path, *, alone: bool) -> Iterator[None]:
    """Hold the home's lock, after those who hold it otherwise. Nobody holds it for long: there is no work in the block.

    Raises:
        OSError: the home cannot be written, or its file system has no locks: then nobody can be alone.
    """
    with open(home / _LOCK, "a") as file:
        with contextlib.nullcontext() if alone else contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        yield


@contextlib.contextmanager
def running(run: Path) -> Iterator[None]:
    """Have a run (its folder) in progress until the end of the block. Where there are no locks, nobody learns of it."""
    with open(run / _RUNNING, "a") as file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_SH)
        yield


def in_progress(home: Path) -> dict[str, float]:
    """The runs in progress, by name, and when each began, by the file system's clock."""
    found = {}
    for path in home.glob(f"{RUNS}/*/{_RUNNING}"):
        with contextlib.suppress(FileNotFoundError):
            if _held(path):
                found[path.parent.name] = path.stat().st_mtime
    return found


def _held(path: Path) -> bool:
    try:
        with open(path, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        raise
    except OSError:  # it is held; or nobody can tell
        return True
    return False


def remembered(home: Path) -> Path | None:
    """Where a home was when it was last used; None: it is not a home.

    Homes that were made before they remembered it have it in what was asked of their runs.
    """
    newest = sorted(home.glob(f"{RUNS}/*/{REQUEST}"), reverse=True)[:1] if not (home / _FILE).is_file() else []
    for file, key in ((home / _FILE, "path"), *((request, "home") for request in newest)):
        with contextlib.suppress(InputError, KeyError, TypeError):
            if (path := Path(read_json(file)[key])).is_absolute():
                return path
    return None


def remember(home: Path) -> None:
    """Note where a home is, unless that is what it has noted."""
    if not (home / _FILE).is_file() or remembered(home) != home:
        write_json(home / _FILE, {"path": str(home)})
