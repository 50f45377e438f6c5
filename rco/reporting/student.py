"""A trained student as reports see it: its record, and its measures on the test part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rco.core.errors import InputError
from rco.evaluation.measured import read_evaluation
from rco.evaluation.statistics import Result
from rco.tracking.record import Record


@dataclass(frozen=True)
class Student:
    """One student: its record, and its measures."""

    record: Record
    evaluation: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path, *, in_depth: bool = False) -> Student:
        """Read record and evaluation of a student from its folder.

        Args:
            in_depth: as for `rco.evaluation.measured.read_evaluation`.

        Raises:
            InputError: a file is missing or is not what its name says, or the student was not trained.
        """
        evaluation, record = read_evaluation(folder, in_depth=in_depth), Record.read(folder)
        if not record.stages:
            raise InputError("record", str(folder), "is of a student that was not trained", "Run its stages again")
        return cls(record, evaluation)

    @property
    def branch(self) -> str:
        """The branch's name; empty in a run."""
        return str(self.evaluation["branch"])

    @property
    def seed(self) -> int:
        """The seed of the student."""
        return int(self.evaluation["seed"])

    def result(self) -> Result:
        """The figures that a comparison needs."""
        stages = self.record.stages
        return Result(
            branch=self.branch,
            seed=self.seed,
            test_accuracy=float(self.evaluation["student"]["accuracy"]),
            val_accuracy=float(stages[-1]["val_accuracy"]),
            congruence_kl=float(self.evaluation["congruence_kl"]),
            student_epochs=int(stages[-1]["last_epoch"]),
            teacher_forward_passes=sum(int(stage["teacher_forward_passes"]) for stage in stages),
            train_seconds=sum(float(stage["train_seconds"]) for stage in stages),
        )


def input_of(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """What the teacher takes, as an entry of its summary; nothing, where it is what the student takes."""
    return {"input": evaluation["teacher_input"]} if evaluation.get("teacher_input") else {}


def input_sentence(teacher: Mapping[str, Any]) -> str:
    """What a teacher takes that is fed otherwise than the student, from its summary; empty: it is not."""
    if not (own := teacher.get("input")):
        return ""
    part = "" if own["crop"] == 1 else f", the central {own['crop']:g} of each side"
    mean, std = (",".join(f"{value:.4g}" for value in own[name]) for name in ("mean", "std"))
    return (
        f" The teacher takes {own['size']}x{own['size']} images of the same views{part}, with mean {mean} and deviation {std}."
    )
