"""Whole local runs that start from nothing. Interrupted or killed: nothing outlives them, and the next run goes on where they
were. With warm tasks and with cold ones: the same weights."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from rco.core.files import sha256_of
from rco.tracking.record import Record
from tests.in_process import Walk
from tests.local_runs import Ran, client, processes_of, runs_of, tiny


def _hear_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def test_interruption_ends_every_process_and_every_run(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pipelines.cli", "run", "--home", str(tmp_path), "--threads", "1"]
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
    c = client(tmp_path)
    runs = c.search_runs([e.experiment_id for e in c.search_experiments()], f"tags.`rco.pipeline_run` = '{run_id}'")
    assert runs
    assert {r.info.status for r in runs} <= {"KILLED", "FAILED"}
    assert processes_of(run_id) == [], "no task outlives the run"
    (point,) = (tmp_path / "resume").rglob("point-*")
    assert point.parts[-3] == "train_teacher", "it has finished its step, and goes on from there next time"


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
    assert {"prepare-data", "train-teacher", "init-students"} <= last.cached
    assert last.summary["stages"][0]["anchor_sha256"] == sha256_of(whole / "route" / "epoch-0006.safetensors")
    ours = home / "last-run" / "student" / "student.safetensors"
    assert sha256_of(ours) == sha256_of(whole / "students-1" / "seed-0" / "student.safetensors")
    _, children = runs_of(home, last.summary["parent_run_id"])
    for key, record in records.items():
        for metric in ("loss", "val_accuracy", "lr"):
            history = client(home).get_metric_history(children[key].info.run_id, metric)
            expected = [(row["step"], row["metrics"][metric]) for row in record.rows]
            assert [(m.step, m.value) for m in history] == expected, f"{metric} of the {key}: no gap, nothing twice"
    assert not [path for path in (home / "resume").rglob("*") if path.is_file()]


def _uninterrupted(folder: Path, parameters: dict[str, Any]) -> dict[str, Record]:
    """The same tasks, in this process; returns the records."""
    walk = Walk(folder, **tiny(**parameters))
    walk.prepare()
    walk.teach()
    return {"student": walk.walk(), "teacher": Record.read(walk.index)}


def _kill_at(home: Path, parameters: dict[str, Any], task: str, point: str) -> None:
    """Run the pipeline, and kill all its processes at once when there is such a resume point."""
    request = f"from pipelines.local.run import run; from pathlib import Path; run({tiny(**parameters)!r}, Path({str(home)!r}))"
    process = subprocess.Popen([sys.executable, "-c", request], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    run_id = process.stdout.readline().split()[1].rstrip(";")
    give_up = time.monotonic() + 300
    while not list((home / "resume").glob(f"*/{task}/**/{point}")):
        assert time.monotonic() < give_up
        assert process.poll() is None
        time.sleep(0.02)
    for victim in [process.pid, *processes_of(run_id)]:
        os.kill(victim, signal.SIGKILL)
    process.communicate()


def test_warm_tasks_and_cold_ones_train_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = {"strategy": "explicit", "anchor_epochs": [6], "registered_model": "", "threads": 2}
    weights = {}
    for switch, home in (("1", tmp_path / "warm"), ("0", tmp_path / "cold")):
        monkeypatch.setenv("RCO_WARM", switch)
        ran = Ran(home, **parameters)
        (log,) = (p for p in (home / "runs").glob("*/pipeline.log") if p.parent.name in ran.lines[0])
        by_a_shell = re.search(r"/tmp\.\w+/ephemeral_component", log.read_text())  # whose mktemp has a dot in its names
        assert bool(by_a_shell) == (switch == "0"), "each starts its tasks in its own way"
        (stage,) = ran.summary["stages"]
        weights[switch] = stage["anchor_sha256"], sha256_of(home / "last-run" / "student" / "student.safetensors")
    assert weights["0"] == weights["1"]
