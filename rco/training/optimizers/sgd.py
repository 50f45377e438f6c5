"""Stochastic gradient descent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from rco.core.errors import InputError
from rco.core.settings import setting
from rco.training.optimizers.base import OPTIMIZERS, Optimizer

if TYPE_CHECKING:
    import torch
    from torch import nn


@OPTIMIZERS.register("sgd")
@dataclass(frozen=True, kw_only=True)
class Sgd(Optimizer):
    """PyTorch's SGD, fused."""

    summary: ClassVar[str] = "with momentum"

    momentum: float = setting(0.9, "momentum (Nesterov's when above 0)")

    def __post_init__(self) -> None:
        if not 0 <= self.momentum < 1:
            raise InputError("momentum", self.momentum, "must be at least 0 and below 1", "Give a number such as 0.9")

    def make(self, parameters: list[nn.Parameter], *, lr: float, weight_decay: float) -> torch.optim.Optimizer:
        import torch

        nesterov = self.momentum > 0
        return torch.optim.SGD(
            parameters, lr=lr, momentum=self.momentum, nesterov=nesterov, weight_decay=weight_decay, fused=True
        )
