"""Anchors as the user lists them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from rco.core.errors import InputError
from rco.core.settings import setting
from rco.strategies.base import STRATEGIES, Planned, Schedule


def explicit(epochs: Sequence[int], wanted: Sequence[int]) -> tuple[int, ...]:
    """The user's own list, which must lie on the route and end at the converged teacher.

    Raises:
        InputError: an epoch that is not on the route, or a list that stops short of the converged teacher.
    """
    for epoch in wanted:
        if epoch not in epochs:
            raise InputError(
                "anchor_epochs",
                list(wanted),
                f"epoch {epoch} is not on the route",
                f"The route has epochs {', '.join(map(str, epochs))}",
            )
    if wanted[-1] != epochs[-1]:
        raise InputError(
            "anchor_epochs",
            list(wanted),
            f"does not end at the converged teacher (epoch {epochs[-1]})",
            f"Add {epochs[-1]} as the last anchor",
        )
    return tuple(wanted)


@STRATEGIES.register("explicit")
@dataclass(frozen=True, kw_only=True)
class Explicit(Planned):
    """See `explicit`."""

    summary: ClassVar[str] = "anchors as listed"

    anchor_epochs: tuple[int, ...] = setting((), "the epochs of the anchors, in order")

    def __post_init__(self) -> None:
        epochs = self.anchor_epochs
        if not epochs:
            raise InputError("anchor_epochs", epochs, "is empty, but the strategy is explicit", "List epochs, such as 10,20,40")
        if list(epochs) != sorted(set(epochs)):
            raise InputError("anchor_epochs", epochs, "is not in increasing order", f"Give {sorted(set(epochs))}")
        if epochs[0] < 1:
            raise InputError("anchor_epochs", epochs, "has an epoch below 1", "Epochs count from 1")

    def plan(self, route: Schedule) -> list[tuple[int, str]]:
        return [(epoch, "named in anchor_epochs") for epoch in explicit(route.epochs, self.anchor_epochs)]
