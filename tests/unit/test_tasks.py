"""The tasks of a run, made of what a real KFP 2.17 said of its nodes (tests/recorded)."""

from __future__ import annotations

import functools
import gzip
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import kfp_server_api
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pipelines.cluster.tasks import Planned, Task, Tasks, node_id, plan, read
from pipelines.cluster.watch import describe, duration, planned_of, progress, was_terminated
from pipelines.cluster.words import words_of

RECORDED = Path(__file__).parents[1] / "recorded"
STAGES = [f"stage-{k} {task}" for k in range(1, 5) for task in ("select-anchor", "distill-stage")]
RUN = ["check", "prepare-data", "init-student", "train-teacher", *STAGES, "evaluate", "register-student", "report", "close-run"]


def recorded(name: str) -> Any:
    """A run as KFP's client gives it."""
    text = (RECORDED / f"{name}.json").read_text()
    return kfp_server_api.ApiClient().deserialize(SimpleNamespace(data=text), "V2beta1Run")


@functools.cache
def planned(name: str) -> list[Planned]:
    documents = yaml.load_all(
        gzip.decompress((RECORDED / f"{name}-81e6d13.yaml.gz").read_bytes()),
        Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader),
    )
    return plan(*documents)


def states(name: str, pipeline: str = "run") -> dict[str, str]:
    return {task.label: describe(task) for task in read(recorded(name), planned(pipeline)).tasks}


def test_each_task_once_in_the_order_of_the_graph() -> None:
    assert [task.label for task in planned("run")] == RUN
    labels = [task.label for task in planned("comparison")]
    assert len(labels) == len(set(labels)) == 35
    assert labels[:3] == ["check-comparison", "prepare-data", "train-teacher"]
    assert labels[3:7] == [f"branch-1 {task}-students" if task != "select" else "branch-1 select-anchors"
                           for task in ("init", "select", "distill", "evaluate")]  # fmt: skip
    assert labels[-2:] == ["report-comparison", "close-run"]


@pytest.mark.parametrize("name", ["failed-in-check", "from-the-cache", "terminated", "list-stale", "pod-invalid", "canceling"])
def test_nothing_else_is_listed(name: str) -> None:
    assert list(states(name)) == RUN


def test_ids_are_those_of_argo() -> None:
    run = recorded("failed-in-check")
    known = {child.pod_name for entry in run.run_details.task_details for child in entry.child_tasks or ()}
    workflow = "route-constrained-optimization-fv4s7"
    full = f"{workflow}(0).root(0).exit-handler-1(0).check(0).executor(0)"
    assert node_id(workflow, full) == f"{workflow}-1784986493" in known
    assert node_id(workflow, workflow) == workflow


def test_a_failed_check() -> None:
    found = states("failed-in-check")
    assert found["check"] == "failed after 20 s"
    assert found["close-run"] == "succeeded after 10 s"
    assert {state for label, state in found.items() if label not in ("check", "close-run")} == {"not run"}
    (failed,) = read(recorded("failed-in-check"), planned("run")).failed()
    assert failed.node == "route-constrained-optimization-fv4s7-1784986493"


def test_its_words_are_in_the_log() -> None:
    words = words_of((RECORDED / "failed-in-check.log").read_text())
    assert words.startswith("teacher = 'nonsense': is not known. Name a torchvision classifier")


def test_what_came_from_the_cache_is_called_so() -> None:
    found = states("from-the-cache")
    ran = {label for label, state in found.items() if state != "from the cache"}
    assert ran == {"check", "register-student", "report", "close-run"}
    assert found["report"] == "succeeded after 21 s"


def test_tries_and_timeouts_without_kfps_defaults() -> None:
    found = read(recorded("failed-after-timeouts"), planned("run"))
    (failed,) = found.failed()
    assert (failed.label, failed.attempts, failed.last_try) == ("train-teacher", 3, 42.0)
    assert describe(failed) == "failed after 3 min, 3 tries"
    assert failed.node.endswith("-2285844523")  # of executor(2)
    assert states("failed-after-timeouts")["prepare-data"] == "from the cache"


def test_a_run_that_was_tried_again_and_terminated() -> None:
    run = recorded("terminated")
    assert (run.state, was_terminated(run)) == ("FAILED", True)
    found = states("terminated")
    assert found["check"] == "succeeded after 20 s"
    assert found["stage-1 distill-stage"] == "from the cache"
    assert found["stage-2 select-anchor"] == "not run"
    assert found["close-run"] == "failed"
    assert not was_terminated(recorded("failed-in-check"))


def test_a_driver_that_failed_is_its_tasks_failure() -> None:
    found = read(recorded("pod-invalid"), planned("run"))
    assert [task.label for task in found.failed()] == ["init-student", "train-teacher"]
    assert all(task.node for task in found.failed())


@pytest.mark.parametrize(("name", "pipeline"), [("list-stale", "run"), ("comparison-list-stale", "comparison")])
def test_a_list_that_stopped(name: str, pipeline: str) -> None:
    run = recorded(name)
    found = read(run, planned(pipeline))
    assert found.stale
    # The run has succeeded, so all its tasks have; how long those took that the list forgot is not known.
    assert {task.state for task in found.tasks} == {"succeeded"}
    last = found.tasks[-1]
    assert (last.label, last.seconds) == ("close-run", None)
    run.state = "RUNNING"
    going_on = {task.label: task.state for task in read(run, planned(pipeline)).tasks}
    assert going_on["close-run"] == "waiting"
    assert going_on["train-teacher"] == "succeeded"


def test_a_list_that_goes_on_is_not_stale() -> None:
    for name in ("failed-in-check", "from-the-cache", "failed-after-timeouts", "terminated", "canceling"):
        assert not read(recorded(name), planned("run")).stale


def test_branches_are_told_apart() -> None:
    run = recorded("comparison-list-stale")
    run.state = "RUNNING"
    found = {task.label: task.state for task in read(run, planned("comparison")).tasks}
    pending = [label for label, state in found.items() if state == "waits for its pod"]
    assert pending == [f"branch-{k} init-students" for k in range(1, 6)]
    assert found["branch-6 init-students"] == "starting"


def test_progress_is_a_line_for_each_change() -> None:
    seen: dict[str, tuple[str, int]] = {}
    task = Planned(("exit-handler-1", "stage-1", "distill-students"))

    def lines(**now: Any) -> list[str]:
        return progress(Tasks((Task(planned=task, **now),), False), seen)

    assert lines() == []
    assert lines(state="running", attempts=1) == ["stage-1 distill-students: running"]
    assert lines(state="running", attempts=1) == []
    assert lines(state="waits for its pod", attempts=2) == []
    assert lines(state="running", attempts=2) == ["stage-1 distill-students: running, try 2"]
    ended = "stage-1 distill-students: succeeded after 1 h 05 min, 2 tries"
    assert lines(state="succeeded", attempts=2, seconds=3900.0) == [ended]


def test_a_run_of_which_nothing_is_known_yet() -> None:
    run = recorded("failed-in-check")
    run.run_details, run.state = None, "PENDING"
    assert {task.state for task in read(run, planned("run")).tasks} == {"waiting"}
    assert read(run, []).tasks == ()


def test_the_pipeline_of_a_run_may_be_in_the_run() -> None:
    run = recorded("failed-in-check")
    spec = json.loads(json.dumps({"root": {"dag": {"tasks": {"a": {"componentRef": {"name": "c"}}}}}, "components": {"c": {}}}))
    for given_ in (spec, {"pipeline_spec": spec, "platform_spec": {}}):
        run.pipeline_spec = given_
        assert [task.label for task in planned_of(None, run)] == ["a"]  # type: ignore[arg-type]
    run.pipeline_spec = {"root": 3}
    assert planned_of(None, run) == []  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("log", "words"),
    [
        ("x\nrco | refused: tau = 0: is not. Give more\nTraceback\nValueError: y\n", "refused: tau = 0: is not. Give more"),
        ("rco | diverged: epoch 3\nrco.core.errors.DivergenceError: longer\n", "diverged: epoch 3"),
        ("Traceback\nrco.core.errors.InputError: a = 1: b. c\nF1128 04:44:46.290640 16 main.go:59] failed\n", "a = 1: b. c"),
        ("torch.OutOfMemoryError: no memory left\nI1128 04:44:46.240159 16 x.go] y\n", "OutOfMemoryError: no memory left"),
        ("half a line\n", "half a line"),
        ("F1128 04:44:46.290640 16 main.go:59] failed to execute component: exit status 1\n",
         "F1128 04:44:46.290640 16 main.go:59] failed to execute component: exit status 1"),
        ("", ""),
        ("ValueError: \x1b[2J" + "x" * 5000, "ValueError: \\x1b[2J" + "x" * 578 + "..."),
    ],
)  # fmt: skip
def test_words(log: str, words: str) -> None:
    assert words_of(log) == words


@given(st.text())
def test_any_log_has_one_short_line(log: str) -> None:
    words = words_of(log)
    assert len(words) <= 600
    assert words.isprintable()


def test_durations() -> None:
    assert [duration(s) for s in (0, 59, 60, 3600, 3660)] == ["0 s", "59 s", "1 min", "1 h 00 min", "1 h 01 min"]
