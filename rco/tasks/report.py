"""The tasks that end a pipeline run: the report, what a server has missed, and the end of open runs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType, ModuleType
from typing import Any, NamedTuple

import numpy as np

from rco.config.filing import Filing
from rco.core.documents import read_json, write_json
from rco.core.errors import InputError
from rco.core.files import atomically
from rco.core.settings import from_dict
from rco.models.route import Route
from rco.reporting import in_depth, side_by_side
from rco.reporting.student import Student
from rco.strategies.hardness import relative_to_stage
from rco.tasks.exported import exported_files
from rco.tasks.process import log, read_settings, task
from rco.tasks.register import register_from
from rco.tasks.selection import write_anchor
from rco.tasks.students import PROBE, anchor_indices, read_logits, seed_folder
from rco.tracking import outbox
from rco.tracking.context import Context, forgiving, without_credentials
from rco.tracking.delivery import EXPORT, Delivery
from rco.tracking.record import Record
from rco.tracking.runs import end_open_runs, find_parent, open_parent
from rco.training import resume


@task
def report(
    settings: Mapping[str, Any],
    *,
    route: Path,
    route_index: Path,
    evaluations: Sequence[Path],
    folder: Path,
    students: Path | None = None,
    registered: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """Tell people what came out, and bring MLflow up to date with everything that cached tasks did not say.

    Writes summary.json, report.html, report.md and the pictures into `folder`: of a run's student in depth, of a comparison's
    side by side, with results.csv and summary.csv. A student that was exported has its files there too, in the folder `export`.

    Args:
        route: of the teacher; its weights are read only where this tracking server lacks an anchor.
        evaluations: of every branch.
        students, registered: of a run, the student after its last step, and what `register_student` returned.

    Returns:
        the summary.
    """
    s = read_settings(Filing, settings)
    context = Context.from_environment()
    parent = None
    if context.active:
        with forgiving("The parent run"):
            parent = open_parent(context, **s.parent)
    index = Route.open(route_index)
    folders = [path for evaluation in evaluations for path in sorted(p for p in evaluation.iterdir() if p.is_dir())]
    measured = [Student.read(path, in_depth=s.is_run) for path in folders]
    weights = seed_folder(students, s.seeds[0]) if students else None
    exported = exported_files(folders[0], measured[0].evaluation).values() if s.is_run else ()
    for path in exported:
        atomically(folder / EXPORT / path.name, partial(shutil.copyfile, path))
    form: ModuleType
    if s.is_run:
        form, (student,) = in_depth, measured
        assert weights is not None
        (logits,) = read_logits(weights / PROBE, index.probe()[1].shape[1:], "logits")
        summary = in_depth.write(
            folder,
            s,
            index=index,
            student=student,
            logits=logits,
            registered=registered,
            context=context,
            parent_run_id=parent,
        )
    else:
        form = side_by_side
        summary = side_by_side.write(folder, s, index=index, students=measured, context=context, parent_run_id=parent)
    if context.active:
        files = [folder / EXPORT / path.name for path in exported]
        pending = outbox.PendingReport(
            parent=s.parent,
            deliveries=[
                Delivery(record=Record.read(route_index)),
                *(
                    delivery_of(student.record, route, form.metrics(student), s.references.get(student.branch, ""), files)
                    for student in measured
                ),
            ],
            headline=headline_figures(summary),
            note=form.note(summary),
        )
        lacking = s.registered_model and not registered

        def registration(target: Path) -> None:
            assert weights is not None
            shutil.copytree(weights, target / "student")
            shutil.copytree(folders[0], target / "evaluation", ignore=shutil.ignore_patterns(EXPORT))
            write_json(target / "settings.json", settings)

        deliver(context, pending, folder, registration if lacking else None)
    return summary


def headline_figures(summary: Mapping[str, Any]) -> dict[str, float]:
    """The figures of a report's summary that the parent run in MLflow has, and the Kubeflow UI shows."""
    form: ModuleType = side_by_side if "branches" in summary else in_depth
    figures: dict[str, float] = form.headline_metrics(summary)
    return figures


def delivery_of(
    record: Record, route: Path, metrics: Mapping[str, float], reference: str = "", files: Sequence[Path] = ()
) -> Delivery:
    """A student as the server must know it, with every anchor that it has learnt from.

    Args:
        route: of its teacher.
        metrics: final figures.
        reference: the branch that its own is compared with.
        files: of other formats.
    """
    anchors = {
        int(anchor["epoch"]): partial(_anchor_of, route, record, k, int(anchor["index"]))
        for k, stage in enumerate(record.stages)
        if stage["teacher_forward_passes"]
        for anchor in stage["anchors"]
    }
    tags = {"rco.reference": reference} if reference else {}
    return Delivery(record=record, anchors=anchors, metrics=metrics, tags=tags, files=tuple(files))


@contextmanager
def _anchor_of(route: Path, record: Record, k: int, i: int) -> Iterator[Path]:
    """An anchor of a student's stage as a folder, made again from the route and the record."""
    hardness = np.asarray(record.stages[k]["hardness_before"])
    ratio = relative_to_stage(hardness, anchor_indices(record.stages[k - 1]) if k else ())
    with TemporaryDirectory() as scratch:
        write_anchor(Path(scratch), Route.open(route), i, hardness, ratio)
        yield Path(scratch)


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


class Synced(NamedTuple):
    """What `sync` did.

    Attributes:
        run_id: of the parent run; empty: all is kept.
        problem: why it is kept.
    """

    run_id: str
    problem: str = ""


def sync(report: Path, *, anywhere: bool = False) -> Synced:
    """Deliver what waits in a report's outbox to the server that MLFLOW_TRACKING_URI names, then clear the outbox. Safe to
    repeat: what the server has is not sent again.

    Args:
        anywhere: also to another server than the one that was away.

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
    with forgiving(f"Run {pipeline_run}") as attempt:
        run_id = pending.send(context, report_files(report))
    registration = report / outbox.FOLDER / outbox.REGISTRATION
    if run_id and registration.is_dir():
        settings = {"seeds": [0], **read_json(registration / "settings.json")}  # which 0.1 did not have
        filing = from_dict(Filing, settings, partial=True)
        with forgiving("The registration of the student") as attempt:
            register_from(filing, student=registration / "student", evaluation=registration / "evaluation")
    if attempt.failed:
        return Synced("", attempt.reason)
    outbox.clear(report)
    return Synced(run_id)


def report_files(folder: Path) -> list[Path]:
    """Pictures, page and tables of a report."""
    return sorted(path for path in folder.iterdir() if path.is_file() and not path.is_symlink())


@task
def close_run(*, succeeded: bool | None) -> int:
    """End every run of this pipeline run that is still open; returns how many there were. If the pipeline has succeeded, its
    resume points go.

    Args:
        succeeded: whether it did; None: the backend does not tell, and it has if the report, which comes last, is in MLflow.
    """
    context = Context.from_environment()
    closed = 0
    if succeeded is None:
        succeeded = _reported(context)
    if context.active:
        with forgiving("The end of the pipeline run"):
            closed = end_open_runs(context, "FINISHED" if succeeded else "FAILED")
    if succeeded:
        resume.clear_run()
    return closed


def _reported(context: Context) -> bool:
    """Whether the report has ended the run in MLflow."""
    reported = False
    if context.active:
        with forgiving("The end of the pipeline run"):
            parent = find_parent(context, context.client())
            reported = parent is not None and parent.info.status == "FINISHED"
    if not reported:
        log.warning("whether the pipeline has succeeded is not known: its resume points stay")
    return reported
