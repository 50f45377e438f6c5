"""The settings of the choice of anchors."""

from __future__ import annotations

from dataclasses import dataclass

from rco.core.errors import InputError, choice
from rco.core.settings import at_least, positive, setting

STRATEGIES = ("equal-interval", "lr-decay", "greedy", "explicit")


@dataclass(frozen=True, kw_only=True)
class AnchorConfig:
    """Which checkpoints of the route become anchors. See docs of `rco.strategies.anchors` for the definitions."""

    strategy: str = setting("greedy", "equal-interval | lr-decay | greedy | explicit")
    n_anchors: int = setting(4, "equal-interval: how many anchors; greedy: the most that may be used")
    delta: float = setting(1.5, "greedy: largest relative hardness that a next anchor may have")
    first_epoch: int = setting(0, "greedy: epoch of the first anchor (0: the first checkpoint on the route)")
    anchor_epochs: tuple[int, ...] = setting((), "explicit: the epochs of the anchors, in order")

    def __post_init__(self) -> None:
        choice("strategy", self.strategy, STRATEGIES)
        at_least("n_anchors", self.n_anchors, 1)
        positive("delta", self.delta, "Give a ratio such as 1.5; 1 means no harder than the anchor just learnt")
        at_least("first_epoch", self.first_epoch, 0)
        if self.strategy == "explicit":
            epochs = self.anchor_epochs
            if not epochs:
                raise InputError(
                    "anchor_epochs", epochs, "is empty, but the strategy is explicit", "List epochs, such as 10,20,40"
                )
            if list(epochs) != sorted(set(epochs)):
                raise InputError("anchor_epochs", epochs, "is not in increasing order", f"Give {sorted(set(epochs))}")
            if epochs[0] < 1:
                raise InputError("anchor_epochs", epochs, "has an epoch below 1", "Epochs count from 1")
