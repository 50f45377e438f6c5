"""The tasks that end a pipeline run: the report, what a server has missed, and the end of open runs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rco.core.documents import read_json, write_json
from rco.core.errors import InputError
from rco.evaluation import openset
from rco.models.route import Route
from rco.tasks.evaluate import read_evaluation
from rco.tasks.process import log, read_settings, task
from rco.tasks.register import register_student
from rco.tasks.selection import used_anchors
from rco.tasks.settings import (
    FilingSettings,
)
from rco.tasks.students import (
    PROBE,
    read_logits,
)
from rco.tracking import outbox
from rco.tracking.context import Context, forgiving, without_credentials
from rco.tracking.delivery import run_deliveries
from rco.tracking.record import Record
from rco.tracking.runs import end_open_runs, open_parent
from rco.training import resume


@task
def report(
    settings: Mapping[str, Any],
    *,
    registered: Mapping[str, Any],
    route_index: Path,
    student: Path,
    anchors: Path,
    evaluation: Path,
    folder: Path,
) -> dict[str, Any]:
    """Tell people what came out, and bring MLflow up to date with everything that cached tasks did not say.

    Writes summary.json, report.html, report.md and the pictures into `folder`.

    Returns:
        the summary.
    """
    s = read_settings(FilingSettings, settings)
    from rco.reporting import report as run_report

    context = Context.from_environment()
    parent = None
    if context.active:
        with forgiving("The parent run"):
            parent = open_parent(context, **parent_of(s))
    learner, index = Record.read(student), Route.open(route_index)
    summary = run_report.write(
        folder,
        parameters=s.parameters,
        index=index,
        student=learner,
        student_logits=read_logits(student / PROBE, index.probe()[1].shape[1:], "logits")[0],
        evaluation=read_evaluation(evaluation),
        registered=registered,
        context=context,
        parent_run_id=parent,
    )
    if context.active:
        student_figures = {
            f"test_{name}": summary["student"][name] for name in ("accuracy", "ece", "parameters", "macs", "latency_ms")
        }
        headline = {
            **{f"student_{name}": value for name, value in student_figures.items()},
            "teacher_test_accuracy": summary["teacher"]["accuracy"],
            "teacher_parameters": summary["teacher"]["parameters"],
            "congruence_kl": summary["congruence_kl"],
            "stages": len(summary["stages"]),
            **openset.both_figures(summary.get("open_set")),
        }
        if "open_set" in summary:
            student_figures |= openset.figures(summary["open_set"]["student"])
        pending = outbox.PendingReport(
            parent=parent_of(s),
            deliveries=run_deliveries(
                [Record.read(route_index), learner],
                used_anchors(anchors),
                {**student_figures, "test_congruence_kl": summary["congruence_kl"]},
            ),
            headline=headline,
            note=(folder / "report.md").read_text(),
        )
        lacking = s.registered_model and not registered

        def registration(target: Path) -> None:
            shutil.copytree(student, target / "student")
            shutil.copytree(evaluation, target / "evaluation")
            write_json(target / "settings.json", settings)

        deliver(context, pending, folder, registration if lacking else None)
    return summary


def parent_of(s: FilingSettings) -> dict[str, Any]:
    """Keyword arguments of `rco.tracking.runs.open_parent`."""
    data = str(s.parameters["dataset"]).rstrip("/").rsplit("/", 1)[-1]
    name = f"{data} {s.parameters['teacher']} to {s.parameters['student']} {s.parameters['strategy']}"
    return {"experiment": s.experiment, "name": name, "params": s.parameters}


def deliver(
    context: Context,
    pending: outbox.PendingReport,
    folder: Path,
    registration: Callable[[Path], object] | None = None,
) -> None:
    """Deliver what a report has to say; keep it in the report's folder if the server cannot be told now.

    Args:
        registration: as for `rco.tracking.outbox.keep`, if the registry lacks the model.
    """
    log.info("completing the runs in MLflow")
    with forgiving("The report") as attempt:
        pending.send(context, report_files(folder))
    if attempt.failed or registration is not None:
        outbox.keep(folder, pending, context, registration)
        log.warning("what MLflow lacks is kept beside the report; when the server is back, deliver it with: rco sync")


def sync(report: Path, *, anywhere: bool = False) -> str:
    """Deliver what waits in a report's outbox to the server that MLFLOW_TRACKING_URI names, then clear the outbox. Safe to
    repeat: what the server has is not sent again.

    Args:
        anywhere: also to another server than the one that was away.

    Returns:
        the parent's run id; empty if the server is still away, and all is kept.

    Raises:
        InputError: no or a damaged outbox, or a server that it was not meant for.
    """
    pending, pipeline_run, meant_for = outbox.take(report)
    os.environ["RCO_PIPELINE_RUN"] = pipeline_run
    context = Context.from_environment()
    server = without_credentials(context.tracking_uri)
    if not server or (server != meant_for and not anywhere):
        raise InputError(
            "MLFLOW_TRACKING_URI",
            server,
            f"is not where run {pipeline_run} was tracked",
            f"Set it to {meant_for}, or give --anywhere with a server",
        )
    run_id = ""
    with forgiving(f"Run {pipeline_run}"):
        run_id = pending.send(context, report_files(report))
    registration = report / outbox.FOLDER / outbox.REGISTRATION
    if run_id and registration.is_dir():
        settings = read_json(registration / "settings.json")
        if not register_student(settings, student=registration / "student", evaluation=registration / "evaluation"):
            return ""
    if run_id:
        outbox.clear(report)
    return run_id


def report_files(folder: Path) -> list[Path]:
    """Pictures, page and tables of a report."""
    return sorted(path for path in folder.iterdir() if path.is_file() and not path.is_symlink())


@task
def close_run(*, succeeded: bool) -> int:
    """End every run of this pipeline run that is still open; returns how many there were. If the pipeline has succeeded, its
    resume points go.

    Args:
        succeeded: whether it did.
    """
    context = Context.from_environment()
    closed = 0
    if context.active:
        with forgiving("The end of the pipeline run"):
            closed = end_open_runs(context, "FINISHED" if succeeded else "FAILED")
    if succeeded:
        resume.clear_run()
    return closed
