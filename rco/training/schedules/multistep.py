"""A rate that drops by a factor at given epochs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from rco.core.errors import InputError
from rco.core.settings import fraction, setting
from rco.training.schedules.base import SCHEDULES, Schedule


@SCHEDULES.register("multistep")
@dataclass(frozen=True, kw_only=True)
class Multistep(Schedule):
    """A factor `gamma` after each milestone."""

    summary: ClassVar[str] = "drops at milestones"

    milestones: tuple[float, ...] = setting(
        (0.5, 0.75), "when to decay, in epochs (1 or more) or as fractions of the training (below 1)"
    )
    gamma: float = setting(0.1, "factor of each decay")

    def __post_init__(self) -> None:
        fraction("gamma", self.gamma)

    def factor(self, progress: float, *, epochs: int, warmup: float) -> float:
        return float(self.gamma ** sum(progress >= decay for decay in self.decays(epochs)))

    def decays(self, epochs: int) -> tuple[int, ...]:
        given = self.milestones
        remedy = "Give increasing epochs such as 20,30 or increasing fractions such as 0.5,0.75, or schedule = constant"
        if not given:
            raise InputError("milestones", given, "is empty, but the schedule is multistep", remedy)
        if any(not math.isfinite(m) or m <= 0 for m in given):
            raise InputError("milestones", given, "must be above 0", remedy)
        if len({m < 1 for m in given}) > 1:
            raise InputError("milestones", given, "mixes fractions and epochs", remedy)
        if given[0] >= 1 and any(m != int(m) for m in given):
            raise InputError("milestones", given, "has epochs that are not whole", remedy)
        decays = tuple(max(1, round(m * epochs)) if m < 1 else int(m) for m in given)
        if list(decays) != sorted(set(decays)) or decays[-1] >= epochs:
            if given[0] < 1 and list(given) == sorted(set(given)):
                # Fractions of a very short training can fall together: keep those that still mean something.
                return tuple(sorted({d for d in decays if d < epochs}))
            raise InputError("milestones", given, f"must increase and lie below the {epochs} epochs", remedy)
        return decays
