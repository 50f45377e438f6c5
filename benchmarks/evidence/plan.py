"""A plan: settings x branches x seeds, which comparison is the test, and the difference that its seeds can detect.

All of it is said before anything is trained, in plans/NAME.yaml:

    question: what the plan is to decide
    settings:
      NAME:
        parameters: {teacher: wrn-16-2, student: resnet8, epochs: 60}    # flat, as a recipe has them
        subset: {archive: tiny-imagenet-32, classes: 50, images: 250}    # of a class, for training; left out: `dataset` is read
    branches:
      kd: {kind: kd}
      route: {kind: equal-interval, n_anchors: 4}                        # kind: of `rco compare`; beside it flat parameters
      restarts: {kind: kd-restart, stages: 4}
    tests: {route: kd}             # branch -> the branch that it is compared with, seed by seed; Holm's method over all of them
    seeds: 5                       # of the students, from 0; each is trained in every branch
    teacher_seeds: 1               # likewise; each is a table of its own
    assumed_sd: 1.0                # points: standard deviation of the difference within a seed
    assumed_from: three seeds of ...
    detects: 1.7                   # points: what these seeds find in 80 of 100 cases at the 5 % level (checked)
    tuned: {kd: [kd-2, kd-4], route: [route-2, route-4]}    # branches that differ in a setting which is tuned for each alike:
                                   # of each list the one of best validation accuracy counts, against that of the first list
    in_readme: true                # README's table has the first test of every setting; left out: it has not

A branch is one whole configuration: what its kind does not read may not stand there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from rco.config.kinds import KINDS
from rco.config.parameters import RunConfig
from rco.core.errors import InputError, choice
from rco.core.settings import from_dict

PLANS = Path(__file__).with_name("plans")
POWER, LEVEL = 0.8, 0.05
_ROUNDED = 0.06  # points by which `detects` may differ from the formula


@dataclass(frozen=True, kw_only=True)
class Subset:
    """A part of an image folder or its tar.

    Args:
        archive: NAME of NAME/ or NAME.tar.xz in the folder DATA.
        classes: how many, evenly spaced in the order of their names.
        images: of each class for training, the first by name; `val_fraction` of them is held out. Test images are all.
    """

    archive: str
    classes: int
    images: int


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A teacher, a student, their data."""

    parameters: dict[str, Any] = field(default_factory=dict)
    subset: Subset | None = None


@dataclass(frozen=True, kw_only=True)
class Student:
    """One student of a plan, and all that it depends on."""

    setting: str
    branch: str
    seed: int
    teacher_seed: int

    @property
    def words(self) -> str:
        return f"{self.setting}, teacher {self.teacher_seed}, {self.branch}, seed {self.seed}"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a file says."""

    question: str
    settings: dict[str, Setting]
    branches: dict[str, dict[str, Any]]
    tests: dict[str, str]
    seeds: int
    teacher_seeds: int = 1
    tuned: dict[str, list[str]] = field(default_factory=dict)
    in_readme: bool = False
    assumed_sd: float
    assumed_from: str
    detects: float
    name: str = ""

    def __post_init__(self) -> None:
        for name in ("seeds", "teacher_seeds"):
            if getattr(self, name) < 1:
                raise InputError(name, getattr(self, name), "must be 1 or more", "Give a whole number such as 5")
        for branch, reference in self.tests.items():
            choice("tests", branch, tuple(self.branches))
            choice("tests", reference, tuple(self.branches))
        for branch in (b for alike in self.tuned.values() for b in alike):
            choice("tuned", branch, tuple(self.branches))
        computed = detectable(self.seeds, self.assumed_sd)
        if not abs(computed - self.detects) <= _ROUNDED:
            raise InputError(
                "detects",
                self.detects,
                f"is not what {self.seeds} seeds find at a deviation of {self.assumed_sd:g} points",
                f"Give {computed:.1f}, or other seeds",
            )
        for setting in self.settings:
            for branch in self.branches:
                self.config(Student(setting=setting, branch=branch, seed=0, teacher_seed=0))

    def config(self, student: Student) -> RunConfig:
        """All settings of a student; where its data lie is not among them.

        Raises:
            InputError: one that is not known, that cannot work, or that the branch does not read.
        """
        own = dict(self.branches[student.branch])
        kind = str(own.pop("kind", ""))
        choice(f"kind of {student.branch}", kind, tuple(KINDS))
        if ("stages" in own) != (kind == "kd-restart"):
            raise InputError(
                "stages", own.get("stages"), f"in {student.branch}: says how kd-restart is cut", "Give it there only"
            )
        own.pop("stages", None)
        flat = {**self.settings[student.setting].parameters, **own, **KINDS[kind]}
        if kind == "scratch":  # labels alone: what concerns the anchor's answers is not read
            flat = {name: value for name, value in flat.items() if name not in ("views", "objective")}
        return RunConfig.from_flat({**flat, "seed": student.seed, "teacher_seed": student.teacher_seed})

    @cached_property
    def _flats(self) -> dict[tuple[str, str], dict[str, Any]]:
        return {}

    def flat(self, student: Student) -> dict[str, Any]:
        """`config`, flat. Students of a branch differ in their seeds alone, and reading their settings takes milliseconds."""
        which = (student.setting, student.branch)
        if which not in self._flats:
            self._flats[which] = self.config(student).to_flat()
        return {**self._flats[which], "seed": student.seed, "teacher_seed": student.teacher_seed}

    def restarts(self, branch: str) -> int:
        """Into how many stages kd-restart is cut; 0: the branch is another."""
        return int(self.branches[branch].get("stages", 0))

    def students(self) -> Iterator[Student]:
        """All of them, a seed after the other, so that what is finished can be compared."""
        for teacher_seed in range(self.teacher_seeds):
            for seed in range(self.seeds):
                for setting in self.settings:
                    for branch in self.branches:
                        yield Student(setting=setting, branch=branch, seed=seed, teacher_seed=teacher_seed)


def detectable(seeds: int, deviation: float) -> float:
    """The true mean difference that a paired t test over so many seeds finds with probability `POWER`, two-sided at `LEVEL`.

    (t_{n-1, 1 - LEVEL / 2} + t_{n-1, POWER}) sd / sqrt(n), the usual approximation; before Holm's correction. Infinite for one
    seed.

    Args:
        deviation: standard deviation of the difference within a seed, in any unit; the result has it too.
    """
    from scipy.stats import t

    if seeds < 2:
        return math.inf
    return float((t.ppf(1 - LEVEL / 2, seeds - 1) + t.ppf(POWER, seeds - 1)) * deviation / math.sqrt(seeds))


def read_plan(name: str | Path) -> Plan:
    """The plan of a name in plans/, or of a file.

    Raises:
        InputError: it is missing, or says something that cannot be.
    """
    path = Path(name) if str(name).endswith((".yaml", ".yml")) else PLANS / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in PLANS.glob("*.yaml")))
        raise InputError("plan", str(name), "is not a plan", f"Name one of {known}, or a file")
    try:
        values = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise InputError("plan", str(name), f"is not YAML ({' '.join(str(error).split())})", "Mend the file") from None
    if not isinstance(values, Mapping):
        raise InputError("plan", str(name), "is not a mapping", f"It needs {', '.join(f.name for f in fields(Plan))}")
    return from_dict(Plan, {**values, "name": path.stem})
