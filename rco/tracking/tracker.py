"""Tracking of a task while it trains: the record first, then MLflow as far as it answers."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rco.tracking.anchors import log_anchor
from rco.tracking.context import RESTARTED, Context, forgiving
from rco.tracking.epochs import EpochBuffer
from rco.tracking.model_run import ModelRun
from rco.tracking.record import Record
from rco.tracking.runs import tell_of_restart
from rco.tracking.task_run import open_task_run


@contextlib.contextmanager
def tracked(context: Context, record: Record, first_step: int | None = None) -> Iterator[Tracker]:
    """Track the work of a `with` block. The model's run ends as FINISHED, as FAILED if the block raises an Exception, and as
    KILLED if it raises another BaseException.

    Args:
        first_step: of this block; earlier rows of the record are of other tasks. None: the step after the last row.
    """
    if first_step is None:
        first_step = record.rows[-1]["step"] + 1 if record.rows else 1
    tracker = Tracker(record, restarted=context.restarted)
    if context.active:
        with forgiving(f"The run of the {record.key}"):
            tracker.model_run = ModelRun.open(context, context.client(), record)
    if context.tracking_uri and context.task_run:
        with forgiving("The run of Kubeflow's MLflow plugin"):
            model_run = tracker.model_run.run_id if tracker.model_run is not None else None
            tracker.task_epochs = open_task_run(context.client(), context.task_run, record, model_run, first_step)
    try:
        yield tracker
    except BaseException as error:
        tracker.end("FAILED" if isinstance(error, Exception) else "KILLED")
        raise
    tracker.end("FINISHED")


@dataclass
class Tracker:
    """What a training task tells of itself. Never raises for the tracking server: the record has everything all the same.

    Attributes:
        model_run: None where the server is away; the report then delivers what is missing.
        task_epochs: of the run of Kubeflow's MLflow plugin; None without the plugin. Only this task can deliver them, so it
            tries again after a failure.
        restarted: why earlier processes of the task have died; told with the next epoch, which is of the training that was cut
            short.
    """

    record: Record
    model_run: ModelRun | None = None
    task_epochs: EpochBuffer | None = None
    restarted: str = ""

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Record one epoch."""
        row = self.record.add(step, metrics)
        if self.task_epochs is not None:
            with forgiving(f"Epoch {step}, for the plugin's run,"):
                self.task_epochs.add(row)
        if self.model_run is not None:
            with forgiving(f"Epoch {step}") as attempt:
                if self.restarted:
                    tell_of_restart(self.model_run.client, self.model_run.run_id, self.restarted)
                self.model_run.epochs.add(row)
            if attempt.failed:
                self.model_run = None
        if self.restarted:
            self.restarted = ""
            os.environ.pop(RESTARTED, None)  # what this task trains next was not cut short

    def log_anchor(self, folder: Path) -> None:
        """Record an anchor as a LoggedModel.

        Args:
            folder: as for `rco.tracking.anchors.log_anchor`.

        Raises:
            InputError: the checkpoint is damaged.
        """
        if self.model_run is not None:
            with forgiving(f"The anchor in {folder.name}"):
                log_anchor(self.model_run, folder)

    def end(self, status: str) -> None:
        """Deliver what waits, and end the model's run."""
        if self.task_epochs is not None:
            with forgiving("The last epochs, for the plugin's run,"):
                self.task_epochs.send()
        if self.model_run is not None:
            with forgiving("The end of the run"):
                self.model_run.end(status)
