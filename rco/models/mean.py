"""Several networks as one teacher: the mean of their softened probabilities."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class MeanTarget(nn.Module):
    """Logits whose softened probabilities are the mean of several networks':

        softmax(z / tau) = 1/m * sum_i softmax(z_i / tau),  so  z = tau * log(1/m * sum_i softmax(z_i / tau)),

    up to a constant for each sample, which no softmax sees: z has the mean 0 over the classes. So an objective that knows
    one anchor's logits knows several anchors'; their features it does not.

    Args:
        networks: of equal input and number of classes.
        tau: relaxation temperature, above 0.
    """

    def __init__(self, networks: Sequence[nn.Module], tau: float) -> None:
        super().__init__()
        self.networks, self.tau = nn.ModuleList(networks), tau

    def forward(self, x: Tensor) -> Tensor:
        """z (B, K) in float32 of images (B, C, H, W)."""
        return mean_logits(torch.stack([network(x).float() for network in self.networks]), self.tau)


def mean_logits(logits: Tensor, tau: float) -> Tensor:
    """The mean target of logits (m, B, K): (B, K), see `MeanTarget`."""
    log_sum = torch.logsumexp(torch.log_softmax(logits / tau, dim=-1), dim=0)  # log m more than that of the mean
    return tau * (log_sum - log_sum.mean(dim=-1, keepdim=True))
