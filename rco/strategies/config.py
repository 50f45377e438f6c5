"""The settings of the choice of anchors."""

from __future__ import annotations

from dataclasses import dataclass

from rco.core.plugins import Settings, plugin_setting
from rco.strategies.base import STRATEGIES, Strategy


@dataclass(frozen=True, kw_only=True)
class AnchorConfig(Settings):
    """Which checkpoints of the route become anchors."""

    strategy: Strategy = plugin_setting(STRATEGIES, "greedy", "how anchors are chosen")
