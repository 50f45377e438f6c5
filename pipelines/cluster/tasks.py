"""The tasks of a run as its author knows them, made of what KFP lists: nodes of Argo's workflow, without ids of their own.

KFP 2.17 lists every node once or twice (its defaults make each a retry node, whose tries are called `check(0)`), drivers and
other plumbing among them. Of nodes it tells display names and the ids of children. An id is the workflow's name and a hash of
the node's full name, so the graph of the compiled pipeline says which node each entry is.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

#: States of a task. "not run": something before it failed.
WAITING, STARTING, PENDING, RUNNING = "waiting", "starting", "waits for its pod", "running"
SUCCEEDED, CACHED, FAILED, NOT_RUN = "succeeded", "from the cache", "failed", "not run"
ENDED = (SUCCEEDED, CACHED, FAILED, NOT_RUN)

_TRIES = 20
_HANDLER = re.compile(r"exit-handler-\d+(\.onExit)?")
_UNSET = datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC)  # the service says 1970 for a time that is not yet
#: An entry without a name is a task that Argo's list does not have yet. If it began so long after the last one that has, the
#: list goes stale: the workflow is larger than Argo keeps plainly.
_STALE_AFTER = datetime.timedelta(seconds=60)


@dataclass(frozen=True)
class Planned:
    """A task of a compiled pipeline.

    Attributes:
        path: names of the nodes that it lies in, and its own, below the root.
        timeout: seconds that one try may take; 0: unknown.
    """

    path: tuple[str, ...]
    timeout: int = 0

    @property
    def label(self) -> str:
        """What people call it: its branch or stage, and its name."""
        return " ".join(part for part in self.path if not _HANDLER.fullmatch(part))


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task of a run, at some moment.

    Attributes:
        planned: which.
        state: one of the words above.
        attempts: how many pods it has had.
        seconds: that it took; None: it has not ended, or KFP does not tell.
        since: when its state began; None: unknown.
        node: id of the pod's node whose log has its words; empty: it has had none.
        last_try: seconds that the last pod lived; None: unknown.
    """

    planned: Planned
    state: str = WAITING
    attempts: int = 0
    seconds: float | None = None
    since: datetime.datetime | None = None
    node: str = ""
    last_try: float | None = None

    @property
    def label(self) -> str:
        """As of what was planned."""
        return self.planned.label


@dataclass(frozen=True)
class Tasks:
    """All tasks of a run in the order of the graph.

    Attributes:
        tasks: as far as KFP tells.
        stale: whether KFP's list has stopped, though the run goes on.
    """

    tasks: tuple[Task, ...]
    stale: bool

    def failed(self) -> list[Task]:
        """Those that failed."""
        return [task for task in self.tasks if task.state == FAILED]


def plan(pipeline: Mapping[str, Any], platform: Mapping[str, Any] | None = None) -> list[Planned]:
    """The tasks of a compiled pipeline in the order in which they can run.

    Args:
        pipeline, platform: the two documents of a package, in KFP's JSON.
    """
    components = pipeline.get("components", {})
    placed = (platform or {}).get("platforms", {}).get("kubernetes", {}).get("deploymentSpec", {}).get("executors", {})

    def walk(component: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[Planned]:
        tasks = component.get("dag", {}).get("tasks", {})
        for name in _ordered(tasks):
            task = tasks[name]
            inner = components[task["componentRef"]["name"]]
            exits = task.get("triggerPolicy", {}).get("strategy") == "ALL_UPSTREAM_TASKS_COMPLETED"
            below = (*path, *(f"{before}.onExit" for before in task.get("dependentTasks", ())[:1] if exits), name)
            if "dag" in inner:
                yield from walk(inner, below)
            else:
                given = placed.get(inner.get("executorLabel", ""), {})
                yield Planned(below, int(given.get("activeDeadlineSeconds") or 0))

    return list(walk(pipeline["root"], ()))


def _ordered(tasks: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Names of a DAG's tasks, each after those that it depends on; branches one after the other."""
    done: list[str] = []

    def visit(name: str) -> None:
        if name in done:
            return
        for before in tasks[name].get("dependentTasks", ()):
            visit(before)
        done.append(name)

    # What ends the pipeline depends on all; otherwise the order in which they were written down is the alphabet's.
    for name in sorted(tasks):
        visit(name)
    return done


def node_id(workflow: str, name: str) -> str:
    """The id that Argo gives to a node: 32 bits of FNV-1a of its full name."""
    if name == workflow:
        return workflow
    digest = 0x811C9DC5
    for byte in name.encode():
        digest = ((digest ^ byte) * 0x01000193) & 0xFFFFFFFF
    return f"{workflow}-{digest}"


@dataclass
class _Nodes:
    """The nodes of a run that KFP's answer knows of, found by their full names.

    Attributes:
        workflow: its name.
        known: ids that are somebody's child.
        names: id -> full name, of those that were looked for and are there.
        shown: full name -> display name.
    """

    workflow: str
    known: frozenset[str]
    names: dict[str, str] = field(default_factory=dict)
    shown: dict[str, str] = field(default_factory=dict)

    def find(self, prefixes: Iterable[str], name: str) -> tuple[list[str], list[str]]:
        """The nodes of a name below others: retry nodes (or the nodes themselves), and their tries, in their order."""
        nodes, tries = [], []
        for prefix in prefixes:
            base = f"{prefix}.{name}"
            if self._note(base, name):
                nodes.append(base)
            for number in range(_TRIES):
                if not self._note(f"{base}({number})", f"{name}({number})"):
                    break
                tries.append(f"{base}({number})")
        return nodes, tries

    def _note(self, full: str, name: str) -> bool:
        id = node_id(self.workflow, full)
        if id in self.known:
            self.names[id], self.shown[full] = full, name
        return id in self.known


def read(run: Any, planned: Sequence[Planned]) -> Tasks:
    """The tasks of a run, each once.

    Args:
        run: as KFP's API gives it.
        planned: of its pipeline.
    """
    entries = list((run.run_details and run.run_details.task_details) or ())
    named = [entry for entry in entries if entry.display_name]
    stale = _stale(entries, named)
    known = frozenset(child.pod_name for entry in named for child in entry.child_tasks or () if child.pod_name)
    workflows = {id.rpartition("-")[0] for id in known}
    # A run that was retried has one workflow, with nodes of both tries.
    found: list[Task] = []
    for task in planned:
        candidates = [_task(task, _Nodes(workflow, known), named) for workflow in workflows]
        best = max(candidates, key=lambda t: (t.state != WAITING, t.since or _UNSET), default=Task(planned=task))
        found.append(_by_name(best, named, planned) if best.state == WAITING else best)
    return Tasks(tuple(_settled(found, str(run.state or ""), stale)), stale)


def _stale(entries: Sequence[Any], named: Sequence[Any]) -> bool:
    newest = max((time for entry in named for time in (entry.start_time, entry.end_time) if time), default=None)
    unnamed = [entry.start_time for entry in entries if not entry.display_name and entry.start_time]
    return newest is not None and any(time - newest > _STALE_AFTER for time in unnamed)


def _task(planned: Planned, nodes: _Nodes, named: Sequence[Any]) -> Task:
    prefixes = [nodes.workflow, *(f"{nodes.workflow}({number})" for number in range(_TRIES))]
    for name in ("root", *planned.path[:-1]):
        at, tries = nodes.find(prefixes, name)
        prefixes = [*at, *tries]
    name = planned.path[-1]
    drivers, driver_tries = nodes.find(prefixes, f"{name}-driver")
    at, tries = nodes.find(prefixes, name)
    executors, pods = nodes.find([*at, *tries], "executor")
    entries = _entries(nodes, named)
    driver = _newest(entries, [*drivers, *driver_tries])
    node = _newest(entries, [*at, *tries])
    executor = _newest(entries, executors)
    last = (pods or executors or [""])[-1]
    if node is None or not node.state:
        if driver is None or not driver.state:
            return Task(planned=planned)
        failed = _is(driver, "FAILED")
        log = (driver_tries or drivers or [""])[-1]
        return Task(
            planned=planned,
            state=FAILED if failed else STARTING,
            since=_time(driver.end_time) if failed else _time(driver.start_time),
            node=node_id(nodes.workflow, log) if failed and log else "",
        )
    begun, ended = _time(node.start_time), _time(node.end_time)
    state = {"SUCCEEDED": SUCCEEDED, "FAILED": FAILED, "CANCELED": FAILED, "SKIPPED": NOT_RUN}.get(str(node.state), RUNNING)
    if state == SUCCEEDED and (_is(executor, "SKIPPED") or (begun == ended and begun is not None)):
        state = CACHED
    if state == RUNNING and _is_pending(executor or node, named):
        state = PENDING
    over = state in ENDED
    return Task(
        planned=planned,
        state=state,
        attempts=0 if state in (CACHED, NOT_RUN) else max(1, len(pods)),
        seconds=(ended - begun).total_seconds() if over and begun and ended and state != CACHED else None,
        since=ended if over else begun,
        node=node_id(nodes.workflow, last) if last else "",
        last_try=_last_try(executor, named) if state == FAILED else None,
    )


def _entries(nodes: _Nodes, named: Sequence[Any]) -> dict[str, Any]:
    """The entry of each node that can be told by its children: full name -> entry; of several the newest."""
    found: dict[str, Any] = {}
    for entry in named:
        for child in entry.child_tasks or ():
            full = nodes.names.get(child.pod_name or "")
            if full is None:
                continue
            without_try = re.sub(r"\(\d+\)$", "", full)
            parent = without_try if without_try != full else full.rpartition(".")[0]
            if nodes.shown.get(parent, parent.rpartition(".")[2]) == entry.display_name:
                before = found.get(parent)
                if before is None or (entry.start_time or _UNSET) >= (before.start_time or _UNSET):
                    found[parent] = entry
    return found


def _newest(entries: Mapping[str, Any], names: Iterable[str]) -> Any:
    there = [entries[name] for name in names if name in entries]
    return max(there, key=lambda entry: (bool(entry.state), entry.start_time or _UNSET), default=None)


def _by_name(task: Task, named: Sequence[Any], planned: Sequence[Planned]) -> Task:
    """What a name alone tells, where it is one task's: a driver without children yet, or one that failed."""
    name = task.planned.path[-1]
    if sum(other.path[-1] == name for other in planned) > 1:
        return task
    drivers = [entry for entry in named if entry.display_name == f"{name}-driver" and entry.state]
    driver = max(drivers, key=lambda entry: entry.start_time or _UNSET, default=None)
    if driver is None:
        return task
    state = FAILED if _is(driver, "FAILED") else STARTING
    return Task(planned=task.planned, state=state, since=_time(driver.start_time))


def _settled(tasks: Sequence[Task], run_state: str, stale: bool) -> Iterator[Task]:
    """What the state of the run says of tasks that its list leaves open: all have succeeded if it has; none goes on if it has
    ended."""
    for task in tasks:
        if task.state not in ENDED and run_state == "SUCCEEDED":
            yield Task(planned=task.planned, state=SUCCEEDED, attempts=task.attempts)
        elif task.state not in ENDED and run_state in ("FAILED", "CANCELED", "SKIPPED") and not stale:
            ended = task.state in (RUNNING, PENDING, STARTING)
            yield Task(planned=task.planned, state=FAILED if ended else NOT_RUN, attempts=task.attempts, node=task.node)
        else:
            yield task


def _is(entry: Any, state: str) -> bool:
    return entry is not None and str(entry.state) == state


def _is_pending(executor: Any, named: Sequence[Any]) -> bool:
    """Whether the pod of an executor waits: the pod's own entry is told by its name, and that it began with the executor."""
    return any(
        re.fullmatch(r"executor\(\d+\)", str(entry.display_name))
        and str(entry.state) == "PENDING"
        and entry.start_time
        and executor.start_time
        and abs((entry.start_time - executor.start_time).total_seconds()) <= 1
        for entry in named
    )


def _last_try(executor: Any, named: Sequence[Any]) -> float | None:
    """How long the last pod of an executor lived: the newest failed one within the executor's time."""
    if executor is None:
        return None
    begun, ended = _time(executor.start_time), _time(executor.end_time)
    if begun is None or ended is None:
        return None
    pods = [
        entry
        for entry in named
        if re.fullmatch(r"executor\(\d+\)", str(entry.display_name))
        and _is(entry, "FAILED")
        and entry.start_time
        and entry.end_time
        and begun <= entry.start_time <= ended
    ]
    last = max(pods, key=lambda entry: entry.start_time, default=executor)
    return float((last.end_time - last.start_time).total_seconds())


def _time(value: Any) -> datetime.datetime | None:
    return value if value is not None and value > _UNSET else None
