"""What the report delivers at the end of a pipeline run: all that the server lacks of its models, and the parent's results."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from rco.tracking.anchors import anchor_tag, log_anchor
from rco.tracking.context import Context
from rco.tracking.model_run import ModelRun
from rco.tracking.record import Record
from rco.tracking.runs import REUSED, end_open_runs, log_final, require_parent

#: The folder of a student's files of other formats: in an evaluation, in a report, and in the student's run.
EXPORT = "export"
_LONGEST_TAG = 8000


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """One trained model, as the server must know it at the end.

    Attributes:
        anchors: epoch -> function that gives a folder with that anchor; called only where the server lacks the anchor.
        metrics: final figures.
        tags: tags of its run beside those of the record.
        files: for the folder `EXPORT` of its artifacts.
    """

    record: Record
    anchors: Mapping[int, Callable[[], AbstractContextManager[Path]]] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    files: tuple[Path, ...] = ()


def deliver(
    context: Context,
    deliveries: Iterable[Delivery],
    *,
    headline: Mapping[str, float],
    files: Iterable[Path],
    note: str = "",
) -> str:
    """Bring the server up to date with any number of models, and end the parent run. Safe to repeat; no run stays open if this
    fails.

    Args:
        headline: figures for the parent.
        files: pictures and tables for the parent's artifacts, in their folder "report".
        note: Markdown that MLflow shows on the parent's page.

    Returns:
        the parent's run id.

    Raises:
        NotTrackedError: the pipeline run has no parent run on the server.
    """
    client = context.client()
    parent = require_parent(context, client)
    parent_id: str = parent.info.run_id
    try:
        reused: list[str] = []
        for delivery in deliveries:
            origin = delivery.record.origin
            run = ModelRun.open(context, client, delivery.record)
            cached = origin is not None and origin["pipeline_run"] != context.pipeline_run
            if source := origin["run_id"] if origin is not None and cached else delivery.record.tags.get(REUSED, ""):
                reused += source.split(",")
                client.set_tag(run.run_id, REUSED, source)
            known = client.get_run(run.run_id).data.tags if delivery.anchors else {}
            for epoch, anchor in delivery.anchors.items():
                if anchor_tag(epoch) not in known:
                    with anchor() as folder:
                        log_anchor(run, folder)
            log_final(client, run.run_id, delivery.metrics)
            for name, value in delivery.tags.items():
                client.set_tag(run.run_id, name, value)
            for path in delivery.files:
                client.log_artifact(run.run_id, str(path), EXPORT)
            run.end()
        if reused:
            client.set_tag(parent_id, REUSED, ",".join(dict.fromkeys(reused)))
        log_final(client, parent_id, headline)
        if note:
            client.set_tag(parent_id, "mlflow.note.content", note[:_LONGEST_TAG])
        for path in files:
            client.log_artifact(parent_id, str(path), "report")
    finally:
        end_open_runs(context, "FINISHED")
    return parent_id
