"""A rate that stays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rco.training.schedules.base import SCHEDULES, Schedule


@SCHEDULES.register("constant")
@dataclass(frozen=True, kw_only=True)
class Constant(Schedule):
    """The peak, always."""

    summary: ClassVar[str] = "stays"

    def factor(self, progress: float, *, epochs: int, warmup: float) -> float:
        return 1.0
