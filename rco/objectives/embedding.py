"""Mimicry of embeddings, for students that compare images: open-set recognition.

That the route applies to mimicking features, and to open-set face recognition by it, is the paper's (Jin et al. 2019). The form
of the mimic term, its reduction and the layer that yields the embedding (`rco.models.families.layers`) are ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from rco.core.errors import InputError
from rco.objectives.base import OBJECTIVES, Objective, Weights, features, full

if TYPE_CHECKING:
    from torch import Tensor, nn

    from rco.models.taps import Output, Taps


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


@OBJECTIVES.register("embedding")
@dataclass(frozen=True, kw_only=True)
class Embedding(Objective):
    """lambda |e_s - e_t|^2 (our form), lambda used as it is.

    The distance grows with d: with embeddings as ours, of unit variance a component, unrelated ones are 2 d apart.
    """

    summary: ClassVar[str] = "embeddings, for open sets"
    needs_features: ClassVar[bool] = True
    needs_embeddings: ClassVar[bool] = True

    def check(self, weights: Weights) -> None:
        try:
            float(weights.lam)
        except ValueError:
            raise InputError(
                "lam",
                weights.lam,
                "is the factor of a temperature, and objective = embedding has none",
                "Give a number such as 0.1",
            ) from None

    def taps(self, student: nn.Module, anchor: nn.Module) -> Taps:
        from rco.models.embeddings import embedding_path
        from rco.models.taps import Taps

        return Taps(embedding_path(student), embedding_path(anchor))

    def terms(
        self, student: Output, anchor: Output, labels: Tensor, weights: Weights, own: nn.Module | None
    ) -> dict[str, Tensor]:
        return {"mimic_loss": weights.lambda_ * mimic_embedding(*features(student, anchor))}
