"""What came out, for people: pictures, a page, a table, and the same figures for machines."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rco.core.documents import write_json
from rco.core.files import atomically
from rco.evaluation import openset
from rco.models.route import Route
from rco.strategies.hardness import route_hardness
from rco.tracking.context import Context, without_credentials
from rco.tracking.record import Record

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
    "per_class_accuracy",
)

Table = tuple[list[str], list[list[str]]]


def write(
    folder: Path,
    *,
    parameters: Mapping[str, Any],
    index: Route,
    student: Record,
    student_logits: NDArray[np.float32],
    evaluation: Mapping[str, Any],
    registered: Mapping[str, Any],
    context: Context,
    parent_run_id: str | None,
) -> dict[str, Any]:
    """Write summary.json, report.md, report.html and one PNG per picture into `folder`.

    Args:
        index: of the teacher's route.
        student_logits: (N, K), of the final student on the probe samples.
        evaluation: what `rco.tasks.run.evaluate` measured on the test part.
        registered: name and version in the model registry; empty if there is none.
        parent_run_id: in MLflow; None if nothing is tracked.

    Returns:
        the summary.
    """
    from rco.reporting import plots

    summary = summarise(parameters, index, student, evaluation, registered, context, parent_run_id)
    write_json(folder / "summary.json", summary)
    figures = {
        "route": _route_picture(index, summary["stages"]),
        "student": plots.student_figure(
            [{"epoch": row["step"], "val_accuracy": row["metrics"]["val_accuracy"]} for row in student.rows],
            [{**stage, "anchor_accuracy": stage["anchor_val_accuracy"]} for stage in student.stages],
            summary["teacher"]["val_accuracy"],
        ),
        "hardness": _hardness_picture(index, student, student_logits, float(evaluation["tau"])),
        "confusion": plots.confusion_figure(evaluation["student"]["confusion"], evaluation["class_names"]),
    }
    if "open_set" in summary:
        figures["open_set"] = plots.open_set_figure(summary["open_set"])
    for name, figure in figures.items():
        plots.save(figure, folder / f"{name}.png")
    title, sections = headline(summary), tables(summary)
    atomically(folder / "report.md", lambda temporary: temporary.write_text(as_markdown(title, sections)))
    page = as_page(title, sections, {name: plots.data_uri(figure) for name, figure in figures.items()})
    atomically(folder / "report.html", lambda temporary: temporary.write_text(page))
    return summary


def summarise(
    parameters: Mapping[str, Any],
    index: Route,
    student: Record,
    evaluation: Mapping[str, Any],
    registered: Mapping[str, Any],
    context: Context,
    parent_run_id: str | None,
) -> dict[str, Any]:
    """All figures of a run, JSON-ready. Accuracies are 0 to 1; unless called val_accuracy, of the test part. KL is in nats."""
    converged = index.checkpoints[-1]

    def model(name: str, **more: Any) -> dict[str, Any]:
        measured = evaluation[name]
        return {"model": parameters[name], **more, **{key: measured[key] for key in _MODEL_FIGURES if key in measured}}

    names = ("stage", "anchor_epoch", "reason", "val_accuracy", "kl_to_anchor", "kl_to_teacher")
    more = ("first_epoch", "last_epoch", "anchor_val_accuracy", "anchor_sha256")
    open_set = {"open_set": evaluation["open_set"]} if "open_set" in evaluation else {}
    return {
        "pipeline_run": context.pipeline_run,
        "dataset": dict(student.data),
        "strategy": parameters["strategy"],
        "teacher": model(
            "teacher", epochs=converged.epoch, val_accuracy=converged.val_accuracy, checkpoints=len(index.checkpoints)
        ),
        "stages": [{name: stage[name] for name in (*names, *more)} for stage in student.stages],
        "student": model("student", epochs=student.rows[-1]["step"], val_accuracy=student.stages[-1]["val_accuracy"]),
        "congruence_kl": evaluation["congruence_kl"],
        **open_set,
        "tau": evaluation["tau"],
        "device": evaluation["device"],
        "registered": dict(registered),
        "tracking_uri": without_credentials(context.tracking_uri),
        "experiment": parameters["experiment"],
        "parent_run_id": parent_run_id,
    }


def headline(summary: Mapping[str, Any]) -> str:
    """The result in one sentence."""
    teacher, student = summary["teacher"], summary["student"]
    known = (
        f"{student['model']} ({student['parameters']:,} parameters) reaches {_percent(student['accuracy'])} on the test part "
        f"of {summary['dataset']['name']}, its teacher {teacher['model']} ({teacher['parameters']:,}) "
        f"{_percent(teacher['accuracy'])}."
    )
    return f"{known} {openset.sentence(summary['open_set'])}" if "open_set" in summary else known


def tables(summary: Mapping[str, Any]) -> dict[str, Table]:
    """The tables of a report, title -> (column heads, rows of text)."""
    stages = [
        [
            str(stage["stage"]),
            str(stage["anchor_epoch"]),
            _percent(stage["anchor_val_accuracy"]),
            stage["reason"],
            str(stage["last_epoch"] - stage["first_epoch"] + 1),
            _percent(stage["val_accuracy"]),
            f"{stage['kl_to_anchor']:.4f}",
            f"{stage['kl_to_teacher']:.4f}",
        ]
        for stage in summary["stages"]
    ]
    models = [
        [
            role,
            summary[role]["model"],
            _percent(summary[role]["val_accuracy"]),
            _percent(summary[role]["accuracy"]),
            f"{summary[role]['ece']:.3f}",
            f"{summary[role]['parameters']:,}",
            f"{summary[role]['macs']:,}",
            f"{summary[role]['latency_ms']:.2f}",
        ]
        for role in ("teacher", "student")
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
        **({_open_title(summary["open_set"]): openset.table(summary["open_set"])} if "open_set" in summary else {}),
    }


def _open_title(open_set: Mapping[str, Any]) -> str:
    names = open_set["classes"]
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return f"Classes never trained on: {shown} ({open_set['student']['images']:,} images)"


def _percent(value: float) -> str:
    return f"{100 * value:.2f} %"


def _route_picture(index: Route, stages: Sequence[Mapping[str, Any]]) -> Any:
    from rco.reporting import plots

    measured = [{"epoch": c.epoch, "val_accuracy": c.val_accuracy, "lr": c.lr} for c in index.checkpoints]
    return plots.route_figure(
        index.history or measured, index.epochs, [(stage["stage"], stage["anchor_epoch"]) for stage in stages]
    )


def _hardness_picture(index: Route, student: Record, final_logits: NDArray[np.float32], tau: float) -> Any:
    from rco.reporting import plots

    _, route_logits = index.probe()
    rows = [stage["hardness_before"] for stage in student.stages] + [list(route_hardness(route_logits, final_logits, tau))]
    labels = ["initial", *(f"after stage {stage['stage']}" for stage in student.stages)]
    return plots.hardness_figure(rows, index.epochs, [stage["anchor_epoch"] for stage in student.stages], labels)


def as_markdown(title: str, sections: Mapping[str, Table], sentences: Sequence[str] = ()) -> str:
    """A report as Markdown: title, sentences as a list, tables."""
    parts = [f"# Route Constrained Optimization\n\n{title}\n"]
    if sentences:
        parts += [*(f"- {sentence}" for sentence in sentences), ""]
    for name, (heads, rows) in sections.items():
        parts.append(f"## {name}\n")
        parts += [f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *rows)]
        parts.append("")
    return "\n".join(parts)


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: 0 0 1.5rem; font-variant-numeric: tabular-nums }
th, td { text-align: left; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid #ddd; vertical-align: top }
img { max-width: 100%; margin: 0 0 1.5rem }
"""


def as_page(title: str, sections: Mapping[str, Table], pictures: Mapping[str, str], sentences: Sequence[str] = ()) -> str:
    """A report as one HTML page, pictures (data: addresses) included."""

    def row(tag: str, cells: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = [f"<h1>Route Constrained Optimization</h1><p>{html.escape(title)}</p>"]
    if sentences:
        body.append(f"<ul>{''.join(f'<li>{html.escape(sentence)}</li>' for sentence in sentences)}</ul>")
    for name, (heads, rows) in sections.items():
        body.append(
            f"<h2>{html.escape(name)}</h2><table>{row('th', heads)}{''.join(row('td', cells) for cells in rows)}</table>"
        )
    body += [f'<img alt="{html.escape(name)}" src="{uri}">' for name, uri in pictures.items()]
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>RCO report</title><style>{_STYLE}</style>'
        f"<body>{''.join(body)}</body></html>\n"
    )
