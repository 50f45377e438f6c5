"""Anchors at equal intervals that the student can still learn from (ours)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from rco.core.settings import at_least, setting
from rco.strategies.base import STRATEGIES, Adaptive, Pick, Schedule, StudentLevel, TrainedRoute
from rco.strategies.equal_interval import equal_interval


@STRATEGIES.register("worthy")
@dataclass(frozen=True, kw_only=True)
class Worthy(Adaptive):
    """As equal-interval, but an anchor that is weaker on the probe set than the student is now is left out.

    The later stages share its epochs. The converged teacher is never skipped.
    """

    summary: ClassVar[str] = "anchors at equal intervals, but for those weaker than the student"

    n_anchors: int = setting(4, "how many anchors, of which those weaker than the student are skipped")

    def __post_init__(self) -> None:
        at_least("n_anchors", self.n_anchors, 1)

    def most_stages(self, route: Schedule) -> int:
        return len(equal_interval(route.epochs, self.n_anchors))

    def next(self, route: TrainedRoute, chosen: Sequence[int], student: StudentLevel) -> Pick:
        planned = [route.epochs.index(epoch) for epoch in equal_interval(route.epochs, self.n_anchors)]
        left = [i for i in planned if not chosen or i > chosen[-1]]
        skipped = []
        while len(left) > 1 and student.anchor_accuracies[left[0]] < student.accuracy:
            skipped.append(str(route.epochs[left.pop(0)]))
        k = len(planned) - len(left) + 1
        reason = f"anchor {k} of {len(planned)}"
        if skipped:
            reason += (
                f"; epoch {', '.join(skipped)} skipped: the student, at {student.accuracy:.1%} of the probe set, is better"
            )
        return Pick(index=left[0], reason=reason, remaining=len(left))
