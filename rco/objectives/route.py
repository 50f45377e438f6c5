"""The loss of the paper, and the labels alone."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from rco.models.taps import Output
from rco.objectives.base import Objective, full, label_loss, required


def mimic_kl(student_logits: Tensor, anchor_logits: Tensor, tau: float) -> Tensor:
    """KL(P_t^tau || P_s^tau): a sum over the classes, a mean over the batch, in nats. No tau^2 factor.

    The gradient flows into the student alone; the anchor is a constant target.

    Args:
        student_logits: (B, K).
        anchor_logits: (B, K).
        tau: relaxation temperature, above 0.
    """
    log_student = F.log_softmax(full(student_logits) / tau, dim=1)
    log_anchor = F.log_softmax(full(anchor_logits.detach()) / tau, dim=1)
    # log_target: the KL of log-probabilities against log-probabilities; "batchmean" divides by B, not by B * K.
    return F.kl_div(log_student, log_anchor, reduction="batchmean", log_target=True)


class Labels(Objective):
    """w H(y, P_s): cross-entropy with the labels at temperature 1, the teacher's own objective. It needs no anchor."""

    needs_anchor = False

    def __init__(self, label_weight: float = 1.0) -> None:
        super().__init__()
        self.label_weight = label_weight

    def forward(self, student: Output, anchor: Output | None, labels: Tensor) -> dict[str, Tensor]:
        return {"label_loss": self.label_weight * label_loss(student, labels)}


class RouteLoss(Objective):
    """L = w H(y, P_s) + lambda KL(P_t^tau || P_s^tau), the loss of one stage (Jin et al. 2019, who have w = 1).

    Args:
        tau: relaxation temperature of both distributions in the KL term.
        lambda_: weight of the KL term, used as it is. `lambda_ = tau**2` is Hinton's factor, which keeps the size of the
            KL term's gradient independent of tau; it is the default of `rco.objectives.config.ObjectiveConfig`.
        label_weight: w.
    """

    def __init__(self, tau: float, lambda_: float, label_weight: float = 1.0) -> None:
        super().__init__()
        self.tau, self.lambda_, self.label_weight = tau, lambda_, label_weight

    def forward(self, student: Output, anchor: Output | None, labels: Tensor) -> dict[str, Tensor]:
        return {
            "label_loss": self.label_weight * label_loss(student, labels),
            "mimic_loss": self.lambda_ * mimic_kl(student.logits, required(anchor).logits, self.tau),
        }
