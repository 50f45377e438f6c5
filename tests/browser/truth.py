"""What MLflow holds, read through its client: what the browser has to show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The newest comparison on a server.

    Attributes:
        experiment: its name.
        pipeline_run: its id, as in the tag `rco.pipeline_run`.
        data: the data set's name, as in the tag `rco.data`.
        parent: name of the parent run.
        runs: of the students: name of the run -> branch, seed, metrics.
        curves: name of the run -> (step, val_accuracy), by step.
        anchors: name of the logged model -> epoch, val_accuracy, hardness (all that were measured).
    """

    experiment: str
    pipeline_run: str
    data: str
    parent: str
    runs: dict[str, dict[str, Any]]
    curves: dict[str, list[tuple[float, float]]]
    anchors: dict[str, dict[str, Any]]

    @property
    def branches(self) -> dict[str, list[str]]:
        """Branch -> names of its runs."""
        found: dict[str, list[str]] = {}
        for name, run in self.runs.items():
            found.setdefault(run["branch"], []).append(name)
        return found

    @property
    def students(self) -> str:
        """The condition, for MLflow's search box, that selects this comparison's students."""
        return f"tags.\"rco.pipeline_run\" = '{self.pipeline_run}' AND tags.\"rco.branch\" LIKE '%'"


class NoComparisonError(LookupError):
    """The server holds no run with the tag `rco.branch`."""


def read(tracking_uri: str) -> Comparison:
    """Read the newest comparison.

    Raises:
        NoComparisonError: there is none.
    """
    import mlflow

    client = mlflow.MlflowClient(tracking_uri, tracking_uri)
    experiments = {e.experiment_id: e.name for e in client.search_experiments()}
    newest = client.search_runs(list(experiments), "tags.`rco.branch` LIKE '%'", max_results=1)
    if not newest:
        raise NoComparisonError(f"{tracking_uri} holds no run with the tag rco.branch: make a comparison first")
    tags, experiment = newest[0].data.tags, newest[0].info.experiment_id
    pipeline_run = tags["rco.pipeline_run"]
    students = client.search_runs(
        [experiment], f"tags.`rco.pipeline_run` = '{pipeline_run}' AND tags.`rco.branch` LIKE '%'", max_results=1000
    )
    used = {value for run in students for key, value in run.data.tags.items() if key.startswith("rco.anchor.")}
    anchors: dict[str, dict[str, Any]] = {}
    for model_id in used:
        model = client.get_logged_model(model_id)
        measured: dict[str, list[float]] = {}
        for metric in model.metrics or []:
            measured.setdefault(metric.key, []).append(metric.value)
        anchors[model.name] = {
            "epoch": int(model.params["epoch"]),
            "val_accuracy": measured["anchor_val_accuracy"][0],
            "hardness": measured["anchor_hardness"],
        }
    return Comparison(
        experiment=experiments[experiment],
        pipeline_run=pipeline_run,
        data=tags["rco.data"],
        parent=client.get_run(tags["mlflow.parentRunId"]).info.run_name,
        runs={
            run.info.run_name: {
                "branch": run.data.tags["rco.branch"],
                "seed": run.data.tags["rco.seed"],
                "metrics": dict(run.data.metrics),
            }
            for run in students
        },
        curves={
            run.info.run_name: sorted((m.step, m.value) for m in client.get_metric_history(run.info.run_id, "val_accuracy"))
            for run in students
        },
        anchors=anchors,
    )
