"""Where the results of a run or a comparison are filed, and what was trained."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rco.evaluation.raced import Race


@dataclass(frozen=True, kw_only=True)
class Filing:
    """Of the tasks that register and report.

    Attributes:
        parameters: all of them, for the record.
        branches: of a comparison, in the order of the table (Kubeflow hands mappings over in any order); empty: a run.
        references: branch -> the branch it is compared with; empty for those that are references.
        kinds: branch -> its kind.
        seeds: of the students; a run has one.
        race: that the comparison is a round or the final of; None: of none, and the tasks' keys are as they were without.
    """

    experiment: str
    parameters: dict[str, Any]
    seeds: tuple[int, ...]
    branches: tuple[str, ...] = ()
    references: dict[str, str] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)
    restart_like: str = ""
    registered_model: str = ""
    champion_margin: float = 0.0
    registered_weights: str = "last"
    race: Race | None = None

    @property
    def is_run(self) -> bool:
        """Whether it is a run, not a comparison."""
        return not self.branches

    @property
    def parent(self) -> dict[str, Any]:
        """Keyword arguments of `rco.tracking.runs.open_parent`."""
        data = str(self.parameters["dataset"]).rstrip("/").rsplit("/", 1)[-1]
        teacher = self.parameters["teacher"]
        if self.is_run:
            name = f"{data} {teacher} to {self.parameters['student']} {self.parameters['strategy']}"
            return {"experiment": self.experiment, "name": name, "params": self.parameters}
        params = {**self.parameters, "branches": ", ".join(self.branches), "seeds": ",".join(map(str, self.seeds))}
        what, tags = "comparison", {"rco.comparison": "true"}
        if self.race:
            tags["rco.race"] = self.race.id
            params["race_challengers"] = ", ".join(self.race.challengers)
            if self.race.final:
                what = "race, final"
            else:
                what = f"race, round {self.race.number}"
                tags = {"rco.race": self.race.id, "rco.race_round": str(self.race.number)}
        return {"experiment": self.experiment, "name": f"{data} {teacher} {what}", "params": params, "tags": tags}
