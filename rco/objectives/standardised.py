"""Logit standardisation: Sun et al., "Logit Standardization in Knowledge Distillation", CVPR 2024, arXiv 2403.01427."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from rco.models.taps import Output
from rco.objectives.base import Objective, full, label_loss, required
from rco.objectives.route import mimic_kl

#: Added to the variance. The paper has none; without it the gradient is NaN for logits that are all equal, as those of a
#: classifier that starts at zero. Logits with a standard deviation of 0.03 or more feel less than 0.1 % of it.
EPSILON = 1e-6


def standardised(logits: Tensor) -> Tensor:
    """Z-score of each sample's logits (B, K) over its classes: mean 0, population standard deviation 1 (Algorithm 1)."""
    return F.layer_norm(full(logits), logits.shape[1:], eps=EPSILON)


class StandardisedLoss(Objective):
    """L = w H(y, P_s) + lambda KL between softmax(Z(t) / tau) and softmax(Z(s) / tau) (Algorithm 2).

    The student need not copy the size of the anchor's logits, only their relations: every sample of both networks has a
    temperature of its own, tau times its logits' standard deviation.

    Args:
        tau: base temperature.
        lambda_: the paper's lambda_KD tau^2. Its authors' code has w = 0.1 and lambda_KD = 9 or so at tau = 2.
        label_weight: w, the paper's lambda_CE.
    """

    def __init__(self, tau: float, lambda_: float, label_weight: float = 1.0) -> None:
        super().__init__()
        self.tau, self.lambda_, self.label_weight = tau, lambda_, label_weight

    def forward(self, student: Output, anchor: Output | None, labels: Tensor) -> dict[str, Tensor]:
        divergence = mimic_kl(standardised(student.logits), standardised(required(anchor).logits.detach()), self.tau)
        return {
            "label_loss": self.label_weight * label_loss(student, labels),
            "mimic_loss": self.lambda_ * divergence,
        }
