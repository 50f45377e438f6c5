"""DIST: Huang et al., "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022, arXiv 2205.10536."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from rco.models.taps import Output
from rco.objectives.base import Objective, full, label_loss, required


def pearson_distance(a: Tensor, b: Tensor, dim: int) -> Tensor:
    """1 - Pearson's correlation of `a` and `b` (both (B, K)) along `dim`: 0 to 2. A constant correlates with nothing: 1."""
    a, b = (x - x.mean(dim, keepdim=True) for x in (a, b))
    return 1 - F.cosine_similarity(a, b, dim=dim, eps=1e-8)


class DISTLoss(Objective):
    """L = w H(y, P_s) + lambda (beta L_inter + gamma L_intra), with probabilities P = softmax(z / tau).

    L_inter is the Pearson distance of student and anchor over the classes, mean over the samples; L_intra the same over the
    samples of a batch, mean over the classes. The student mimics the anchor's relations, not its values.

    The authors' code has lambda = tau^2, and 1 as the default of beta, gamma and tau.
    """

    def __init__(self, tau: float, lambda_: float, beta: float, gamma: float, label_weight: float = 1.0) -> None:
        super().__init__()
        self.tau, self.lambda_, self.beta, self.gamma, self.label_weight = tau, lambda_, beta, gamma, label_weight

    def forward(self, student: Output, anchor: Output | None, labels: Tensor) -> dict[str, Tensor]:
        p_student = F.softmax(full(student.logits) / self.tau, dim=1)
        p_anchor = F.softmax(full(required(anchor).logits.detach()) / self.tau, dim=1)
        return {
            "label_loss": self.label_weight * label_loss(student, labels),
            "inter_loss": self.lambda_ * self.beta * pearson_distance(p_student, p_anchor, dim=1).mean(),
            "intra_loss": self.lambda_ * self.gamma * pearson_distance(p_student, p_anchor, dim=0).mean(),
        }
