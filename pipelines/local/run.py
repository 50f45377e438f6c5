"""The outer process of a local run: starts the inner one, shows what happens, and clears up however things go."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from rco.config.parameters import PARAMETERS
from rco.core import home as homes
from rco.core.errors import disk_full
from rco.core.marks import DIED, DIVERGED, FULL, PREFIX, REFUSED
from rco.tracking import moved

BAD_INPUT, FAILED = 2, 1
#: Folders of a home: KFP's cache, and the outputs of tasks that it points to.
CACHE, OUTPUTS = "cache", "pipeline"
_NO_SPACE = re.compile(rf"\[Errno ({errno.ENOSPC}|{errno.EDQUOT})\]")
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_TASK = re.compile(r"Executing task .*?'([\w-]+)'")
_HIT = re.compile(r"Task ([\w-]+) cache hit")


@dataclass(frozen=True)
class Home:
    """Where local runs keep their state; nothing is written elsewhere."""

    root: Path

    @property
    def environment(self) -> dict[str, str]:
        """What tasks are told of it. A tracking server that the user has set stays set."""
        own = {
            "MLFLOW_TRACKING_URI": moved.database_uri(self.root),
            "RCO_ARTIFACT_ROOT": (self.root / moved.ARTIFACTS).as_uri(),
        }
        if os.environ.get("MLFLOW_TRACKING_URI"):
            return {}
        return own

    def last(self, pipeline: str) -> Path:
        """Summary and pictures of what finished last: last-run, last-comparison."""
        return self.root / f"last-{pipeline}"


class InterruptedRunError(Exception):
    """A signal asked for the end."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class RunFailedError(RuntimeError):
    """The pipeline did not finish; `code` is the exit status for it."""

    def __init__(self, message: str, code: int = FAILED) -> None:
        super().__init__(message)
        self.code = code


def run(
    parameters: Mapping[str, Any],
    home: Path,
    *,
    pipeline: str = "run",
    cache: bool = True,
    show: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Execute a pipeline; returns its summary.

    Args:
        parameters: flat (`rco.config.parameters.PARAMETERS`, of a comparison those of
            `rco.config.branches.Comparison`); what is left out
            keeps its default.
        pipeline: a key of `pipelines.local.work.READERS`.
        home: directory of the runs' state.
        cache: skip tasks whose code and inputs have not changed, and trainings whose results are there.
        show: is given one line of progress at a time.

    Raises:
        RunFailedError: with the reason in its message.
        InterruptedRunError: by SIGINT, SIGTERM or SIGHUP, after everything has been stopped.
        InputError: the home was moved, and cannot be written.
    """
    place = Home(home.resolve())
    run_id = f"local-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
    folder = place.root / "runs" / run_id
    with _begun(place.root, folder, show):
        return _run(place, folder, parameters, pipeline, cache, show)


@contextlib.contextmanager
def _begun(home: Path, folder: Path, show: Callable[[str], None]) -> Iterator[None]:
    """Have a run in progress in a home, which is told if it has been moved."""
    home.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as until_its_end:
        while True:
            if old := moved.settle(home):
                show(f"this home was {old} when it was last used: MLflow's paths in it are those of {home} now")
            with homes.locked(home, alone=False):
                if homes.remembered(home) in (None, home):  # else it was used elsewhere, between settling and locking
                    homes.remember(home)
                    folder.mkdir(parents=True)
                    until_its_end.enter_context(homes.running(folder))
                    break
        yield


def _run(
    place: Home, folder: Path, parameters: Mapping[str, Any], pipeline: str, cache: bool, show: Callable[[str], None]
) -> dict[str, Any]:
    run_id = folder.name
    request = folder / "request.json"
    request.write_text(
        json.dumps(
            {
                "pipeline": pipeline,
                "parameters": dict(parameters),
                "home": str(place.root),
                "cache": cache,
                "folder": str(folder),
            }
        )
    )
    environment = {
        "RCO_IMAGES": str(place.root / "images"),
        "RCO_LOGITS": str(place.root / "logits"),
        "RCO_RESULTS": str(place.root / "results"),
        "RCO_RESUME": str(place.root / "resume"),
        "RCO_WEIGHTS": str(place.root / "weights"),
        "RCO_RESUME_RUN": "local",  # whoever runs the same again goes on, though it is another run
        **os.environ,
        **place.environment,
        "RCO_PIPELINE_RUN": run_id,
        "RCO_EXPERIMENT": str(parameters.get("experiment") or PARAMETERS["experiment"].default),
        "PYTHONUNBUFFERED": "1",
    }
    # A fixed name of the image would hide edits of the code from the cache; a run that is open around this one is no task's.
    for name in ("RCO_IMAGE", "MLFLOW_RUN_ID"):
        environment.pop(name, None)
    if not cache:
        environment["RCO_RESULTS"] = ""
    show(f"run {run_id}; everything it prints is kept in {_relative(folder / 'pipeline.log')}")
    outcome = "FAILED"
    with _interruptible() as deaf:
        try:
            code, tail, reason = _supervise(request, environment, folder / "pipeline.log", show, deaf)
            if code == BAD_INPUT:
                raise RunFailedError((folder / "error.txt").read_text().strip(), BAD_INPUT)
            if code and reason is not None:
                raise reason
            if code and any(_NO_SPACE.search(line) for line in tail):  # met by KFP itself, between two tasks
                raise RunFailedError(str(disk_full(OSError(errno.ENOSPC, ""), [folder, tempfile.gettempdir()])))
            if code:
                raise RunFailedError("the pipeline failed; the end of its log:\n" + "\n".join(tail))
            outcome = "FINISHED"
        except InterruptedRunError:
            outcome = "KILLED"
            raise
        finally:
            deaf()
            if outcome != "FINISHED" and (folder / "started").exists():
                _close_runs(environment, outcome)
    summary: dict[str, Any] = json.loads((folder / "report" / "summary.json").read_text())
    _publish(folder / "report", place.last(pipeline))
    return summary


@contextlib.contextmanager
def _interruptible() -> Iterator[Callable[[], None]]:
    """Turn the first signal into InterruptedRunError. From then on, or once what it yields is called, signals are ignored:
    nothing may interrupt the clearing up, whose every step has a time limit of its own. A signal that is ignored when this
    begins stays ignored: that is how nohup asks for a run that outlives its terminal."""

    def deaf() -> None:
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        deaf()
        raise InterruptedRunError(number)

    heard = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    for number in heard:
        signal.signal(number, interrupt)
    try:
        yield deaf
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _supervise(
    request: Path, environment: dict[str, str], log: Path, show: Callable[[str], None], deaf: Callable[[], None]
) -> tuple[int, list[str], RunFailedError | None]:
    """Run the inner process to its end; returns exit status, the last lines it printed, and the reason that a task gave."""
    tail: deque[str] = deque(maxlen=25)
    reason, lost = None, False
    process = _start([sys.executable, "-m", "pipelines.local", str(request)], environment)
    try:
        assert process.stdout is not None
        with log.open("wb", buffering=0) as file:
            for line in process.stdout:
                try:
                    file.write(line.encode(errors="replace"))
                except OSError as error:  # the work may have room elsewhere
                    if not lost:
                        show(f"  {log.name} cannot be written ({error.strerror}): what follows may lack in it")
                    lost = True
                if text := line.rstrip():
                    tail.append(text)
                if PREFIX + REFUSED in line:
                    reason = RunFailedError(line.split(PREFIX + REFUSED, 1)[1].strip(), BAD_INPUT)
                elif mark := next((PREFIX + mark for mark in (DIVERGED, FULL, DIED) if PREFIX + mark in line), None):
                    reason = RunFailedError(line.split(mark, 1)[1].strip())
                elif told := _for_people(line):
                    show(told)
        return process.wait(), list(tail), reason
    finally:
        deaf()
        _end_group(process)


def _start(command: list[str], environment: dict[str, str]) -> subprocess.Popen[str]:
    # A session of its own: one signal to its group reaches every task, and Ctrl-C reaches only us.
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environment,
        start_new_session=True,
    )


def _for_people(line: str) -> str | None:
    """What a line of the log means to somebody who watches, if anything."""
    if PREFIX in line:
        return "  " + line.split(PREFIX, 1)[1].rstrip()
    if hit := _HIT.search(line):
        return f"{hit[1]}: unchanged, taken from the cache"
    if task := _TASK.search(line):
        return task[1]
    return None


def _end_group(process: subprocess.Popen[str]) -> None:
    """End a process and all its descendants: politely, so that a training can write a resume point, then not."""
    for number, patience in ((signal.SIGTERM, 30), (signal.SIGKILL, 5)):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            continue


def _close_runs(environment: Mapping[str, str], status: str) -> None:
    from rco.tracking.context import Context, forgiving
    from rco.tracking.runs import end_open_runs

    context = Context(
        tracking_uri=environment["MLFLOW_TRACKING_URI"],
        pipeline_run=environment["RCO_PIPELINE_RUN"],
        experiment=environment["RCO_EXPERIMENT"],
    )
    with forgiving("The end of the pipeline run"):
        end_open_runs(context, status)


def _publish(report: Path, last_run: Path) -> None:
    """Make last-run a link to this run's report. It changes in one step: runs that end at once do not meet half-way, and who
    reads last-run sees one report or the other."""
    fresh = last_run.with_name(f".{last_run.name}.{secrets.token_hex(4)}")
    fresh.symlink_to(os.path.relpath(report, last_run.parent), target_is_directory=True)
    if last_run.is_dir() and not last_run.is_symlink():  # a copy, as it once was
        shutil.rmtree(last_run, ignore_errors=True)
    fresh.replace(last_run)


def _relative(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
