"""The resume points of one training: where they lie, how one is written, read and judged.

    point-00017-000340-SHA256.safetensors   tensors, and the rest as JSON in the header; named by epoch, batches of it, own hash
    file-SHA256                             files that points speak of: the checkpoints that a teacher has kept so far
    diverged.json, last-good.safetensors    why the training cannot go on, and the network's weights before that

A point appears under its name whole or not at all; the two that are farthest are kept. Two processes that work on one training
do not disturb each other: names differ where contents do, and every point is one of the same training.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rco.core.documents import read_json, write_json
from rco.core.errors import DivergenceError, InputError
from rco.core.files import atomically, settle, sha256_of, verify
from rco.core.settings import from_dict
from rco.core.storage.addresses import is_remote, local_path
from rco.core.storage.contents import exists, listing, remove
from rco.core.storage.retries import DamagedError
from rco.core.storage.transfer import fetch, upload
from rco.core.tensors import load_state, save_state, write_state
from rco.training.identity import complete, difference
from rco.training.packing import packed, unpacked

log = logging.getLogger("rco")

VARIABLE = "RCO_RESUME"
#: Names the file in which a launcher looks for how far the training is that it has started (`rco.tasks.launch`).
PROGRESS = "RCO_PROGRESS"
MINUTES = 5.0
FORMAT = 1
_KEPT = 2
POINT = re.compile(r"point-(\d{5,})-(\d{6,})-([0-9a-f]{64})\.safetensors")
_FILE, _SHA256 = re.compile(r"\w[\w.-]*"), re.compile(r"[0-9a-f]{64}")
_DIVERGED, _LAST_GOOD = "diverged.json", "last-good.safetensors"
HALF = ".point-"
_HOUR = 3600
_YEAR_3000 = 32_503_680_000


class _DamagedError(Exception):
    """What was kept is not what was written."""


@dataclass(frozen=True, kw_only=True)
class _Document:
    """What a point's document holds."""

    identity: dict[str, Any]
    pipeline_run: str
    time: float
    parts: dict[str, Any]
    files: dict[str, str]


class ResumePoints:
    """The resume points of one training (a `rco.training.checkpointer.Checkpointer`).

    Args:
        folder: path or s3:// address; empty: nothing is kept, nothing is found.
        identity: all that the training depends on; JSON.
        every: seconds between two points; 0: a point after every step.
        files: the folder in which files that belong to the points lie.

    Raises:
        InputError: `folder` has points of another training, or cannot be used.
    """

    def __init__(
        self, folder: str, identity: Mapping[str, Any], *, every: float = 60 * MINUTES, files: Path | None = None
    ) -> None:
        self.folder, self.every, self.files = folder, every, files
        self.identity = complete(identity, format=FORMAT)
        self.stopping: int | None = None  # the signal that asks for the end
        self._makers: dict[str, Callable[[], Any]] = {}
        self._named: list[Callable[[], Mapping[str, str]]] = []
        self._found: dict[str, Any] = {}
        self._damaged: set[str] = set()
        self._last = time.monotonic()
        if folder:
            self._open()

    @property
    def keeps(self) -> bool:
        """Whether points are kept at all."""
        return bool(self.folder)

    def add(self, part: str, make: Callable[[], Any], files: Callable[[], Mapping[str, str]] | None = None) -> None:
        """As `rco.training.checkpointer.Checkpointer.add`. A part that is added again is replaced."""
        self._makers[part] = make
        if files is not None:
            self._named.append(files)

    def take(self, part: str) -> Any:
        """As `rco.training.checkpointer.Checkpointer.take`. Tuples have become lists, keys text, arrays tensors."""
        return self._found.pop(part, None)

    def due(self) -> bool:
        """Whether a point should be written now."""
        return bool(self.folder) and (self.stopping is not None or time.monotonic() - self._last >= self.every)

    def keep(self) -> None:
        """Write a point. That it cannot be written is a warning: the training is worth more than its insurance.

        Raises:
            SystemExit: a signal has asked for the end.
        """
        written = True
        if self.folder:
            try:
                self._write()
            except Exception as error:
                written = False
                log.warning("the resume point was not written (%s: %s); the training goes on", type(error).__name__, error)
        self._last = time.monotonic()
        if self.stopping is not None:
            outcome = "a resume point is kept" if written else "the resume point before this one has to do"
            log.info("stopping because of %s; %s", signal.Signals(self.stopping).name, outcome)
            raise SystemExit(128 + self.stopping)

    def clear(self) -> None:
        """Remove everything: the training has ended, and what came out is safe."""
        if self.folder:
            try:
                remove(self.folder)
            except (InputError, OSError) as error:
                log.warning("resume points were not removed (%s)", error)

    def diverged(self, error: DivergenceError, network: Mapping[str, Any], *, last_attempt: bool) -> str:
        """Note that the training cannot go on; returns where the weights lie as they last were good, or nothing.

        Args:
            network: what the weights are, as `rco.models.spec.NetworkSpec.written` has it.
            last_attempt: it will not end otherwise if it is tried again.
        """
        if not self.folder:
            return ""
        with tempfile.TemporaryDirectory() as scratch:
            if error.weights is not None:
                save_state(Path(scratch) / _LAST_GOOD, error.weights, {"network": network, "of": error.weights_of})
            write_json(Path(scratch) / _DIVERGED, {"where": error.where, "last_attempt": last_attempt})
            try:
                upload(Path(scratch), self.folder)
            except Exception as failure:  # it must not hide the divergence
                log.warning("the last good weights were not written (%s: %s)", type(failure).__name__, failure)
                return ""
        return join(self.folder, _LAST_GOOD) if error.weights is not None else ""

    @property
    def gave_up(self) -> str | None:
        """Where this training diverged before, if it would again."""
        if not self.diverged_before:
            return None
        try:
            with self._local(_DIVERGED) as path:
                known = read_json(path)
            return str(known["where"]) if known["last_attempt"] else None
        except (_DamagedError, InputError, KeyError, TypeError):
            return None  # then it is found out again

    @property
    def computes_on(self) -> str:
        """The device that the settings name, or nothing."""
        return str(self.identity.get("settings", {}).get("compute", {}).get("device", ""))

    @property
    def diverged_before(self) -> bool:
        """Whether an earlier attempt has diverged."""
        return bool(self.folder) and _DIVERGED in self._names()

    def _names(self) -> list[str]:
        if is_remote(self.folder):
            return [entry.name for entry in listing(self.folder)] if exists(self.folder) else []
        path = local_path(self.folder)
        return [entry.name for entry in os.scandir(path) if entry.is_file()] if path.is_dir() else []

    @contextmanager
    def _local(self, name: str) -> Iterator[Path]:
        with tempfile.TemporaryDirectory() as scratch:
            try:
                path = fetch(join(self.folder, name), Path(scratch))
            except DamagedError as error:
                raise _DamagedError(str(error)) from None
            except InputError as error:
                # What is there and cannot be had is not damaged: to start anew would throw it away.
                if name in self._names():
                    raise
                raise _DamagedError(str(error)) from None
            yield path

    def _ordered(self) -> list[str]:
        """Names of the points, the farthest first; those that are damaged come last."""
        points = [
            (name not in self._damaged, int(m[1]), int(m[2]), name) for name in self._names() if (m := POINT.fullmatch(name))
        ]
        return [name for *_, name in sorted(points, reverse=True)]

    def _open(self) -> None:
        names = self._ordered()
        self._tidy()
        for name in names:
            found = self._read(name)
            if found is None:
                self._damaged.add(name)
                continue
            if found["identity"] != self.identity:
                raise InputError(
                    "resume point",
                    join(self.folder, name),
                    f"is of another training: {difference(found['identity'], self.identity)}",
                    "Name another place, or delete it",
                )
            self._found = found["parts"]
            log.info("going on from epoch %d, step %d (resume point of %s)", *found["at"], clock(found["time"]))
            return
        if names:
            log.warning("no resume point in %s can be used: the training starts anew", self.folder)

    def _tidy(self) -> None:
        """Remove what processes that were killed have left half-written."""
        if not is_remote(self.folder):
            for path, stat in files_below(local_path(self.folder)):
                if path.name.startswith(HALF) and time.time() - stat.st_mtime > _HOUR:
                    path.unlink(missing_ok=True)

    def _read(self, name: str) -> dict[str, Any] | None:
        """A point, whose files then lie where they belong; None: it is damaged."""
        try:
            with self._local(name) as path:
                found = self._checked(path, name)
            if found["identity"] == self.identity:
                for file, digest in found["files"].items():
                    self._restore(file, digest)
        except _DamagedError as error:
            log.warning("a resume point cannot be used: %s", error)
            return None
        return found

    def _checked(self, path: Path, name: str) -> dict[str, Any]:
        try:
            verify(path, name.removesuffix(".safetensors").rpartition("-")[2])
            tensors, document = load_state(path)
        except (InputError, FileNotFoundError) as error:  # another process may have replaced it by a later one
            raise _DamagedError(str(error)) from None
        except OSError as error:
            # To start anew would throw away what may be whole.
            raise InputError(
                "resume point",
                join(self.folder, name),
                f"cannot be read ({error.strerror})",
                "See to its disk and permissions and run again; or delete it, and the training starts anew",
            ) from error
        try:
            content = from_dict(_Document, document)
            if not 0 <= content.time < _YEAR_3000:
                raise ValueError("it is of no time")
            parts = {part: unpacked(value, tensors) for part, value in content.parts.items()}
            progress = parts["training"]["progress"]
            return {
                "identity": content.identity,
                "time": content.time,
                "parts": parts,
                "at": (int(progress["epoch"]), int(progress["batches"])),
                "files": content.files,
            }
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError, RuntimeError) as error:
            raise _DamagedError(f"{name} is not one ({type(error).__name__}: {error})") from None

    def _restore(self, file: str, digest: str) -> None:
        if self.files is None or not _FILE.fullmatch(file) or not _SHA256.fullmatch(digest):
            raise _DamagedError(f"it speaks of {file!r}, which is not a file of this training")
        try:
            with self._local(f"file-{digest}") as path:
                verify(path, digest)
                atomically(self.files / file, lambda temporary: shutil.copyfile(path, temporary))
        except (_DamagedError, InputError) as error:
            self._damaged.add(f"file-{digest}")  # it is written again, with the next point
            raise _DamagedError(str(error)) from None

    def _write(self) -> None:
        tensors: dict[str, Any] = {}
        parts = {part: packed(make(), part, tensors) for part, make in self._makers.items()}
        progress = parts["training"]["progress"]
        files = {name: digest for named in self._named for name, digest in named().items()}
        there = set(self._names()) - self._damaged
        for name, digest in files.items():
            if (own := f"file-{digest}") not in there:
                assert self.files is not None
                upload(self.files / name, join(self.folder, own))
                self._damaged.discard(own)
        about = {"pipeline_run": os.environ.get("RCO_PIPELINE_RUN", ""), "time": time.time()}
        document = {"identity": self.identity, **about, "parts": parts, "files": files}
        remote = is_remote(self.folder)
        folder = Path(tempfile.gettempdir()) if remote else local_path(self.folder)
        folder.mkdir(parents=True, exist_ok=True)
        handle, scratch = tempfile.mkstemp(prefix=HALF, dir=folder)
        os.close(handle)
        temporary = Path(scratch)
        try:
            write_state(temporary, tensors, document)
            digest = sha256_of(temporary)
            name = f"point-{progress['epoch']:05d}-{progress['batches']:06d}-{digest}.safetensors"
            if remote:
                upload(temporary, join(self.folder, name))
            else:
                settle(temporary, folder / name)
        finally:
            temporary.unlink(missing_ok=True)
        if watched := os.environ.get(PROGRESS):
            at = f"{self.folder} {progress['epoch']} {progress['batches']}"
            atomically(Path(watched), lambda temporary: temporary.write_text(at))  # a kill must not leave it empty
        for old in self._ordered()[_KEPT:]:
            remove(join(self.folder, old))


def join(*parts: str) -> str:
    """A path or an address from its parts."""
    first, *others = parts
    return "/".join([first.rstrip("/"), *others])


def clock(seconds: float) -> str:
    """A time (seconds since 1970) as people read it: 14:03, or with the date if that is not today."""
    then = time.localtime(seconds)
    today = time.strftime("%Y-%m-%d", then) == time.strftime("%Y-%m-%d")
    return time.strftime("%H:%M" if today else "%Y-%m-%d %H:%M", then)


def files_below(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Files, but for those that other processes remove meanwhile."""
    for where, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                yield (path := Path(where, name)), path.stat()
