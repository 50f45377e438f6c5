"""Removing what a home holds and nobody needs any more.

Things are chosen and put aside under the home's lock, which takes moments: each is renamed into a hidden folder beside it. So a
run that begins, or looks into the cache, meanwhile finds a thing whole or not at all, and so does another cleaning at the same
time. What was put aside is deleted afterwards; if that is cut short, by the next cleaning.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.local.holdings import ASIDE, KINDS, Thing, holdings
from pipelines.local.run import OUTPUTS
from rco.core import home as homes
from rco.core.errors import InputError

_MOST_TROUBLES = 20
_HOURS = {"h": 1, "d": 24, "w": 7 * 24}


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is to go.

    Attributes:
        older_than: seconds since it was written or used last; None: of any age.
        keep_last: so many of the newest runs stay; None: age alone decides.
        kinds: of these alone.
    """

    older_than: float | None
    keep_last: int | None
    kinds: tuple[str, ...]

    @classmethod
    def of(cls, older_than: str | None, keep_last: int | None, what: str | None) -> Wanted | None:
        """From the words of the command line; None: nothing is to go.

        Raises:
            InputError: they do not say what.
        """
        kinds = tuple(word.strip() for word in what.split(",") if word.strip()) if what is not None else KINDS
        for kind in kinds:
            if kind not in KINDS:
                raise InputError("what", kind, "is nothing that can be removed", f"Name some of {', '.join(KINDS)}")
        if older_than is None and keep_last is None:
            if what is None:
                return None
            raise InputError(
                "what", what, "does not say what of it is to go", "Add --older-than 30d, or --keep-last 5 for runs"
            )
        if older_than is None:  # the number of runs says nothing of anything else
            if "runs" not in kinds or (what is not None and len(kinds) > 1):
                raise InputError("keep_last", keep_last, "is of runs alone", "Add --older-than 30d for the others")
            kinds = ("runs",)
        return cls(older_than=None if older_than is None else _seconds(older_than), keep_last=keep_last, kinds=kinds)

    def choose(self, things: Sequence[Thing]) -> tuple[list[Thing], list[Thing]]:
        """Of a home's things those that are to go, and those that would be, were they not needed."""
        now = time.time()
        newest = sorted((thing.name for thing in things if thing.kind == "runs"), reverse=True)[: self.keep_last or 0]
        found = [
            thing
            for thing in things
            if thing.kind in self.kinds
            and thing.name not in newest
            and (self.older_than is None or now - thing.touched > self.older_than)
        ]
        return [thing for thing in found if not thing.needed], [thing for thing in found if thing.needed]


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([hdw])", text.strip())
    if not match:
        raise InputError("older_than", text, "is not an age", "Write it as 12h, 30d or 8w: hours, days or weeks")
    return float(match[1]) * _HOURS[match[2]] * 3600


@dataclass
class Removed:
    """What has gone, and why the rest has not.

    Attributes:
        things: those that have.
        troubles: the others, in words.
    """

    things: list[Thing] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)

    @property
    def size(self) -> int:
        """In bytes."""
        return sum(thing.size for thing in self.things)


def a_home(path: Path) -> Path:
    """A home, resolved.

    Raises:
        InputError: it is none: a folder of somebody else's may have `runs` and `results`, too.
    """
    home = path.resolve()
    if homes.remembered(home) is None:
        raise InputError("home", str(path), "is not a folder that local runs have used", "Name the one given to rco run --home")
    return home


def remove(home: Path, wanted: Wanted, shown: Collection[str] | None = None) -> Removed:
    """Remove what is wanted and may go.

    Args:
        home: resolved.
        shown: names of things; no others go. None: any.

    Raises:
        OSError: the home cannot be locked or read.
    """
    removed = Removed()
    with homes.locked(home, alone=True):
        things, _ = wanted.choose(holdings(home))
        for thing in things:
            if shown is None or thing.name in shown:
                try:
                    for path in thing.paths:
                        _put_aside(home, path)
                except OSError as error:
                    removed.troubles.append(_trouble(thing.paths[-1], error))
                else:
                    removed.things.append(thing)
        for job in {thing.paths[-1].parent for thing in removed.things}:
            if job.parent == home / OUTPUTS:
                with contextlib.suppress(OSError):  # it holds outputs of other tasks
                    job.rmdir()
        aside = [path for path in home.glob(f"*/{ASIDE}") if not path.is_symlink() and not path.parent.is_symlink()]
    for folder in aside:  # with what an earlier cleaning has left there
        _delete(folder, removed.troubles)
    return removed


def _put_aside(home: Path, path: Path) -> None:
    """Rename into a folder of the same file system: what is half deleted is found by nobody."""
    folder = home / path.relative_to(home).parts[0] / ASIDE
    folder.mkdir(exist_ok=True)
    with contextlib.suppress(FileNotFoundError):  # a training that has gone on has removed it
        path.rename(folder / secrets.token_hex(8))


def _delete(folder: Path, troubles: list[str]) -> None:
    def failed(function: object, path: str, error: tuple[Any, ...]) -> None:
        if os.path.lexists(path) and len(troubles) < _MOST_TROUBLES:  # else another cleaning has deleted it
            troubles.append(_trouble(Path(path), error[1]))

    shutil.rmtree(folder, onerror=failed)


def _trouble(path: Path, error: OSError) -> str:
    return f"{path} cannot be removed ({error.strerror}): see to its owner and permissions"
