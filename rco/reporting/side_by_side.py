"""The report of several students side by side, for people and for programs: a table, curves, intervals, a verdict in words."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rco.config.filing import Filing
from rco.config.kinds import BASELINES, DESCRIBED
from rco.core.documents import write_json
from rco.evaluation import openset
from rco.evaluation.statistics import compare, mean_and_deviation, require_same_data, verdict
from rco.models.route import Route
from rco.reporting import raced
from rco.reporting.measures import MORE, further, measures_table
from rco.reporting.page import Table, as_csv, as_markdown, percent, write_report, write_text
from rco.reporting.student import Student, input_of, input_sentence
from rco.tracking.context import Context, without_credentials


def metrics(student: Student) -> dict[str, float]:
    """The final metrics of a student's run in MLflow."""
    result = student.result()
    return {
        "test_accuracy": result.test_accuracy,
        "test_ece": float(student.evaluation["student"]["ece"]),
        "congruence_kl": result.congruence_kl,
        "student_epochs": result.student_epochs,
        "teacher_forward_passes": result.teacher_forward_passes,
        "train_seconds": result.train_seconds,
        **{f"test_{name}": value for name, value in _further(student, "student").items()},
        **_unseen(student, "student"),
    }


def _further(student: Student, role: str) -> dict[str, float]:
    """The measures beside accuracy of a student or its teacher."""
    figures = further(student.evaluation[role], len(student.evaluation["class_names"]))
    if averaged := student.evaluation.get("student_ema") if role == "student" else None:
        figures["ema_accuracy"] = averaged["accuracy"]
    return figures


def _unseen(student: Student, role: str) -> dict[str, float]:
    """The open-set figures of a student or its teacher; empty without an open set."""
    return openset.figures(student.evaluation["open_set"][role]) if "open_set" in student.evaluation else {}


def write(
    folder: Path,
    filing: Filing,
    *,
    index: Route,
    students: Sequence[Student],
    context: Context,
    parent_run_id: str | None,
) -> dict[str, Any]:
    """Write summary.json, summary.csv, results.csv, report.md, report.html and one PNG per picture into `folder`.

    Args:
        index: the teacher's route.
        students: every seed of every branch, in any order.
        parent_run_id: in MLflow; None: not tracked.

    Returns:
        the summary.

    Raises:
        InputError: students of different data, or of different seeds.
    """
    from rco.reporting.figures.comparison import curves_figure, differences_figure

    summary = summarise(filing, index, students, context, parent_run_id)
    write_json(folder / "summary.json", summary)
    for name, rows in (("summary", summary["branches"]), ("results", summary["students"])):
        write_text(folder / f"{name}.csv", as_csv(rows))
    curves = {
        name: [
            [row["metrics"]["val_accuracy"] for row in student.record.rows]
            for student in sorted(students, key=lambda student: student.seed)
            if student.branch == name
        ]
        for name in filing.branches
    }
    figures = {
        "differences": differences_figure([row for row in summary["branches"] if row["reference"]]),
        "curves": curves_figure(curves, summary["teacher"]["val_accuracy"]),
    }
    sections = {**tables(summary), **_more_measures(summary)}
    write_report(folder, headline(summary), sections, figures, sentences(summary))
    return summary


def summarise(
    filing: Filing, index: Route, students: Sequence[Student], context: Context, parent_run_id: str | None
) -> dict[str, Any]:
    """All figures, JSON-ready. Accuracies and their differences are 0 to 1; KL is in nats, at one temperature."""
    require_same_data({student.record.key: str(student.record.data["digest"]) for student in students})
    students = sorted(students, key=lambda student: (filing.branches.index(student.branch), student.seed))
    results = [student.result() for student in students]
    rows = compare(results, {name: filing.references[name] for name in filing.branches})
    measured = students[0].evaluation
    routes = [name for name in filing.branches if filing.kinds[name] not in BASELINES]
    converged = index.checkpoints[-1]
    for row in rows:
        own = [student for student in students if student.branch == row["branch"]]
        row["kind"] = filing.kinds[row["branch"]]
        row["anchors"] = _anchors(own)
        row["student"] = own[0].record.params["student"]
        row["student_parameters"] = own[0].evaluation["student"]["parameters"]
    open_set = {row["branch"]: _spreads([_unseen(s, "student") for s in students if s.branch == row["branch"]]) for row in rows}
    measures = {
        row["branch"]: _spreads([_further(s, "student") for s in students if s.branch == row["branch"]]) for row in rows
    }
    return {
        "pipeline_run": context.pipeline_run,
        "dataset": dict(students[0].record.data),
        "seeds": list(filing.seeds),
        "teacher": {
            "model": filing.parameters["teacher"],
            "epochs": converged.epoch,
            "checkpoints": len(index.checkpoints),
            "val_accuracy": converged.val_accuracy,
            "accuracy": measured["teacher"]["accuracy"],
            "parameters": measured["teacher"]["parameters"],
            **input_of(measured),
        },
        "tau": measured["tau"],
        "branches": rows,
        "students": [
            {
                **asdict(result),
                **{f"test_{name}": value for name, value in _further(student, "student").items()},
                "student_sha256": student.evaluation["student_sha256"],
                "anchors": _anchors([student]),
            }
            for result, student in zip(results, students, strict=True)
        ],
        **({"measures": {"teacher": _further(students[0], "teacher"), **measures}} if any(measures.values()) else {}),
        **({"open_set": {"teacher": _unseen(students[0], "teacher"), **open_set}} if any(open_set.values()) else {}),
        "verdict": verdict(rows, results, routes, int(measured["student"]["n"])),
        **({"race": filing.race.account()} if filing.race else {}),
        "restart_like": filing.restart_like,
        "parameters": filing.parameters,
        "tracking_uri": without_credentials(context.tracking_uri),
        "experiment": filing.experiment,
        "parent_run_id": parent_run_id,
    }


def _anchors(students: Sequence[Student]) -> str:
    """The epochs of the anchors, each different list of several seeds once; "none" for training on labels alone. Anchors of one
    stage are joined by "+"."""
    lists = [
        " ".join(
            "+".join(str(anchor["epoch"]) for anchor in stage["anchors"])
            for stage in student.record.stages
            if stage["teacher_forward_passes"]
        )
        for student in students
    ]
    return " / ".join(dict.fromkeys(filter(None, lists))) or "none"


def _spreads(figures: Sequence[Mapping[str, float]]) -> dict[str, list[float | None]]:
    """Mean and deviation over the seeds of each figure that all have."""
    return {
        name: list(mean_and_deviation([measures[name] for measures in figures]))
        for name in figures[0]
        if all(name in measures for measures in figures)
    }


def headline(summary: Mapping[str, Any]) -> str:
    """The compared students and their teacher, in one sentence."""
    teacher, branches = summary["teacher"], summary["branches"]
    students = ", ".join(dict.fromkeys(f"{row['student']} ({row['student_parameters']:,} parameters)" for row in branches))
    seeds = len(summary["seeds"])
    return (
        f"{len(branches)} ways to train {students} on {summary['dataset']['name']}, {seeds} seed{'s' * (seeds > 1)} each, "
        f"from one teacher {teacher['model']} ({teacher['parameters']:,} parameters, {percent(teacher['accuracy'])} on the "
        "test part)."
    ) + input_sentence(teacher)


def sentences(summary: Mapping[str, Any]) -> list[str]:
    """The verdict; after a race also how it was come by."""
    return [*summary["verdict"], *(raced.sentences(summary["race"]) if "race" in summary else [])]


def note(summary: Mapping[str, Any]) -> str:
    """The table and the verdict as Markdown, for the page of the parent run in MLflow."""
    shown = {name: table for name, table in tables(summary).items() if name in ("Comparison", raced.TITLE)}
    return as_markdown(headline(summary), shown, sentences(summary))


def tables(summary: Mapping[str, Any]) -> dict[str, Table]:
    """The tables of the report, title -> (column heads, rows of text)."""
    rows = [
        [
            row["branch"],
            _spread(row["test_accuracy_mean"], row["test_accuracy_sd"]),
            *_difference(row, several=len({r["reference"] for r in summary["branches"]}) > 2),
            f"{row['congruence_kl_mean']:.4f}",
            str(row["student_epochs"]),
            f"{row['teacher_forward_passes']:,.0f}",
            f"{row['train_seconds']:.1f}",
            row["anchors"],
        ]
        for row in summary["branches"]
    ]
    heads = [
        "branch",
        "test accuracy",
        "difference (points)",
        "95 % interval",
        f"KL to teacher (tau {summary['tau']:g})",
        "epochs",
        "teacher forwards",
        "train s",
        "anchors",
    ]
    kinds = dict.fromkeys(row["kind"] for row in summary["branches"])
    described = [[kind, _described(kind, summary["restart_like"])] for kind in kinds]
    open_set = {"Classes never trained on": _open_set_table(summary["open_set"])} if "open_set" in summary else {}
    race = {raced.TITLE: raced.table(summary["race"])} if "race" in summary else {}
    return {"Comparison": (heads, rows), **race, **open_set, "Branches": (["", "what it is"], described)}


def _more_measures(summary: Mapping[str, Any]) -> dict[str, Table]:
    """The measures beside accuracy: of the teacher, and mean and deviation of every branch; nothing, of older evaluations."""
    rows = {
        branch: {name: percent(v) if branch == "teacher" else _spread(*v) for name, v in figures.items()}
        for branch, figures in summary.get("measures", {}).items()
    }
    return {MORE: measures_table(rows)} if rows else {}


def _open_set_table(open_set: Mapping[str, Mapping[str, Any]]) -> Table:
    names = list(open_set["teacher"])
    heads = [name.removeprefix("open_").replace("_", " ") for name in names]
    rows = {
        branch: [percent(v) if branch == "teacher" else _spread(*v) for v in figures.values()]
        for branch, figures in open_set.items()
    }
    return ["", *heads], [[branch, *cells] for branch, cells in rows.items()]


def _described(kind: str, restart_like: str) -> str:
    return f"converged teacher, stage lengths of {restart_like}" if kind == "kd-restart" else DESCRIBED[kind]


def _spread(mean: float, deviation: float | None) -> str:
    return percent(mean) if deviation is None else f"{100 * mean:.2f} ± {100 * deviation:.2f} %"


def _difference(row: Mapping[str, Any], *, several: bool) -> tuple[str, str]:
    if not row["reference"]:
        return "reference", ""
    to = f" to {row['reference']}" if several else ""
    interval = (
        "none"
        if row["difference_low"] is None
        else f"{100 * row['difference_low']:+.2f} to {100 * row['difference_high']:+.2f}"
    )
    return f"{100 * row['difference_mean']:+.2f}{to}", interval


def headline_metrics(summary: Mapping[str, Any]) -> dict[str, float]:
    """The figures of the parent run in MLflow: "BRANCH/FIGURE", so that MLflow groups them."""
    names = (
        "test_accuracy_mean",
        "test_accuracy_sd",
        "difference_mean",
        "difference_low",
        "difference_high",
        "p_holm",
        "congruence_kl_mean",
        "train_seconds",
        "teacher_forward_passes",
    )
    figures = {
        f"{metric_name(row['branch'])}/{name}": float(row[name])
        for row in summary["branches"]
        for name in names
        if row[name] is not None
    }
    return {
        **figures,
        "teacher_test_accuracy": float(summary["teacher"]["accuracy"]),
        "seeds": float(len(summary["seeds"])),
        **(raced.metrics(summary["race"]) if "race" in summary else {}),
    }


def metric_name(branch: str) -> str:
    """A branch's name in the characters that MLflow allows in names of metrics."""
    return re.sub(r"[^\w\-. :/]", "_", branch.replace("=", ":"))
