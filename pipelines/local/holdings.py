"""What a home of local runs holds: things that can go, each as a whole, and what stays.

    runs      runs/RUN: log, report, student
    cache     an entry of KFP's cache and the outputs that it points to; or outputs that no entry points to
    results   results/HASH
    logits    kept logits of anchors
    images    images/KEY: image files of a large data set, fetched or unpacked, which can be had again
    resume    resume points of an interrupted training
    data      downloaded data sets                                                               stays
    weights   downloaded weights                                                                 stays
    MLflow    database and artifacts: MLflow itself removes what was deleted in it (mlflow gc)   stays
    other     all else                                                                           stays

Nothing here follows a symbolic link.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.local.run import CACHE, OUTPUTS
from rco.core import home as homes
from rco.tracking import moved, outbox

#: What may be removed, in the order of the table.
KINDS = ("runs", "cache", "results", "logits", "images", "resume")
STAYS = ("data", "weights", "MLflow", "other")
#: A folder for what is being removed, in the folder of the home that it lay in: so it gets there in one step.
ASIDE = ".removed"
_ENTRY, _LOGITS = re.compile(r"[0-9a-f]{64}\.json"), re.compile(r"[0-9a-f]{32}\.safetensors")
_RESULT = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, kw_only=True)
class Thing:
    """What is removed as a whole, or not at all.

    Attributes:
        kind: one of `KINDS` or `STAYS`.
        paths: what it is made of, in the order in which it goes.
        size: in bytes.
        touched: when it was last written, or used; seconds since 1970.
        needed: why it must stay, if it must.
    """

    kind: str
    paths: tuple[Path, ...]
    size: int
    touched: float
    needed: str = ""

    @property
    def name(self) -> str:
        """What people see: the largest part of it."""
        return str(self.paths[-1])


def holdings(home: Path) -> list[Thing]:
    """Everything in a home; of a kind, the newest first.

    Args:
        home: resolved.
    """
    found = [*_runs(home), *_cached(home), *_results(home), *_logits(home), *_images(home), *_resume(home)]
    found += [_thing(kind, home / kind) for kind in ("data", "weights") if _folder(home / kind)]
    of_mlflow = [home / name for name in (moved.DATABASE, moved.ARTIFACTS) if _is_there(home / name)]
    found += [_thing("MLflow", *of_mlflow)] if of_mlflow else []
    known = sum(thing.size for thing in found)
    if (rest := _measured(home)[0] - known) > 0:
        found.append(Thing(kind="other", paths=(home,), size=rest, touched=home.stat().st_mtime))
    began = min(homes.in_progress(home).values(), default=float("inf"))
    # What a run in progress has made or found is touched after it began; what it will look for it has not got.
    kept = [_needed(thing, "a run in progress may use it") if thing.touched >= began else thing for thing in found]
    return sorted(kept, key=lambda thing: (-thing.touched, thing.name))


def _needed(thing: Thing, why: str) -> Thing:
    return Thing(kind=thing.kind, paths=thing.paths, size=thing.size, touched=thing.touched, needed=thing.needed or why)


def _runs(home: Path) -> Iterator[Thing]:
    in_progress, shown = homes.in_progress(home), {link.name: link.resolve() for link in home.glob("last-*")}
    for folder in _folders(home / homes.RUNS):
        if not (folder / homes.REQUEST).is_file():
            continue
        needed = ""
        if folder.name in in_progress:
            needed = "it is in progress"
        elif outbox.waiting(folder / "report"):
            needed = "its report waits for rco sync"
        elif names := [name for name, report in shown.items() if report.is_relative_to(folder)]:
            needed = f"it is {names[0]}"
        yield _thing("runs", folder, needed=needed)


def _cached(home: Path) -> Iterator[Thing]:
    """Entries with the folders of the tasks that they point to, and such folders without entries."""
    root = home / OUTPUTS
    entries: dict[Path, list[Path]] = {task: [] for job in _folders(root) for task in _folders(job)}
    for entry in _files(home / CACHE, _ENTRY):
        tasks = {root / place.parts[0] / place.parts[1] for place in _outputs(entry, root) if len(place.parts) > 1}
        if not tasks & entries.keys():
            yield _thing("cache", entry)
        for task in tasks & entries.keys():
            entries[task].append(entry)
    for task, pointing in entries.items():
        yield _thing("cache", *pointing, task)  # in this order: an entry never points to what has gone


def _outputs(entry: Path, root: Path) -> list[Path]:
    """Where the outputs of a cached task lie, relative to `root`."""

    def uris(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            if isinstance(value.get("uri"), str):
                yield value["uri"]
            value = list(value.values())
        if isinstance(value, list):
            for item in value:
                yield from uris(item)

    try:
        found = [root / uri for uri in uris(json.loads(entry.read_bytes()))]
    except (OSError, ValueError, RecursionError):
        return []
    return [path.relative_to(root) for path in found if path.is_relative_to(root) and ".." not in path.parts]


def _results(home: Path) -> Iterator[Thing]:
    for folder in _folders(home / "results"):
        if _RESULT.fullmatch(folder.name):  # also one without a manifest: its writing was cut short
            yield _thing("results", folder)


def _logits(home: Path) -> Iterator[Thing]:
    for file in _files(home / "logits", _LOGITS):
        yield _thing("logits", file)


def _images(home: Path) -> Iterator[Thing]:
    for folder in _folders(home / "images"):
        if _RESULT.fullmatch(folder.name):
            yield _thing("images", folder)


def _resume(home: Path) -> Iterator[Thing]:
    if _folder(home / "resume"):
        from rco.training.resume import interrupted

        for _, _, folder in interrupted(home / "resume"):
            if ASIDE not in folder.parts:
                yield _thing("resume", folder)


def _thing(kind: str, *paths: Path, needed: str = "") -> Thing:
    measures = [_measured(path) for path in paths]
    return Thing(
        kind=kind,
        paths=paths,
        size=sum(size for size, _ in measures),
        touched=max(touched for _, touched in measures),
        needed=needed,
    )


def _measured(path: Path) -> tuple[int, float]:
    """Bytes of a file, or of all files in a folder, and when one of them was written last."""
    size, touched = 0, 0.0
    for each in (path, *_below(path)):
        with contextlib.suppress(OSError):  # another process may have removed it
            stat = each.lstat()
            if not each.is_dir() or each.is_symlink():
                size += stat.st_size
            touched = max(touched, stat.st_mtime)
    return size, touched


def _below(path: Path) -> Iterator[Path]:
    for where, folders, files in os.walk(path):
        yield from (Path(where, name) for name in (*folders, *files))


def _is_there(path: Path) -> bool:
    return path.exists() and not path.is_symlink()


def _folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _folders(path: Path) -> Iterable[Path]:
    return [each for each in _entries(path) if _folder(each) and not each.name.startswith(".")]


def _files(path: Path, names: re.Pattern[str]) -> Iterable[Path]:
    return [each for each in _entries(path) if names.fullmatch(each.name) and each.is_file() and not each.is_symlink()]


def _entries(path: Path) -> list[Path]:
    try:
        return sorted(path.iterdir()) if _folder(path) else []
    except FileNotFoundError:
        return []
