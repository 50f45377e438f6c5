"""The shape of a compiled pipeline: its branches, how often each can choose an anchor, and the parameters that it takes.

A run is a comparison of one branch, whose strategy is a parameter like any other.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from rco.config.kinds import COMPILED, DEFAULTS, OPTIONS, SHARED
from rco.config.parameters import PARAMETERS

#: What a compiled run knows its only branch by.
STUDENT = "student"
#: Stages that a package has room for if nobody says more.
DEFAULT_STAGES = 4
_LONGEST_LABEL = 40


class Field(NamedTuple):
    """A parameter that a compiled pipeline takes when it runs."""

    name: str
    kind: type
    default: Any
    help: str


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a pipeline is compiled for: its branches, whose stages are fixed from then on.

    Attributes:
        kinds: of the branches; empty: a run.
        grid: of a sweep: parameter -> values.
        steps: of each branch, by its key, how many times it can choose an anchor. In a comparison anchors that are known
            beforehand are chosen at once, and an adaptive strategy chooses before every stage; a run always does.
        race: that it is a round or the final of (`rco.evaluation.raced.Race`), JSON-ready; empty: of none.
    """

    kinds: tuple[str, ...]
    grid: dict[str, tuple[Any, ...]]
    steps: dict[str, int]
    race: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key, steps in self.steps.items():
            if steps < 1:
                raise ValueError(f"{key} has {steps} stages: a pipeline needs one stage or more")

    @classmethod
    def of_run(cls, stages: int = DEFAULT_STAGES) -> Shape:
        """The shape of a run with room for so many stages.

        Raises:
            ValueError: fewer than one.
        """
        return cls(kinds=(), grid={}, steps={STUDENT: stages})

    @property
    def is_run(self) -> bool:
        """Whether it is a run, not a comparison."""
        return not self.kinds

    @property
    def is_round(self) -> bool:
        """Whether it is a round of a race: nobody is measured on the test part."""
        return bool(self.race) and not self.race["final"]

    @property
    def constants(self) -> dict[str, Any]:
        """What its check is given that is no run-time parameter; JSON-ready."""
        if self.is_run:
            return {"compiled": self.steps}
        grid = {axis: [list(v) if isinstance(v, tuple) else v for v in values] for axis, values in self.grid.items()}
        race = {"race": self.race} if self.race else {}
        return {"branches": list(self.kinds), "grid": grid, "compiled": self.steps, **race}

    @property
    def form(self) -> list[Field]:
        """What it takes when it runs, in the order of the form in the Kubeflow UI."""
        if self.is_run:
            return [Field(p.name, p.kind, p.default, p.help) for p in PARAMETERS.values()]
        options = [Field(o.name, o.kind, o.default, o.help) for o in OPTIONS.values() if o.name not in COMPILED]
        shared = (PARAMETERS[name] for name in SHARED)
        return [*options, *(Field(p.name, p.kind, DEFAULTS.get(p.name, p.default), p.help) for p in shared)]

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
