"""Watch a run of Kubeflow Pipelines to its end, whatever happens to the service, the workflow and the list of its tasks."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from pipelines.cluster import pods
from pipelines.cluster.service import Pace, Service, ServiceError
from pipelines.cluster.tasks import CACHED, FAILED, PENDING, RUNNING, STARTING, SUCCEEDED, Planned, Task, Tasks, plan, read
from pipelines.cluster.words import fetcher, log_command, refused, why
from rco.core.words import counted

WATCH = Pace(first=2, longest=20, patience=3600)
#: The state of a run.
RUN_SUCCEEDED = "SUCCEEDED"
RUN_ENDED = (RUN_SUCCEEDED, "FAILED", "CANCELED", "SKIPPED")
_GONE_AFTER = 3  # answers in a row that there is no such run
_PENDING_AFTER, _ASK_AGAIN = 90.0, 300.0  # seconds that a pod may wait before it is asked why, and between two such questions
_RETRY_SEEN = 300.0  # seconds within which a run that is tried again must be seen to go on
_MOST_FAILURES = 5

STALE = (
    "KFP's list of tasks has stopped, because the workflow is larger than 1 MB; the run goes on, and its state is right. "
    "What the students do is in MLflow"
)


class RunGoneError(RuntimeError):
    """A run that was there is not there any more."""


class StillRunningError(RuntimeError):
    """The time to wait is over, and the run is not."""


@dataclass
class Watcher:
    """Looks at one run again and again.

    Attributes:
        service: that has it.
        run_id: of the run.
        show: is given a line for everything that happens.
        draw: is given all tasks, each time.
        planned: its tasks; None: asked of the service.
        figures: news from MLflow; may raise anything.
        told: of tasks that failed while others went on, the words that were shown.
    """

    service: Service
    run_id: str
    show: Callable[[str], None]
    draw: Callable[[Tasks], None] = lambda tasks: None
    planned: Sequence[Planned] | None = None
    figures: Callable[[], list[str]] | None = None
    told: dict[str, str] = field(default_factory=dict)
    _seen: dict[str, tuple[str, int]] = field(default_factory=dict)
    _waits: dict[str, float] = field(default_factory=dict)
    _asked: dict[str, float] = field(default_factory=dict)
    _once_told: set[str] = field(default_factory=set)
    _figures_due: float = 0.0

    def wait(self, *, timeout: float | None = None, pace: Pace | None = None, after: Any = None) -> Any:
        """Watch the run to its end; returns it as it then is.

        Args:
            timeout: seconds to wait at most; the run itself is not touched.
            pace: how often to look, and how long the service may be away; `WATCH` if None.
            after: when it ended before it was tried again: that end is not meant.

        Raises:
            RunGoneError: it was there, or should be, and is not.
            StillRunningError: after `timeout`.
            ServiceError: the service is away for too long, or does not know us any more. The run goes on.
        """
        pace = pace or WATCH
        begun = time.monotonic()
        away: float | None = None  # since when
        missing, renewed = 0, False
        for pause in pace.pauses():
            try:
                run = self.service.call(self.service.client.runs.run_service_get_run, run_id=self.run_id)
                # Asked here, so that trouble counts as for the run itself.
                self.planned = planned_of(self.service, run) if self.planned is None else self.planned
            except ServiceError as error:
                now = time.monotonic()
                if error.status == 401 and not renewed:
                    renewed = True
                    self.service.renew()
                    continue
                if error.status == 404:
                    missing += 1
                    if missing == _GONE_AFTER:
                        raise RunGoneError(
                            f"there is no run {self.run_id} (any more): it was deleted, or is another service's"
                        ) from None
                elif not error.passing or (away is not None and now - away > pace.patience):
                    raise
                elif away is None:
                    away = now
                    self.show(f"{error}; the run goes on, looking again")
            else:
                if away is not None:
                    self.show(f"{self.service.address or 'KFP'} is back")
                away, missing, renewed = None, 0, False
                over = state_of(run) in RUN_ENDED
                before = state_of(run) != RUN_SUCCEEDED and after is not None and run.finished_at == after
                if not (over and before and time.monotonic() - begun < _RETRY_SEEN):
                    self._look(run, over)
                    if over:
                        return run
            if timeout is not None:
                left = timeout - (time.monotonic() - begun)
                if left <= 0:
                    raise StillRunningError(f"the run has not ended within {duration(timeout)}")
                pause = min(pause, left)
            time.sleep(pause)
        raise AssertionError("pauses do not end")

    def _look(self, run: Any, over: bool) -> None:
        tasks = read(run, self.planned or ())
        for line in progress(tasks, self._seen):
            self.show(line)
        if tasks.stale and not over:
            self._once(STALE)
        if not over:
            self._mention_waiting(tasks)
            self._mention_failures(tasks)
        self._mention_figures(over)
        self.draw(tasks)

    def _once(self, line: str) -> None:
        if line not in self._once_told:
            self._once_told.add(line)
            self.show(line)

    def _mention_waiting(self, tasks: Tasks) -> None:
        """Say it where pods do not start, and why if Kubernetes may be asked."""
        now = time.monotonic()
        waiting = [task.label for task in tasks.tasks if task.state in (PENDING, STARTING)]
        self._waits = {label: self._waits.get(label, now) for label in waiting}
        late = [label for label, since in self._waits.items() if now - since >= _PENDING_AFTER]
        due = [label for label in late if now - self._asked.get(label, -_ASK_AGAIN) >= _ASK_AGAIN]
        if tasks.stale or not due:
            return
        self._asked.update(dict.fromkeys(late, now))
        first = f"{due[0]}{f' and {len(late) - 1} more' if len(late) > 1 else ''}"
        waited = duration(now - self._waits[due[0]])
        reasons = pods.ask(self.run_id, self.service.namespace)
        command = f"kubectl describe pods -n {self.service.namespace or 'kubeflow'} -l pipeline/runid={self.run_id}"
        self.show(f"{first}: the pod has not started for {waited}: {'; '.join(reasons or ()) or f'{command} says why'}")

    def _mention_failures(self, tasks: Tasks) -> None:
        """Say why a task failed while others go on: a branch of a comparison may, hours before the end."""
        for task in [task for task in tasks.failed() if task.label not in self.told][: _MOST_FAILURES - len(self.told)]:
            words = self.service.clean(why(task, fetcher(self.service, self.run_id), duration=duration))
            self.told[task.label] = words
            self.show(f"{task.label}: {words}")
            self.show(f"  log: {log_command(self.service.namespace, self.run_id, task.node)}")

    def _mention_figures(self, over: bool) -> None:
        if self.figures is None or (time.monotonic() < self._figures_due and not over):
            return
        self._figures_due = time.monotonic() + 15
        try:
            news = self.figures()
        except Exception as error:
            self._figures_due = time.monotonic() + 120
            self._once(f"MLflow does not answer here ({type(error).__name__}): anchors and accuracies are not shown")
            return
        for line in news:
            self.show(line)


def planned_of(service: Service, run: Any) -> list[Planned]:
    """The tasks of a run's pipeline, asked of the service; empty: it does not tell.

    Raises:
        ServiceError: trouble that may pass.
    """
    spec, reference = run.pipeline_spec, run.pipeline_version_reference
    if not spec and reference is not None:
        try:
            spec = service.call(
                service.client.pipelines.pipeline_service_get_pipeline_version,
                pipeline_id=reference.pipeline_id,
                pipeline_version_id=reference.pipeline_version_id,
            ).pipeline_spec
        except ServiceError as error:
            if error.passing or error.status == 401:
                raise
            return []
    spec = spec if isinstance(spec, dict) else {}
    try:
        return plan(spec.get("pipeline_spec", spec), spec.get("platform_spec"))
    except (KeyError, TypeError, AttributeError, ValueError):  # another's pipeline, or another version's JSON
        return []


def progress(tasks: Tasks, seen: dict[str, tuple[str, int]]) -> list[str]:
    """What has happened since it was looked at last: a line for every task that began, began again, or ended.

    Args:
        seen: task -> its state and tries; brought up to date.
    """
    lines = []
    for task in tasks.tasks:
        before, now = seen.get(task.label), (task.state, task.attempts)
        if before == now or task.state not in (RUNNING, SUCCEEDED, CACHED, FAILED):
            continue
        seen[task.label] = now
        lines.append(f"{task.label}: {describe(task)}")
    return lines


def describe(task: Task) -> str:
    """A task's state in words: "failed after 2 min, 3 tries"."""
    took = f" after {duration(task.seconds)}" if task.seconds is not None else ""
    if task.state == RUNNING:
        return "running" if task.attempts < 2 else f"running, try {task.attempts}"
    tries = f", {task.attempts} tries" if task.attempts > 1 else ""
    return f"{task.state}{took}{tries}"


def retry(service: Service, run: Any) -> None:
    """Let KFP try a failed run again: what was finished stays finished.

    Raises:
        ServiceError: it does not, as after its workflow was cleaned away.
    """
    service.ask(service.client.runs.run_service_retry_run, run_id=run.run_id)


def terminate(service: Service, run_id: str) -> Any:
    """Ask KFP to end a run, unless it has ended; returns it as it was before."""
    run = service.ask(service.client.runs.run_service_get_run, run_id=run_id)
    if state_of(run) not in RUN_ENDED:
        service.ask(service.client.runs.run_service_terminate_run, run_id=run_id)
    return run


def close_in_mlflow(run: Any) -> str:
    """End what MLflow still has open of a run that has ended in KFP: one that was terminated never ran its exit task.

    Returns:
        what there is to say; empty: nothing.
    """
    state = state_of(run)
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if not uri:
        told = "MLFLOW_TRACKING_URI is not set here: MLflow may show runs of it as running (rco wait RUN ends them)"
        return told if was_terminated(run) else ""
    from rco.tracking.context import Context
    from rco.tracking.runs import end_open_runs

    status = "FINISHED" if state == RUN_SUCCEEDED else "KILLED" if was_terminated(run) else "FAILED"
    try:
        closed = end_open_runs(Context(tracking_uri=uri, pipeline_run=run.run_id), status)
    except Exception as error:
        return (
            f"MLflow does not answer here ({type(error).__name__}): it may show runs of it as running (rco wait RUN ends them)"
        )
    return f"MLflow: {counted(closed, 'run')} of it had not ended: {status} now" if closed else ""


@dataclass(frozen=True)
class Failure:
    """A task that failed.

    Attributes:
        label: of the task.
        words: its own, or what is known.
        log: the command that shows its log.
    """

    label: str
    words: str
    log: str

    @property
    def final(self) -> bool:
        """Whether to try again would not help: the input cannot work."""
        return refused(self.words)


def failures(service: Service, run: Any, planned: Sequence[Planned]) -> list[Failure]:
    """The tasks of a run that failed, with their words; an exit task only where it alone failed."""
    tasks = read(run, planned)
    failed = tasks.failed()
    exits = [task for task in failed if any(part.endswith(".onExit") for part in task.planned.path)]
    fetch = fetcher(service, run.run_id)
    found: list[Failure] = []
    for task in [task for task in failed if task not in exits] or exits:
        more = len(found) >= _MOST_FAILURES
        words = "" if more else service.clean(why(task, fetch, duration=duration))
        found.append(Failure(task.label, words, log_command(service.namespace, run.run_id, task.node)))
    return found


def explain(
    service: Service, run: Any, planned: Sequence[Planned], told: Mapping[str, str] = MappingProxyType({})
) -> list[str]:
    """Why a run did not succeed, in lines.

    Args:
        told: task -> words that were shown already.
    """
    found, lines = failures(service, run, planned), []
    for failure in found[:_MOST_FAILURES]:
        words = "failed, its words are above" if told.get(failure.label) == failure.words else failure.words
        lines += [f"{failure.label}: {words}", f"  log: {failure.log}"]
    if len(found) > _MOST_FAILURES:
        lines.append(f"and {len(found) - _MOST_FAILURES} more tasks failed")
    if was_terminated(run):
        lines.append("the run was terminated")
    elif not found:
        stale = " KFP's list of tasks stopped when the workflow passed 1 MB." if read(run, planned).stale else ""
        lines.append(f"which task failed is not known.{stale}")
        lines.append(f"  logs: {log_command(service.namespace, run.run_id, '')}")
    if run.error and run.error.message:
        lines.append(" ".join(str(run.error.message).split())[:500])
    return lines


def was_terminated(run: Any) -> bool:
    """Whether somebody ended the run: KFP calls one that was terminated FAILED."""
    if state_of(run) == "CANCELED":
        return True
    states = [str(entry.state) for entry in run.state_history or ()]
    begun = len(states) - states[::-1].index("RUNNING") if "RUNNING" in states else 0  # a run may have been tried again
    return "CANCELING" in states[begun:]


def as_json(service: Service, run: Any, planned: Sequence[Planned]) -> str:
    """A run for scripts: its state, its tasks, and why it failed."""
    state = state_of(run)
    failed = failures(service, run, planned) if state in RUN_ENDED and state != RUN_SUCCEEDED else []
    tasks = read(run, planned)
    document = {
        "run_id": run.run_id,
        "name": run.display_name,
        "state": state,
        "terminated": was_terminated(run),
        "tasks_stale": tasks.stale,
        "tasks": [
            {
                "task": task.planned.path[-1],
                "within": " ".join(task.label.split()[:-1]),
                "state": task.state,
                "attempts": task.attempts,
                "seconds": task.seconds,
            }
            for task in tasks.tasks
        ],
        "failures": [{"task": f.label, "words": f.words, "log": f.log} for f in failed],
        "url": service.link(f"runs/details/{run.run_id}"),
    }
    return json.dumps(document, indent=2)


def figures_of(run_id: str) -> Callable[[], list[str]] | None:
    """News of a run from the MLflow that MLFLOW_TRACKING_URI names; None without one."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    if not uri:
        return None
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # it is asked again by itself
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    from rco.tracking.context import Context
    from rco.tracking.watched import Watched

    return Watched(Context(tracking_uri=uri, pipeline_run=run_id)).news


def state_of(run: Any) -> str:
    """A run's state, as KFP names it: SUCCEEDED, FAILED, ..."""
    return str(run.state or "PENDING").upper()


def duration(seconds: float) -> str:
    """A length of time in words."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"
