"""The runs of one pipeline run: a parent, and below it one child a trained model (`rco.tracking.model_run`).

Runs are found by tags, never by remembered ids, so that a retried task, a cached task and the report all meet the same run:

    rco.pipeline_run   on parent and children: the pipeline run
    rco.key            on children: the record's key ("teacher", "student", "kd/seed-0")
    rco.branch, rco.seed, rco.strategy, rco.reference   on the students of a comparison
    reused_from        where a cached model was first tracked; of a training whose result was found, the run that trained it
    rco.anchor.E       on a student: the LoggedModel id of the anchor of epoch E
    rco.attempts       how often work on the run was begun, if a task failed or was killed
    rco.restarted      why: processes of the task that have died, and were started again in their place
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rco.core.errors import InputError
from rco.tracking.context import Context

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


REUSED = "reused_from"
ANCHOR_TAG = "rco.anchor."
#: Tag of the experiments in which pipelines of this project are tracked.
_OPENED = "rco.pipelines"


class NotTrackedError(RuntimeError):
    """The server has no parent run of this pipeline run. The report, which comes last, delivers everything."""


def open_parent(
    context: Context, experiment: str, name: str, params: Mapping[str, Any], tags: Mapping[str, str] | None = None
) -> str:
    """Find or create the parent run of this pipeline run; returns its id.

    Raises:
        InputError: MLflow has the experiment, but marked as deleted.
    """
    client = context.client()
    found = client.get_experiment_by_name(experiment)
    if found is None:
        experiment_id = _create_experiment(client, experiment, context.artifact_root or None)
    elif found.lifecycle_stage == "deleted":
        raise InputError("experiment", experiment, "is a deleted experiment in MLflow", "Restore it, or use another name")
    else:
        experiment_id = found.experiment_id
        if _OPENED not in found.tags:
            _mark_opened(client, experiment_id)
    parent = find_run(client, [experiment_id], context.pipeline_run, key=None)
    if parent is None:
        own = {"rco.pipeline_run": context.pipeline_run, "rco.kind": "pipeline"}
        parent = client.create_run(experiment_id, run_name=name, tags={**(tags or {}), **own})
        log_params(client, parent.info.run_id, params)
    run_id: str = parent.info.run_id
    return run_id


def _create_experiment(client: MlflowClient, name: str, artifact_root: str | None) -> str:
    from mlflow.exceptions import MlflowException

    try:
        experiment_id: str = client.create_experiment(name, artifact_location=artifact_root, tags={_OPENED: "true"})
    except MlflowException as error:
        # Another pipeline, begun at the same time, may have been first.
        if error.error_code != "RESOURCE_ALREADY_EXISTS" or (found := client.get_experiment_by_name(name)) is None:
            raise
        experiment_id = found.experiment_id
        if _OPENED not in found.tags:
            _mark_opened(client, experiment_id)
    return experiment_id


def _mark_opened(client: MlflowClient, experiment_id: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.set_experiment_tag(experiment_id, _OPENED, "true")
    except MlflowException:
        # MLflow looks for the tag and then inserts it: of two pipelines that do so at once, the database refuses one.
        if _OPENED not in client.get_experiment(experiment_id).tags:
            raise


def find_parent(context: Context, client: MlflowClient) -> Run | None:
    """The parent run of this pipeline run. Its experiment is asked, if this process knows it; else those in which pipelines
    were opened. Others are not listed: a shared server may have tens of thousands."""
    if context.experiment and (named := client.get_experiment_by_name(context.experiment)) is not None:
        parent = find_run(client, [named.experiment_id], context.pipeline_run, key=None)
        if parent is not None:
            return parent
    ids: list[str] = []
    token = None
    while True:
        page = client.search_experiments(
            filter_string=f"tags.`{_OPENED}` = 'true'", order_by=["last_update_time DESC"], page_token=token
        )
        ids += [e.experiment_id for e in page]
        token = page.token
        if not token:
            break
    return find_run(client, ids, context.pipeline_run, key=None) if ids else None


def require_parent(context: Context, client: MlflowClient) -> Run:
    """As `find_parent`.

    Raises:
        NotTrackedError: the parent run is missing: the server was away when the pipeline began.
    """
    parent = find_parent(context, client)
    if parent is None:
        raise NotTrackedError(f"pipeline run {context.pipeline_run} has no parent run on this server")
    return parent


def find_run(client: MlflowClient, experiment_ids: list[str], pipeline_run: str, key: str | None) -> Run | None:
    """The run of a model by its record's key, or the parent run (key None), in these experiments."""
    which = f"tags.`rco.key` = '{key}'" if key else "tags.`rco.kind` = 'pipeline'"
    runs = client.search_runs(experiment_ids, f"tags.`rco.pipeline_run` = '{pipeline_run}' AND {which}", max_results=1)
    return runs[0] if runs else None


def log_params(client: MlflowClient, run_id: str, params: Mapping[str, Any]) -> None:
    """Log parameters, in batches of MLflow's limit, each value cut to 6000 characters."""
    from mlflow.entities import Param

    items = [Param(name, str(value)[:6000]) for name, value in params.items()]
    for start in range(0, len(items), 100):
        client.log_batch(run_id, params=items[start : start + 100])


def log_final(client: MlflowClient, run_id: str, values: Mapping[str, float]) -> None:
    """Log final figures under the start time of the run: a retried task that logs them again logs the same points."""
    from mlflow.entities import Metric

    began = client.get_run(run_id).info.start_time
    client.log_batch(run_id, metrics=[Metric(name, float(value), began, 0) for name, value in values.items()])


def count_attempt(client: MlflowClient, run: Run) -> None:
    """Count up rco.attempts: work on the run begins again after a failure."""
    client.set_tag(run.info.run_id, "rco.attempts", str(int(run.data.tags.get("rco.attempts", 1)) + 1))


def tell_of_restart(client: MlflowClient, run_id: str, why: str) -> None:
    """Say on a run why work on it went on in another process of the same task."""
    client.set_tag(run_id, "rco.restarted", why[:5000])


def open_parents(context: Context) -> list[str]:
    """The other pipeline runs that are still RUNNING in the experiment of this one, the newest first."""
    client = context.client()
    own = require_parent(context, client)
    where = "tags.`rco.kind` = 'pipeline' AND attributes.status = 'RUNNING'"
    runs = client.search_runs([own.info.experiment_id], where, max_results=1000)
    found = [run.data.tags.get("rco.pipeline_run", "") for run in runs if run.info.run_id != own.info.run_id]
    return [run for run in found if run]


def end_open_runs(context: Context, status: str) -> int:
    """End every run of this pipeline run that is still RUNNING; returns their number.

    One that has succeeded in the end, when it was retried, has a parent that says so.
    """
    client = context.client()
    parent = find_parent(context, client)
    if parent is None:
        return 0
    runs = client.search_runs([parent.info.experiment_id], f"tags.`rco.pipeline_run` = '{context.pipeline_run}'")
    open_runs = [run for run in runs if run.info.status == "RUNNING"]
    for run in open_runs:
        client.set_terminated(run.info.run_id, status)
    if status == "FINISHED" and parent.info.status in ("FAILED", "KILLED"):
        client.set_terminated(parent.info.run_id, status)
    return len(open_runs)
