"""The identity of a computation: all that its result depends on, as JSON, and the name that follows from it.

Resume points and results are found by it. Each says what is its own; what computes is common to all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import rco
from rco.core.settings import jsonable
from rco.core.storage.local import content_digest

_PACKAGES = ("torch", "torchvision", "numpy", "pillow")  # another version of them may give other numbers


@cache
def software() -> dict[str, str]:
    """What computes: the content of this package's files, and versions of the packages that numbers depend on."""
    package = Path(rco.__file__).parent
    names = sorted(path.relative_to(package).as_posix() for path in package.rglob("*.py"))
    return {"rco": content_digest(package, names), **{name: metadata.version(name) for name in _PACKAGES}}


def complete(identity: Mapping[str, Any], *, format: int) -> dict[str, Any]:
    """An identity with what is common to all, as it will be when it has been written and read.

    Args:
        format: of the files that it is the identity of.
    """
    complete: dict[str, Any] = json.loads(json.dumps(jsonable({"format": format, **identity, "software": software()})))
    return complete


def for_any_workers(identity: Mapping[str, Any]) -> dict[str, Any]:
    """An identity without the number of workers that its settings ask for: what it is of is the same with any."""

    def without(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: without(item) for name, item in value.items() if name != "workers_per_task"}
        return [without(item) for item in value] if isinstance(value, list) else value

    reduced: dict[str, Any] = without(jsonable(identity))
    return reduced


def name_of(identity: Mapping[str, Any], digits: int) -> str:
    """The first hex digits of a complete identity's sha256."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:digits]


def difference(theirs: Any, ours: Any, name: str = "") -> str:
    """The first entry in which two identities differ, in words."""
    if isinstance(theirs, Mapping) and isinstance(ours, Mapping):
        for key in sorted({*theirs, *ours}):
            if theirs.get(key) != ours.get(key):
                return difference(theirs.get(key), ours.get(key), f"{name}.{key}" if name else str(key))
    return f"{name} was {str(theirs)[:60]}, is {str(ours)[:60]}"
