"""One stage, whose teacher is the mean of several checkpoints (ours; anchors of the paper, used at once instead of in turn)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from rco.core.errors import InputError
from rco.core.settings import at_least, setting
from rco.strategies.base import STRATEGIES, Planned, Schedule


def spread(epochs: Sequence[int], n: int) -> tuple[int, ...]:
    """n of the epochs at equal spacing, the first and the last among them; one alone is the last.

    Member k of n is the epoch nearest to e_1 + (k - 1) / (n - 1) * (e_M - e_1), the earlier of two equally near, none twice.

    Args:
        epochs: increasing, n or more.
    """
    chosen: list[int] = []
    for k in range(n):
        target = epochs[0] + k / (n - 1) * (epochs[-1] - epochs[0]) if n > 1 else epochs[-1]
        # Leave room for the members after this one.
        free = [e for e in epochs[: len(epochs) - (n - 1 - k)] if not chosen or e > chosen[-1]]
        chosen.append(min(free, key=lambda e: (abs(e - target), e)))
    return tuple(chosen)


@STRATEGIES.register("checkpoint-ensemble")
@dataclass(frozen=True, kw_only=True)
class CheckpointEnsemble(Planned):
    """The student learns from the mean of several checkpoints' softened probabilities, in one stage with one schedule.

    The members lie at equal spacing between two epochs of the route. By default that is its part before the learning rate's
    first decay: checkpoints that have not yet memorised what they were shown.
    """

    ends_at_teacher: ClassVar[bool] = False
    summary: ClassVar[str] = "one stage, taught by the mean of several early checkpoints"

    members: int = setting(4, "how many checkpoints")
    members_from: int = setting(0, "they lie from this epoch on (0: the first checkpoint of the route)")
    members_to: int = setting(0, "they lie up to this epoch (0: the first decay of the learning rate)")

    def __post_init__(self) -> None:
        at_least("members", self.members, 1)
        at_least("members_from", self.members_from, 0)
        at_least("members_to", self.members_to, 0)
        if 0 < self.members_to < self.members_from:
            raise InputError(
                "members_to",
                self.members_to,
                f"is before members_from = {self.members_from}",
                "Give the later epoch as members_to",
            )

    def plan(self, route: Schedule) -> list[tuple[tuple[int, ...], str]]:
        if not self.members_to and not route.decays:
            raise InputError(
                "members_to",
                self.members_to,
                "means the first decay of the learning rate, and this route's is never decayed at once",
                f"Give the epoch up to which the members lie, such as {max(route.epochs[-1] // 2, 1)}",
            )
        end = self.members_to or route.decays[0]
        if self.members_from > end:
            raise InputError(
                "members_from",
                self.members_from,
                f"lies beyond the learning rate's first decay (epoch {end}), up to which the members lie",
                "Give a later epoch as members_to",
            )
        if end > route.epochs[-1]:
            raise InputError(
                "members_to", end, f"is beyond the route, which ends at epoch {route.epochs[-1]}", "Give an earlier one"
            )
        between = [epoch for epoch in route.epochs if self.members_from <= epoch <= end]
        if len(between) < self.members:
            raise InputError(
                "members",
                self.members,
                f"is more than the {len(between)} checkpoints from epoch {self.members_from or route.epochs[0]} to {end}",
                f"The route has epochs {', '.join(map(str, route.epochs))}: want fewer, widen the range, or keep more of them",
            )
        chosen = spread(between, self.members)
        reason = f"the mean of {len(chosen)} checkpoints" if len(chosen) > 1 else "the last checkpoint"
        return [(chosen, f"{reason} up to epoch {end}")]
