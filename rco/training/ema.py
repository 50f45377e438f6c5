"""The exponential moving average of a network in training, which often answers better than the network's last weights.

Polyak and Juditsky, "Acceleration of stochastic approximation by averaging", 1992; as torch.optim.swa_utils computes it. It is
of one training: it begins as the network after the first step, so every stage has an average of its own.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from rco.models.weights import load_weights
from rco.training.lean import freeze


class Ema:
    """After every step: average = decay * average + (1 - decay) * network; of weights and of BatchNorm's statistics.

    Args:
        decay: above 0, below 1.
    """

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self._averaged: AveragedModel | None = None

    def begin(self, network: nn.Module) -> None:
        """Begin a training of this network, which lies on its device."""
        averaged = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(self.decay), use_buffers=True)  # type: ignore[no-untyped-call]
        self._averaged = freeze(averaged)  # type: ignore[assignment]

    def update(self, network: nn.Module) -> None:
        """Take in the network as it is after a step."""
        self.averaged.update_parameters(network)

    @property
    def averaged(self) -> AveragedModel:
        """The average, with the number of steps that it is of."""
        if self._averaged is None:
            raise ValueError("no training has begun")
        return self._averaged

    @property
    def network(self) -> nn.Module:
        """The averaged network, in evaluation mode."""
        return self.averaged.module

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take up the state dict of `averaged`, as an interrupted training left it.

        Raises:
            InputError: it is of another network.
        """
        load_weights(self.averaged, state, "a resume point")
