"""A task as several processes: workers that torch's elastic launcher starts, and starts again when one of them dies.

A task that is marked with `in_workers` runs in its own process, as every other, if it needs one worker and is not to survive
the death of its process. Else this process becomes the launcher: it starts `python -m rco.tasks.worker` so many times, which
call the task's function with the same arguments, and hands on what worker 0 returns or what stops it.

    RCO_PROCESS_RESTARTS   how often the workers of a task are started again when one dies (0)

They are started again from their last resume point: by the launcher, in the same pod, with nothing lost of what is on its disk.
Not when the task has said why it cannot go on (bad input, a divergence, a full disk), and not a second time without a new
resume point since the first: what kills a process at once would do so for ever.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import signal
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar, cast

from rco.core.documents import read_json, write_json
from rco.core.errors import DiskFullError, InputError, ProcessDiedError
from rco.core.settings import from_dict, jsonable
from rco.tasks.process import log, show_progress
from rco.training.config import ComputeConfig

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

RESTARTS = "RCO_PROCESS_RESTARTS"
MOST = 100
#: Exit status of a worker that another one's death has stopped (EX_TEMPFAIL).
LOST = 75
CALL, ENDED, REASONS = "call.json", "ended-{}.json", "restarts.json"
_SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT")
_LOOPBACK = "127.0.0.1"
_LINES = 30  # of what a worker said last

F = TypeVar("F", bound=Callable[..., Any])
#: The functions of tasks that have workers, as workers call them.
BODIES: dict[str, Callable[..., Any]] = {}


def in_workers(compute: Callable[[Mapping[str, Any]], Any]) -> Callable[[F], F]:
    """Make a function of settings and folders a task that runs in workers, if it is to.

    Args:
        compute: finds the document of `ComputeConfig` in the settings; None: there is nothing for workers to do.
    """

    def make(function: F) -> F:
        BODIES[function.__name__] = function

        @functools.wraps(function)
        def launched(*args: Any, **kwargs: Any) -> Any:
            arguments = inspect.signature(function).bind(*args, **kwargs).arguments
            document, restarts = compute(arguments["settings"]), process_restarts()
            if document is None:
                return function(**arguments)
            from rco.training.device import count_workers

            config = from_dict(ComputeConfig, document)
            workers = count_workers(config)
            if workers == 1 and not restarts:
                return function(**arguments)
            with TemporaryDirectory(prefix="rco-workers-") as folder:
                return Launch(Path(folder), function, workers, restarts).run(arguments, config)

        return cast(F, launched)

    return make


def process_restarts() -> int:
    """How often a task's workers are started again.

    Raises:
        InputError: RCO_PROCESS_RESTARTS is not 0 to 100.
    """
    text = os.environ.get(RESTARTS, "") or "0"
    if not text.isascii() or not text.isdigit() or int(text[:4]) > MOST:
        raise InputError(RESTARTS, text, f"is not 0 to {MOST}", f"Give a whole number from 0 to {MOST}")
    return int(text)


@dataclass
class Launch:
    """The workers of one task.

    Attributes:
        folder: for what launcher and workers tell each other; of this launch alone.
        reasons: why workers were started again, so far.
        died: why they were not started again.
    """

    folder: Path
    function: Callable[..., Any]
    workers: int
    restarts: int
    reasons: list[str] = field(default_factory=list)
    died: str = ""
    _progress: str = ""

    def run(self, arguments: Mapping[str, Any], compute: ComputeConfig) -> Any:
        """What the task returns.

        Raises:
            InputError, DivergenceError, DiskFullError: as the task does.
            ProcessDiedError: a worker has died, and was not started again.
            SystemExit: a signal has asked for the end; resume points were written.
        """
        show_progress()
        call = {
            "launcher": os.getpid(),
            "module": self.function.__module__,
            "task": self.function.__name__,
            "arguments": {name: _plain(value) for name, value in arguments.items()},
            "compute": compute,
        }
        write_json(self.folder / CALL, call)
        self._supervise()
        endings = [read_json(path) for rank in range(self.workers) if (path := self.folder / ENDED.format(rank)).is_file()]
        for ending in endings:
            if ending["kind"] == "done":
                return ending["result"]
        for ending in endings:
            raise _error(ending)
        raise ProcessDiedError(self.died or "the processes of this task have ended without a word")

    def _supervise(self) -> None:
        from torch.distributed.elastic.agent.server.api import WorkerSpec
        from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
        from torch.distributed.elastic.rendezvous import RendezvousParameters, registry

        from rco.tasks.agent import Agent

        parameters = RendezvousParameters("c10d", f"{_LOOPBACK}:0", uuid.uuid4().hex, 1, 1, local_addr=_LOOPBACK)
        spec = WorkerSpec(
            role="worker",
            local_world_size=self.workers,
            rdzv_handler=registry.get_rendezvous_handler(parameters),
            entrypoint=sys.executable,
            args=("-u", "-m", "rco.tasks.worker", str(self.folder)),
            max_restarts=self.restarts,
            local_addr=_LOOPBACK,
        )
        # Worker 0 speaks for all. What the others say is kept until it is known that it is of use.
        others = dict.fromkeys(range(1, self.workers), Std.ALL)
        logs = DefaultLogsSpecs(str(self.folder / "logs"), redirects={0: Std.NONE, **others})
        with _environment(), _signals_as_before():
            try:
                Agent(spec, logs, self._start_again).run()
            except SignalException as end:
                sys.exit(128 + int(end.sigval))

    def _start_again(self, failures: Mapping[int, ProcessFailure]) -> bool:
        """Whether workers are started again after these have failed; says why, or why not."""
        if any(self.folder.glob(ENDED.format("*"))):
            return False
        rank, failure = cause(failures)
        died = f"{'the process' if self.workers == 1 else f'worker {rank} of {self.workers}'} {_ended(failure)}"
        progress, before = self._kept(), self._progress
        if rank:
            self._show_last_lines(rank)
        if not self.restarts:
            self.died = died
        elif len(self.reasons) == self.restarts:
            self.died = f"{died}, after {self.restarts} restarts ({RESTARTS})"
        elif self.reasons and progress == before:
            self.died = f"{died}, without a new resume point since it was started again: it would do so for ever"
        else:
            self.reasons.append(died)
            self._progress = progress
            write_json(self.folder / REASONS, self.reasons)
            who = "it is" if self.workers == 1 else "all are"
            where = "from the last resume point" if progress else "from the beginning"
            log.warning("%s; %s started again %s (%d of %d)", died, who, where, len(self.reasons), self.restarts)
            return True
        return False

    def _show_last_lines(self, rank: int) -> None:
        """What a worker that does not speak for all has written to its standard error since it was started."""
        for file in self.folder.glob(f"logs/*/attempt_{len(self.reasons)}/{rank}/stderr.log"):
            if said := file.read_text(errors="replace").splitlines():
                print(f"worker {rank} said last:", *said[-_LINES:], sep="\n", flush=True)

    def _kept(self) -> str:
        path = self.folder / PROGRESS
        return path.read_text() if path.is_file() else ""


#: Beside what workers say of their end: the last resume point that was written (`rco.training.resume`).
PROGRESS = "progress"


def cause(failures: Mapping[int, ProcessFailure]) -> tuple[int, ProcessFailure]:
    """The worker whose end has ended the others, of all that were found to have ended."""

    def innocent(failure: ProcessFailure) -> bool:
        return failure.exitcode in (LOST, -signal.SIGTERM, 128 + signal.SIGTERM)

    return min(failures.items(), key=lambda item: (innocent(item[1]), item[1].timestamp, item[0]))


def _plain(value: Any) -> Any:
    """An argument of a task with paths as text."""
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value


def _ended(failure: ProcessFailure) -> str:
    if failure.exitcode >= 0:
        return f"has ended with exit status {failure.exitcode}"
    hint = " (as when memory runs out)" if failure.exitcode == -signal.SIGKILL else ""
    return f"was killed by {signal.Signals(-failure.exitcode).name}{hint}"


def _error(ending: Mapping[str, Any]) -> Exception:
    """What a worker has said of its end, as the error that it was."""
    from rco.training.resume import ExplainedError

    if ending["kind"] == "refused":
        return InputError(ending["parameter"], ending["value"], ending["problem"], ending["remedy"])
    if ending["kind"] == "full":
        return DiskFullError(ending["folder"], ending["free"])
    return ExplainedError(ending["message"])


@contextlib.contextmanager
def _signals_as_before() -> Iterator[None]:
    """The launcher answers signals, until the end of the block; those that are ignored (by nohup) stay so."""
    before = {name: signal.getsignal(getattr(signal, name)) for name in _SIGNALS}
    heard = [name for name, handler in before.items() if handler is not signal.SIG_IGN]
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = ",".join(heard)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # not in the main thread: none was changed
            for name, handler in before.items():
                signal.signal(getattr(signal, name), handler)


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    """That of the workers, until the end of the block."""
    from rco.training.distributed import QUIET

    before = dict(os.environ)
    os.environ.update({**QUIET, **before})
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def ending_of(error: Exception) -> dict[str, Any]:
    """What a worker says of its end in words; empty: the error has none."""
    if isinstance(error, InputError):
        value = error.value if isinstance(error.value, (str, int, float, bool, list, type(None))) else str(error.value)
        return {"kind": "refused", "parameter": error.parameter, "value": jsonable(value)} | {
            "problem": error.problem,
            "remedy": error.remedy,
        }
    if isinstance(error, DiskFullError):
        return {"kind": "full", "folder": error.folder, "free": error.free}
    return {}
