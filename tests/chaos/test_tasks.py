"""A task that is asked to stop leaves a resume point, and the next process goes on from it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rco.core.documents import write_json
from rco.data.config import DataConfig
from rco.data.dataset import Dataset
from rco.data.prepare import prepare
from rco.data.sources.kinds import source_digest
from rco.tasks.check import check
from tests.tasks.test_resume import FLAT


@pytest.mark.parametrize("workers", [0, 1])
def test_sigterm_is_answered_by_a_point_and_the_next_process_goes_on(tmp_path: Path, workers: int) -> None:
    """The whole process group gets it, as from the local runner: workers that decode images must not take the task down."""
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(100):
            Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)).save(tmp_path / "images" / name / f"{i}.png")
    config = DataConfig(dataset=str(tmp_path / "images"), probe_size=4, in_memory_gib=0)  # a set that is too large
    prepare(config, tmp_path / "data", source_digest(config))
    data = {"dataset": str(tmp_path / "images"), "workers": workers, "teacher_batch_size": 8, "checkpoint_every": 1000}
    flat = {**FLAT, **data, "teacher_epochs": 1000, "anchor_epochs": [1000], "probe_size": 4}
    settings_ = check(flat, compiled={"student": 1})["teacher"]
    arguments = tmp_path / "arguments.json"
    assert Dataset.open(tmp_path / "data").manifest.storage == "files"
    paths = {"dataset": "data", "route": "route", "route_index": "index"}
    write_json(arguments, {"settings": settings_, **{name: str(tmp_path / p) for name, p in paths.items()}})
    points = tmp_path / "resume"
    asked = {"RCO_RESUME": str(points), "RCO_RESUME_RUN": "local", "RCO_RESUME_EVERY": "1000"}
    environment = {**os.environ, **asked, "PYTHONUNBUFFERED": "1"}

    def started() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "rco.tasks", "train_teacher", str(arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            start_new_session=True,
        )

    process = started()
    assert process.stdout is not None
    rest = ""
    for line in process.stdout:
        rest += line
        if "epoch " in line:
            os.killpg(process.pid, signal.SIGTERM)
            break
    rest += process.stdout.read()
    assert process.wait(60) == 128 + signal.SIGTERM, rest
    assert "stopping because of SIGTERM; a resume point is kept" in rest
    assert "Traceback" not in rest
    assert len(list(points.rglob("point-*"))) == 1
    process = started()
    try:
        assert process.stdout is not None
        line = next(line for line in process.stdout if "going on" in line)
        assert "going on from epoch " in line
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
