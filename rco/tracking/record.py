"""The history of a trained model: plain data that travels with the model's artifact, and that MLflow mirrors.

A task that the cache skips logs nothing, and a server may be away. So the record is the truth, and tracking delivers it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from rco.core.documents import read_json, write_json
from rco.core.errors import InputError
from rco.core.settings import from_dict

FILE = "record.json"


@dataclass(kw_only=True)
class Record:
    """The history of one trained model.

    Attributes:
        key: names the model within a pipeline run ("teacher", "student", "kd/seed-0").
        params: the settings that the model was trained with.
        data: name, source, digest and sizes of the data set.
        rows: one per epoch: {"step", "time" (ms since 1970), "metrics": {name: value}}; steps increase.
        stages: one per stage of a student: anchors, reason, epochs, results.
        tags: of its MLflow run, beside those that every run has (for example `rco.branch`, `rco.seed`).
        origin: where it was first tracked: {"tracking_uri", "run_id", "pipeline_run"}; None if it never was.
    """

    key: str
    params: dict[str, Any]
    data: dict[str, Any]
    rows: list[dict[str, Any]] = field(default_factory=list)
    stages: list[dict[str, Any]] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)
    origin: dict[str, str] | None = None

    def add(self, step: int, metrics: dict[str, float]) -> dict[str, Any]:
        """Append the metrics of one epoch; returns the new row."""
        row = {"step": step, "time": time.time_ns() // 1_000_000, "metrics": metrics}
        self.rows.append(row)
        return row

    def write(self, folder: Path) -> None:
        """Write the record into an artifact's folder."""
        write_json(folder / FILE, self)

    @classmethod
    def read(cls, folder: Path) -> Record:
        """Read the record of an artifact.

        Raises:
            InputError: it is missing, or is not a tracking record.
        """
        return cls.of(read_json(folder / FILE), str(folder / FILE))

    @classmethod
    def of(cls, document: Any, source: str) -> Record:
        """A record from its JSON.

        Args:
            source: where the JSON is from, for messages.

        Raises:
            InputError: it is not a tracking record.
        """
        try:
            record = from_dict(cls, document)
            for row in record.rows:
                from_dict(Row, row)
            for stage in record.stages:
                from_dict(_Stage, stage, partial=True)
        except InputError as error:
            problem = f"is not a tracking record ({error.parameter} {error.problem})"
            raise InputError("record", source, problem, "Run the task again") from None
        steps = [row["step"] for row in record.rows]
        if any(later <= earlier for earlier, later in pairwise([0, *steps])):
            raise InputError("record", source, "has epochs that do not increase from 1", "Run the task again")
        return record


@dataclass(frozen=True, kw_only=True)
class Row:
    """One epoch of a record."""

    step: int
    time: int
    metrics: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class _StageAnchor:
    epoch: int
    index: int
    val_accuracy: float
    sha256: str


@dataclass(frozen=True, kw_only=True)
class _Stage:
    """The fields of a stage (written by `rco.tasks.stage.distill_stage`) that later tasks read.

    Attributes:
        anchors: all of them, in the order of their epochs; what else begins with anchor_ is of the last.
    """

    stage: int
    anchors: tuple[_StageAnchor, ...]
    anchor_epoch: int
    anchor_index: int
    anchor_val_accuracy: float
    anchor_sha256: str
    reason: str
    first_epoch: int
    last_epoch: int
    hardness_before: tuple[float, ...]
    train_seconds: float
    teacher_forward_passes: int
    val_accuracy: float
    kl_to_anchor: float
    kl_to_teacher: float

    def __post_init__(self) -> None:
        if not self.anchors:
            raise InputError("anchors", (), "is empty", "Run the task again")
