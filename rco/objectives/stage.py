"""The loss of one stage: the labels' term, once for all objectives, and the terms of the objective."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from rco.models.taps import Output, Taps
from rco.objectives.base import full
from rco.objectives.config import ObjectiveConfig


def label_loss(student: Output, labels: Tensor, smoothing: float = 0.0, class_weights: Tensor | None = None) -> Tensor:
    """H(y, P_s): cross-entropy with the labels at temperature 1, mean over the batch, in nats.

    Args:
        student: logits (B, K).
        labels: (B,) int64; or (B, K) float32, the shares that the classes have in each image: its loss is the mean of theirs.
        smoothing: of each label, the part that is spread evenly over the K classes (Szegedy et al. 2016).
        class_weights: (K,), by which the loss of an image of the class is multiplied. The mean is over the images whatever
            their weights, so that the shares of several workers make the same as the whole batch.
    """
    logits = full(student.logits)
    if class_weights is None:
        return F.cross_entropy(logits, labels, label_smoothing=smoothing)
    shares = labels if labels.dim() == 2 else F.one_hot(labels, logits.shape[1]).to(logits.dtype)
    surprise = -F.log_softmax(logits, dim=1)
    if_true = (1 - smoothing) * surprise + smoothing * surprise.mean(
        dim=1, keepdim=True
    )  # (B, K): the loss, were it of class k
    return (shares * class_weights.to(logits.dtype) * if_true).sum(dim=1).mean()


class StageLoss(nn.Module):
    """Maps (student, anchor, labels) to the named parts of a loss, weights included.

    The training minimises the sum of the parts, and logs each under its name. Beyond that, the loop knows only two things of
    it: `taps`, the modules of student and anchor whose features it needs, and its parameters, those of the objective's own
    module, which are trained with the student but are not part of it.

    Args:
        config: weights and objective; with `config.needs_anchor` false, the labels alone teach.
        taps: of the objective, if it compares features.
        own: the objective's own module, if it has one.
    """

    def __init__(self, config: ObjectiveConfig, taps: Taps | None = None, own: nn.Module | None = None) -> None:
        super().__init__()
        self.config, self.own = config, own
        self.smoothing = 0.0
        self.class_weights: Tensor | None
        self.register_buffer("class_weights", None, persistent=False)  # moves with the module, and is in no file
        self.needs_anchor = config.needs_anchor
        self.taps = taps if taps is not None and self.needs_anchor else Taps()

    def set_labels(self, smoothing: float, class_weights: Tensor | None) -> None:
        """How the labels' term is computed from now on: as `label_loss`."""
        self.smoothing, self.class_weights = smoothing, class_weights

    def forward(self, student: Output, anchor: Output | None, labels: Tensor) -> dict[str, Tensor]:
        """The parts, scalars in float32.

        Args:
            student: logits (B, K), and features if `taps.student` names a module.
            anchor: the same of the frozen anchor; None is possible if nothing is mimicked.
            labels: (B,), int64; or (B, K) float32, as for `label_loss`.
        """
        of_labels = label_loss(student, labels, self.smoothing, self.class_weights)
        parts = {"label_loss": self.config.label_weight * of_labels}
        if not self.needs_anchor:
            return parts
        if anchor is None:
            raise ValueError("this objective needs an anchor")
        return parts | self.config.objective.terms(student, anchor, labels, self.config, self.own)


def labels_only(label_weight: float = 1.0) -> StageLoss:
    """w H(y, P_s): the teacher's own loss. It needs no anchor."""
    return StageLoss(ObjectiveConfig(label_weight=label_weight, lam="0"))
