"""DIST: Huang et al., "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022, arXiv 2205.10536."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from rco.core.settings import at_least, setting
from rco.objectives.base import OBJECTIVES, Objective, Weights, full

if TYPE_CHECKING:
    from torch import Tensor, nn

    from rco.models.taps import Output


def pearson_distance(a: Tensor, b: Tensor, dim: int) -> Tensor:
    """1 - Pearson's correlation of `a` and `b` (both (B, K)) along `dim`: 0 to 2. A constant correlates with nothing: 1."""
    import torch.nn.functional as F

    a, b = (x - x.mean(dim, keepdim=True) for x in (a, b))
    return 1 - F.cosine_similarity(a, b, dim=dim, eps=1e-8)


@OBJECTIVES.register("dist")
@dataclass(frozen=True, kw_only=True)
class Dist(Objective):
    """lambda (beta L_inter + gamma L_intra), with probabilities P = softmax(z / tau).

    L_inter is the Pearson distance of student and anchor over the classes, mean over the samples; L_intra the same over the
    samples of a batch, mean over the classes. The student mimics the anchor's relations, not its values.

    The authors' code has lambda = tau^2, and 1 as the default of beta, gamma and tau.
    """

    summary: ClassVar[str] = "relations between classes and within them"

    dist_beta: float = setting(1.0, "weight of the relations between classes (1: the default of its authors)")
    dist_gamma: float = setting(1.0, "weight of the relations within a class (1: the default of its authors)")

    def __post_init__(self) -> None:
        at_least("dist_beta", self.dist_beta, 0)
        at_least("dist_gamma", self.dist_gamma, 0)

    def terms(
        self, student: Output, anchor: Output, labels: Tensor, weights: Weights, own: nn.Module | None
    ) -> dict[str, Tensor]:
        import torch.nn.functional as F

        p_student = F.softmax(full(student.logits) / weights.tau, dim=1)
        p_anchor = F.softmax(full(anchor.logits.detach()) / weights.tau, dim=1)
        return {
            "inter_loss": weights.lambda_ * self.dist_beta * pearson_distance(p_student, p_anchor, dim=1).mean(),
            "intra_loss": weights.lambda_ * self.dist_gamma * pearson_distance(p_student, p_anchor, dim=0).mean(),
        }
