"""A small comparison in MLflow for the browser to look at: two branches, two seeds, real trainings, by the tasks themselves."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rco import checkpoint, tasks, tracking
from rco.record import Record

BRANCHES: dict[str, dict[str, Any]] = {
    "kd": {"strategy": "explicit", "anchor_epochs": [16]},
    "greedy": {"strategy": "greedy", "n_anchors": 3},
}
SEEDS = (0, 1)
SHARED: dict[str, Any] = {
    "teacher": "digits-cnn-l",
    "student": "digits-cnn-s",
    "teacher_epochs": 16,
    "checkpoint_every": 4,
    "epochs": 12,
    "experiment": "rco",
    "registered_model": "",
    "device": "cpu",
    "threads": 1,
    "workers": 0,
}
PIPELINE_RUN = "local-20260101-000000-compare"
MAX_STAGES = 3


@contextmanager
def environment(**values: str) -> Iterator[None]:
    """Environment variables for the length of a `with` block."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def fill(tracking_uri: str, folder: Path) -> None:
    """Train a teacher once and a student per branch and seed; everything is tracked at `tracking_uri`."""
    with environment(MLFLOW_TRACKING_URI=tracking_uri, RCO_PIPELINE_RUN=PIPELINE_RUN):
        _compare(folder)


def _compare(folder: Path) -> None:
    dataset, route, index = folder / "dataset", folder / "route", folder / "route-index"
    settings = tasks.check({**SHARED, **BRANCHES["kd"]}, max_stages=MAX_STAGES)
    tasks.prepare_data(settings["data"], dataset=dataset)
    tasks.train_teacher(settings["teacher"], dataset=dataset, route=route, route_index=index)
    for branch, parameters in BRANCHES.items():
        for seed in SEEDS:
            settings = tasks.check({**SHARED, **parameters, "seed": seed}, max_stages=MAX_STAGES)
            last = _student(settings, folder, f"{branch}/seed-{seed}", {"rco.branch": branch, "rco.seed": str(seed)})
    tasks.report(
        settings["filing"],
        registered={},
        route_index=index,
        student=last / "student",
        anchors=last / "anchors",
        evaluation=last / "evaluation",
        folder=folder / "report",
    )


def _student(settings: dict[str, dict[str, Any]], folder: Path, key: str, tags: dict[str, str]) -> Path:
    """One student through all stages; returns the folder of what became of it."""
    work, dataset, route, index = folder / key, folder / "dataset", folder / "route", folder / "route-index"
    work.mkdir(parents=True)
    student = work / "student-0"
    tasks.init_student(settings["student"], dataset=dataset, student=student)
    # A student that brings a record goes on in that record's run.
    teacher = Record.read(index)
    params = {"strategy": settings["stage"]["anchors"]["strategy"], "seed": settings["student"]["seed"]}
    Record(key=key, params=params, data=teacher.data, tags=tags).write(student)
    selection: dict[str, Any] = {}
    for stage in range(1, MAX_STAGES + 1):
        anchor, distilled = work / f"anchor-{stage}", work / (f"student-{stage}" if stage < MAX_STAGES else "student")
        selection = tasks.select_anchor(
            settings["anchors"],
            previous=selection,
            route=route,
            route_index=index,
            student=student,
            anchor=anchor,
            anchors=work / "anchors",
        )
        tasks.distill_stage(
            settings["stage"], selection=selection, dataset=dataset, anchor=anchor, student=student, distilled=distilled
        )
        student = distilled
    tasks.evaluate(settings["evaluate"], dataset=dataset, student=student, anchor=anchor, evaluation=work / "evaluation")
    measured = checkpoint.read_json(work / "evaluation" / "evaluation.json")
    context = tracking.Context.from_environment()
    run = tracking.ModelRun.open(context, context.client(), Record.read(student))
    run.metrics({"test_accuracy": measured["student"]["accuracy"], "congruence_kl": measured["congruence_kl"]})
    run.close()
    return work
