"""The MLflow run of one trained model, in step with the model's record."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rco.tracking.context import Context, without_credentials
from rco.tracking.epochs import EpochBuffer
from rco.tracking.record import Record
from rco.tracking.runs import ANCHOR_TAG, REUSED, count_attempt, find_run, log_params, require_parent

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


@dataclass(frozen=True)
class ModelRun:
    """The run of a trained model on the server. Its methods raise what MLflow's client raises.

    Opening it finds the run of this pipeline run, or creates one, and sends the rows of the record that the server lacks: so
    the stages of a student share a run, a retried task goes on where it was, and cached work appears under a new parent.

    Attributes:
        which: server, pipeline run, key.
        anchors: tags of the anchors that the run is known to have (`rco.tracking.anchors.anchor_tag`).
    """

    which: tuple[str, str, str]
    client: MlflowClient
    record: Record
    run_id: str
    experiment_id: str
    epochs: EpochBuffer
    anchors: set[str] = field(default_factory=set)

    @classmethod
    def open(cls, context: Context, client: MlflowClient, record: Record) -> ModelRun:
        """Find or create the run, and bring it up to date. A record that was never tracked gets its origin.

        Raises:
            NotTrackedError: the pipeline run has no parent run on the server.
        """
        which = (context.tracking_uri, context.pipeline_run, record.key)
        if (again := _left(which, client, record)) is not None:
            return again
        parent_id, experiment_id = _parent_of(context, client)
        run = find_run(client, [experiment_id], context.pipeline_run, record.key)
        if run is None:
            run = _create(context, client, record, parent_id, experiment_id)
        else:
            # The task that worked on it before has ended it, unless that task was cut short.
            if run.info.status != "FINISHED":
                count_attempt(client, run)
            client.update_run(run.info.run_id, status="RUNNING")
        run_id = run.info.run_id
        epochs = EpochBuffer.resume(client, run_id, record.rows)
        if record.origin is None:
            record.origin = {
                "tracking_uri": without_credentials(context.tracking_uri),
                "run_id": run_id,
                "pipeline_run": context.pipeline_run,
            }
        epochs.send()
        anchors = {tag for tag in run.data.tags if tag.startswith(ANCHOR_TAG)}
        return cls(which, client, record, run_id, experiment_id, epochs, anchors)

    def end(self, status: str = "FINISHED") -> None:
        """Send what waits and end the run, as of its last epoch. A later stage opens it again."""
        self.epochs.send()
        ended = self.record.rows[-1]["time"] if self.record.rows and status == "FINISHED" else None
        self.client.set_terminated(self.run_id, status, end_time=ended)
        if status == "FINISHED":
            _LEFT[self.which] = (self, self.record.rows[-1]["step"] if self.record.rows else 0)


#: A run as this process has ended it, and its last step. Nobody else works on it before the next stage does.
_LEFT: dict[tuple[str, str, str], tuple[ModelRun, int]] = {}


def _left(which: tuple[str, str, str], client: MlflowClient, record: Record) -> ModelRun | None:
    """The run that this process has ended after the stage before, opened again; None: it has to be looked for."""
    if which not in _LEFT:
        return None
    before, on_server = _LEFT.pop(which)
    try:
        client.update_run(before.run_id, status="RUNNING")
    except Exception:  # it was deleted meanwhile, or the server is away: the usual way finds out
        return None
    epochs = EpochBuffer(client, before.run_id, on_server, [row for row in record.rows if row["step"] > on_server])
    epochs.send()
    return ModelRun(which, client, record, before.run_id, before.experiment_id, epochs, before.anchors)


#: (server, pipeline run) -> ids of its parent run and experiment: they stay, and a task opens the runs of many stages.
_PARENTS: dict[tuple[str, str], tuple[str, str]] = {}


def _parent_of(context: Context, client: MlflowClient) -> tuple[str, str]:
    which = (context.tracking_uri, context.pipeline_run)
    if which not in _PARENTS:
        parent = require_parent(context, client)
        _PARENTS[which] = (parent.info.run_id, parent.info.experiment_id)
    return _PARENTS[which]


def _create(context: Context, client: MlflowClient, record: Record, parent_id: str, experiment_id: str) -> Run:
    from mlflow.entities import DatasetInput, InputTag

    tags = {
        **record.tags,
        "mlflow.parentRunId": parent_id,
        "rco.pipeline_run": context.pipeline_run,
        "rco.kind": "model",
        "rco.key": record.key,
        "rco.data_digest": str(record.data["digest"]),
        "rco.data": str(record.data["name"]),
    }
    if record.origin is not None:
        tags[REUSED] = record.origin["run_id"]
    began = record.rows[0]["time"] if record.rows else None
    run = client.create_run(experiment_id, run_name=record.key, tags=tags, start_time=began)
    log_params(client, run.info.run_id, record.params)
    client.log_inputs(
        run.info.run_id,
        datasets=[DatasetInput(_mlflow_dataset(record.data), [InputTag("mlflow.data.context", "training")])],
    )
    return run


def _mlflow_dataset(data: Mapping[str, Any]) -> Any:
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.data.meta_dataset import MetaDataset
    from mlflow.entities import Dataset

    source = CodeDatasetSource(tags={"source": str(data["source"])})
    described = MetaDataset(source, name=str(data["name"]), digest=str(data["digest"])[:36]).to_dict()
    return Dataset(
        name=described["name"],
        digest=described["digest"],
        source_type=described["source_type"],
        source=described["source"],
        schema=described.get("schema"),
        profile=json.dumps({name: data[name] for name in ("num_classes", "sizes", "account") if name in data}),
    )
