"""Attention transfer: Zagoruyko and Komodakis, "Paying More Attention to Attention", ICLR 2017, arXiv 1612.03928."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from rco.core.errors import InputError
from rco.core.settings import positive, setting
from rco.objectives.base import OBJECTIVES, Shape, TappedObjective, Weights, features, full
from rco.objectives.hint import comparable
from rco.objectives.route import mimic_kl

if TYPE_CHECKING:
    from torch import Tensor, nn

    from rco.models.taps import Output, Taps


def attention_map(x: Tensor) -> Tensor:
    """Where a layer looks: the mean over channels of the squared activations, (B, C, H, W) to (B, H * W) of length 1 each.

    The paper's F_sum^2 (its section 3.1): a sum instead of the mean makes no difference once it is of length 1.
    """
    import torch.nn.functional as F

    return F.normalize(full(x).square().mean(1).flatten(1))


@OBJECTIVES.register("at")
@dataclass(frozen=True, kw_only=True)
class AttentionTransfer(TappedObjective):
    """The route's term, plus beta times the mean squared difference between the attention maps of student and anchor.

    As in the authors' code, with its beta = 1000: a mean over samples and positions. Their equation 2 has beta / 2 and the
    length of the difference instead. One pair of layers; larger maps are pooled to the smaller's size. lambda = 0 leaves out
    the logits.
    """

    summary: ClassVar[str] = "attention maps of a layer, and the logits"

    at_beta: float = setting(1000.0, "weight of the difference of the attention maps (1000: as its authors)")

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("at_beta", self.at_beta)

    def make_own(self, student: Shape, anchor: Shape, taps: Taps, seed: int) -> None:
        for name, tap, shape in (("student_tap", taps.student, student), ("teacher_tap", taps.anchor, anchor)):
            if len(shape) != 3:
                raise InputError(name, tap, f"yields features of shape {shape}, which is not a map", "Tap a map (C, H, W)")

    def terms(
        self, student: Output, anchor: Output, labels: Tensor, weights: Weights, own: nn.Module | None
    ) -> dict[str, Tensor]:
        ours, theirs = (attention_map(x) for x in comparable(*features(student, anchor)))
        return {
            "mimic_loss": weights.lambda_ * mimic_kl(student.logits, anchor.logits, weights.tau),
            "attention_loss": self.at_beta * (ours - theirs).square().mean(),
        }
