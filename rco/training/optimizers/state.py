"""Optimisers: made from settings, and restored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from rco.core.errors import InputError
from rco.models.head import head_paths, in_head
from rco.training.config import TrainConfig
from rco.training.learner import Learner

FACTOR = "lr_factor"  # of a group of parameters: their learning rate as a part of the training's


def make_optimizer(learner: Learner, config: TrainConfig) -> torch.optim.Optimizer:
    """A fresh optimiser of the parameters that require gradients. The loop sets its learning rates before every step.

    Raises:
        InputError: the body is to have a rate of its own, and the network has no head (`rco.models.head.head_paths`).
    """
    parameters = [p for p in learner.parameters() if p.requires_grad]
    optimizer = config.optimizer.make(parameters, lr=config.lr, weight_decay=config.weight_decay)
    if config.body_lr_factor != 1:
        _slow_down(optimizer, learner.model, config.body_lr_factor)
    return optimizer


def _slow_down(optimizer: torch.optim.Optimizer, network: nn.Module, factor: float) -> None:
    """Part each group of parameters into the network's body, which gets a factor, and the rest: its head, and the objective's.

    They are parted here, so that no optimiser need know of groups.
    """
    try:
        head = head_paths(network)
    except InputError as error:
        raise error.renamed("body_lr_factor") from None
    body = {id(p) for name, p in network.named_parameters() if not in_head(name, head)}
    groups = []
    for group in optimizer.param_groups:
        for more, mine in ({FACTOR: factor}, True), ({}, False):
            if parameters := [p for p in group["params"] if (id(p) in body) is mine]:
                groups.append({**group, **more, "params": parameters})
    optimizer.param_groups[:] = groups


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
