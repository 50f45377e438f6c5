"""What is compared with what: the branches of a comparison. A run is a comparison of one branch and one seed.

A comparison is a list of branches: ways to train one student at equal cost in student epochs, all from one teacher's route
and, seed by seed, from the same initial weights and the same order of images. The standard branches are named in
`KINDS`; a sweep multiplies them by a grid of parameters. Everything here is pure: no I/O, no torch.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from rco.config.cells import axes_of, cell_of, changes_result
from rco.config.kinds import (
    BASELINES,
    DEFAULTS,
    GROUPS,
    KINDS,
    MOST,
    OPTIONS,
    REFERENCE,
    RESTART_LIKE,
    RESTARTED,
    SHARED,
    STANDARD,
    SWEPT,
    read_grid,
    read_kinds,
    read_seeds,
)
from rco.config.parameters import PARAMETERS, RunConfig, chosen_plugin, read_group, read_value
from rco.config.shape import STUDENT
from rco.core.errors import InputError, UnusedError, choice
from rco.core.settings import from_dict, jsonable
from rco.evaluation.raced import Race
from rco.models.config import ModelConfig
from rco.objectives.config import ObjectiveConfig
from rco.strategies.base import STRATEGIES
from rco.training.config import TrainConfig


class StudentConfig(Protocol):
    """The part of a stage's settings that people compare by."""

    @property
    def student(self) -> ModelConfig: ...
    @property
    def train(self) -> TrainConfig: ...
    @property
    def objective(self) -> ObjectiveConfig: ...


@dataclass(frozen=True, kw_only=True)
class Branch:
    """One way to train the student.

    Attributes:
        kind: a key of `KINDS`; empty: the only branch of a run.
        cell: (parameter, value) pairs in which it differs from the parameters that all branches share.
        point: its values on all axes that matter to it.
        reference: name of the branch that it is compared with; empty for that branch itself.
        config: all its parameters, resolved. Its seed means nothing.
        like: of kd-restart: the configuration whose stage lengths it takes.
    """

    kind: str
    cell: tuple[tuple[str, Any], ...]
    point: tuple[tuple[str, Any], ...]
    reference: str
    config: RunConfig
    like: RunConfig | None = None

    @property
    def name(self) -> str:
        """The kind, and what is special: "greedy tau=2"; empty in a run."""
        return _name(self.kind, self.cell)

    @property
    def key(self) -> str:
        """What a compiled pipeline knows it by, whatever the parameters that all branches share."""
        return _name(self.kind, self.point) or STUDENT

    @property
    def follows_route(self) -> bool:
        """Whether it learns from more than the converged teacher."""
        return self.kind not in BASELINES


def branch_params(branch: str, kind: str, config: StudentConfig) -> dict[str, Any]:
    """What people compare a branch by, as MLflow parameters. Temperature and weight say nothing where labels alone teach."""
    objective = config.objective
    return {
        "branch": branch,
        "strategy": kind,
        "student": config.student.model,
        "epochs": config.train.epochs,
        **({"objective": objective.objective.plugin_name, "tau": objective.tau} if objective.needs_anchor else {}),
        "lambda": objective.lambda_,
    }


def student_key(branch: str, seed: int) -> str:
    """What names a student within a pipeline run: "kd/seed-0"; in a run "student"."""
    return f"{branch}/seed-{seed}" if branch else STUDENT


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What a user asked for, understood.

    Attributes:
        shared: flat parameters that all branches share.
        branches: in the order of the table.
        seeds: of the students.
        restart_like: the kind whose stage lengths kd-restart takes.
        kinds: of the branches; empty: a run.
        grid: of a sweep: parameter -> values.
        race: that it is a round or the final of. In a round the challengers alone are trained: no branch is the reference.
    """

    shared: dict[str, Any]
    branches: tuple[Branch, ...]
    seeds: tuple[int, ...]
    restart_like: str
    kinds: tuple[str, ...]
    grid: dict[str, tuple[Any, ...]]
    race: Race | None = None

    @property
    def is_run(self) -> bool:
        """Whether it is a run: one branch, one seed."""
        return not self.kinds

    @property
    def reference(self) -> RunConfig:
        """The configuration of a branch that is compared with no other. Data and teacher are everybody's, so that in a round of
        a race any branch's will do."""
        return next((branch.config for branch in self.branches if not branch.reference), self.branches[0].config)

    def to_parameters(self) -> dict[str, Any]:
        """What `read` reads, JSON-ready and in full."""
        if self.is_run:
            return dict(self.shared)
        grid = {name: [list(v) if isinstance(v, tuple) else v for v in values] for name, values in self.grid.items()}
        return {
            "branches": list(self.kinds),
            "seeds": list(self.seeds),
            "restart_like": self.restart_like,
            "grid": grid,
            **({"race": jsonable(self.race)} if self.race else {}),
            **self.shared,
        }

    @classmethod
    def read(cls, parameters: Mapping[str, Any]) -> Comparison:
        """Read the parameters of a compiled pipeline: a run's, or a comparison's, which say its branches.

        Raises:
            InputError: as `of`, or as `RunConfig.from_flat`.
        """
        return cls.of(parameters) if "branches" in parameters else cls.of_run(RunConfig.from_flat(parameters))

    @classmethod
    def of_run(cls, config: RunConfig) -> Comparison:
        """The comparison of one branch and one seed that a run is."""
        return cls(
            shared=config.to_flat(),
            branches=(Branch(kind="", cell=(), point=(), reference="", config=config),),
            seeds=(config.student_train.seed,),
            restart_like="",
            kinds=(),
            grid={},
        )

    @classmethod
    def of(cls, parameters: Mapping[str, Any]) -> Comparison:
        """Read a comparison's parameters: those of `OPTIONS`, and flat ones of `SHARED`; what is left out keeps its default.
        One of a race has `race`, too.

        Raises:
            InputError: the first that cannot work; nothing has been looked at on disk.
        """
        options = {name: parameters.get(name, option.default) for name, option in OPTIONS.items()}
        flat = {**DEFAULTS, **{name: value for name, value in parameters.items() if name not in (*OPTIONS, "race")}}
        race = from_dict(Race, parameters["race"]) if "race" in parameters else None
        if not isinstance(options["grid"], Mapping):
            raise InputError("grid", options["grid"], "is not a mapping of parameters to lists", 'Give {"tau": [2, 4]}')
        seeds = read_seeds(options["seeds"])
        restart_like = str(options["restart_like"])
        is_round = race is not None and not race.final
        kinds, grid = read_kinds(options["branches"], with_reference=not is_round), read_grid(options["grid"])
        compared = read_kinds({*kinds, REFERENCE}) if is_round else kinds
        branches = make_branches(flat, compared, grid=grid, restart_like=restart_like)
        if is_round:
            branches = tuple(branch for branch in branches if branch.kind in kinds)
        return cls(
            shared=_shared(flat, grid, compared, restart_like),
            branches=branches,
            seeds=seeds,
            restart_like=restart_like,
            kinds=kinds,
            grid=grid,
            race=race,
        )


def _name(kind: str, cell: Iterable[tuple[str, Any]]) -> str:
    return " ".join([kind, *(f"{name}={_shown(value)}" for name, value in cell)])


def _shown(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ",".join(map(_shown, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _shared(
    parameters: Mapping[str, Any], axes: Mapping[str, Sequence[Any]], kinds: Sequence[str], restart_like: str
) -> dict[str, Any]:
    """All of `SHARED`, read. Without axes they must work together; with axes only each branch has a whole configuration, and
    whole groups are those that no axis is of.

    Raises:
        InputError: values that cannot work, or one that reaches nothing: the parameter of a plug-in that no branch has, or one
            of a teacher that is not trained.
    """
    unknown = [name for name in parameters if name not in SHARED]
    if unknown:
        choice("parameter", unknown[0], SHARED)
    shared = {name: read_value(name, parameters.get(name, PARAMETERS[name].default)) for name in SHARED}
    if axes:
        for group in sorted({GROUPS[name] for name in SHARED} - {GROUPS[name] for name in SWEPT}):
            read_group(group, shared)
        RunConfig.from_flat({name: shared[name] for name in SHARED if GROUPS[name] in ("teacher_train", "route")})
    else:
        common = {name: value for name, value in shared.items() if PARAMETERS[name].chooser != "strategy"}
        RunConfig.from_flat({**common, "strategy": "equal-interval"})
    if "continuous" in axes.get("stage_schedule", (shared["stage_schedule"],)) and not {*kinds} - {*BASELINES}:
        words = (f"means nothing with branches = {', '.join(kinds)}", "Leave it out, or add a branch that follows the route")
        raise UnusedError("stage_schedule", "continuous", *words)
    followed = {
        restart_like if kind == "kd-restart" else kind for kind in kinds if kind not in BASELINES or kind == "kd-restart"
    }
    for p in (PARAMETERS[name] for name in SHARED if PARAMETERS[name].chooser):
        given = p.name in axes or shared[p.name] != read_value(p.name, p.default)
        anchors = p.chooser == "strategy"
        chosen = followed if anchors else axes.get(p.chooser, (chosen_plugin(p.chooser, shared),))
        if given and not {*chosen} & {*p.owners}:
            named, listed = ("branches", kinds) if anchors else (p.chooser, chosen)
            raise UnusedError(
                p.name,
                axes.get(p.name, shared[p.name]),
                f"means nothing with {named} = {', '.join(listed)}",
                f"Leave it out, or add {_one_of('branch' if anchors else p.chooser, p.owners)}",
            )
    return shared


def _one_of(kind: str, names: Sequence[str]) -> str:
    return f"the {kind} {names[0]}" if len(names) == 1 else f"one of: {', '.join(names)}"


def make_branches(
    parameters: Mapping[str, Any],
    kinds: Sequence[str] = STANDARD,
    *,
    grid: Mapping[str, Any] | None = None,
    restart_like: str = RESTART_LIKE,
) -> tuple[Branch, ...]:
    """The branches of a comparison; with a grid, of a sweep.

    A branch varies along the axes that matter to it and appears once for each of their combinations. Every combination that
    changes the student, its training or its objective gets a reference of its own: RCO at tau = 2 is compared with KD at
    tau = 2, one student with itself.

    Args:
        parameters: flat; what all branches share.
        kinds: of `KINDS`.
        grid: parameter -> values.
        restart_like: the kind whose stage lengths kd-restart takes.

    Raises:
        InputError: the first thing that cannot work, with the branch that it is about.
    """
    kinds = read_kinds(kinds)
    axes = read_grid(grid or {})
    if restart_like in STRATEGIES.names and restart_like not in RESTARTED:
        raise InputError(
            "restart_like",
            restart_like,
            "has stages whose number is known only when it has run",
            f"Choose one of: {', '.join(RESTARTED)}",
        )
    choice("restart_like", restart_like, RESTARTED)
    if restart_like != RESTART_LIKE and "kd-restart" not in kinds:
        raise UnusedError(
            "restart_like",
            restart_like,
            f"means nothing with branches = {', '.join(kinds)}",
            "Leave it out, or add the branch kd-restart",
        )
    base = _shared(parameters, axes, kinds, restart_like)
    made: dict[str, Branch] = {}
    for values in itertools.product(*axes.values()):
        point = dict(zip(axes, values, strict=True))
        for kind in kinds:
            cell = cell_of(kind, point, base, restart_like)
            name = _name(kind, cell)
            if name in made:
                continue
            reference = "" if kind == REFERENCE else _name(REFERENCE, cell_of(REFERENCE, point, base, restart_like))
            like = _config_of(restart_like, point, base, name) if kind == "kd-restart" else None
            config = _config_of(kind, dict(cell), base, name)
            on_axes = axes_of(kind, point, base, restart_like)
            made[name] = Branch(kind=kind, cell=cell, point=on_axes, reference=reference, config=config, like=like)
    for name, branch in made.items():
        plain = _name(REFERENCE, branch.cell)  # scratch knows no tau, so of all references the plainest is its own
        if branch.reference and plain in made and all(GROUPS[p] != "anchors" for p, _ in branch.cell):
            made[name] = replace(branch, reference=plain)
    if len(made) > MOST:
        raise InputError(
            "branches", len(made), f"are more than the {MOST} that fit into one comparison", "Sweep over fewer values"
        )
    return tuple(sorted(made.values(), key=lambda branch: _table_order(branch, axes)))


def _table_order(branch: Branch, axes: Mapping[str, Sequence[Any]]) -> tuple[Any, ...]:
    """Sort key: cells together, in the order of their axes; within a cell the kinds in their order."""
    flat = branch.config.to_flat()
    shared = [name for name in axes if GROUPS[name] != "anchors"]
    return (
        branch.kind != "scratch" if not shared else 0,
        *(axes[name].index(flat[name]) if flat[name] in axes[name] else -1 for name in shared),
        list(KINDS).index(branch.kind),
        *(axes[name].index(flat[name]) if flat[name] in axes[name] else -1 for name in axes if name not in shared),
    )


def _config_of(kind: str, cell: Mapping[str, Any], base: Mapping[str, Any], branch: str) -> RunConfig:
    """The configuration of a branch: the shared parameters and its cell's, as far as they change its result, and its kind's.

    All others keep their defaults, or they would split the cache; but for tau, at which every branch is measured.

    Raises:
        InputError: they do not work together; it names the branch.
    """
    given = {**base, **cell}
    read = {name: given[name] for name in given if name == "tau" or changes_result(kind, name, given)}
    try:
        return RunConfig.from_flat({**read, **KINDS[kind]})
    except InputError as error:
        raise in_branch(branch, error) from None


def in_branch(name: str, error: InputError) -> InputError:
    """The same complaint, with the branch that it is about."""
    return type(error)(error.parameter, error.value, f"in branch {name!r}: {error.problem}", error.remedy)
