"""Run the pipeline on this machine, with `kfp.local` and the components that a cluster would run.

Two processes. The inner one (`python -m pipelines.local request.json`) checks the settings and hands the pipeline to KFP, whose
tasks are processes of their own: forked by `pipelines.warm`, or started by KFP. The outer one, `run`, shows what happens, and
is what an exit handler is on a cluster: it ends the inner one's whole process group on a signal, and closes the MLflow runs
however things went.
"""

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
from typing import TYPE_CHECKING, Any, NoReturn

from pipelines import warm
from pipelines.fork_server import Client, RefusedError
from rco.core.errors import InputError, disk_full
from rco.core.marks import DIVERGED, FULL, PREFIX, REFUSED

if TYPE_CHECKING:
    from rco.training.config import ComputeConfig

BAD_INPUT, FAILED = 2, 1
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
            "MLFLOW_TRACKING_URI": f"sqlite:///{self.root}/mlflow.db",
            "RCO_ARTIFACT_ROOT": (self.root / "artifacts").as_uri(),
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
        pipeline: a key of `PLANS`.
        home: directory of the runs' state.
        cache: skip tasks whose code and inputs have not changed.
        show: is given one line of progress at a time.

    Raises:
        RunFailedError: with the reason in its message.
        InterruptedRunError: by SIGINT, SIGTERM or SIGHUP, after everything has been stopped.
    """
    place = Home(home.resolve())
    run_id = f"local-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
    folder = place.root / "runs" / run_id
    folder.mkdir(parents=True)
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
        "RCO_LOGITS": str(place.root / "logits"),
        "RCO_RESUME": str(place.root / "resume"),
        "RCO_RESUME_RUN": "local",  # whoever runs the same again goes on, though it is another run
        **os.environ,
        **place.environment,
        "RCO_PIPELINE_RUN": run_id,
        "PYTHONUNBUFFERED": "1",
    }
    # A fixed name of the image would hide edits of the code from the cache; a run that is open around this one is no task's.
    for name in ("RCO_IMAGE", "MLFLOW_RUN_ID"):
        environment.pop(name, None)
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
    # A session of its own: one signal to its group reaches every task, and Ctrl-C reaches only us.
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines.local", str(request)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environment,
        start_new_session=True,
    )
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
                elif mark := next((m for m in (PREFIX + DIVERGED, PREFIX + FULL) if m in line), None):
                    reason = RunFailedError(line.split(mark, 1)[1].strip())
                elif told := _for_people(line):
                    show(told)
        return process.wait(), list(tail), reason
    finally:
        deaf()
        _end_group(process)


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

    context = Context(tracking_uri=environment["MLFLOW_TRACKING_URI"], pipeline_run=environment["RCO_PIPELINE_RUN"])
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


def execute(request: Mapping[str, Any], client: Client | None) -> None:
    """The inner process: check, then hand the pipeline to KFP.

    Args:
        client: starts tasks warm; None: every task imports what it needs.

    Raises:
        InputError: settings that cannot work; no task has been started.
        RuntimeError: a task failed.
    """
    import logging

    from rco.tasks.process import log, show_progress
    from rco.training import device, resume

    # KFP announces cache hits on the root logger.
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
    show_progress()
    log.info("checking the settings")
    plan = PLANS[request["pipeline"]](request["parameters"])
    device.require_device(plan.compute)
    home, folder = Path(request["home"]), Path(request["folder"])
    if gone := resume.sweep(home / "resume"):
        log.info("%d interrupted trainings to which nobody came back were removed from %s", gone, home / "resume")
    (folder / "started").touch()
    from kfp import local

    _cache_by_content()
    if client:
        warm.start_tasks_through(client)
    local.init(
        runner=local.SubprocessRunner(use_venv=False),
        pipeline_root=str(home / "pipeline"),
        enable_caching=bool(request["cache"]),
        cache_root=str(home / "cache"),
    )
    result = plan.make()(**plan.arguments)
    for output, place in plan.published.items():
        shutil.copytree(result.outputs[output].path, folder / "report" / place)


def _cache_by_content() -> None:
    """Let KFP's local cache go by what a task computes (image, source, inputs), as it does on a cluster.

    It goes by the component's name as well, and KFP's compiler numbers those through all tasks of a pipeline: with one more
    branch in a comparison, nothing would be found again.
    """
    from kfp.local import cache

    class ContentCache(cache.LocalCache):  # type: ignore[misc]
        def compute_key(self, component_name: str, *args: Any, **kwargs: Any) -> str:
            key: str = super().compute_key("", *args, **kwargs)
            return key

    cache.LocalCache = ContentCache


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A request whose settings have been found sound.

    Attributes:
        compute: resolved.
        make: builds the pipeline; not called before the check is over, because it imports KFP.
        arguments: of the pipeline.
        published: output of the pipeline -> place in the report's folder.
    """

    compute: ComputeConfig
    make: Callable[[], Any]
    arguments: dict[str, Any]
    published: dict[str, str]


def _plan_run(parameters: Mapping[str, Any]) -> Plan:
    from rco.config.parameters import RunConfig
    from rco.tasks.preflight import stages_needed, validate

    config = RunConfig.from_flat(parameters)
    compute = validate(config)

    def make() -> Any:
        from pipelines.rco import make_pipeline

        return make_pipeline(stages_needed(config))

    return Plan(compute=compute, make=make, arguments=config.to_flat(), published={"summary": ".", "student": "student"})


def _plan_comparison(parameters: Mapping[str, Any]) -> Plan:
    from rco.config.branches import Comparison
    from rco.tasks.comparison_preflight import steps_needed, validate_comparison

    comparison = Comparison.of(parameters)
    compute = validate_comparison(comparison)

    def make() -> Any:
        from pipelines.comparison import make_comparison

        return make_comparison(list(steps_needed(comparison.branches).values()))

    return Plan(compute=compute, make=make, arguments=comparison.to_parameters(), published={"summary": "."})


PLANS: dict[str, Callable[[Mapping[str, Any]], Plan]] = {"run": _plan_run, "comparison": _plan_comparison}


def _wait_for_task(client: Client | None, number: int) -> None:
    """The signal has reached the task as well, if one is running: it ends by itself, and fails the pipeline."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:  # there is none that KFP has started
        if not (client and client.busy):
            sys.exit(128 + number)


def main(path: Path) -> int:
    """Run a request; bad input goes to error.txt beside it."""
    try:
        if warm.wanted():
            warm.run(lambda client: _work(path, client))
    except InputError as error:
        return _bad_input(path, error)
    except RefusedError as error:
        print(f"tasks start cold: {error}")
    return _work(path, None)


def _work(path: Path, client: Client | None) -> int:
    signal.signal(signal.SIGTERM, lambda number, frame: _wait_for_task(client, number))
    request = json.loads(path.read_text())
    try:
        execute(request, client)
    except InputError as error:
        return _bad_input(path, error)
    except Exception as error:
        if full := disk_full(error, [path.parent, tempfile.gettempdir()]):
            print(f"{PREFIX}{FULL}{full}")
        elif isinstance(error, RuntimeError):
            print(error)
        else:
            raise
        return FAILED
    return 0


def _bad_input(path: Path, error: InputError) -> int:
    (path.parent / "error.txt").write_text(str(error))
    return BAD_INPUT


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
