"""The real pipeline, run locally through KFP on real digits: every strategy, the cache, failures, interruptions, MLflow.

One home for all of them, so that the teacher is trained once and the rest comes from the cache, as it would for a user.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.local import RunFailedError, _interruptible, run
from rco.config.parameters import RunConfig
from rco.core.files import sha256_of
from rco.core.tensors import load_arrays
from rco.tracking.context import Context
from rco.tracking.record import Record
from tests.hostile import hostile_pickle, with_record

TINY = {
    "teacher": "digits-cnn-s",
    "student": "digits-mlp",
    "teacher_epochs": 6,
    "teacher_milestones": [2, 4],
    "checkpoint_every": 1,
    "epochs": 6,
    "n_anchors": 3,
    "threads": 1,
    "workers": 0,
}


class Ran:
    """One run of the pipeline and what it said."""

    def __init__(self, home: Path, **parameters: Any) -> None:
        self.lines: list[str] = []
        self.home = home
        self.summary = run({**TINY, **parameters}, home, show=self.lines.append)

    @property
    def cached(self) -> set[str]:
        return {line.split(":")[0] for line in self.lines if "taken from the cache" in line}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def first(home: Path) -> Ran:
    return Ran(home, strategy="equal-interval")


def client(home: Path) -> Any:
    import mlflow

    uri = f"sqlite:///{home}/mlflow.db"
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    return mlflow.MlflowClient(uri)


def runs_of(home: Path, summary: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The parent run and its children by key."""
    c = client(home)
    parent = c.get_run(summary["parent_run_id"])
    children = c.search_runs([parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    return parent, {child.data.tags["rco.key"]: child for child in children}


def statuses(home: Path) -> set[str]:
    c = client(home)
    return {r.info.status for e in c.search_experiments() for r in c.search_runs([e.experiment_id])}


class TestFirstRun:
    def test_summary_has_every_figure(self, first: Ran) -> None:
        summary = json.loads((first.home / "last-run" / "summary.json").read_text())
        assert summary == first.summary
        assert [s["stage"] for s in summary["stages"]] == [1, 2, 3]
        assert [s["anchor_epoch"] for s in summary["stages"]] == [2, 4, 6]
        for stage in summary["stages"]:
            assert 0 <= stage["val_accuracy"] <= 1
            assert stage["kl_to_anchor"] > 0
            assert stage["kl_to_teacher"] > 0
            assert stage["reason"]
        # In the last stage the anchor is the teacher.
        assert summary["stages"][-1]["kl_to_anchor"] == summary["stages"][-1]["kl_to_teacher"]
        for role in ("teacher", "student"):
            assert summary[role]["accuracy"] > 0.3
            assert summary[role]["parameters"] > 0
            assert summary[role]["macs"] > 0
            assert summary[role]["latency_ms"] > 0
        assert summary["tracking_uri"].startswith("sqlite:///")

    def test_pictures_page_and_student_are_there(self, first: Ran) -> None:
        folder = first.home / "last-run"
        for name in ("route", "student", "hardness", "confusion"):
            assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "converged" not in (folder / "report.html").read_text()[:200]
        assert "| 3 | 6 |" in (folder / "report.md").read_text()
        from rco.models.spec import load_network

        assert load_network(folder / "student" / "student.safetensors")

    def test_mlflow_has_a_parent_a_child_per_model_and_one_axis(self, first: Ran) -> None:
        parent, children = runs_of(first.home, first.summary)
        assert set(children) == {"teacher", "student"}
        assert {r.info.status for r in (parent, *children.values())} == {"FINISHED"}
        assert parent.data.metrics["student_test_accuracy"] == first.summary["student"]["accuracy"]
        c = client(first.home)
        history = c.get_metric_history(children["student"].info.run_id, "val_accuracy")
        assert [m.step for m in history] == [1, 2, 3, 4, 5, 6]
        stages = c.get_metric_history(children["student"].info.run_id, "stage")
        assert [m.value for m in stages] == [1, 1, 2, 2, 3, 3]
        assert children["student"].data.params["objective.tau"] == "4.0"
        (dataset,) = children["student"].inputs.dataset_inputs
        assert dataset.dataset.name == "digits"
        assert first.summary["dataset"]["digest"].startswith(dataset.dataset.digest)
        assert {a.path for a in c.list_artifacts(parent.info.run_id, "report")} >= {"report/report.html", "report/route.png"}

    def test_every_anchor_is_a_logged_model_that_loads(self, first: Ran) -> None:
        import mlflow

        import rco

        parent, _ = runs_of(first.home, first.summary)
        c = client(first.home)
        anchors = c.search_logged_models([parent.info.experiment_id], "model_type = 'anchor'")
        by_epoch = {int(m.tags["rco.epoch"]): m for m in anchors}
        assert set(by_epoch) >= {2, 4, 6}
        for stage in first.summary["stages"]:
            model = by_epoch[stage["anchor_epoch"]]
            assert model.tags["rco.sha256"] == stage["anchor_sha256"]
            assert any(m.key == "anchor_val_accuracy" and m.step == stage["anchor_epoch"] for m in model.metrics)
            folder = Path(mlflow.artifacts.download_artifacts(f"models:/{model.model_id}"))
            assert sha256_of(folder / "anchor.safetensors") == stage["anchor_sha256"]
            module = rco.load(f"models:/{model.model_id}", tracking_uri=f"sqlite:///{first.home}/mlflow.db")
            assert not module.training
            assert all(p.shape for p in module.parameters())

    def test_registered_student_answers_without_pickle(self, first: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", raising=False)
        import mlflow

        Context(tracking_uri=f"sqlite:///{first.home}/mlflow.db", pipeline_run="").client()  # it is this that sets it
        name, version = first.summary["registered"]["name"], first.summary["registered"]["version"]
        served = mlflow.pyfunc.load_model(f"models:/{name}/{version}")
        assert served.metadata.signature.inputs.inputs[0].shape == (-1, 1, 8, 8)
        assert served.input_example is not None
        import torch

        from rco.models.spec import load_network

        pixels = np.random.default_rng(0).random((5, 1, 8, 8), dtype=np.float32)
        eager = load_network(first.home / "last-run" / "student" / "student.safetensors")
        (example,) = (first.home / "pipeline").rglob("example.safetensors")
        arrays, _ = load_arrays(example)
        with torch.inference_mode():
            expected = eager(torch.from_numpy((pixels - arrays["mean"]) / arrays["std"])).numpy()
        np.testing.assert_allclose(served.predict(pixels), expected, atol=1e-4)

    def test_a_registered_student_that_somebody_changed_is_refused(
        self, first: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", raising=False)
        import mlflow

        Context(tracking_uri=f"sqlite:///{first.home}/mlflow.db", pipeline_run="").client()  # it is this that sets it
        name, version = first.summary["registered"]["name"], first.summary["registered"]["version"]
        folder = Path(mlflow.artifacts.download_artifacts(f"models:/{name}/{version}", dst_path=str(tmp_path)))
        (program,) = folder.rglob("*.pt2")
        whole, canary = program.read_bytes(), tmp_path / "owned"
        for part in ("sample_inputs", "weight_0"):
            pickled = with_record(whole, part, hostile_pickle(canary))
            config = json.dumps({"config": {"x": {"path_name": "weight_0", "use_pickle": True, "is_param": True}}})
            program.write_bytes(with_record(pickled, "model_weights_config", config.encode()))
            with pytest.raises(mlflow.exceptions.MlflowException, match="pickle"):
                mlflow.pyfunc.load_model(str(folder))
        assert not canary.exists()


def test_second_run_trains_nothing_and_shows_everything(first: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    # A fixed name of the image would hide edits of the code from the local cache: it counts on clusters only.
    monkeypatch.setenv("RCO_IMAGE", "registry.example/rco:fixed")
    second = Ran(first.home, strategy="equal-interval")
    assert {"prepare-data", "train-teacher", "init-student", "distill-stage", "evaluate"} <= second.cached
    assert second.summary["stages"] == first.summary["stages"]
    assert second.summary["parent_run_id"] != first.summary["parent_run_id"]
    assert second.summary["registered"] == first.summary["registered"], "the same weights are not registered twice"
    (parent, children), (_, originals) = (runs_of(first.home, r.summary) for r in (second, first))
    assert set(children) == {"teacher", "student"}
    assert parent.info.status == "FINISHED"
    assert set(parent.data.tags["reused_from"].split(",")) == {r.info.run_id for r in originals.values()}
    c = client(first.home)
    for key, child in children.items():
        assert child.data.tags["reused_from"] == originals[key].info.run_id
        for metric in ("loss", "val_accuracy"):
            ours, theirs = (c.get_metric_history(r.info.run_id, metric) for r in (child, originals[key]))
            assert [(m.step, m.value, m.timestamp) for m in ours] == [(m.step, m.value, m.timestamp) for m in theirs]
    anchors = c.search_logged_models([parent.info.experiment_id], "model_type = 'anchor'")
    shas = [m.tags["rco.sha256"] for m in anchors]
    assert len(shas) == len(set(shas)), "no anchor is uploaded twice"


@pytest.mark.parametrize(
    ("parameters", "epochs"),
    [
        ({"strategy": "lr-decay"}, [2, 4, 6]),
        ({"strategy": "explicit", "anchor_epochs": [3, 6]}, [3, 6]),
        ({"strategy": "greedy", "delta": 1000.0}, [1, 6]),
    ],
)
def test_every_strategy_walks_the_same_teachers_route(first: Ran, parameters: dict[str, Any], epochs: list[int]) -> None:
    ran = Ran(first.home, **parameters)
    assert "train-teacher" in ran.cached
    assert [s["anchor_epoch"] for s in ran.summary["stages"]] == epochs
    assert ran.summary["stages"][-1]["last_epoch"] == TINY["epochs"], "all of the student's epochs are used"
    _, children = runs_of(first.home, ran.summary)
    history = client(first.home).get_metric_history(children["student"].info.run_id, "loss")
    assert [m.step for m in history] == list(range(1, 7))


def test_another_objective_walks_the_same_teachers_route_and_logs_its_parts(first: Ran) -> None:
    ran = Ran(
        first.home, strategy="explicit", anchor_epochs=[3, 6], objective="hint", student_tap="2", teacher_tap="input:classifier"
    )
    assert {"train-teacher", "init-student"} <= ran.cached
    assert [s["anchor_epoch"] for s in ran.summary["stages"]] == [3, 6]
    _, children = runs_of(first.home, ran.summary)
    assert children["student"].data.params["objective.objective"] == "hint"
    history = client(first.home).get_metric_history(children["student"].info.run_id, "hint_loss")
    assert [m.step for m in history] == list(range(1, 7))


def test_warm_tasks_and_cold_ones_train_the_same_weights(first: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = {"strategy": "explicit", "anchor_epochs": [6], "registered_model": "", "threads": 2}
    weights = {}
    for switch, home in (("1", first.home), ("0", tmp_path)):
        monkeypatch.setenv("RCO_WARM", switch)
        ran = Ran(home, **parameters)
        (log,) = (p for p in (home / "runs").glob("*/pipeline.log") if p.parent.name in ran.lines[0])
        by_a_shell = re.search(r"/tmp\.\w+/ephemeral_component", log.read_text())  # whose mktemp has a dot in its names
        assert bool(by_a_shell) == (switch == "0"), "each starts its tasks in its own way"
        (stage,) = ran.summary["stages"]
        weights[switch] = stage["anchor_sha256"], sha256_of(home / "last-run" / "student" / "student.safetensors")
    assert weights["0"] == weights["1"]


def test_a_route_that_exists_is_used_without_training(first: Ran, tmp_path: Path) -> None:
    (manifest,) = (
        p for p in (first.home / "pipeline").rglob("manifest.json") if (p.parent / "epoch-0006.safetensors").exists()
    )
    ran = Ran(tmp_path / "elsewhere", strategy="explicit", anchor_epochs=[6], route=str(manifest.parent))
    assert not any("teacher digits-cnn-s: epoch" in line for line in ran.lines)
    assert ran.summary["teacher"]["accuracy"] == first.summary["teacher"]["accuracy"]
    assert len(ran.summary["stages"]) == 1


def test_bad_input_is_one_paragraph_and_nothing_starts(home: Path, first: Ran) -> None:
    command = [sys.executable, "-m", "pipelines.cli", "run", "--home", str(home)]
    for flags, words in (
        (["--tau", "0"], "tau = 0.0: must be"),
        (["--student", "digits-cn"], "student = 'digits-cn'"),
        (["--dataset", "digitz"], "dataset = 'digitz'"),
        (["--n-anchors", "50", "--strategy", "equal-interval"], "n_anchors = 50: is more than the 11 checkpoints"),
    ):
        before = sorted(p.name for p in (home / "pipeline").iterdir())
        done = subprocess.run([*command, *flags], capture_output=True, text=True, check=False)
        assert done.returncode == 2, done.stderr
        assert words in done.stderr
        assert "Traceback" not in done.stdout + done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
        assert sorted(p.name for p in (home / "pipeline").iterdir()) == before


FACTORY = """
import torch
class Net(torch.nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.layer = torch.nn.Linear(64, num_classes)
    def forward(self, x):
        {trap}
        return self.layer(x.flatten(1))
"""


def test_bad_input_that_only_a_task_can_find_is_one_paragraph_too(home: Path, first: Ran, tmp_path: Path) -> None:
    from PIL import Image

    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(6):
            Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)).save(tmp_path / name / f"{i}.png")
    (tmp_path / "dog" / "3.png").write_bytes(b"no picture")
    command = [sys.executable, "-m", "pipelines.cli", "run", "--home", str(home), "--dataset", str(tmp_path)]
    done = subprocess.run(
        [*command, "--teacher", "digits-cnn-s", "--student", "digits-mlp"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert "dog/3.png" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert "RUNNING" not in statuses(home)


def test_no_password_of_a_tracking_server_reaches_a_report(first: Ran, tmp_path: Path) -> None:
    from rco.models.route import Route
    from rco.reporting import report

    root = first.home / "pipeline"
    evaluation = next(root.rglob("evaluation.json"))
    student = first.home / "last-run" / "student"
    report.write(
        tmp_path,
        parameters=RunConfig.from_flat(TINY).to_flat(),
        index=Route.open(next(p.parent for p in root.rglob("route_index/manifest.json"))),
        student=Record.read(student),
        student_logits=load_arrays(student / "probe.safetensors")[0]["logits"],
        evaluation=json.loads(evaluation.read_text()),
        registered={},
        context=Context(tracking_uri="https://me:hunter2@mlflow.example", pipeline_run="x"),
        parent_run_id="1",
    )
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert "mlflow.example" in (tmp_path / "summary.json").read_text()
    assert not [p for p in files if b"hunter2" in p.read_bytes()]


def test_a_failing_task_fails_the_run_and_leaves_nothing_running(
    first: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trap = "if self.training and x.device.type != 'meta' and len(x) > 8: raise RuntimeError('trap sprung')"
    (tmp_path / "mynets.py").write_text(FACTORY.format(trap=trap))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(RunFailedError, match="trap sprung"):
        Ran(first.home, student="mynets:Net")
    assert "RUNNING" not in statuses(first.home)
    assert "FAILED" in statuses(first.home)
    # What was done is kept: the next run goes on from there.
    (tmp_path / "mynets.py").write_text(FACTORY.format(trap="pass"))
    mended = Ran(first.home, student="mynets:Net")
    assert "train-teacher" in mended.cached
    assert mended.summary["student"]["model"] == "mynets:Net"


def _hear_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def test_a_run_under_nohup_outlives_its_terminal() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with _interruptible():
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.1)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_interruption_ends_every_process_and_every_run(first: Ran) -> None:
    command = [sys.executable, "-m", "pipelines.cli", "run", "--home", str(first.home), "--threads", "1"]
    command += ["--teacher", "digits-cnn-s", "--student", "digits-mlp", "--teacher-epochs", "5000"]
    # Whoever started the tests may have had signals ignored (nohup, a job in the background), and children inherit that.
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, preexec_fn=_hear_signals)
    assert process.stdout is not None
    run_id = process.stdout.readline().split()[1].rstrip(";")
    for line in process.stdout:
        if "epoch 1/5000" in line:
            break
    process.send_signal(signal.SIGHUP)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):  # a second Ctrl-C does not interrupt the clearing up
        time.sleep(0.3)
        process.send_signal(number)
    said = process.stdout.read()
    assert process.wait(60) == 128 + signal.SIGHUP, said
    assert "stopped by SIGHUP" in said
    c = client(first.home)
    runs = c.search_runs([e.experiment_id for e in c.search_experiments()], f"tags.`rco.pipeline_run` = '{run_id}'")
    assert runs
    assert {r.info.status for r in runs} <= {"KILLED", "FAILED"}
    assert _processes_of(run_id) == [], "no task outlives the run"
    (point,) = (first.home / "resume").rglob("point-*")
    assert point.parts[-3] == "train_teacher", "it has finished its step, and goes on from there next time"


def test_a_divergence_is_one_paragraph(first: Ran) -> None:
    command = [sys.executable, "-m", "pipelines.cli", "run", "--home", str(first.home), "--lr", "1e9"]
    for name, value in TINY.items():
        command += [f"--{name.replace('_', '-')}", ",".join(map(str, value)) if isinstance(value, list) else str(value)]
    for words in ("Lower lr or lengthen warmup_epochs", "An earlier attempt ended so"):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 1, done.stdout + done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
        assert "is not a finite number in epoch 1 at step " in done.stderr
        assert words in done.stderr
        assert "Traceback" not in done.stdout + done.stderr
    assert "RUNNING" not in statuses(first.home)


SLOW = """
import os, time
import torch
class Net(torch.nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(64, 32), torch.nn.BatchNorm1d(32), torch.nn.ReLU(), torch.nn.Dropout(0.1),
            torch.nn.Linear(32, num_classes),
        )
    def forward(self, x):
        if self.training and x.device.type == "cpu":
            time.sleep(float(os.environ.get("SLOW", "0")))
        return self.layers(x)
"""


@pytest.mark.timeout(1800)
def test_a_run_that_was_killed_goes_on_inside_its_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGKILL to every process, in the teacher's training and in a stage: the weights come out as if nothing had happened."""
    (tmp_path / "slownets.py").write_text(SLOW)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    parameters = {"teacher": "slownets:Net", "student": "slownets:Net", "strategy": "explicit", "anchor_epochs": [6]}
    parameters["registered_model"] = ""
    home, whole = tmp_path / "home", tmp_path / "whole"
    records = _uninterrupted(whole, parameters)
    monkeypatch.setenv("RCO_RESUME_EVERY", "0.001")
    for task, point in (("train_teacher", "point-00003-*"), ("distill_stage", "point-00004-*")):
        monkeypatch.setenv("SLOW", "0.1")
        _kill_at(home, parameters, task, point)
        monkeypatch.setenv("SLOW", "0")
    last = Ran(home, **parameters)
    said = [log.read_text() for log in sorted((home / "runs").rglob("pipeline.log"), key=lambda path: path.stat().st_mtime)]
    assert "going on" not in said[0]
    assert "going on from epoch 3, step " in said[1]
    assert "going on from epoch 4, step " in said[2]
    assert {"prepare-data", "train-teacher", "init-student"} <= last.cached
    assert last.summary["stages"][0]["anchor_sha256"] == sha256_of(whole / "route" / "epoch-0006.safetensors")
    student = "student/student.safetensors"
    assert sha256_of(home / "last-run" / student) == sha256_of(whole / student)
    _, children = runs_of(home, last.summary)
    for key, record in records.items():
        for metric in ("loss", "val_accuracy", "lr"):
            history = client(home).get_metric_history(children[key].info.run_id, metric)
            expected = [(row["step"], row["metrics"][metric]) for row in record.rows]
            assert [(m.step, m.value) for m in history] == expected, f"{metric} of the {key}: no gap, nothing twice"
    assert not [path for path in (home / "resume").rglob("*") if path.is_file()]


def _uninterrupted(folder: Path, parameters: dict[str, Any]) -> dict[str, Record]:
    """The same tasks, by hand, in this process; returns the records."""
    from rco.tasks.check import check
    from rco.tasks.data import prepare_data
    from rco.tasks.distill import distill_stage
    from rco.tasks.selection import select_anchor
    from rco.tasks.students import init_student
    from rco.tasks.teacher import train_teacher

    settings = check({**TINY, **parameters}, max_stages=1)
    data, index = folder / "data", folder / "index"
    prepare_data(settings["data"], dataset=data)
    train_teacher(settings["teacher"], dataset=data, route=folder / "route", route_index=index)
    init_student(settings["student"], dataset=data, student=folder / "initial")
    choice = {"route": folder / "route", "route_index": index, "student": folder / "initial"}
    anchor = {"anchor": folder / "anchor", "anchors": folder / "anchors"}
    selection = select_anchor(settings["anchors"], previous={}, **choice, **anchor)
    distill_stage(
        settings["stage"],
        selection=selection,
        dataset=data,
        anchor=folder / "anchor",
        student=folder / "initial",
        distilled=folder / "student",
    )
    return {"teacher": Record.read(index), "student": Record.read(folder / "student")}


def _kill_at(home: Path, parameters: dict[str, Any], task: str, point: str) -> None:
    """Run the pipeline, and kill all its processes at once when there is such a resume point."""
    request = (
        f"from pipelines.local import run; from pathlib import Path; run({ {**TINY, **parameters}!r}, Path({str(home)!r}))"
    )
    process = subprocess.Popen([sys.executable, "-c", request], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    run_id = process.stdout.readline().split()[1].rstrip(";")
    give_up = time.monotonic() + 300
    while not list((home / "resume").glob(f"*/{task}/**/{point}")):
        assert time.monotonic() < give_up
        assert process.poll() is None
        time.sleep(0.02)
    for victim in [process.pid, *_processes_of(run_id)]:
        os.kill(victim, signal.SIGKILL)
    process.communicate()


def _processes_of(run_id: str) -> list[int]:
    return [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit() and run_id.encode() in _environ(p)]


def _environ(process: Path) -> bytes:
    try:
        return (process / "environ").read_bytes() if int(process.name) != os.getpid() else b""
    except OSError:
        return b""
