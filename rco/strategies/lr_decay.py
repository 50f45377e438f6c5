"""Anchors at the points where the teacher's learning rate was decayed (Jin et al. 2019; the exact definition is ours)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from rco.core.errors import InputError
from rco.strategies.base import STRATEGIES, Planned, Schedule


def lr_decay(epochs: Sequence[int], decays: Sequence[int]) -> tuple[int, ...]:
    """The last checkpoint before each decay of the learning rate, then the converged teacher.

    Args:
        epochs: of the checkpoints on the route.
        decays: epochs after which the learning rate dropped.

    Raises:
        InputError: the route's learning rate never decayed, or the route has no checkpoint before a decay.
    """
    if not decays:
        raise InputError(
            "strategy",
            "lr-decay",
            "needs a route whose learning rate was decayed, and this one's never is",
            "Use teacher_schedule = multistep, or another strategy",
        )
    chosen: list[int] = []
    for decay in decays:
        before = [e for e in epochs if e <= decay]
        if not before:
            raise InputError(
                "strategy",
                "lr-decay",
                f"the route has no checkpoint up to the decay after epoch {decay}",
                "Keep earlier checkpoints",
            )
        chosen.append(before[-1])
    return tuple(dict.fromkeys((*chosen, epochs[-1])))


@STRATEGIES.register("lr-decay")
@dataclass(frozen=True, kw_only=True)
class LrDecay(Planned):
    """See `lr_decay`."""

    summary: ClassVar[str] = "anchors before each decay of the learning rate"

    def plan(self, route: Schedule) -> list[tuple[int, str]]:
        *early, last = lr_decay(route.epochs, route.decays)
        reasons = [(epoch, f"last checkpoint before decay {k} of the learning rate") for k, epoch in enumerate(early, start=1)]
        return [*reasons, (last, "the converged teacher")]
