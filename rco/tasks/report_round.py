"""The task that ends a round of a race: how its students did on the validation part, for the race and for MLflow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from rco.config.filing import Filing
from rco.core.documents import write_json
from rco.core.errors import InputError
from rco.evaluation.statistics import require_same_data
from rco.reporting.page import as_markdown, percent
from rco.tasks.process import read_settings, task
from rco.tasks.report import deliver, delivery_of
from rco.tracking import outbox
from rco.tracking.context import Context, forgiving, without_credentials
from rco.tracking.delivery import Delivery
from rco.tracking.record import Record
from rco.tracking.runs import open_parent


@task
def report_round(
    settings: Mapping[str, Any], *, route: Path, route_index: Path, students: Sequence[Path], folder: Path
) -> dict[str, Any]:
    """Write summary.json of a round into `folder`, and bring MLflow up to date. Nothing here has seen the test part.

    Args:
        route: of the teacher; its weights are read only where this tracking server lacks an anchor.
        students: of every branch, after its last step.

    Returns:
        the summary: validation accuracies of every branch, in the order of the seeds, 0 to 1.

    Raises:
        InputError: it is not a round of a race, or students of different data, or not of its branches and seeds.
    """
    s = read_settings(Filing, settings)
    if s.race is None or s.race.final:
        raise InputError("race", s.race, "is not in one of its rounds", "Call report for a comparison")
    context = Context.from_environment()
    parent = None
    if context.active:
        with forgiving("The parent run"):
            parent = open_parent(context, **s.parent)
    records = [Record.read(path) for branch in students for path in sorted(p for p in branch.iterdir() if p.is_dir())]
    require_same_data({record.key: str(record.data["digest"]) for record in records})
    of = {(record.tags["rco.branch"], int(record.tags["rco.seed"])): record for record in records}
    wanted = [(branch, seed) for branch in s.branches for seed in s.seeds]
    if {*of} != {*wanted}:
        raise InputError("students", sorted(of), "are not those of the round's branches and seeds", "Run the round again")
    accuracies = {branch: [float(of[branch, seed].stages[-1]["val_accuracy"]) for seed in s.seeds] for branch in s.branches}
    summary = {
        "pipeline_run": context.pipeline_run,
        "race": s.race.id,
        "round": s.race.number,
        "seeds": list(s.seeds),
        "val_accuracies": accuracies,
        "parameters": s.parameters,
        "tracking_uri": without_credentials(context.tracking_uri),
        "experiment": s.experiment,
        "parent_run_id": parent,
    }
    write_json(folder / "summary.json", summary)
    if context.active:
        deliveries = [
            Delivery(record=Record.read(route_index)),
            *(delivery_of(of[key], route, _metrics(of[key])) for key in wanted),
        ]
        pending = outbox.PendingReport(
            parent=s.parent,
            deliveries=deliveries,
            headline={"race/round": float(s.race.number), "seeds": float(len(s.seeds))},
            note=_note(s, accuracies),
        )
        deliver(context, pending, folder)
    return summary


def _metrics(record: Record) -> dict[str, float]:
    """The final figures of a student's run in MLflow that its epochs do not say."""
    return {
        "student_epochs": float(record.stages[-1]["last_epoch"]),
        "teacher_forward_passes": float(sum(int(stage["teacher_forward_passes"]) for stage in record.stages)),
        "train_seconds": sum(float(stage["train_seconds"]) for stage in record.stages),
    }


def _note(s: Filing, accuracies: Mapping[str, Sequence[float]]) -> str:
    """The round's own figures as Markdown."""
    assert s.race is not None
    heads = ["branch", *(f"seed {seed}" for seed in s.seeds), "mean"]
    rows = [[branch, *map(percent, values), percent(fmean(values))] for branch, values in accuracies.items()]
    return as_markdown(f"Round {s.race.number} of a race: accuracy on the validation part.", {"Round": (heads, rows)})
