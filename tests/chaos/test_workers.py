"""A worker of a real training is killed: all are started again, and end where those end that are left alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from rco.core.documents import write_json
from rco.core.files import sha256_of
from rco.tasks.check import check
from rco.tracking.context import Context
from rco.tracking.record import Record
from rco.tracking.runs import find_parent
from tests.chaos.chain import worker_of
from tests.tasks.test_resume import FLAT, step_values


def started(folder: Path, digits: Path, name: str, workers: int, **environment: str) -> subprocess.Popen[str]:
    """The teacher's training in processes of its own, of the pipeline run `name`."""
    flat = {**FLAT, "teacher_epochs": 12, "checkpoint_every": 4, "anchor_epochs": [12]}
    settings: dict[str, Any] = check({**flat, "workers_per_task": workers, "teacher_batch_size": 64}, compiled={"student": 1})
    paths = {"dataset": digits, "route": folder / name / "route", "route_index": folder / name / "index"}
    (folder / name).mkdir()
    write_json(folder / name / "arguments.json", {"settings": settings["teacher"], **{k: str(v) for k, v in paths.items()}})
    return subprocess.Popen(
        [sys.executable, "-m", "rco.tasks", "train_teacher", str(folder / name / "arguments.json")],
        env={**os.environ, "RCO_PIPELINE_RUN": name, "RCO_RESUME": str(folder / name / "resume"), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.parametrize(("workers", "victim"), [(1, 0), (4, 2)])
def test_a_killed_worker_ends_in_the_same_weights(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int, victim: int
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("RCO_ARTIFACT_ROOT", (tmp_path / "artifacts").as_uri())
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("RCO_PIPELINE_RUN", "killed")
    alone = started(tmp_path, digits, "alone", workers)
    said, _ = alone.communicate(timeout=300)
    assert alone.returncode == 0, said
    # A point after every step makes steps slow enough to be killed between two of them.
    hurt = started(tmp_path, digits, "killed", workers, RCO_PROCESS_RESTARTS="2", RCO_RESUME_EVERY="0")
    try:
        while not list((tmp_path / "killed" / "resume").rglob("point-0000[3-9]-*")):
            assert hurt.poll() is None, hurt.communicate()[0]
            time.sleep(0.02)
        os.kill(worker_of(hurt.pid, victim), signal.SIGKILL)
        said, _ = hurt.communicate(timeout=300)
    finally:
        hurt.kill()
    assert hurt.returncode == 0, said
    reason = f"{'the process' if workers == 1 else f'worker {victim} of {workers}'} was killed by SIGKILL"
    again = "it is" if workers == 1 else "all are"
    assert f"{reason} (as when memory runs out); {again} started again from the last resume point (1 of 2)" in said
    assert "going on from epoch" in said
    ours, theirs = ({p.name: sha256_of(p) for p in (tmp_path / name / "route").iterdir()} for name in ("killed", "alone"))
    assert ours == theirs
    record = Record.read(tmp_path / "killed" / "index")
    assert [row["step"] for row in record.rows] == list(range(1, 13))
    context = Context.from_environment()
    client = context.client()
    parent = find_parent(context, client)
    assert parent is not None
    (run,) = client.search_runs(
        [parent.info.experiment_id], "tags.`rco.pipeline_run` = 'killed' AND tags.`rco.key` = 'teacher'"
    )
    assert run.info.status == "FINISHED"
    assert run.data.tags["rco.restarted"].startswith(reason)
    assert run.data.tags["rco.attempts"] == "2"
    assert step_values(client, run.info.run_id, "loss") == [(row["step"], row["metrics"]["loss"]) for row in record.rows]
