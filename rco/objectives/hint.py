"""Hint learning: Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, arXiv 1412.6550."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from rco.core.errors import InputError
from rco.core.settings import positive, setting
from rco.objectives.base import OBJECTIVES, Shape, TappedObjective, Weights, features, full
from rco.objectives.route import mimic_kl

if TYPE_CHECKING:
    from torch import Tensor, nn

    from rco.models.taps import Output, Taps


def make_regressor(student: Shape, anchor: Shape, taps: Taps, seed: int) -> nn.Module:
    """The map from the student's features to the width of the anchor's: a 1x1 convolution between feature maps, else linear.

    Its weights are a function of the shapes and the seed; torch's global generator is left as it was. FitNets' regressor has a
    kernel that also shrinks the map to the hint's size and a non-linearity; ours leaves sizes to pooling (see `comparable`).

    Args:
        student: shape of one sample's features: (C, H, W), tokens (T, C), or (C,).
        anchor: the same of the anchor.
        taps: where they come from, for messages.

    Raises:
        InputError: features that cannot be compared.
    """
    ranks = {len(student), len(anchor)}
    if ranks not in ({3}, {1}, {1, 3}, {2}) or (ranks == {2} and student[0] != anchor[0]):
        raise InputError(
            "student_tap",
            taps.student,
            f"yields features of shape {student}, which cannot be compared with {anchor} at teacher_tap = {taps.anchor!r}",
            "Tap feature maps (C, H, W) or vectors (C,) of both, or as many tokens (T, C) of both",
        )
    import torch
    from torch import nn

    inputs, outputs = (shape[-1] if len(shape) == 2 else shape[0] for shape in (student, anchor))
    with torch.random.fork_rng(devices=[]):
        # The loop seeds epoch e with seed * 1_000_003 + e; this is epoch 0. The student's own weights have the bare seed.
        torch.default_generator.manual_seed(seed * 1_000_003)
        return nn.Conv2d(inputs, outputs, 1) if ranks == {3} else nn.Linear(inputs, outputs)


def comparable(student: Tensor, anchor: Tensor) -> tuple[Tensor, Tensor]:
    """Features of one spatial size: the larger map is average-pooled to the smaller; beside a vector, a map is averaged whole.

    Pooling comes before the regressor, with which it commutes, because it is cheaper there.

    Args:
        student: (B, C, H, W), (B, T, C) or (B, C).
        anchor: the same, with its own C, H and W.
    """
    if student.dim() == anchor.dim() == 4:
        size = (min(student.shape[2], anchor.shape[2]), min(student.shape[3], anchor.shape[3]))
        return _pooled(student, size), _pooled(anchor, size)
    return _averaged(student, anchor.dim()), _averaged(anchor, student.dim())


def _pooled(x: Tensor, size: tuple[int, int]) -> Tensor:
    import torch.nn.functional as F

    return x if tuple(x.shape[2:]) == size else F.adaptive_avg_pool2d(x, size)


def _averaged(x: Tensor, other_dim: int) -> Tensor:
    return x.mean((2, 3)) if x.dim() == 4 and other_dim == 2 else x


@OBJECTIVES.register("hint")
@dataclass(frozen=True, kw_only=True)
class Hint(TappedObjective):
    """The route's term, plus h / 2 times the mean squared difference between regressed and hinted features.

    FitNets' L_HT = 1/2 ||u_h(x) - r(v_g(x))||^2 (its equation 3), divided by the number of the hint's elements, so that the
    weight does not depend on the layer's size. FitNets first trains on L_HT and then on the labels and KL; here, as in
    RepDistiller and mdistiller, they are minimised together. lambda = 0 leaves out the logits.

    Our default of h is 1, FitNets' formula as it stands. RepDistiller and mdistiller weight the squared difference, without the
    half, by 100 on CIFAR-100, which is h = 200; it drowns the labels of a student as small as digits-cnn-s.
    """

    summary: ClassVar[str] = "features of a layer (FitNets), and the logits"

    hint_weight: float = setting(
        1.0, "weight of half the mean squared difference of the features (RepDistiller and mdistiller: 200, for CIFAR)"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("hint_weight", self.hint_weight)

    def make_own(self, student: Shape, anchor: Shape, taps: Taps, seed: int) -> nn.Module:
        return make_regressor(student, anchor, taps, seed)

    def terms(
        self, student: Output, anchor: Output, labels: Tensor, weights: Weights, own: nn.Module | None
    ) -> dict[str, Tensor]:
        import torch.nn.functional as F

        assert own is not None
        guided, hint = comparable(*features(student, anchor))
        return {
            "mimic_loss": weights.lambda_ * mimic_kl(student.logits, anchor.logits, weights.tau),
            "hint_loss": self.hint_weight / 2 * F.mse_loss(full(own(guided)), full(hint)),
        }
