"""The loss of the paper (Jin et al. 2019)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from rco.objectives.base import OBJECTIVES, Objective, Weights, full

if TYPE_CHECKING:
    from torch import Tensor, nn

    from rco.models.taps import Output


def mimic_kl(student_logits: Tensor, anchor_logits: Tensor, tau: float) -> Tensor:
    """KL(P_t^tau || P_s^tau): a sum over the classes, a mean over the batch, in nats. No tau^2 factor.

    The gradient flows into the student alone; the anchor is a constant target.

    Args:
        student_logits: (B, K).
        anchor_logits: (B, K).
        tau: relaxation temperature, above 0.
    """
    import torch.nn.functional as F

    log_student = F.log_softmax(full(student_logits) / tau, dim=1)
    log_anchor = F.log_softmax(full(anchor_logits.detach()) / tau, dim=1)
    # log_target: the KL of log-probabilities against log-probabilities; "batchmean" divides by B, not by B * K.
    return F.kl_div(log_student, log_anchor, reduction="batchmean", log_target=True)


@OBJECTIVES.register("route")
@dataclass(frozen=True, kw_only=True)
class Route(Objective):
    """lambda KL(P_t^tau || P_s^tau), used as it is: `lam = tau^2` is Hinton's factor, which keeps the size of the gradient
    independent of tau."""

    summary: ClassVar[str] = "the paper's loss"

    def terms(
        self, student: Output, anchor: Output, labels: Tensor, weights: Weights, own: nn.Module | None
    ) -> dict[str, Tensor]:
        return {"mimic_loss": weights.lambda_ * mimic_kl(student.logits, anchor.logits, weights.tau)}
