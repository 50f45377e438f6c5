"""A rate that falls to 0 along half a cosine: Loshchilov and Hutter, "SGDR", ICLR 2017, arXiv 1608.03983, without restarts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from rco.training.schedules.base import SCHEDULES, Schedule


@SCHEDULES.register("cosine")
@dataclass(frozen=True, kw_only=True)
class Cosine(Schedule):
    """From the peak after the warm-up to 0 at the end."""

    summary: ClassVar[str] = "falls to 0"

    def factor(self, progress: float, *, epochs: int, warmup: float) -> float:
        span = max(epochs - warmup, 1e-9)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, progress - warmup) / span)))
