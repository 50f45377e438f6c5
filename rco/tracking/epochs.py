"""The epochs that an MLflow run lacks: held back, and sent in batches."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow import MlflowClient

FLUSH_SECONDS = 5.0
SLOWDOWN = 20.0  # a server that made the training wait for t seconds is not asked again for this times t
_CURSOR = "epoch"  # logged with every row, whatever its metrics are: its last step says what the server has
_BATCH = 1000  # metrics in a request, MLflow's limit


@dataclass
class EpochBuffer:
    """Rows of a record on their way to one MLflow run. Raises what the client raises; unsent rows stay here.

    A row keeps the time at which its epoch ended. So a row that is sent again, because an answer was lost, is the same point
    to MLflow.

    Attributes:
        on_server: the last step that the server had when the buffer was made; rows up to it are not sent again.
        waiting: rows to send.
        due: when the next row is sent at once, with all that wait (seconds of the monotonic clock).
    """

    client: MlflowClient
    run_id: str
    on_server: int = 0
    waiting: list[Mapping[str, Any]] = field(default_factory=list)
    due: float = field(default_factory=lambda: time.monotonic() + FLUSH_SECONDS)

    @classmethod
    def resume(cls, client: MlflowClient, run_id: str, rows: Iterable[Mapping[str, Any]]) -> EpochBuffer:
        """A buffer with those of the rows that the server lacks; it sends nothing yet."""
        on_server = max((metric.step for metric in client.get_metric_history(run_id, _CURSOR)), default=0)
        return cls(client, run_id, on_server, [row for row in rows if row["step"] > on_server])

    def add(self, row: Mapping[str, Any]) -> None:
        """Add a row of `rco.tracking.record.Record.rows`; send all that wait if the last sending is long enough ago."""
        if row["step"] > self.on_server:  # a retried task computes epochs again that were delivered
            self.waiting.append(row)
        if self.waiting and time.monotonic() > self.due:
            self.send()

    def send(self) -> None:
        """Send all rows that wait."""
        from mlflow.entities import Metric

        began = time.monotonic()
        metrics = [
            Metric(name, float(value), row["time"], row["step"])
            for row in self.waiting
            for name, value in {**row["metrics"], _CURSOR: row["step"]}.items()
        ]
        try:
            for first in range(0, len(metrics), _BATCH):
                self.client.log_batch(self.run_id, metrics=metrics[first : first + _BATCH])
            self.waiting.clear()
        finally:
            now = time.monotonic()
            self.due = now + max(FLUSH_SECONDS, SLOWDOWN * (now - began))
