"""The report of one student in depth: a page with pictures and tables for people, and a summary with the same figures for
programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rco.config.filing import Filing
from rco.core.documents import write_json
from rco.evaluation import openset
from rco.models.route import Route
from rco.reporting.measures import MORE, class_rows, class_table, class_title, further, measures_table
from rco.reporting.page import Table, as_csv, as_markdown, percent, write_report, write_text
from rco.reporting.student import Student, input_of, input_sentence
from rco.strategies.hardness import route_hardness
from rco.tracking.context import Context, without_credentials
from rco.tracking.record import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MODEL_FIGURES = (
    "accuracy",
    "top5",
    "cross_entropy",
    "ece",
    "n",
    "parameters",
    "macs",
    "latency_ms",
    "latency_p95_ms",
    "balanced_accuracy",
    "macro_f1",
    "per_class_accuracy",
    "per_class",
)
_METRICS = ("accuracy", "ece", "parameters", "macs", "latency_ms")


def write(
    folder: Path,
    filing: Filing,
    *,
    index: Route,
    student: Student,
    logits: NDArray[np.float32],
    registered: Mapping[str, Any],
    context: Context,
    parent_run_id: str | None,
) -> dict[str, Any]:
    """Write summary.json, report.md, report.html and one PNG per picture into `folder`.

    Args:
        index: the teacher's route.
        student: measured in depth.
        logits: (N, K), of the final student on the probe samples.
        registered: name and version in the model registry; empty: not registered.
        parent_run_id: in MLflow; None: not tracked.

    Returns:
        the summary.
    """
    from rco.reporting.figures.classification import confusion_figure
    from rco.reporting.figures.openset import open_set_figure
    from rco.reporting.figures.route import student_figure

    record, evaluation = student.record, student.evaluation
    summary = summarise(filing.parameters, index, student, registered, context, parent_run_id)
    write_json(folder / "summary.json", summary)
    figures = {
        "route": _route_figure(index, summary["stages"]),
        "student": student_figure(
            [{"epoch": row["step"], "val_accuracy": row["metrics"]["val_accuracy"]} for row in record.rows],
            [
                {**stage, "anchor_epochs": epochs(stage), "anchor_accuracies": [a["val_accuracy"] for a in stage["anchors"]]}
                for stage in record.stages
            ],
            summary["teacher"]["val_accuracy"],
        ),
        "hardness": _hardness_figure(index, record, logits, float(evaluation["tau"])),
        "confusion": confusion_figure(evaluation["student"]["confusion"], evaluation["class_names"]),
    }
    if "open_set" in summary:
        figures["open_set"] = open_set_figure(summary["open_set"])
    classes = _classes(evaluation)
    sections = {**tables(summary), **_more_measures(summary)}
    if classes is not None:
        write_text(folder / "per_class.csv", as_csv(class_rows(*classes)))
        sections |= {class_title(classes[0]): class_table(*classes)}
    write_report(folder, headline(summary), sections, figures)
    return summary


def _classes(evaluation: Mapping[str, Any]) -> tuple[Sequence[str], Sequence[Any], Sequence[Any]] | None:
    """Names of the classes, and their measures of teacher and student; None: an older evaluation has none."""
    rows = [evaluation[role].get("per_class") for role in ("teacher", "student")]
    return (evaluation["class_names"], rows[0], rows[1]) if all(rows) else None


def summarise(
    parameters: Mapping[str, Any],
    index: Route,
    student: Student,
    registered: Mapping[str, Any],
    context: Context,
    parent_run_id: str | None,
) -> dict[str, Any]:
    """All figures of a run, JSON-ready. Accuracies are 0 to 1, on the test part unless named val_accuracy. KL is in nats."""
    record, evaluation = student.record, student.evaluation
    converged = index.checkpoints[-1]

    def model(name: str, **more: Any) -> dict[str, Any]:
        measured = evaluation[name]
        return {
            "model": parameters[name.removesuffix("_ema")],
            **more,
            **{key: measured[key] for key in _MODEL_FIGURES if key in measured},
        }

    of_stage = (
        *("stage", "anchor_epoch", "reason", "val_accuracy", "kl_to_anchor", "kl_to_teacher"),
        *("first_epoch", "last_epoch", "anchor_val_accuracy", "anchor_sha256", "anchors"),
    )
    more = {name: evaluation[name] for name in ("open_set", "export") if name in evaluation}
    of_ema = {}
    if evaluation.get("student_ema"):
        of_ema["student_ema"] = model("student_ema", val_accuracy=record.stages[-1]["val_accuracy_ema"])
    return {
        "pipeline_run": context.pipeline_run,
        "dataset": dict(record.data),
        "strategy": parameters["strategy"],
        "teacher": model(
            "teacher",
            epochs=converged.epoch,
            val_accuracy=converged.val_accuracy,
            checkpoints=len(index.checkpoints),
            **input_of(evaluation),
        ),
        "stages": [{name: stage[name] for name in of_stage} for stage in record.stages],
        "student": model("student", epochs=record.rows[-1]["step"], val_accuracy=record.stages[-1]["val_accuracy"]),
        **of_ema,
        "congruence_kl": evaluation["congruence_kl"],
        **more,
        "tau": evaluation["tau"],
        "device": evaluation["device"],
        "registered": dict(registered),
        "tracking_uri": without_credentials(context.tracking_uri),
        "experiment": parameters["experiment"],
        "parent_run_id": parent_run_id,
    }


def epochs(stage: Mapping[str, Any]) -> list[int]:
    """The epochs of a stage's anchors, in order."""
    return [int(anchor["epoch"]) for anchor in stage["anchors"]]


def metrics(student: Student) -> dict[str, float]:
    """The final metrics of the student's run in MLflow."""
    measured, evaluation = student.evaluation["student"], student.evaluation
    return {
        **{f"test_{name}": measured[name] for name in _METRICS},
        **{f"test_{name}": value for name, value in further(measured, len(evaluation["class_names"])).items()},
        **({"test_ema_accuracy": evaluation["student_ema"]["accuracy"]} if evaluation.get("student_ema") else {}),
        **(openset.figures(evaluation["open_set"]["student"]) if "open_set" in evaluation else {}),
        "test_congruence_kl": evaluation["congruence_kl"],
        **_export_figures(evaluation.get("export", ())),
    }


def _export_figures(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Size in bytes, milliseconds of one image on the CPU, and validation accuracy of each file that was written."""
    written = [row for row in rows[1:] if not row.get("problem")]  # the first is PyTorch's
    return {f"export_{row['format']}_{name}": row[name] for row in written for name in ("size", "latency_ms", "accuracy")}


def headline_metrics(summary: Mapping[str, Any]) -> dict[str, float]:
    """The figures of the parent run in MLflow."""
    classes = int(summary["dataset"].get("num_classes", 0))
    return {
        **{f"student_test_{name}": summary["student"][name] for name in _METRICS},
        **{f"student_test_{name}": value for name, value in further(summary["student"], classes).items()},
        "teacher_test_accuracy": summary["teacher"]["accuracy"],
        "teacher_parameters": summary["teacher"]["parameters"],
        "congruence_kl": summary["congruence_kl"],
        "stages": len(summary["stages"]),
        **({"student_test_ema_accuracy": summary["student_ema"]["accuracy"]} if "student_ema" in summary else {}),
        **openset.both_figures(summary.get("open_set")),
    }


def note(summary: Mapping[str, Any]) -> str:
    """The report as Markdown, for the page of the parent run in MLflow."""
    return as_markdown(headline(summary), {**tables(summary), **_more_measures(summary)})


def headline(summary: Mapping[str, Any]) -> str:
    """The result in one sentence."""
    teacher, student = summary["teacher"], summary["student"]
    accuracies = (
        f"{student['model']} ({student['parameters']:,} parameters) reaches {percent(student['accuracy'])} on the test part "
        f"of {summary['dataset']['name']}, its teacher {teacher['model']} ({teacher['parameters']:,}) "
        f"{percent(teacher['accuracy'])}."
    )
    accuracies += input_sentence(teacher)
    return f"{accuracies} {openset.sentence(summary['open_set'])}" if "open_set" in summary else accuracies


def tables(summary: Mapping[str, Any]) -> dict[str, Table]:
    """The tables of a report, title -> (column heads, rows of text)."""
    stages = [
        [
            str(stage["stage"]),
            ", ".join(map(str, epochs(stage))),
            ", ".join(percent(anchor["val_accuracy"]) for anchor in stage["anchors"]),
            stage["reason"],
            str(stage["last_epoch"] - stage["first_epoch"] + 1),
            percent(stage["val_accuracy"]),
            f"{stage['kl_to_anchor']:.4f}",
            f"{stage['kl_to_teacher']:.4f}",
        ]
        for stage in summary["stages"]
    ]
    models = [
        [
            "student, EMA" if role == "student_ema" else role,
            summary[role]["model"],
            percent(summary[role]["val_accuracy"]),
            percent(summary[role]["accuracy"]),
            f"{summary[role]['ece']:.3f}",
            f"{summary[role]['parameters']:,}",
            f"{summary[role]['macs']:,}",
            f"{summary[role]['latency_ms']:.2f}",
        ]
        for role in ("teacher", "student", *(("student_ema",) if "student_ema" in summary else ()))
    ]
    return {
        "The route the student took": (
            [
                "stage",
                "anchor epoch",
                "anchor val.",
                "chosen because",
                "epochs",
                "student val.",
                "KL to anchor",
                "KL to teacher",
            ],
            stages,
        ),
        "Teacher and student": (
            ["", "model", "val.", "test", "ECE", "parameters", "MACs", f"ms ({summary['device']}, 1 image)"],
            models,
        ),
        **({_open_set_title(summary["open_set"]): openset.table(summary["open_set"])} if "open_set" in summary else {}),
        **({"The student in other formats": _export_table(summary["export"])} if "export" in summary else {}),
    }


def _more_measures(summary: Mapping[str, Any]) -> dict[str, Table]:
    """The measures beside accuracy as a table; nothing, of an older evaluation."""
    classes = int(summary["dataset"].get("num_classes", 0))
    rows = {role: further(summary[role], classes) for role in ("teacher", "student")}
    if "student_ema" in summary:
        rows["student, EMA"] = further(summary["student_ema"], classes)
    return (
        {MORE: measures_table({role: {n: percent(v) for n, v in row.items()} for role, row in rows.items()})}
        if all(rows.values())
        else {}
    )


def _export_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    heads = ["format", "bytes", "ms (cpu, 1 image)", "val.", "largest difference to PyTorch"]
    return heads, [_export_row(row) for row in rows]


def _export_row(row: Mapping[str, Any]) -> list[str]:
    if row.get("problem"):
        return [row["format"], "", "", "", f"not written: {row['problem']}"]
    apart = "" if row["format"] == "PyTorch" else f"{row['difference']:.1e} of the largest answer"
    return [row["format"], f"{row['size']:,}", f"{row['latency_ms']:.3f}", percent(row["accuracy"]), apart]


def _open_set_title(open_set: Mapping[str, Any]) -> str:
    names = open_set["classes"]
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return f"Classes never trained on: {shown} ({open_set['student']['images']:,} images)"


def _route_figure(index: Route, stages: Sequence[Mapping[str, Any]]) -> Figure:
    from rco.reporting.figures.route import route_figure

    measured = [{"epoch": c.epoch, "val_accuracy": c.val_accuracy, "lr": c.lr} for c in index.checkpoints]
    anchors = [(stage["stage"], epoch) for stage in stages for epoch in epochs(stage)]
    return route_figure(index.history or measured, index.epochs, anchors)


def _hardness_figure(index: Route, student: Record, final_logits: NDArray[np.float32], tau: float) -> Figure:
    from rco.reporting.figures.route import hardness_figure

    _, route_logits = index.probe()
    rows = [stage["hardness_before"] for stage in student.stages] + [list(route_hardness(route_logits, final_logits, tau))]
    labels = ["initial", *(f"after stage {stage['stage']}" for stage in student.stages)]
    return hardness_figure(rows, index.epochs, [epochs(stage) for stage in student.stages], labels)
