"""What every objective has in common.

A stage minimises w * H(y, P_s), the term of the labels, which is the stage's (`rco.objectives.stage`), and what its objective
adds: named terms that make the student mimic the anchor.

Importing an objective imports no torch: the command line lists them all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

from rco.core.errors import InputError
from rco.core.plugins import Plugin, Registry
from rco.core.settings import setting

if TYPE_CHECKING:
    from torch import Tensor, nn

    from rco.models.taps import Output, Taps

Shape = tuple[int, ...]
_TAP = "such as stage2 (input:NAME: what it is given)"


class Weights(Protocol):
    """The settings that all objectives share (`rco.objectives.config.ObjectiveConfig`).

    Attributes:
        tau: relaxation temperature, above 0.
        lambda_: weight of the mimicry of the logits, 0 or more.
    """

    @property
    def tau(self) -> float: ...
    @property
    def lam(self) -> str: ...
    @property
    def lambda_(self) -> float: ...


class Objective(Plugin, ABC):
    """How a student mimics an anchor. A frozen dataclass: its fields are its parameters."""

    #: Whether it compares more of the networks than their logits, at its `taps`.
    needs_features: ClassVar[bool] = False
    #: Whether what it compares are embeddings: both networks need one, of one size.
    needs_embeddings: ClassVar[bool] = False

    def check(self, weights: Weights) -> None:
        """Refuse settings that cannot work together.

        Raises:
            InputError: they cannot.
        """

    #: Whether its terms read labels as classes (B,): then images cannot be mixed.
    needs_classes: ClassVar[bool] = False
    #: Whether something is mimicked even with lambda = 0.
    mimics_without_lambda: ClassVar[bool] = False

    def needs_anchor(self, weights: Weights) -> bool:
        """Whether anything is mimicked: else only the labels supervise."""
        return weights.lambda_ > 0 or self.mimics_without_lambda

    def taps(self, student: nn.Module, anchor: nn.Module) -> Taps:
        """The modules of both networks whose features it compares."""
        from rco.models.taps import Taps

        return Taps()

    def make_own(self, student: Shape, anchor: Shape, taps: Taps, seed: int) -> nn.Module | None:
        """A module with weights of its own, trained with the student but not part of it; None: it has none.

        Args:
            student: shape of one sample's features at `taps`; () if it compares none.
            anchor: the same of the anchor.
            taps: where they come from, for messages.
            seed: of the weights.

        Raises:
            InputError: features that cannot be compared.
        """
        return None

    @abstractmethod
    def terms(
        self, student: Output, anchor: Output, labels: Tensor, weights: Weights, own: nn.Module | None
    ) -> dict[str, Tensor]:
        """What it adds to the loss: terms by name, weights included; scalars in float32.

        Args:
            student: logits (B, K), and features if `taps` names a module.
            anchor: the same of the frozen anchor, a constant target: no gradient may flow into it.
            labels: (B,), int64; of mixed images (B, K) float32, the share of each class, unless it `needs_classes`.
            own: of `make_own`.
        """


@dataclass(frozen=True, kw_only=True)
class TappedObjective(Objective):
    """An objective that compares what one module of each network yields, by name; with lambda = 0, that alone."""

    needs_features: ClassVar[bool] = True
    mimics_without_lambda: ClassVar[bool] = True

    student_tap: str = setting("", f"module of the student whose features are compared, {_TAP}")
    teacher_tap: str = setting("", f"module of the teacher whose features are compared, {_TAP}")

    def __post_init__(self) -> None:
        for name, value in (("student_tap", self.student_tap), ("teacher_tap", self.teacher_tap)):
            if not value.strip():
                raise InputError(
                    name,
                    value,
                    f"is empty, but the objective is {self.plugin_name}",
                    "Name a module of the network, such as stage2 or layer2",
                )

    def taps(self, student: nn.Module, anchor: nn.Module) -> Taps:
        from rco.models.taps import Taps

        return Taps(self.student_tap, self.teacher_tap)


OBJECTIVES: Registry[Objective] = Registry(
    "objective",
    Objective,  # type: ignore[type-abstract]
    package="rco.objectives",
    helpers=("base", "config", "make", "stage"),
)


def full(x: Tensor) -> Tensor:
    """`x` in float32: losses are not computed in half precision. float64 stays float64, for numerical checks of gradients."""
    import torch

    return x if x.dtype is torch.float64 else x.float()


def features(student: Output, anchor: Output) -> tuple[Tensor, Tensor]:
    """The features of both, the anchor's as a constant.

    Raises:
        ValueError: they were not observed.
    """
    ours, theirs = student.features, anchor.features
    if ours is None or theirs is None:
        raise ValueError("this objective needs the features of student and anchor")
    return ours, theirs.detach()
