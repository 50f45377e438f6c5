"""Logit standardisation: Sun et al., "Logit Standardization in Knowledge Distillation", CVPR 2024, arXiv 2403.01427."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from rco.objectives.base import OBJECTIVES, Objective, Weights, full
from rco.objectives.route import mimic_kl

if TYPE_CHECKING:
    from torch import Tensor, nn

    from rco.models.taps import Output

#: Added to the variance. The paper has none; without it the gradient is NaN for logits that are all equal, as those of a
#: classifier that starts at zero. Logits with a standard deviation of 0.03 or more feel less than 0.1 % of it.
EPSILON = 1e-6


def standardised(logits: Tensor) -> Tensor:
    """Z-score of each sample's logits (B, K) over its classes: mean 0, population standard deviation 1 (Algorithm 1)."""
    import torch.nn.functional as F

    return F.layer_norm(full(logits), logits.shape[1:], eps=EPSILON)


@OBJECTIVES.register("standardised")
@dataclass(frozen=True, kw_only=True)
class Standardised(Objective):
    """lambda KL between softmax(Z(t) / tau) and softmax(Z(s) / tau) (Algorithm 2).

    The student need not copy the size of the anchor's logits, only their relations: every sample of both networks has a
    temperature of its own, tau times its logits' standard deviation.

    lambda is the paper's lambda_KD tau^2, the weight of the labels its lambda_CE. Its authors' code has 0.1 for the labels, and
    lambda_KD = 9 or so at tau = 2.
    """

    summary: ClassVar[str] = "logits, standardised"

    def terms(
        self, student: Output, anchor: Output, labels: Tensor, weights: Weights, own: nn.Module | None
    ) -> dict[str, Tensor]:
        ours, theirs = standardised(student.logits), standardised(anchor.logits.detach())
        return {"mimic_loss": weights.lambda_ * mimic_kl(ours, theirs, weights.tau)}
