"""What a training minimises. An objective takes a batch's outputs and labels and returns the named parts of its loss.

An objective is any callable `(student_logits, anchor_logits, labels) -> {name: scalar tensor}`; the training minimises the
sum of the parts, and each part is logged under its name. Weights belong into the parts. The engine never looks inside.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

Objective = Callable[[Tensor, Tensor | None, Tensor], dict[str, Tensor]]


def mimic_kl(student_logits: Tensor, anchor_logits: Tensor, tau: float) -> Tensor:
    """KL(P_t^tau || P_s^tau): a sum over the classes, a mean over the batch, in nats. No tau^2 factor.

    The gradient flows into the student alone; the anchor is a constant target.

    Args:
        student_logits: (B, K).
        anchor_logits: (B, K).
        tau: relaxation temperature, above 0.
    """
    log_student = F.log_softmax(student_logits.float() / tau, dim=1)
    log_anchor = F.log_softmax(anchor_logits.detach().float() / tau, dim=1)
    # log_target: the KL of log-probabilities against log-probabilities; "batchmean" divides by B, not by B * K.
    return F.kl_div(log_student, log_anchor, reduction="batchmean", log_target=True)


@dataclass(frozen=True)
class Labels:
    """H(y, P_s): cross-entropy with the labels at temperature 1: the teacher's own objective."""

    def __call__(self, student_logits: Tensor, anchor_logits: Tensor | None, labels: Tensor) -> dict[str, Tensor]:
        return {"label_loss": F.cross_entropy(student_logits.float(), labels)}


@dataclass(frozen=True)
class RouteLoss:
    """L = H(y, P_s) + lambda * KL(P_t^tau || P_s^tau), the loss of one stage (Jin et al. 2019).

    Args:
        tau: relaxation temperature of both distributions in the KL term.
        lambda_: weight of the KL term, used as it is. `lambda_ = tau**2` is Hinton's factor, which keeps the size of the
            KL term's gradient independent of tau; it is the default of `rco.config.ObjectiveConfig`.
    """

    tau: float
    lambda_: float

    def __call__(self, student_logits: Tensor, anchor_logits: Tensor | None, labels: Tensor) -> dict[str, Tensor]:
        if anchor_logits is None:
            raise ValueError("the route loss needs an anchor")
        return {
            "label_loss": F.cross_entropy(student_logits.float(), labels),
            "mimic_loss": self.lambda_ * mimic_kl(student_logits, anchor_logits, self.tau),
        }
