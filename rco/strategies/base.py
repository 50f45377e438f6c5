"""What an anchor strategy is, and what it may know at which time.

A strategy is one of three kinds, which say when its choice is made:

- `Planned`: before the teacher is trained, from the epochs that the route will have (`Schedule`);
- `Measured`: when the teacher has been trained, from its accuracy at every checkpoint (`TrainedRoute`);
- `Adaptive`: stage by stage, from what the student has learnt so far (`StudentLevel`).

All are pure functions: no I/O, no torch, and no NumPy before there is something to compute. How many stages there may be is
known before anything is trained.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

from rco.core.errors import InputError
from rco.core.plugins import Plugin, Registry

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """What is known of a route before it is there.

    Attributes:
        epochs: of its checkpoints, increasing; the last one is the converged teacher.
        decays: epochs after which the learning rate drops.
    """

    epochs: tuple[int, ...]
    decays: tuple[int, ...] = ()

    @property
    def end(self) -> int:
        """Index of the converged teacher."""
        return len(self.epochs) - 1


class Checkpoint(Protocol):
    """A checkpoint of a route."""

    @property
    def val_accuracy(self) -> float: ...


class Route(Protocol):
    """A route that is there, such as `rco.models.route.Route`."""

    @property
    def epochs(self) -> tuple[int, ...]: ...
    @property
    def decay_epochs(self) -> tuple[int, ...]: ...
    @property
    def checkpoints(self) -> Sequence[Checkpoint]: ...


@dataclass(frozen=True, kw_only=True)
class TrainedRoute(Schedule):
    """What is known of a route that is there.

    Attributes:
        accuracies: on the validation part, of every checkpoint.
    """

    accuracies: tuple[float, ...]

    @classmethod
    def of(cls, route: Route) -> TrainedRoute:
        """What a strategy may know of `route`."""
        accuracies = tuple(checkpoint.val_accuracy for checkpoint in route.checkpoints)
        return cls(epochs=route.epochs, decays=route.decay_epochs, accuracies=accuracies)


@dataclass(frozen=True)
class StudentLevel:
    """What a student knows between two stages, on the probe samples.

    Attributes:
        hardness: (M,), H(i, .) of every checkpoint for it, in nats (`rco.strategies.hardness`).
        accuracy: its own.
        anchor_accuracies: (M,), of every checkpoint.
    """

    hardness: NDArray[np.float64]
    accuracy: float
    anchor_accuracies: NDArray[np.float64]

    @classmethod
    def of(
        cls, labels: NDArray[np.int64], route: NDArray[np.float32], student: NDArray[np.float32], tau: float
    ) -> StudentLevel:
        """From logits on the probe samples.

        Args:
            labels: (N,).
            route: (M, N, K), of every checkpoint.
            student: (N, K).
            tau: temperature of the hardness.
        """
        from rco.strategies.hardness import route_hardness

        return cls(
            hardness=route_hardness(route, student, tau),
            accuracy=float((student.argmax(-1) == labels).mean()),
            anchor_accuracies=(route.argmax(-1) == labels).mean(-1),
        )


@dataclass(frozen=True, kw_only=True)
class Pick:
    """The anchor of a stage.

    Attributes:
        index: of the checkpoint on the route.
        reason: why it was chosen, in words.
        remaining: how many stages there may be from this one on, this one included; they share the epochs that are left.
    """

    index: int
    reason: str
    remaining: int


class Strategy(Plugin, ABC):
    """Which checkpoints supervise the student."""

    #: Whether the last anchor is the converged teacher, the last checkpoint of the route.
    ends_at_teacher: ClassVar[bool] = True

    @abstractmethod
    def most_stages(self, route: Schedule) -> int:
        """How many stages it needs, or may need.

        Raises:
            InputError: the strategy cannot be followed on this route.
        """


class Planned(Strategy):
    """A strategy whose anchors follow from the epochs of the route's checkpoints."""

    @abstractmethod
    def plan(self, route: Schedule) -> Sequence[tuple[int | tuple[int, ...], str]]:
        """For every stage, in order, the epoch of its anchor and the reason; or the epochs of several anchors, the mean of
        whose softened probabilities is the stage's target (`rco.models.mean.MeanTarget`).

        Raises:
            InputError: the strategy cannot be followed on this route.
        """

    def most_stages(self, route: Schedule) -> int:
        planned = self.plan(route)
        if self.ends_at_teacher and as_epochs(planned[-1][0])[-1] != route.epochs[-1]:
            raise InputError(
                "strategy",
                self.plugin_name,
                f"does not end at the converged teacher (epoch {route.epochs[-1]})",
                "Mend its plan, or say ends_at_teacher = False in its class",
            )
        return len(planned)

    def most_anchors(self, route: Schedule) -> int:
        """How many anchors a stage has at most.

        Raises:
            InputError: as `plan`.
        """
        return max(len(as_epochs(anchors)) for anchors, _ in self.plan(route))


def as_epochs(anchors: int | tuple[int, ...]) -> tuple[int, ...]:
    """The epochs of a stage's anchors, as `Planned.plan` gives one or several."""
    return anchors if isinstance(anchors, tuple) else (anchors,)


class Measured(Strategy):
    """A strategy whose anchors follow from the trained teacher's accuracies."""

    @abstractmethod
    def plan(self, route: TrainedRoute) -> Sequence[tuple[int, str]]:
        """Epoch and reason of the anchor of every stage, in order: `most_stages` of them at most."""


class Adaptive(Strategy):
    """A strategy that looks at the student before every stage."""

    @abstractmethod
    def next(self, route: TrainedRoute, chosen: Sequence[int], student: StudentLevel) -> Pick:
        """The anchor of the next stage. Stages end after the converged teacher's.

        Args:
            chosen: indices of the anchors of the stages before this one; the converged teacher is not among them.
            student: as the last of these stages left it.
        """


STRATEGIES: Registry[Strategy] = Registry(
    "strategy",
    Strategy,  # type: ignore[type-abstract]
    package="rco.strategies",
    helpers=("base", "config", "hardness", "walk"),
    reserved=("scratch", "kd", "kd-restart"),  # baselines of a comparison
)
