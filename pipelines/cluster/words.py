"""A failed task's own words, out of the log of its pod."""

from __future__ import annotations

import re
from collections.abc import Callable

from pipelines.cluster.service import Service, ServiceError
from pipelines.cluster.tasks import Task
from rco.core.errors import printable
from rco.core.marks import DIED, DIVERGED, FULL, PREFIX, REFUSED

_LONGEST = 600
_OURS = re.compile(rf"{re.escape(PREFIX)}((?:{REFUSED}|{DIVERGED}|{FULL}|{DIED}).*)")
_RAISED = re.compile(r"(?P<kind>[A-Za-z_][\w.]*(?:Error|Exception|Interrupt|Exit)): (?P<text>.*)")
_FOR_PEOPLE = ("InputError", "DivergenceError", "DiskFullError", "ProcessDiedError")
_LAUNCHER = re.compile(r"[IWEF]\d{4} \d\d:\d\d:\d\d\.\d+ ")  # what KFP's own programs write
_GONE = "its log is gone: KFP deletes a workflow and its pods some time after the end"


def words_of(log: str) -> str:
    """The line of a log that says why a task failed; empty: none does."""
    lines = [line.strip() for line in log.splitlines()]
    for line in reversed(lines):
        if match := _OURS.search(line):
            return _short(match[1])
    for line in reversed(lines):
        if match := _RAISED.fullmatch(line):
            kind = match["kind"].rpartition(".")[2]
            return _short(match["text"] if kind in _FOR_PEOPLE else f"{kind}: {match['text']}")
    own = [line for line in lines if line and not _LAUNCHER.match(line)]
    theirs = [line for line in lines if line.startswith("F")]
    return _short((own or theirs or [""])[-1])


def refused(words: str) -> bool:
    """Whether a task says that its input cannot work: trying again would not help."""
    return words.startswith(REFUSED)


def why(task: Task, fetch: Callable[[str], str], *, duration: Callable[[float], str]) -> str:
    """Why a task failed, as far as can be told.

    Args:
        fetch: the log of a node; raises ServiceError.
        duration: seconds in words.
    """
    timeout = task.planned.timeout
    if timeout and task.last_try is not None and task.last_try >= timeout:
        return f"timed out: a try may take {duration(timeout)} (timeout of its class in the deployment file)"
    if not task.node:
        return "no pod of it has run"
    try:
        return words_of(fetch(task.node)) or "its log is empty"
    except ServiceError as error:
        return _GONE if error.status in (400, 404, 500) else f"its log cannot be read ({error})"


def log_command(namespace: str, run_id: str, node: str) -> str:
    """The command that shows a task's log; without a node, the logs of all tasks of the run."""
    where, run = f"-n {namespace or 'kubeflow'}", f"-l pipeline/runid={run_id}"
    if not node:
        return f"kubectl logs {where} {run} -c main --tail=-1"
    # The number at the end of a node's id is at the end of its pod's name as well; between them is what KFP calls a template.
    number = node.rpartition("-")[2]
    return f"kubectl logs {where} $(kubectl get pods {where} {run} -o name | grep -- -{number}$) -c main"


def fetcher(service: Service, run_id: str) -> Callable[[str], str]:
    """Fetches logs of a run's nodes."""
    return lambda node: service.log(run_id, node)


def _short(text: str) -> str:
    text = printable(" ".join(text.split()))
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
