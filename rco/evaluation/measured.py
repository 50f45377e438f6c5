"""What was measured of one student and its teacher on the test part, as the file that the report reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rco.core.documents import read_as, read_json
from rco.core.errors import InputError
from rco.data.network_input import NetworkInput
from rco.evaluation.openset import OpenSet

FILE = "evaluation.json"
_REMEDY = "Run the evaluation again"


@dataclass(frozen=True, kw_only=True)
class OfClass:
    """The measures of one class (`rco.evaluation.classification.per_class`)."""

    precision: float | None
    recall: float | None
    f1: float | None
    n: int


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The measures of a network that are read. Of a student in depth there is a confusion matrix, and a latency."""

    accuracy: float
    cross_entropy: float
    ece: float
    n: int
    parameters: int
    macs: int
    latency_ms: float | None = None
    top5: float | None = None  # what follows, to `confusion`, is not in the documents of 0.1, which may wait in an outbox
    balanced_accuracy: float | None = None
    macro_f1: float | None = None
    per_class: tuple[OfClass, ...] = ()
    confusion: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Format:
    """A format that the student was written in (`rco.exporting.export.Row`); the first is PyTorch's own.

    Attributes:
        problem: why it was not written; there are no figures then.
    """

    format: str
    size: int | None = None
    latency_ms: float | None = None
    difference: float | None = None
    accuracy: float | None = None
    problem: str = ""

    def __post_init__(self) -> None:
        figures = (self.size, self.latency_ms, self.difference, self.accuracy)
        if not self.problem and None in figures:
            raise InputError("export", self.format, "lacks a figure", "Evaluate again")


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The fields of the document (written by `rco.tasks.evaluate.evaluate_students`) that are read."""

    student: Measured
    teacher: Measured
    congruence_kl: float
    tau: float
    class_names: tuple[str, ...]
    device: str
    open_set: OpenSet | None = None
    branch: str = ""  # what follows is not in the documents of 0.1, which may wait in an outbox
    seed: int = 0
    student_sha256: str = ""
    student_ema: Measured | None = None
    ema_sha256: str = ""
    teacher_sha256: str = ""
    export: tuple[Format, ...] = ()
    teacher_input: NetworkInput | None = None

    def __post_init__(self) -> None:
        classes = len(self.class_names)
        for model in filter(None, (self.student, self.teacher, self.student_ema)):
            rows = {len(row) for row in model.confusion}
            if model.confusion and (len(model.confusion) != classes or rows != {classes}):
                raise InputError("confusion", len(model.confusion), f"is not of {classes} classes", "Evaluate again")
            if model.per_class and len(model.per_class) != classes:
                raise InputError("per_class", len(model.per_class), f"is not of {classes} classes", "Evaluate again")

    def require_depth(self) -> None:
        """Raise InputError if confusion matrix or latency is missing."""
        for model in (self.student, self.teacher):
            if not model.confusion or model.latency_ms is None:
                raise InputError("confusion", None, "or the latency is missing", "Evaluate again")


def read_evaluation(folder: Path, *, in_depth: bool = False) -> dict[str, Any]:
    """What `evaluate_students` has written of one student.

    Args:
        in_depth: require what a report in depth shows.

    Raises:
        InputError: it is something else.
    """
    path = folder / FILE
    evaluation = read_as(Evaluation, path, _REMEDY, partial=True)
    if in_depth:
        try:
            evaluation.require_depth()
        except InputError as error:
            raise InputError("file", str(path), f"lacks its depth: {error.problem}", _REMEDY) from None
    document: dict[str, Any] = read_json(path)
    return document
