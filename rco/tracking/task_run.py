"""The run that Kubeflow's MLflow plugin makes for every task (MLFLOW_RUN_ID).

A task that trains logs its epochs there too, beside the run of the model that it trains. The tags rco.run and kfp.run.STEP
link the two. The plugin ends its run itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rco.tracking.epochs import EpochBuffer
from rco.tracking.record import Record
from rco.tracking.runs import count_attempt, log_params

if TYPE_CHECKING:
    from mlflow import MlflowClient


def open_task_run(client: MlflowClient, run_id: str, record: Record, model_run: str | None, first_step: int) -> EpochBuffer:
    """Prepare the plugin's run for the epochs of a task; returns the buffer that sends them.

    A retried task has the same run, so the epochs that its record has of this task already are in the buffer.

    Args:
        run_id: of the plugin's run.
        model_run: id of the trained model's run, to link with; None: not tracked.
        first_step: the first epoch of this task.
    """
    run = client.get_run(run_id)
    # A parameter that is logged again with another value is an error to MLflow: what is there stays.
    log_params(client, run_id, {k: v for k, v in record.params.items() if k not in run.data.params})
    if "rco.key" in run.data.tags:
        count_attempt(client, run)
    client.set_tag(run_id, "rco.key", record.key)
    if model_run is not None:
        client.set_tag(run_id, "rco.run", model_run)
        client.set_tag(model_run, f"kfp.run.{first_step}", run_id)
    return EpochBuffer.resume(client, run_id, [row for row in record.rows if row["step"] >= first_step])
