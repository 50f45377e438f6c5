"""The whole pipeline in containers: no network, read-only root file system, no capabilities, not root. And what fails there."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from tests.images.conftest import ROOT, Built, step

PARAMETERS = {
    "teacher": "digits-cnn-s",
    "student": "digits-mlp",
    "teacher_epochs": 12,
    "teacher_milestones": [6, 10],
    "checkpoint_every": 1,
    "epochs": 12,
    "n_anchors": 2,
    "strategy": "equal-interval",
    "threads": 2,
    "workers": 0,
    "device": "cpu",
}
UID = 10001


def in_containers(
    built: Built,
    folder: Path,
    pipeline: str,
    *,
    environment: Mapping[str, str] = MappingProxyType({}),
    kill_after: str = "",
    **parameters: Any,
) -> tuple[dict[str, Any], str]:
    """Run a pipeline; returns its result and what was printed."""
    root = folder / "pipeline"
    root.mkdir(parents=True)
    os.chown(root, UID, 0)
    request = {
        "pipeline": pipeline,
        "parameters": parameters,
        "root": str(root),
        "environment": {
            "MLFLOW_TRACKING_URI": f"sqlite:///{root}/mlflow.db",
            "RCO_ARTIFACT_ROOT": (root / "artifacts").as_uri(),
            "RCO_PIPELINE_RUN": "in-containers",
            **{name: value.format(root=root) for name, value in environment.items()},
        },
        "kill_after": kill_after,
    }
    (folder / "request.json").write_text(json.dumps(request))
    done = subprocess.run(
        [sys.executable, "-m", "tests.images.in_containers", str(folder / "request.json")],
        cwd=ROOT,
        env={**built.engine.environment, "RCO_IMAGE": built.rco},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    return json.loads((folder / "result.json").read_text()), done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Open to the image's user, as pytest's own are not."""
    folder = tmp_path_factory.mktemp("containers")
    for path in (folder, *folder.parents):
        if path.owner() == "root" and path.stat().st_mode & 0o007 == 0:
            path.chmod(path.stat().st_mode | 0o011)
    return folder


@pytest.fixture(scope="module")
def ran(built: Built, folder: Path) -> dict[str, Any]:
    with step("the whole pipeline on digits, in containers"):
        result, said = in_containers(built, folder / "run", "run", **PARAMETERS)
    assert "error" not in result, said[-5000:]
    return result


def test_every_task_ran_confined_and_left_its_output(ran: dict[str, Any], built: Built) -> None:
    tasks = {Path(path).parent.name for container in ran["containers"] for path in container["outputs"]}
    assert tasks == {
        *("check", "prepare-data", "train-teacher", "init-students", "evaluate-students", "register-student", "report"),
        *("select-anchors", "distill-students", "select-anchors-2", "distill-students-2"),
    }
    assert len(ran["containers"]) == 11
    for container in ran["containers"]:
        outputs = container.pop("outputs")
        assert len(outputs) == 1
        assert container == {
            "status": 0,
            "user": f"{UID}:0",
            "read_only": True,
            "network": "none",
            "image": built.rco,
        }


def test_a_student_was_distilled(ran: dict[str, Any]) -> None:
    summary = json.loads((Path(ran["summary"]) / "summary.json").read_text())
    assert [stage["anchor_epoch"] for stage in summary["stages"]] == [6, 12]
    assert summary["teacher"]["accuracy"] > 0.5
    assert summary["student"]["accuracy"] > 0.3


def test_mlflow_was_written(ran: dict[str, Any], folder: Path) -> None:
    import mlflow

    summary = json.loads((Path(ran["summary"]) / "summary.json").read_text())
    client = mlflow.MlflowClient(f"sqlite:///{folder}/run/pipeline/mlflow.db")
    parent = client.get_run(summary["parent_run_id"])
    assert parent.data.metrics["student_test_accuracy"] == summary["student"]["accuracy"]
    children = client.search_runs([parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    assert {child.data.tags["rco.key"] for child in children} == {"teacher", "student"}
    assert {run.info.status for run in (parent, *children)} == {"FINISHED"}
    anchors = client.search_logged_models([parent.info.experiment_id], "model_type = 'anchor'")
    assert {model.tags["rco.sha256"] for model in anchors} == {stage["anchor_sha256"] for stage in summary["stages"]}


def test_a_killed_process_is_started_again_in_its_container(ran: dict[str, Any], built: Built, folder: Path) -> None:
    with step("the same up to the teacher, whose process is killed"):
        result, said = in_containers(
            built,
            folder / "killed",
            "run",
            environment={"RCO_PROCESS_RESTARTS": "2", "RCO_RESUME": "{root}/resume", "RCO_RESUME_EVERY": "0"},
            kill_after="teacher digits-cnn-s: epoch 1/12",
            **PARAMETERS,
        )
    assert result["killed"] == 1, said[-5000:]
    killed = "the process was killed by SIGKILL (as when memory runs out)"
    assert f"{killed}; it is started again from the last resume point (1 of 2)" in said
    teachers = [c for c in result["containers"] if any("train-teacher" in path for path in c["outputs"])]
    assert [c["status"] for c in teachers] == [0], "in the same container, not by another one"
    checkpoints = [
        {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (folder / name).rglob("epoch-*.safetensors")}
        for name in ("run", "killed")
    ]
    assert len(checkpoints[0]) == 12
    assert checkpoints[1] == checkpoints[0]


def test_everything_belongs_to_the_images_user(ran: dict[str, Any], folder: Path) -> None:
    owners = {path.stat().st_uid for path in (folder / "run" / "pipeline").rglob("*")}
    assert owners == {UID}


@pytest.mark.parametrize(("component", "words"), [("raises", "this task had to fail"), ("vanishes", "left 0 executor_output")])
def test_a_task_that_fails_fails_the_run(built: Built, folder: Path, component: str, words: str) -> None:
    result, said = in_containers(built, folder / component, component)
    assert "finished with status" in result["error"]
    assert "FAILURE" in result["error"]
    assert words in said


def test_bad_input_fails_in_the_container_too(built: Built, folder: Path) -> None:
    # Past the check on this side: a folder that the container does not see.
    hidden = folder / "hidden"
    (hidden / "cat").mkdir(parents=True)
    from PIL import Image

    for label in ("cat", "dog"):
        (hidden / label).mkdir(exist_ok=True)
        for i in range(6):
            Image.new("RGB", (8, 8), (40 * i, 0, 0)).save(hidden / label / f"{i}.png")
    result, said = in_containers(built, folder / "bad", "run", **{**PARAMETERS, "dataset": str(hidden)})
    assert "FAILURE" in result["error"]
    assert "rco | refused: dataset" in said
    assert len(result["containers"]) == 1
