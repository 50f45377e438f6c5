"""What tasks share: the files of a student and an anchor between tasks, and what a record says of both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rco.core.errors import InputError
from rco.core.settings import jsonable
from rco.core.tensors import load_arrays, load_metadata, load_state, save_arrays, save_state
from rco.data.dataset import Dataset
from rco.models.spec import NetworkSpec, load_network, save_network
from rco.tasks.settings import StageSettings, TeacherSettings
from rco.tracking.context import Context
from rco.tracking.record import Record, Row
from rco.tracking.runs import REUSED
from rco.tracking.tracker import Tracker
from rco.training.packing import packed, unpacked
from rco.training.results import Training
from rco.training.resume_points import ResumePoints

if TYPE_CHECKING:
    from rco.training.loop import OneSchedule

STUDENT, PROBE, ANCHOR = "student.safetensors", "probe.safetensors", "anchor.safetensors"
EMA = "ema.safetensors"  # the moving average of the student's weights, where one is kept
TARGETS = "targets.safetensors"
OPTIMIZER = "optimizer.safetensors"  # its state, where the next stage goes on with it
OBJECTIVE = "objective.safetensors"  # what the objective itself has learnt; beside the student, not in it


def logged(row: Mapping[str, Any]) -> dict[str, float]:
    """An epoch's row as metrics."""
    return {name: float(value) for name, value in row.items() if name != "epoch"}


def data_summary(data: Dataset) -> dict[str, Any]:
    """The data set, as a record describes it."""
    m = data.manifest
    summary = {"name": m.source, "source": m.source, "digest": m.digest, "num_classes": m.num_classes, "sizes": dict(m.sizes)}
    return {**summary, "account": m.account.lines} if m.account.parts else summary


def taken_up(points: ResumePoints, record: Record) -> Record:
    """The record as an interrupted training left it, if there is one to go on with; it is kept from now on."""
    before = points.take("record")
    current = record if before is None else Record.of(before, "a resume point's record")
    points.add("record", lambda: jsonable(current))
    return current


def found_again(record: Record, found: Training) -> Record:
    """A record with the epochs of a training whose result was found; MLflow hears whose they are (`rco.tracking.runs`)."""
    tags = dict(record.tags)
    if found.mlflow_run and found.pipeline_run != Context.from_environment().pipeline_run:
        before = tags[REUSED].split(",") if REUSED in tags else []
        tags[REUSED] = ",".join(dict.fromkeys([*before, found.mlflow_run]))
    return replace(record, rows=[*record.rows, *jsonable(found.rows)], tags=tags)


def as_training(record: Record, tracker: Tracker, first_step: int = 1) -> Training:
    """How a training went, from its record.

    Args:
        tracker: of this process.
        first_step: of the training; earlier rows are of others.
    """
    return Training(
        pipeline_run=Context.from_environment().pipeline_run,
        mlflow_run=tracker.model_run.run_id if tracker.model_run else "",
        rows=tuple(Row(**row) for row in record.rows if row["step"] >= first_step),
    )


def seed_folder(root: Path, seed: int) -> Path:
    """Where an artifact of several students has that of a seed."""
    return root / f"seed-{seed}"


def anchor_indices(stage: Mapping[str, Any]) -> tuple[int, ...]:
    """Indices on the route of the anchors of a record's stage."""
    return tuple(int(anchor["index"]) for anchor in stage["anchors"])


def save_student(folder: Path, model: Any, spec: NetworkSpec, logits: np.ndarray, averaged: Any = None) -> str:
    """Write a student and its logits (N, K) on the probe samples; returns the sha256 of its weights.

    Args:
        averaged: the network with the moving average of its weights, if one was kept.
    """
    digest = save_network(folder / STUDENT, model, spec)
    more = {} if averaged is None else {"ema_sha256": save_network(folder / EMA, averaged, spec)}
    save_arrays(folder / PROBE, {"logits": logits}, {"student_sha256": digest, **more})
    return digest


def read_logits(path: Path, shape: tuple[int, ...], *names: str) -> list[np.ndarray]:
    """Answers on the probe samples, (N, K) float32.

    Raises:
        InputError: they are missing, or of another shape, or no numbers.
    """
    arrays, _ = load_arrays(path, *names)
    for name in names:
        if arrays[name].shape != tuple(shape) or arrays[name].dtype != np.float32 or not np.isfinite(arrays[name]).all():
            problem = f"has no finite {name} of shape {tuple(shape)}"
            raise InputError("file", str(path), problem, "Run the step that writes it again")
    return [arrays[name] for name in names]


def load_student(folder: Path, spec: NetworkSpec) -> Any:
    """The student in an artifact's folder, as it was written there.

    Raises:
        InputError: as `rco.models.spec.load_network`; or the file is not what was written.
    """
    expected = load_metadata(folder / PROBE).get("student_sha256")
    if not isinstance(expected, str):
        raise InputError(
            "student", str(folder / PROBE), "does not say which student it is of", "Run the task that made it again"
        )
    return load_network(folder / STUDENT, expected_sha256=expected, spec=spec)


def save_optimizer(folder: Path, state: Mapping[str, Any]) -> None:
    """Write an optimiser's state, by the parameter's number, beside the student."""
    tensors: dict[str, Any] = {}
    document = packed(state, "", tensors)
    save_state(folder / OPTIMIZER, tensors, {"state": document})


def load_optimizer(folder: Path) -> Mapping[str, Any]:
    """What `save_optimizer` has written. Whether it fits an optimiser is for that one to say.

    Raises:
        InputError: it is missing, damaged, or something else.
    """
    tensors, metadata = load_state(folder / OPTIMIZER)
    try:
        state = unpacked(metadata["state"], tensors)
        if not all(isinstance(own, dict) for own in state.values()):
            raise TypeError
    except (KeyError, TypeError, AttributeError):
        problem = "holds no state of an optimiser"
        raise InputError("file", str(folder / OPTIMIZER), problem, "Run the step that writes it again") from None
    return dict(state)


def one_schedule_of(s: StageSettings, stage: int, epochs: int, student: Path) -> OneSchedule | None:
    """The schedule of all stages, at the beginning of this one; None: every stage has its own, or there is but one.

    Args:
        stage: its number, from 1.
        epochs: its length.
        student: the folder that the stage before has left.

    Raises:
        InputError: the stage before has left no optimiser, or a damaged one.
    """
    from rco.training.loop import OneSchedule

    if not s.anchors.continuous or epochs == s.train.epochs:
        return None
    return OneSchedule(s.train.epochs, load_optimizer(student) if stage > 1 else None)


def load_averaged(folder: Path, spec: NetworkSpec) -> Any:
    """The moving average of the student in an artifact's folder; None: none was kept.

    Raises:
        InputError: as `load_student`.
    """
    expected = load_metadata(folder / PROBE).get("ema_sha256")
    return load_network(folder / EMA, expected_sha256=str(expected), spec=spec) if expected else None


def settings_as_params(s: TeacherSettings | StageSettings) -> dict[str, Any]:
    """Settings as MLflow parameters: flat names, one level of dots."""
    flat: dict[str, Any] = {}
    for name, value in jsonable(s).items():
        if isinstance(value, dict):
            flat |= {f"{name}.{inner}": v for inner, v in value.items()}
        elif value not in (None, ""):
            flat[name] = value
    return flat
