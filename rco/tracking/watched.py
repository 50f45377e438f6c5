"""What MLflow tells of a pipeline run while it goes on: the anchors that students take, and the accuracies as stages end."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rco.tracking.context import Context
from rco.tracking.runs import find_parent

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_ANCHOR = re.compile(r"rco\.anchor\.(\d+)")


@dataclass
class Watched:
    """A pipeline run in MLflow. Its method raises what MLflow's client raises.

    Attributes:
        context: of the run.
        told: lines that were given already.
    """

    context: Context
    told: set[str] = field(default_factory=set)
    _client: MlflowClient | None = None
    _experiment: str = ""

    def news(self) -> list[str]:
        """Lines for people about what has happened since it was asked last."""
        if self._client is None:
            self._client = self.context.client()
        if not self._experiment:
            parent = find_parent(self.context, self._client)
            if parent is None:
                return []
            self._experiment = parent.info.experiment_id
        where = f"tags.`rco.pipeline_run` = '{self.context.pipeline_run}' AND tags.`rco.kind` = 'model'"
        runs = self._client.search_runs([self._experiment], where, order_by=["attributes.start_time ASC"], max_results=1000)
        lines = [line for run in runs for line in self._lines(self._client, run) if line not in self.told]
        self.told.update(lines)
        return lines

    def _lines(self, client: MlflowClient, run: Run) -> list[str]:
        key, metrics = run.data.tags.get("rco.key", ""), run.data.metrics
        over = run.info.status == "FINISHED"
        if "stage" not in metrics:
            accuracy = metrics.get("val_accuracy")
            return [f"{key}: trained, validation accuracy {100 * accuracy:.2f} %"] if over and accuracy is not None else []
        anchors = sorted(int(match[1]) for tag in run.data.tags if (match := _ANCHOR.fullmatch(tag)))
        lines = [f"{key}: learns from the anchor of epoch {epoch}" for epoch in anchors]
        if f"{key} {int(metrics['stage'])} {over}" in self.told:  # no stage has ended since
            return lines
        self.told.add(f"{key} {int(metrics['stage'])} {over}")
        ends = _ends(client.get_metric_history(run.info.run_id, "stage"), last=over)
        accuracies = {m.step: m.value for m in client.get_metric_history(run.info.run_id, "val_accuracy")}
        return lines + [
            f"{key}: stage {stage} ended, validation accuracy {100 * accuracies[step]:.2f} %"
            for stage, step in ends.items()
            if step in accuracies
        ]


def _ends(history: list[Any], *, last: bool) -> dict[int, int]:
    """The last epoch of each stage that has ended: of all but the last, unless that has, too."""
    ends: dict[int, int] = {}
    for metric in history:
        stage = int(metric.value)
        ends[stage] = max(metric.step, ends.get(stage, 0))
    if not last and ends:
        del ends[max(ends)]
    return ends
