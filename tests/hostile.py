"""Files that would do something if they were unpickled: they touch a canary, whose absence a test then proves."""

from __future__ import annotations

import pickle
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
