"""Anchors at equal intervals of epochs (Jin et al. 2019; the exact definition is ours)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from rco.core.errors import InputError
from rco.core.settings import at_least, setting
from rco.strategies.base import STRATEGIES, Planned, Schedule


def equal_interval(epochs: Sequence[int], n: int) -> tuple[int, ...]:
    """n anchors at equal spacing in epochs, the last one the converged teacher.

    Anchor k of n is the checkpoint nearest to epoch k * E / n (the earlier of two equally near), no checkpoint twice.

    Raises:
        InputError: more anchors than checkpoints.
    """
    require_checkpoints(epochs, n)
    chosen: list[int] = []
    above = len(epochs)  # indices from here on are taken or too late
    for k in range(n, 0, -1):
        target = k * epochs[-1] / n
        candidates = range(k - 1, above)  # leave room for the k - 1 anchors before this one
        above = min(candidates, key=lambda j: (abs(epochs[j] - target), j))
        chosen.append(epochs[above])
    return tuple(reversed(chosen))


def require_checkpoints(epochs: Sequence[int], n: int) -> None:
    """Raise InputError if there are more anchors than checkpoints."""
    if n > len(epochs):
        raise InputError(
            "n_anchors",
            n,
            f"is more than the {len(epochs)} checkpoints on the route",
            f"Use at most {len(epochs)}, or keep more",
        )


@STRATEGIES.register("equal-interval")
@dataclass(frozen=True, kw_only=True)
class EqualInterval(Planned):
    """See `equal_interval`."""

    summary: ClassVar[str] = "anchors at equal intervals"

    n_anchors: int = setting(4, "how many anchors")

    def __post_init__(self) -> None:
        at_least("n_anchors", self.n_anchors, 1)

    def plan(self, route: Schedule) -> list[tuple[int, str]]:
        n, total = self.n_anchors, route.epochs[-1]
        chosen = equal_interval(route.epochs, n)
        return [(epoch, f"nearest to {k}/{n} of the {total} epochs") for k, epoch in enumerate(chosen, start=1)]
