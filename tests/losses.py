"""Losses of a stage, from numbers."""

from __future__ import annotations

from typing import Any

from rco.objectives.config import ObjectiveConfig
from rco.objectives.stage import StageLoss


def route_loss(tau: float, lam: float, label_weight: float = 1.0) -> StageLoss:
    """The paper's."""
    return StageLoss(ObjectiveConfig(tau=tau, lam=repr(float(lam)), label_weight=label_weight))


def loss_of(name: str, **parameters: Any) -> StageLoss:
    """An objective's that has no weights of its own."""
    return StageLoss(ObjectiveConfig.of(objective=name, **parameters))
