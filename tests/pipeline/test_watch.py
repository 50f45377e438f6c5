"""`rco wait` and `rco submit` as a person watches with them, over HTTP, against a stub that answers as KFP 2.17 does."""

from __future__ import annotations

import json
import re
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from pipelines.cli.main import main
from pipelines.cluster import pods
from pipelines.cluster import watch as watch_module
from pipelines.cluster.package import Package
from pipelines.cluster.service import Service
from pipelines.cluster.submit import Request, start, upload
from pipelines.cluster.tasks import Planned, Task, Tasks
from pipelines.compile import compile_to
from pipelines.display import Watching, task_table
from rco.config.shape import Shape
from rco.tracking.context import Context
from rco.tracking.model_run import ModelRun
from rco.tracking.record import Record
from rco.tracking.runs import open_parent
from rco.tracking.watched import Watched
from tests.kfp_stub import ENDLESS, FAILS, Fault, KfpStub, Script

REFUSED: Script = (("RUNNING", {"check": "RUNNING"}), ("FAILED", {"check": "FAILED", "train-teacher": "NOT_RUN"}))

pytestmark = pytest.mark.usefixtures("quick_and_alone")


def started(stub: KfpStub, path: Path) -> str:
    service, package = Service(stub.address), Package.read(path)
    request = Request(name="n", experiment="e", parameters={})
    return str(start(service, package, upload(service, package), request).run_id)


def rco(stub: KfpStub, command: str, *words: str) -> Result:
    return CliRunner().invoke(main, [command, "--endpoint", stub.address, *words])


def lines_of(done: Result) -> list[str]:
    return [re.sub(r"^\d\d:\d\d:\d\d  ", "", line) for line in done.output.splitlines()]


def test_a_failed_tasks_own_words_and_the_command_that_shows_its_log(stub: KfpStub, rco_yaml: Path) -> None:
    stub.script = REFUSED
    log = "rco | refused: teacher = 'nonsense': is not known. Choose another\nTraceback (most recent call last):\n"
    stub.logs = {"check": log}
    run = started(stub, rco_yaml)
    done = rco(stub, "wait", run)
    assert done.exit_code == 1
    told = "check: refused: teacher = 'nonsense': is not known. Choose another"
    assert done.output.count(told) == 1
    assert f"kubectl get pods -n kubeflow -l pipeline/runid={run} -o name" in done.output


@pytest.mark.parametrize("doubled", [True, False])
def test_the_words_are_those_of_the_last_try(stub: KfpStub, rco_yaml: Path, doubled: bool) -> None:
    stub.doubled = doubled
    stub.script = (("FAILED", {"check": "SUCCEEDED", "train-teacher": "FAILED*3", "close-run": "SUCCEEDED"}),)
    stub.logs = {"train-teacher": "RuntimeError: no room\n"}
    done = rco(stub, "wait", started(stub, rco_yaml))
    assert "train-teacher: failed after 2 min, 3 tries" in done.output
    assert "train-teacher: RuntimeError: no room" in done.output


def test_a_timeout_is_called_a_timeout(stub: KfpStub, tmp_path: Path) -> None:
    from pipelines.cluster.deployment import Deployment, TaskClass
    from pipelines.cluster.placement import Cluster

    site = Deployment(train=TaskClass(timeout="2m"))  # a pod of the stub lives 150 s
    stub.script = (("FAILED", {"check": "SUCCEEDED", "train-teacher": "FAILED*3"}),)
    run = started(stub, compile_to(tmp_path / "rco.yaml", Shape.of_run(1), Cluster(deployment=site)))
    assert "train-teacher: timed out: a try may take 2 min" in rco(stub, "wait", run).output


def test_many_failures_are_a_few_and_a_number(stub: KfpStub, comparison_yaml: Path) -> None:
    tasks = ("init-students", "select-anchors", "distill-students", "evaluate-students")
    failed = {f"branch-{branch}/{task}": "FAILED" for branch in ("kd", "lr-decay") for task in tasks}
    stub.script = (("FAILED", {"check": "SUCCEEDED", **failed}),)
    done = rco(stub, "wait", started(stub, comparison_yaml))
    assert "and 3 more tasks failed" in done.output
    assert len([line for line in done.output.splitlines() if "log: kubectl" in line]) == 5
    assert "branch-kd init-students: failed" in done.output


def test_a_branch_that_fails_while_others_go_on_says_why_at_once_and_once(stub: KfpStub, comparison_yaml: Path) -> None:
    kd, other = "branch-kd/init-students", "branch-lr-decay/init-students"
    going = ("RUNNING", {"check": "SUCCEEDED", kd: "FAILED", other: "RUNNING"})
    stub.script = (*[going] * 3, ("FAILED", {"check": "SUCCEEDED", kd: "FAILED", other: "SUCCEEDED"}))
    stub.logs = {kd: "RuntimeError: no room\n"}
    done = rco(stub, "wait", started(stub, comparison_yaml))
    lines = lines_of(done)
    told = lines.index("branch-kd init-students: RuntimeError: no room")
    assert told < lines.index("branch-lr-decay init-students: succeeded after 2 min")
    assert lines[told + 1].startswith("  log: kubectl logs ")
    assert done.output.count("RuntimeError: no room") == 1
    assert "branch-kd init-students: failed, its words are above" in done.output


def test_a_list_that_stops_is_said_once_and_the_run_is_watched_to_its_end(stub: KfpStub, rco_yaml: Path) -> None:
    going = ("RUNNING", {"check": "SUCCEEDED", "train-teacher": "RUNNING"})
    stub.script = (*[going] * 6, ("SUCCEEDED", going[1]))
    stub.freezes = 2
    done = rco(stub, "wait", started(stub, rco_yaml))
    assert done.exit_code == 0
    assert done.output.count("KFP's list of tasks has stopped") == 1
    assert "report: succeeded" in done.output


def test_a_failure_after_the_list_has_stopped(stub: KfpStub, rco_yaml: Path) -> None:
    going = ("RUNNING", {"check": "SUCCEEDED", "train-teacher": "RUNNING"})
    stub.script = (*[going] * 3, ("FAILED", going[1]))
    stub.freezes = 1
    run = started(stub, rco_yaml)
    done = rco(stub, "wait", run)
    assert done.exit_code == 1
    assert "which task failed is not known. KFP's list of tasks stopped when the workflow passed 1 MB" in done.output
    assert f"kubectl logs -n kubeflow -l pipeline/runid={run} -c main" in done.output


def test_kfp_tries_a_failed_run_again(stub: KfpStub, rco_yaml: Path) -> None:
    stub.script = FAILS
    stub.again = (*[FAILS[-1]] * 3, ("RUNNING", {"check": "SUCCEEDED", "train-teacher": "RUNNING"}), ("SUCCEEDED", {}))
    stub.logs = {"train-teacher": "RuntimeError: killed\n"}
    done = rco(stub, "wait", "--retry-failed", "2", started(stub, rco_yaml))
    assert done.exit_code == 0, done.output
    assert "train-teacher: RuntimeError: killed" in done.output
    assert done.output.count("is tried again (1 of 2)") == 1
    assert stub.asked("POST .*:retry") == 1


def test_it_gives_up_after_so_many_tries(stub: KfpStub, rco_yaml: Path) -> None:
    stub.script = stub.again = (("RUNNING", {"check": "RUNNING"}), FAILS[-1])
    done = rco(stub, "wait", "--retry-failed", "2", started(stub, rco_yaml))
    assert (done.exit_code, stub.asked("POST .*:retry")) == (1, 2)


def test_bad_input_is_not_tried_again(stub: KfpStub, rco_yaml: Path) -> None:
    stub.script, stub.logs = REFUSED, {"check": "rco | refused: tau = 0: is not above 0. Give more\n"}
    done = rco(stub, "wait", "--retry-failed", "2", started(stub, rco_yaml))
    assert (done.exit_code, stub.asked("POST .*:retry")) == (1, 0)
    assert "it is not tried again: its input cannot work" in done.output


def test_a_run_whose_workflow_was_cleaned_away_cannot_be_tried_again(stub: KfpStub, rco_yaml: Path) -> None:
    stub.script = FAILS
    stub.faults = [Fault(":retry", status=400, body={"code": 3, "message": "workflow not found"})]
    done = rco(stub, "wait", "--retry-failed", "1", started(stub, rco_yaml))
    assert done.exit_code == 1
    assert "it cannot be tried again" in done.output


def test_json_for_scripts(stub: KfpStub, rco_yaml: Path) -> None:
    stub.script, stub.logs = FAILS, {"train-teacher": "RuntimeError: x\n"}
    done = rco(stub, "submit", "--package", str(rco_yaml), "--json")
    assert done.exit_code == 1
    document = json.loads(done.stdout)
    assert (document["state"], document["terminated"], document["tasks_stale"]) == ("FAILED", False, False)
    tasks = {f"{t['within']} {t['task']}".strip(): t for t in document["tasks"]}
    assert tasks["check"] == {"task": "check", "within": "", "state": "succeeded", "attempts": 1, "seconds": 150.0}
    assert tasks["stage-2 select-anchors"]["state"] == "not run"
    (failure,) = document["failures"]
    assert (failure["task"], failure["words"]) == ("train-teacher", "RuntimeError: x")
    assert "train-teacher: running" not in done.stdout


def test_a_run_without_a_known_pipeline_is_watched_all_the_same(stub: KfpStub, rco_yaml: Path) -> None:
    run = started(stub, rco_yaml)
    stub.faults = [Fault(r"GET .*/versions/", status=404, body={"code": 5, "message": "gone"}, times=10)]
    done = rco(stub, "wait", run)
    assert (done.exit_code, lines_of(done)[1:]) == (0, ["the run succeeded"])


def test_a_large_workflow_is_warned_of(stub: KfpStub, rco_yaml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines.cluster import workflow

    assert "workflow grows" not in rco(stub, "submit", "--no-wait", "--package", str(rco_yaml)).output
    monkeypatch.setattr(workflow, "LARGEST", 100_000)
    done = rco(stub, "submit", "--no-wait", "--package", str(rco_yaml))
    assert re.search(r"workflow grows to some \d\.\d MB on KFP as it comes \(28 pods\)", done.output)
    assert "KFP's list of tasks stops; the run goes on" in done.output


# --- pods that do not start


def pod(phase: str = "Pending", *, condition: tuple[str, str] | None = None, waiting: tuple[str, str] | None = None) -> Any:
    conditions = (
        [SimpleNamespace(type="PodScheduled", status="False", reason=condition[0], message=condition[1])] if condition else None
    )
    state = SimpleNamespace(waiting=SimpleNamespace(reason=waiting[0], message=waiting[1])) if waiting else None
    statuses = [SimpleNamespace(state=state, image="i")] if waiting else None
    return SimpleNamespace(
        status=SimpleNamespace(phase=phase, conditions=conditions, container_statuses=statuses, init_container_statuses=None)
    )


def test_why_pods_wait() -> None:
    few = ("Unschedulable", "0/1 nodes are available: 1 Insufficient cpu.")
    back_off = ("ImagePullBackOff", 'Back-off pulling image "registry.example/rco"')
    found = [*pods.reasons([pod(condition=few), pod(condition=few), pod(waiting=back_off), pod("Running", waiting=back_off)])]
    assert found == [f"cannot be scheduled: {few[1]}", f"ImagePullBackOff: {back_off[1]}"]
    assert [*pods.reasons([pod(waiting=("ContainerCreating", "")), pod()])] == []


def test_kubernetes_that_cannot_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pods.ask("run", "kubeflow") is None


@pytest.mark.parametrize("reasons", [["cannot be scheduled: 1 Insufficient cpu"], [], None])
def test_a_pod_that_waits_is_told_of(
    stub: KfpStub, rco_yaml: Path, monkeypatch: pytest.MonkeyPatch, reasons: list[str] | None
) -> None:
    monkeypatch.setattr(watch_module, "_PENDING_AFTER", 0.05)
    monkeypatch.setattr(pods, "ask", lambda run_id, namespace: reasons)
    waits = ("RUNNING", {"check": "SUCCEEDED", "train-teacher": "WAITING"})
    stub.script = (*[waits] * 12, ("SUCCEEDED", {"check": "SUCCEEDED", "train-teacher": "SUCCEEDED"}))
    run = started(stub, rco_yaml)
    done = rco(stub, "wait", run)
    (line,) = [line for line in lines_of(done) if "has not started" in line]
    assert line.startswith("train-teacher: the pod has not started for")
    assert (reasons[0] if reasons else f"kubectl describe pods -n kubeflow -l pipeline/runid={run} says why") in line


# --- MLflow


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


DATA = {"name": "digits", "source": "digits", "digest": "d" * 64, "num_classes": 10, "sizes": {"train": 3}}


def opened(uri: str, run: str) -> Context:
    context = Context(tracking_uri=uri, pipeline_run=run, artifact_root="file:///tmp/unused")
    open_parent(context, "watched", run, {})
    return context


def statuses(context: Context) -> list[str]:
    client = context.client()
    ids = [e.experiment_id for e in client.search_experiments()]
    found = client.search_runs(ids, f"tags.`rco.pipeline_run` = '{context.pipeline_run}'")
    return sorted(run.info.status for run in found)


def test_stages_and_accuracies_come_from_mlflow(mlflow: str) -> None:
    context = opened(mlflow, "stages")
    watched, client = Watched(context), context.client()
    teacher = Record(key="teacher", params={}, data=dict(DATA))
    teacher.add(1, {"val_accuracy": 0.9})
    ModelRun.open(context, client, teacher).end()
    student = Record(key="kd/seed-0", params={}, data=dict(DATA))
    student.add(1, {"stage": 1, "val_accuracy": 0.5})
    run = ModelRun.open(context, client, student)
    client.set_tag(run.run_id, "rco.anchor.12", "m-1")
    assert watched.news() == [
        "teacher: trained, validation accuracy 90.00 %",
        "kd/seed-0: learns from the anchor of epoch 12",
    ]
    assert watched.news() == []
    for step, stage, accuracy in ((2, 1, 0.625), (3, 2, 0.6)):
        run.epochs.add(student.add(step, {"stage": stage, "val_accuracy": accuracy}))
    run.epochs.send()
    client.set_tag(run.run_id, "rco.anchor.40", "m-2")
    assert watched.news() == [
        "kd/seed-0: learns from the anchor of epoch 40",
        "kd/seed-0: stage 1 ended, validation accuracy 62.50 %",
    ]
    run.end()
    assert watched.news() == ["kd/seed-0: stage 2 ended, validation accuracy 60.00 %"]
    assert Watched(Context(tracking_uri=mlflow, pipeline_run="unknown")).news() == []


def test_mlflow_that_does_not_answer_is_said_once(stub: KfpStub, rco_yaml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def away() -> list[str]:
        raise ConnectionError("secret")

    monkeypatch.setattr(watch_module, "figures_of", lambda run_id: away)
    done = rco(stub, "wait", started(stub, rco_yaml))
    assert done.exit_code == 0
    assert done.output.count("MLflow does not answer here (ConnectionError)") == 1
    assert "secret" not in done.output


def test_what_was_terminated_is_ended_in_mlflow(
    stub: KfpStub, rco_yaml: Path, mlflow: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow)
    stub.script = ENDLESS
    run, other = started(stub, rco_yaml), started(stub, rco_yaml)
    mine, theirs = opened(mlflow, run), opened(mlflow, other)
    done = rco(stub, "submit", "--terminate", run)
    assert done.exit_code == 1, "a run that was ended has not succeeded"
    assert "MLflow: 1 run of it had not ended: KILLED now" in done.output
    assert "the run was terminated" in done.output
    assert (statuses(mine), statuses(theirs)) == (["KILLED"], ["RUNNING"])
    assert stub.asked("POST .*/runs$") == 2, "nothing was submitted"
    done = rco(stub, "submit", "--terminate", run)
    assert "the run had ended as FAILED" in done.output
    assert stub.asked("terminate") == 1


def test_nothing_is_ended_while_a_run_goes_on(
    stub: KfpStub, rco_yaml: Path, mlflow: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow)
    stub.script = ENDLESS
    run = started(stub, rco_yaml)
    context = opened(mlflow, run)
    assert rco(stub, "wait", "--timeout", "0.1s", run).exit_code == 4
    assert statuses(context) == ["RUNNING"]


def test_a_run_that_succeeded_is_finished_in_mlflow_whatever_its_exit_task_saw(
    stub: KfpStub, rco_yaml: Path, mlflow: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rco.tracking.runs import end_open_runs

    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow)
    run = started(stub, rco_yaml)
    context = opened(mlflow, run)
    end_open_runs(context, "FAILED")
    assert rco(stub, "wait", run).exit_code == 0
    assert statuses(context) == ["FINISHED"]


def test_without_mlflows_address_it_is_said(stub: KfpStub, rco_yaml: Path) -> None:
    stub.script = ENDLESS
    done = rco(stub, "submit", "--terminate", started(stub, rco_yaml))
    assert "MLFLOW_TRACKING_URI is not set here: MLflow may show runs of it as running" in done.output


# --- the table


def made(label: str, state: str, **more: Any) -> Task:
    return Task(planned=Planned(tuple(label.split())), state=state, **more)


def test_a_table_in_a_terminal() -> None:
    out = StringIO()
    console = Console(file=out, force_terminal=True, width=100, height=40)
    tasks = Tasks(
        (made("check", "succeeded", attempts=1, seconds=75.0), made("branch-kd distill-students", "running", attempts=2)), False
    )
    with Watching(console) as watching:
        watching.draw(tasks)
        watching.show("branch-kd distill-students: running, try 2")
    text = out.getvalue()
    assert "branch-kd" in text
    assert "1:15" in text
    assert "from the cache" not in text


def test_a_table_shows_what_there_is_room_for() -> None:
    rows = (
        [made(f"t{k}", "succeeded") for k in range(30)]
        + [made("now", "running")]
        + [made(f"w{k}", "waiting") for k in range(30)]
    )
    out = StringIO()
    Console(file=out, width=100).print(task_table(Tasks(tuple(rows), False), 5))
    text = out.getvalue()
    assert "now" in text
    assert "and 57 more" in text


def test_lines_where_nobody_watches() -> None:
    out = StringIO()
    with Watching(Console(file=out, highlight=False, soft_wrap=True)) as watching:
        watching.draw(Tasks((made("check", "running"),), False))
        watching.show("check: running")
    assert re.fullmatch(r"\d\d:\d\d:\d\d  check: running\n", out.getvalue())


def test_a_log_that_is_a_web_page_or_refused_is_no_words(stub: KfpStub, rco_yaml: Path) -> None:
    stub.script = REFUSED
    run = started(stub, rco_yaml)
    for fault, told in (
        (Fault("/log", status=200, body="<html>sign in</html>", times=9), "its log cannot be read"),
        (Fault("/log", status=403, body={"message": "no"}, times=9), "its log cannot be read"),
    ):
        stub.faults = [fault]
        assert told in rco(stub, "wait", run).output
