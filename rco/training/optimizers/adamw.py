"""AdamW: Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019, arXiv 1711.05101."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from rco.training.optimizers.base import OPTIMIZERS, Optimizer

if TYPE_CHECKING:
    import torch
    from torch import nn


@OPTIMIZERS.register("adamw")
@dataclass(frozen=True, kw_only=True)
class AdamW(Optimizer):
    """PyTorch's AdamW, fused."""

    summary: ClassVar[str] = "Adam with decoupled weight decay"

    def make(self, parameters: list[nn.Parameter], *, lr: float, weight_decay: float) -> torch.optim.Optimizer:
        import torch

        return torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay, fused=True)
