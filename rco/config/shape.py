"""The shape of a compiled comparison: its branches, how often each can choose an anchor, and what they are called in it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

_LONGEST_LABEL = 40


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a compiled comparison is for: its branches, whose stages are fixed from then on.

    Attributes:
        kinds: of the branches.
        grid: of a sweep: parameter -> values.
        steps: of each branch, by its key, how many times it can choose an anchor. Anchors that are known beforehand are chosen
            at once; an adaptive strategy chooses before every stage.
    """

    kinds: tuple[str, ...]
    grid: dict[str, tuple[Any, ...]]
    steps: dict[str, int]

    @property
    def constants(self) -> dict[str, Any]:
        """What the check of a compiled comparison is given that is no run-time parameter; JSON-ready."""
        grid = {axis: [list(v) if isinstance(v, tuple) else v for v in values] for axis, values in self.grid.items()}
        return {"branches": list(self.kinds), "grid": grid, "compiled": self.steps}

    @property
    def labels(self) -> dict[str, str]:
        """A name for each branch, by its key, that can be part of the name of a task or a parameter: "greedy_tau_2"."""
        return labels(self.steps)


def labels(keys: Iterable[str]) -> dict[str, str]:
    """As `Shape.labels`; the same in whatever order the keys come, since Kubeflow hands mappings over in any."""
    made: dict[str, str] = {}
    for key in sorted(keys := list(keys)):
        plain = re.sub(r"[^a-z0-9]+", "_", key.lower()).strip("_")[:_LONGEST_LABEL] or "branch"
        candidates = itertools.chain([plain], (f"{plain}_{n}" for n in itertools.count(2)))
        made[key] = next(label for label in candidates if label not in made.values())
    return {key: made[key] for key in keys}
