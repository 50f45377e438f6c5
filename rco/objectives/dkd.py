"""Decoupled distillation: Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022, arXiv 2203.08679."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rco.models.taps import Output
from rco.objectives.base import Objective, full, label_loss, required


def decoupled(student_logits: Tensor, anchor_logits: Tensor, labels: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """TCKD and NCKD of each sample, (B,) each, in nats.

    TCKD is the KL between the binary distributions "the target class or another"; NCKD the KL between the distributions over
    the other classes, made to sum to one. With p_t the anchor's probability of the target class,
    KL(P_t^tau || P_s^tau) = TCKD + (1 - p_t) NCKD: plain distillation drowns NCKD where the anchor is sure.

    Args:
        student_logits: (B, K).
        anchor_logits: (B, K), a constant target.
        labels: (B,), the target classes.
        tau: temperature, above 0.
    """
    classes = student_logits.shape[1]
    # Gathered, not masked: a mask's shape depends on the data, and a GPU would have to wait for it.
    others = (labels[:, None] + torch.arange(1, classes, device=labels.device)) % classes
    binary, rest = zip(
        *(_parts(z / tau, labels, others) for z in (full(student_logits), full(anchor_logits.detach()))), strict=True
    )
    return _kl(*binary), _kl(*rest)


def _parts(z: Tensor, labels: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """log of (target, not target), (B, 2); log-probabilities among the other classes, (B, K - 1)."""
    rest = z.gather(1, others)
    binary = torch.stack([z.gather(1, labels[:, None]).squeeze(1), rest.logsumexp(1)], dim=1)
    # Never 1 - p: of a sure network, only its logarithm still has digits.
    return F.log_softmax(binary, dim=1), F.log_softmax(rest, dim=1)


def _kl(log_student: Tensor, log_anchor: Tensor) -> Tensor:
    return F.kl_div(log_student, log_anchor, reduction="none", log_target=True).sum(1)


class DKDLoss(Objective):
    """L = w H(y, P_s) + lambda (alpha TCKD + beta NCKD), means over the batch.

    The authors' code has w = 1, lambda = tau^2, tau = 4, alpha = 1, beta = 8 as defaults; it also raises
    the second term linearly over the first 20 of 240 epochs, which this does not.
    """

    def __init__(self, tau: float, lambda_: float, alpha: float, beta: float, label_weight: float = 1.0) -> None:
        super().__init__()
        self.tau, self.lambda_, self.alpha, self.beta, self.label_weight = tau, lambda_, alpha, beta, label_weight

    def forward(self, student: Output, anchor: Output | None, labels: Tensor) -> dict[str, Tensor]:
        target, others = decoupled(student.logits, required(anchor).logits, labels, self.tau)
        return {
            "label_loss": self.label_weight * label_loss(student, labels),
            "target_loss": self.lambda_ * self.alpha * target.mean(),
            "nontarget_loss": self.lambda_ * self.beta * others.mean(),
        }
