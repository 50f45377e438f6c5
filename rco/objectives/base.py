"""What every objective has in common."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rco.models.taps import Output, Taps


class Objective(nn.Module):
    """What a training minimises: a module that maps (student, anchor, labels) to the named parts of a loss.

    The training minimises the sum of the parts, and logs each under its name; the parts include their weights. Beyond that,
    the loop knows only two things of an objective:

    - `taps`: modules of student and anchor whose features it needs in `Output.features`;
    - its parameters, registered as in any module: they are trained with the student, but are not part of it.

    The anchor is run only if the objective needs it.
    """

    taps: Taps = Taps()
    needs_anchor: bool = True

    def forward(self, student: Output, anchor: Output | None, labels: Tensor) -> dict[str, Tensor]:
        """The parts, scalars in float32.

        Args:
            student: logits (B, K), and features if `taps.student` names a module.
            anchor: the same of the frozen anchor, a constant target: no gradient flows into it.
            labels: (B,), int64.
        """
        raise NotImplementedError


def required(anchor: Output | None) -> Output:
    """The anchor's output, for an objective that needs it."""
    if anchor is None:
        raise ValueError("this objective needs an anchor")
    return anchor


def full(x: Tensor) -> Tensor:
    """`x` in float32: losses are not computed in half precision. float64 stays float64, for numerical checks of gradients."""
    return x if x.dtype is torch.float64 else x.float()


def label_loss(student: Output, labels: Tensor) -> Tensor:
    """H(y, P_s): cross-entropy with the labels at temperature 1, mean over the batch, in nats."""
    return F.cross_entropy(full(student.logits), labels)
