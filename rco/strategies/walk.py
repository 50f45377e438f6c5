"""The walk along a route: the anchor of the next stage, by any strategy, and the stage's length.

That the route matters, and that an equal-interval choice, the points of learning-rate decay and a greedy search by hardness
are ways to choose, is the paper's (Jin et al. 2019). The exact definitions are this project's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rco.strategies.base import Adaptive, Measured, Planned, Strategy, StudentLevel, TrainedRoute, as_epochs


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The anchor of one stage; several, if their mean is its target.

    Attributes:
        stage: counted from 1.
        anchors: indices of the checkpoints on the route, from 0.
        anchor_epochs: of these checkpoints.
        reason: why it was chosen, in words.
        remaining: how many stages there may be from this one on, this one included.
        last: no stage follows.
    """

    stage: int
    anchors: tuple[int, ...]
    anchor_epochs: tuple[int, ...]
    reason: str
    remaining: int
    last: bool


def next_anchor(
    strategy: Strategy, route: TrainedRoute, *, chosen: Sequence[tuple[int, ...]] = (), student: StudentLevel
) -> Choice | None:
    """The anchor of the stage that follows those in `chosen`; None when the route has been walked.

    Args:
        chosen: of each stage so far, the indices of its anchors on the route.
        student: as the last of these stages left it.

    Raises:
        InputError: the strategy cannot be followed on the route.
    """
    anchors: tuple[int, ...]
    match strategy:
        case Adaptive():
            before = [anchors[-1] for anchors in chosen]  # an adaptive strategy takes one anchor a stage
            if before and before[-1] == route.end:
                return None
            pick = strategy.next(route, before, student)
            anchors, reason, remaining = (pick.index,), pick.reason, pick.remaining
            last = pick.index == route.end
        case Planned() | Measured():
            planned = strategy.plan(route)
            if len(chosen) == len(planned):
                return None
            epochs, reason = planned[len(chosen)]
            anchors = tuple(route.epochs.index(epoch) for epoch in as_epochs(epochs))
            remaining = len(planned) - len(chosen)
            last = remaining == 1
        case _:
            raise TypeError(f"{type(strategy).__name__} is neither Planned nor Measured nor Adaptive")
    return Choice(
        stage=len(chosen) + 1,
        anchors=anchors,
        anchor_epochs=tuple(route.epochs[i] for i in anchors),
        reason=reason,
        remaining=remaining,
        last=last,
    )


def stage_epochs(total: int, stages: int, *, done: int, remaining: int, last: bool) -> int:
    """Student epochs of one stage: floor(total / stages); the last stage gets the rest (ours).

    The stages after an anchor that was skipped share its epochs. The sum over the stages of a run is `total`, also when a
    search arrives at the converged teacher early.

    Args:
        total: epochs of all stages.
        stages: how many there may be.
        done: epochs of the stages before this one.
        remaining: how many stages there may be from this one on.
        last: no stage follows.
    """
    shared = total // stages * stages
    return total - done if last else (shared - done) // remaining


def planned_lengths(total: int, stages: int) -> tuple[int, ...]:
    """Student epochs of each of so many stages, of which none is skipped."""
    share = total // stages
    return (*[share] * (stages - 1), total - share * (stages - 1))
