"""What an optimiser is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from rco.core.plugins import Plugin, Registry

if TYPE_CHECKING:
    import torch
    from torch import nn


class Optimizer(Plugin, ABC):
    """How the parameters are stepped. A frozen dataclass: its fields are its parameters."""

    @abstractmethod
    def make(self, parameters: list[nn.Parameter], *, lr: float, weight_decay: float) -> torch.optim.Optimizer:
        """A fresh optimiser of these parameters. The loop sets its learning rate before every step."""


OPTIMIZERS: Registry[Optimizer] = Registry(
    "optimizer",
    Optimizer,  # type: ignore[type-abstract]
    package="rco.training.optimizers",
    helpers=("base", "state"),
    group="rco.optimizers",
)
