"""The greedy search by hardness (the paper searches greedily by hardness as well; the exact definition is ours)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from rco.core.errors import InputError
from rco.core.settings import at_least, positive, setting
from rco.strategies.base import STRATEGIES, Adaptive, Pick, Schedule, StudentLevel, TrainedRoute


@STRATEGIES.register("greedy")
@dataclass(frozen=True, kw_only=True)
class Greedy(Adaptive):
    """From the anchor i just mimicked, walk up the route while the relative hardness r(i, j) <= delta.

    The last checkpoint that passed is next. If none passed it is i + 1, so that the route always advances. The first anchor
    is `first_epoch`; the last stage takes the converged teacher.
    """

    summary: ClassVar[str] = "anchors by greedy search"

    n_anchors: int = setting(4, "the most anchors that may be used")
    delta: float = setting(1.5, "largest relative hardness that a next anchor may have")
    first_epoch: int = setting(0, "epoch of the first anchor (0: the first checkpoint on the route)")

    def __post_init__(self) -> None:
        at_least("n_anchors", self.n_anchors, 1)
        positive("delta", self.delta, "Give a ratio such as 1.5; 1 means no harder than the anchor just learnt")
        at_least("first_epoch", self.first_epoch, 0)

    def most_stages(self, route: Schedule) -> int:
        if self.first_epoch and self.first_epoch not in route.epochs:
            raise InputError(
                "first_epoch",
                self.first_epoch,
                "is not on the route",
                f"The route has epochs {', '.join(map(str, route.epochs))}",
            )
        return min(self.n_anchors, len(route.epochs))

    def next(self, route: TrainedRoute, chosen: Sequence[int], student: StudentLevel) -> Pick:
        remaining = self.most_stages(route) - len(chosen)
        index, reason = self._choose(route, chosen, student, last=remaining <= 1)
        return Pick(index=index, reason=reason, remaining=remaining)

    def _choose(self, route: TrainedRoute, chosen: Sequence[int], student: StudentLevel, *, last: bool) -> tuple[int, str]:
        epochs, end = route.epochs, route.end
        if last:
            return end, "the last stage takes the converged teacher"
        if not chosen:
            first = epochs.index(self.first_epoch) if self.first_epoch else 0
            return first, f"the first anchor is {'first_epoch' if self.first_epoch else 'the first checkpoint of the route'}"
        from rco.strategies.hardness import relative

        i = j = chosen[-1]
        r = relative(student.hardness, i)
        while j < end and r[j + 1] <= self.delta:
            j += 1
        if j == i:
            return i + 1, f"r = {r[i + 1]:.2f} > {self.delta:g}: none is easy enough, so the next one"
        stopped = "the end of the route" if j == end else f"epoch {epochs[j + 1]} has r = {r[j + 1]:.2f}"
        return j, f"r = {r[j]:.2f} <= {self.delta:g}; {stopped}"
