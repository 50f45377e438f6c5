"""The walk along a route: the anchor of the next stage, by any strategy, and the stage's length.

That the route matters, and that an equal-interval choice, the points of learning-rate decay and a greedy search by hardness
are ways to choose, is the paper's (Jin et al. 2019). The exact definitions are this project's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rco.strategies.base import Adaptive, Measured, Pick, Planned, Strategy, StudentLevel, TrainedRoute


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The anchor of one stage.

    Attributes:
        stage: counted from 1.
        index: of the checkpoint on the route, from 0.
        epoch: of the checkpoint.
        reason: why it was chosen, in words.
        remaining: how many stages there may be from this one on, this one included.
        last: no stage follows.
    """

    stage: int
    index: int
    epoch: int
    reason: str
    remaining: int
    last: bool


def next_anchor(strategy: Strategy, route: TrainedRoute, *, chosen: Sequence[int] = (), student: StudentLevel) -> Choice | None:
    """The anchor of the stage that follows those in `chosen` (their indices on the route); None when the route has been walked.

    Args:
        student: as the last of these stages left it.

    Raises:
        InputError: the strategy cannot be followed on the route.
    """
    if chosen and chosen[-1] == route.end:
        return None
    pick = _pick(strategy, route, chosen, student)
    return Choice(
        stage=len(chosen) + 1,
        index=pick.index,
        epoch=route.epochs[pick.index],
        reason=pick.reason,
        remaining=pick.remaining,
        last=pick.index == route.end,
    )


def _pick(strategy: Strategy, route: TrainedRoute, chosen: Sequence[int], student: StudentLevel) -> Pick:
    match strategy:
        case Adaptive():
            return strategy.next(route, chosen, student)
        case Planned() | Measured():
            planned = strategy.plan(route)
            epoch, reason = planned[len(chosen)]
            return Pick(index=route.epochs.index(epoch), reason=reason, remaining=len(planned) - len(chosen))
    raise TypeError(f"{type(strategy).__name__} is neither Planned nor Measured nor Adaptive")


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
