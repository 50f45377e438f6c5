"""Anchors at equal steps in the teacher's validation accuracy (ours)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from rco.core.settings import at_least, setting
from rco.strategies.base import STRATEGIES, Measured, Schedule, TrainedRoute
from rco.strategies.equal_interval import require_checkpoints


def accuracy_interval(accuracies: Sequence[float], n: int) -> tuple[int, ...]:
    """Indices of n anchors at equal steps in accuracy, the last one the converged teacher.

    Anchor k of n is the first checkpoint, after the anchor before it, whose accuracy reaches A_1 + (k - 1) / (n - 1) of the
    way to A_M, where A_1 is the first checkpoint's accuracy and A_M the converged teacher's; no checkpoint twice, so that
    on a route whose accuracy leaps or falls the steps are as equal as its checkpoints allow.

    Args:
        accuracies: of the M checkpoints, M >= n.
    """
    end, chosen = len(accuracies) - 1, list[int]()
    for k in range(1, n):
        target = accuracies[0] + (k - 1) / (n - 1) * (accuracies[-1] - accuracies[0])
        first = chosen[-1] + 1 if chosen else 0
        latest = end - (n - k)  # leave room for the n - k anchors after this one
        chosen.append(next((i for i in range(first, latest) if accuracies[i] >= target), latest))
    return (*chosen, end)


@STRATEGIES.register("accuracy-interval")
@dataclass(frozen=True, kw_only=True)
class AccuracyInterval(Measured):
    """See `accuracy_interval`."""

    summary: ClassVar[str] = "anchors at equal steps in accuracy"

    n_anchors: int = setting(4, "how many anchors")

    def __post_init__(self) -> None:
        at_least("n_anchors", self.n_anchors, 1)

    def most_stages(self, route: Schedule) -> int:
        require_checkpoints(route.epochs, self.n_anchors)
        return self.n_anchors

    def plan(self, route: TrainedRoute) -> list[tuple[int, str]]:
        chosen = accuracy_interval(route.accuracies, self.n_anchors)
        return [(route.epochs[i], f"validation accuracy {route.accuracies[i]:.1%}") for i in chosen]
