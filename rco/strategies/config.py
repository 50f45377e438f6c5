"""The settings of the choice of anchors."""

from __future__ import annotations

from dataclasses import dataclass

from rco.core.errors import choice
from rco.core.plugins import Settings, plugin_setting
from rco.core.settings import setting
from rco.strategies.base import STRATEGIES, Strategy

#: How the stages of a student share the learning rate's schedule and the optimiser.
STAGE_SCHEDULES = ("restart", "continuous")


@dataclass(frozen=True, kw_only=True)
class AnchorConfig(Settings):
    """Which checkpoints of the route become anchors, and whether each begins a training of its own."""

    strategy: Strategy = plugin_setting(STRATEGIES, "greedy", "how anchors are chosen")
    stage_schedule: str = setting(
        "restart",
        "restart (every stage has the whole schedule and a fresh optimiser) | continuous (one schedule over all stages, and "
        "momentum is kept)",
    )

    def __post_init__(self) -> None:
        choice("stage_schedule", self.stage_schedule, STAGE_SCHEDULES)

    @property
    def continuous(self) -> bool:
        """Whether one schedule and one optimiser go through all stages."""
        return self.stage_schedule == "continuous"
