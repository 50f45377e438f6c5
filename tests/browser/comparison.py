"""A small comparison in MLflow for the browser to look at: two branches, two seeds, real trainings, by the tasks themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rco.config.branches import Comparison
from rco.tasks import comparison as comparison_tasks
from rco.tasks.comparison_preflight import shape_of
from rco.tasks.data import prepare_data
from rco.tasks.teacher import train_teacher

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
    settings = comparison_tasks.check_comparison(PARAMETERS, compiled=shape.steps)
    prepare_data(settings["data"], dataset=dataset)
    train_teacher(settings["teacher"], dataset=dataset, route=route, route_index=index)
    evaluations = [
        _branch(settings, label, shape.steps[key], folder / label, dataset, route, index) for key, label in shape.labels.items()
    ]
    comparison_tasks.report_comparison(
        settings["filing"], route=route, route_index=index, evaluations=evaluations, folder=folder / "report"
    )


def _branch(settings: dict[str, Any], label: str, steps: int, folder: Path, dataset: Path, route: Path, index: Path) -> Path:
    """One branch through all its steps; returns the folder of what was measured."""
    students, anchors = folder / "students-0", folder
    comparison_tasks.init_students(settings[f"students_{label}"], dataset=dataset, students=students)
    selection: dict[str, Any] = {}
    for step in range(1, steps + 1):
        anchors, distilled = folder / f"anchors-{step}", folder / f"students-{step}"
        selection = comparison_tasks.select_anchors(
            settings[f"choice_{label}"],
            previous=selection,
            route=route,
            route_index=index,
            students=students,
            anchors=anchors,
        )
        comparison_tasks.distill_students(
            settings[f"branch_{label}"],
            selection=selection,
            dataset=dataset,
            anchors=anchors,
            students=students,
            distilled=distilled,
        )
        students = distilled
    evaluation = folder / "evaluation"
    comparison_tasks.evaluate_students(
        settings[f"measure_{label}"], dataset=dataset, students=students, anchors=anchors, evaluation=evaluation
    )
    return evaluation
