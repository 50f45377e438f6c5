"""Resume points, as the environment asks for them: what a training that was cut short goes on from, in any process.

    RCO_RESUME         a folder or an s3:// address; unset: nothing is kept
    RCO_RESUME_RUN     name under which runs share resume points; unset: the tasks of one pipeline run (RCO_PIPELINE_RUN)
    RCO_RESUME_EVERY   minutes between two points (5); 0: a point after every step

Below RCO_RESUME/RUN/TASK/HASH, where HASH is that of the identity: all that the training depends on (settings, digests of its
inputs, this package's code), but not the number of its workers. So a point that is found is a point of this very computation,
whichever process wrote it.
`rco.training.resume_points` says what lies there.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rco.core.errors import DivergenceError, InputError, printable
from rco.core.storage.addresses import is_remote, local_path
from rco.core.storage.contents import remove
from rco.core.tensors import load_metadata
from rco.training.distributed import World
from rco.training.identity import complete, difference, for_any_workers, name_of
from rco.training.resume_points import FORMAT, HALF, MINUTES, POINT, VARIABLE, ResumePoints, clock, files_below, join
from rco.training.shared_points import SharedPoints

log = logging.getLogger("rco")

RUN, EVERY = "RCO_RESUME_RUN", "RCO_RESUME_EVERY"
STALE_DAYS, MOST_BYTES = 14, 20 * 2**30
_DAY = 86400


@contextmanager
def resumable(
    task: str,
    identity: Mapping[str, Any],
    *,
    label: str,
    network: Mapping[str, Any],
    prefix: str = "",
    files: Path | None = None,
) -> Iterator[ResumePoints]:
    """Resume points for the one training of a task, where the environment asks for them.

    SIGTERM is answered by one more point after the step at hand, and exit status 143. When the block has ended well, points
    that outlive the pipeline run are removed; those of one pipeline run stay, the last one complete, until the run has ended
    well: what the task has made may yet fail to reach the store. For several trainings of a task, see `group`.

    Args:
        task: where the points lie; parts of a path.
        identity: as for `ResumePoints`.
        label: what is trained, for messages.
        network: what it is, as `rco.models.spec.NetworkSpec.written` has it.
        prefix: of its parameters' names ("teacher_").
        files: as for `ResumePoints`.

    Raises:
        DivergenceError: in one paragraph, with where what was good is kept.
        InputError: RCO_RESUME cannot be used.
    """
    with _training(task, identity, label, network, prefix, files) as points:
        yield points
    points.stopping = None  # a training that has come so far ends well
    if _shared():
        points.clear()
    else:
        points.keep()


@dataclass(frozen=True)
class Group:
    """The trainings of one task that belong together: the points of each stay, the last one complete, until all have ended.

    Attributes:
        size: how many they are.
    """

    size: int
    finished: list[ResumePoints] = field(default_factory=list)

    @contextmanager
    def resumable(
        self,
        task: str,
        identity: Mapping[str, Any],
        *,
        label: str,
        network: Mapping[str, Any],
        prefix: str = "",
        files: Path | None = None,
    ) -> Iterator[ResumePoints]:
        """As the function `resumable`, for one of them."""
        with _training(task, identity, label, network, prefix, files) as points:
            yield points
        points.stopping = None  # a training that has come so far ends well
        self.finished.append(points)
        if len(self.finished) < self.size or not _shared():  # else they are removed next
            points.keep()


@contextmanager
def group(size: int) -> Iterator[Group]:
    """A group of so many trainings. When the block has ended well, points that outlive the pipeline run are removed."""
    trainings = Group(size)
    yield trainings
    for points in trainings.finished if _shared() else ():
        points.clear()


@contextmanager
def _training(
    task: str, identity: Mapping[str, Any], label: str, network: Mapping[str, Any], prefix: str, files: Path | None
) -> Iterator[ResumePoints]:
    """The points of a training; a divergence is explained, and noted for the next attempt."""
    points = _from_environment(task, identity, files)
    if where := points.gave_up:
        raise ExplainedError(
            f"{label}: {where}. An earlier attempt ended so, and this one would: settings, data and code are the same. Nothing "
            f"was computed. Change a setting, or delete {points.folder} to try all the same"
        )
    try:
        with _until_stopped(points):
            yield points
    except DivergenceError as error:
        repeats = points.diverged_before or points.computes_on == "cpu"
        weights = points.diverged(error, network, last_attempt=repeats)
        raise ExplainedError(_explained(error, label, prefix, weights, points.folder)) from error


class ExplainedError(DivergenceError):
    """A divergence in the words of a task."""

    def __init__(self, message: str) -> None:
        RuntimeError.__init__(self, message)


def _explained(error: DivergenceError, label: str, prefix: str, weights: str, folder: str) -> str:
    advice = re.sub(r"\b(lr|warmup_epochs)\b", rf"{prefix}\1", error.advice)
    if weights:
        saved = f"The weights {error.weights_of} are kept in {weights}"
    elif not folder:
        saved = f"Nothing is kept of it, because {VARIABLE} is not set"
    else:
        saved = "No epoch had ended before, so there are no weights worth keeping"
    return f"{label}: {error.where}. {advice}. {saved}. The same settings would end there again"


def _from_environment(task: str, identity: Mapping[str, Any], files: Path | None) -> ResumePoints:
    root, identity = os.environ.get(VARIABLE, ""), for_any_workers(identity)
    if not root:
        return ResumePoints("", identity, files=files)
    text = os.environ.get(EVERY, "") or str(MINUTES)
    try:
        every = 60 * float(text)
    except ValueError:
        every = -1.0
    if not 0 <= every < float("inf"):
        raise InputError(EVERY, text, "is not a number of minutes", "Give 0 or more, such as 5")
    of = complete(identity, format=FORMAT)
    above, key = _place(root, task, of)
    if not is_remote(root):
        _mention_others(local_path(above), key, of)
    world, folder = World.current(), join(above, key)
    if not world.alone:
        return SharedPoints(folder, identity, every=every, files=files, world=world)
    return ResumePoints(folder, identity, every=every, files=files)


def _place(root: str, task: str, identity: Mapping[str, Any]) -> tuple[str, str]:
    """The folder of a task's trainings, and the name of the one of this complete identity in it."""
    return join(_run_folder(root), *(_safe(part) for part in task.split("/"))), name_of(identity, 24)


def _mention_others(folder: Path, key: str, identity: Mapping[str, Any]) -> None:
    """Say why an interrupted training of the same task is not the one to go on with."""
    if (folder / key).is_dir():
        return
    points = [(stat.st_mtime, path) for path, stat in files_below(folder) if POINT.fullmatch(path.name)]
    for written, path in sorted(points, reverse=True)[:1]:
        try:
            other = load_metadata(path)["identity"]
        except (InputError, KeyError, OSError):
            return
        reason = printable(difference(other, identity))
        log.info("the resume point of %s is of another training and is not used: %s", clock(written), reason)


def forget(task: str, identity: Mapping[str, Any]) -> None:
    """Remove the points of a training that need not go on, where points outlive the pipeline run.

    Args:
        task, identity: as for `resumable`.
    """
    root = os.environ.get(VARIABLE, "")
    if root and _shared():
        try:
            remove(join(*_place(root, task, complete(for_any_workers(identity), format=FORMAT))))
        except (InputError, OSError) as error:
            log.warning("resume points were not removed (%s)", error)


def clear_run() -> None:
    """Remove the resume points of this pipeline run, which has ended well. Those that outlive a run stay."""
    root = os.environ.get(VARIABLE, "")
    if root and os.environ.get("RCO_PIPELINE_RUN") and not _shared():
        try:
            remove(_run_folder(root))
        except (InputError, OSError) as error:
            log.warning("the resume points of this run were not removed (%s)", error)


def sweep(root: Path) -> int:
    """Remove the interrupted trainings of a folder of resume points that no run has gone on with; returns how many.

    That is what was not touched for 14 days, and, above 20 GiB in all, what was not for longest, but for a day at least.
    """
    found = interrupted(root)
    total, gone, now = sum(size for _, size, _ in found), 0, time.time()
    for touched, size, folder in sorted(found):
        if now - touched > STALE_DAYS * _DAY or (total > MOST_BYTES and now - touched > _DAY):
            shutil.rmtree(folder, ignore_errors=True)
            total, gone = total - size, gone + 1
    return gone


def interrupted(root: Path) -> list[tuple[float, int, Path]]:
    """The interrupted trainings of a folder of resume points: when each was touched last, its bytes, and its folder."""
    files: dict[Path, list[os.stat_result]] = {}
    trainings = set()
    for path, stat in files_below(root):
        files.setdefault(path.parent, []).append(stat)
        if path.name.startswith(("point-", "file-", "diverged", HALF)) and path.parent != root:
            trainings.add(path.parent)
    return [(max(s.st_mtime for s in files[f]), sum(s.st_size for s in files[f]), f) for f in trainings]


@contextmanager
def _until_stopped(points: ResumePoints) -> Iterator[None]:
    """Answer SIGTERM with a last point, where it would just end the process, and points are kept."""
    main = threading.current_thread() is threading.main_thread()
    if not points.keeps or not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def stop(number: int, frame: object) -> None:
        points.stopping = number

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _shared() -> bool:
    return bool(os.environ.get(RUN))


def _run_folder(root: str) -> str:
    run = os.environ.get(RUN) or os.environ.get("RCO_PIPELINE_RUN") or "no-run"
    return join(root, _safe(run))


def _safe(word: str) -> str:
    """`word` as a name of a file; words that are not differ still."""
    plain = re.sub(r"[^\w.-]", "_", word).strip(".") or "_"
    return plain if plain == word else f"{plain}-{hashlib.sha256(word.encode()).hexdigest()[:8]}"
