"""Files that would do something if they were unpickled: they touch a canary, whose absence a test then proves."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.canary,))


def hostile_pickle(canary: Path) -> bytes:
    """A pickle that makes the file `canary` when it is loaded."""
    return pickle.dumps(Touch(canary))


def with_record(archive: bytes, part: str, content: bytes) -> bytes:
    """A zip in which the content of the records that have `part` in their name is replaced."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as old, zipfile.ZipFile(file, "w") as new:
        for member in old.infolist():
            new.writestr(member.filename, content if part in member.filename else old.read(member))
    return file.getvalue()
