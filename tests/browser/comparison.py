"""A small comparison in MLflow for the browser to look at: two branches, two seeds, real trainings, by the tasks themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rco.config.branches import Comparison
from rco.tasks.check import check
from rco.tasks.data import prepare_data
from rco.tasks.report import report
from rco.tasks.teacher import train_teacher
from rco.tasks.validate import shape_of
from tests.in_process import Branch

PARAMETERS: dict[str, Any] = {
    "branches": "kd,greedy",
    "seeds": "0,1",
    "teacher": "digits-cnn-l",
    "student": "digits-cnn-s",
    "teacher_epochs": 16,
    "checkpoint_every": 4,
    "epochs": 12,
    "n_anchors": 3,
    "experiment": "rco",
    "device": "cpu",
    "threads": 1,
    "workers": 0,
}
PIPELINE_RUN = "local-20260101-000000-compare"


def fill(tracking_uri: str, folder: Path) -> None:
    """Train a teacher once and a student per branch and seed; everything is tracked at `tracking_uri`."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("MLFLOW_TRACKING_URI", tracking_uri)
        environment.setenv("RCO_PIPELINE_RUN", PIPELINE_RUN)
        _compare(folder)


def _compare(folder: Path) -> None:
    dataset, route, index = folder / "dataset", folder / "route", folder / "route-index"
    shape = shape_of(Comparison.of(PARAMETERS))
    settings = check(PARAMETERS, compiled=shape.steps)
    prepare_data(settings["data"], dataset=dataset)
    train_teacher(settings["teacher"], dataset=dataset, route=route, route_index=index)
    evaluations = []
    for key, label in shape.labels.items():
        branch = Branch(folder / label, settings, label, shape.steps[key], dataset, route, index)
        branch.follow()
        branch.evaluate()
        evaluations.append(branch.evaluation)
    report(settings["filing"], route=route, route_index=index, evaluations=evaluations, folder=folder / "report")
