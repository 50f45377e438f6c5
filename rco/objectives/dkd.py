"""Decoupled distillation: Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022, arXiv 2203.08679."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from rco.core.settings import at_least, setting
from rco.objectives.base import OBJECTIVES, Objective, Weights, full

if TYPE_CHECKING:
    from torch import Tensor, nn

    from rco.models.taps import Output


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
    import torch

    classes = student_logits.shape[1]
    # Gathered, not masked: a mask's shape depends on the data, and a GPU would have to wait for it.
    others = (labels[:, None] + torch.arange(1, classes, device=labels.device)) % classes
    binary, rest = zip(
        *(_parts(z / tau, labels, others) for z in (full(student_logits), full(anchor_logits.detach()))), strict=True
    )
    return _kl(*binary), _kl(*rest)


def _parts(z: Tensor, labels: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """log of (target, not target), (B, 2); log-probabilities among the other classes, (B, K - 1)."""
    import torch
    import torch.nn.functional as F

    rest = z.gather(1, others)
    binary = torch.stack([z.gather(1, labels[:, None]).squeeze(1), rest.logsumexp(1)], dim=1)
    # Never 1 - p: of a sure network, only its logarithm still has digits.
    return F.log_softmax(binary, dim=1), F.log_softmax(rest, dim=1)


def _kl(log_student: Tensor, log_anchor: Tensor) -> Tensor:
    import torch.nn.functional as F

    return F.kl_div(log_student, log_anchor, reduction="none", log_target=True).sum(1)


@OBJECTIVES.register("dkd")
@dataclass(frozen=True, kw_only=True)
class Dkd(Objective):
    """lambda (alpha TCKD + beta NCKD), means over the batch.

    The authors' code has lambda = tau^2, tau = 4, alpha = 1, beta = 8 as defaults, and weight 1 for the labels; it also raises
    the second term linearly over the first 20 of 240 epochs, which this does not.
    """

    needs_classes: ClassVar[bool] = True
    summary: ClassVar[str] = "the target class and the others apart"

    dkd_alpha: float = setting(1.0, "weight of the target class's part (1: as its authors)")
    dkd_beta: float = setting(8.0, "weight of the other classes' part (8: the default of its authors, who tune it)")

    def __post_init__(self) -> None:
        at_least("dkd_alpha", self.dkd_alpha, 0)
        at_least("dkd_beta", self.dkd_beta, 0)

    def terms(
        self, student: Output, anchor: Output, labels: Tensor, weights: Weights, own: nn.Module | None
    ) -> dict[str, Tensor]:
        target, others = decoupled(student.logits, anchor.logits, labels, weights.tau)
        return {
            "target_loss": weights.lambda_ * self.dkd_alpha * target.mean(),
            "nontarget_loss": weights.lambda_ * self.dkd_beta * others.mean(),
        }
