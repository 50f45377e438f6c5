"""Optimisers: made from settings, and restored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from rco.training.config import TrainConfig


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """A fresh optimiser of the parameters that require gradients. The loop sets its learning rate before every step."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return config.optimizer.make(parameters, lr=config.lr, weight_decay=config.weight_decay)


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Give an optimiser the state of another one like it.

    Args:
        state: by the parameter's number; a resume point has numbers as text.

    Raises:
        ValueError, TypeError, KeyError: the state of other parameters.
    """
    optimizer.load_state_dict(
        {"state": {int(i): dict(own) for i, own in state.items()}, "param_groups": optimizer.state_dict()["param_groups"]}
    )
    known = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    for parameter, own in optimizer.state.items():
        if parameter not in known:
            raise ValueError("it has more parameters")
        for name, value in own.items():
            if torch.is_tensor(value) and value.dim():
                if value.shape != parameter.shape:
                    raise ValueError(f"{name} of {tuple(value.shape)} for a parameter of {tuple(parameter.shape)}")
                # Fused steps walk through memory: the layout must be the parameter's.
                own[name] = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)
