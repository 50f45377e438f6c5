"""Measures beside the accuracy, as reports and MLflow have them: of the whole test part, and of every class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rco.reporting.page import Table, percent

MORE = "More measures of the test part"
_HEADS = {
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "top5": "top-5 accuracy",
    "ema_accuracy": "accuracy of the EMA",
}
_TOP5_FROM = 10  # classes: of fewer, five guesses are half of them
_SHOWN = 100  # classes in a report; the file has all
_COLUMNS = ("precision", "recall", "f1")


def further(measured: Mapping[str, Any], num_classes: int) -> dict[str, float]:
    """balanced_accuracy and macro_f1 of a network, and top5 from 10 classes on; of an older evaluation what it has."""
    names = ("balanced_accuracy", "macro_f1", *(("top5",) if num_classes >= _TOP5_FROM else ()))
    return {name: measured[name] for name in names if measured.get(name) is not None}


def measures_table(rows: Mapping[str, Mapping[str, str]]) -> Table:
    """Figures of `further` in words, a row for each of several networks."""
    names = [name for name in _HEADS if any(name in row for row in rows.values())]
    return ["", *(_HEADS[name] for name in names)], [
        [title, *(row.get(name, "") for name in names)] for title, row in rows.items()
    ]


def class_title(rows: Sequence[Any]) -> str:
    """The heading of `class_table`."""
    few = f" (the {_SHOWN} of {len(rows):,} with the student's lowest F1; all are in per_class.csv)"
    return f"Classes of the test part{few if len(rows) > _SHOWN else ''}"


def class_table(
    class_names: Sequence[str], teacher: Sequence[Mapping[str, Any]], student: Sequence[Mapping[str, Any]]
) -> Table:
    """A row of text for each class, in their order; of very many classes for those with the student's lowest F1.

    Args:
        class_names: (K,).
        teacher, student: rows of `rco.evaluation.classification.per_class`.
    """
    order = sorted(range(len(student)), key=lambda k: (student[k]["f1"] is None, student[k]["f1"] or 0.0, k))[:_SHOWN]
    heads = [
        "class",
        "test images",
        *(f"{role} {name}" for role in ("student", "teacher") for name in ("precision", "recall", "F1")),
    ]
    rows = [
        [class_names[k], f"{student[k]['n']:,}", *(_shown(row[k][name]) for row in (student, teacher) for name in _COLUMNS)]
        for k in sorted(order)
    ]
    return heads, rows


def class_rows(
    class_names: Sequence[str], teacher: Sequence[Mapping[str, Any]], student: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """All of it as rows of a CSV file, which MLflow shows as a table."""
    return [
        {
            "class": name,
            "test_images": student[k]["n"],
            **{f"{role}_{c}": row[k][c] for role, row in (("student", student), ("teacher", teacher)) for c in _COLUMNS},
        }
        for k, name in enumerate(class_names)
    ]


def _shown(value: float | None) -> str:
    return "none" if value is None else percent(value)
