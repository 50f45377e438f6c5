"""Torch's elastic agent, which asks before it starts workers again. It imports torch: only a launcher imports this."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch.distributed.elastic.agent.server.api import RunResult, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import LogsSpecs


class Agent(LocalElasticAgent):
    """Starts workers, watches them, and starts all of them again when one has failed, if that is still of use.

    Args:
        spec: what to start, and how often again.
        logs: where workers' output goes.
        start_again: is asked after a failure (rank -> how its process ended). If not, the agent stops.
    """

    def __init__(self, spec: WorkerSpec, logs: LogsSpecs, start_again: Callable[[Mapping[int, Any]], bool]) -> None:
        super().__init__(spec, logs)  # type: ignore[no-untyped-call]
        self._start_again = start_again

    def _monitor_workers(self, worker_group: Any) -> RunResult:
        result: RunResult = super()._monitor_workers(worker_group)
        if result.state is WorkerState.FAILED and not self._start_again(result.failures):
            self._remaining_restarts = 0
        return result
