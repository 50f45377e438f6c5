"""Mimicry of embeddings, for students that compare images: open-set recognition.

That the route applies to mimicking features, and to open-set face recognition by it, is the paper's (Jin et al. 2019). The form
of the mimic term, its reduction and the layer that yields the embedding (`rco.models.families.layers`) are ours.
"""

from __future__ import annotations

from torch import Tensor

from rco.models.taps import Output, Taps
from rco.objectives.base import Objective, full, label_loss, required


def mimic_embedding(student: Tensor, anchor: Tensor) -> Tensor:
    """|e_s - e_t|^2: squared Euclidean distance, a sum over components, a mean over the batch (our form).

    The gradient flows into the student alone; the anchor is a constant target.

    Args:
        student: (B, d).
        anchor: (B, d).

    Raises:
        ValueError: shapes that differ.
    """
    if student.shape != anchor.shape:
        raise ValueError(f"embeddings of {tuple(student.shape)} and {tuple(anchor.shape)} cannot be compared")
    return (full(student) - full(anchor.detach())).square().sum(dim=1).mean()


class EmbeddingLoss(Objective):
    """L = w H(y, P_s) + lambda |e_s - e_t|^2 (our form).

    Args:
        lambda_: weight of the mimic term, used as it is. The distance grows with d: with embeddings as ours, of unit variance a
            component, unrelated ones are 2 d apart.
        taps: of the embeddings.
        label_weight: w.
    """

    def __init__(self, lambda_: float, taps: Taps, label_weight: float = 1.0) -> None:
        super().__init__()
        self.lambda_, self.taps, self.label_weight = lambda_, taps, label_weight

    def forward(self, student: Output, anchor: Output | None, labels: Tensor) -> dict[str, Tensor]:
        ours, theirs = student.features, required(anchor).features
        if ours is None or theirs is None:
            raise ValueError("the embedding loss needs the embeddings of student and anchor")
        return {
            "label_loss": self.label_weight * label_loss(student, labels),
            "mimic_loss": self.lambda_ * mimic_embedding(ours, theirs),
        }
