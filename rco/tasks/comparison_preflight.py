"""Everything about a comparison that can be known to fail before it costs anything; and the settings of its tasks.

Every branch is checked with its own overrides, and errors name the branch. As in `rco.tasks.preflight`, a task is given the
settings that it uses and no others. A branch's name is one of them, because its MLflow runs carry it; so names are
functions of what is special about a branch (`rco.config.branches.Branch.name`), and equal work has equal keys.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rco.config.branches import Branch, Comparison, ComparisonFiling, in_branch
from rco.config.parameters import RunConfig
from rco.config.plugins import used_by
from rco.config.shape import Shape
from rco.core.errors import InputError
from rco.core.settings import jsonable
from rco.strategies.base import Adaptive
from rco.strategies.walk import planned_lengths
from rco.tasks.preflight import (
    anchor_settings,
    code_digest,
    cost_of_anchors,
    existing_route,
    planned_route,
    plugin_parameters,
    preflight,
    stages_on,
    validate,
)
from rco.tasks.settings import (
    BranchSettings,
    BranchTasks,
    ChoiceSettings,
    ComparisonSettings,
    MeasureSettings,
    StudentsSettings,
)
from rco.training.config import ComputeConfig


def steps_needed(branches: Sequence[Branch]) -> dict[str, int]:
    """How many select-and-distil steps each branch may need, by its key: anchors that are known beforehand are one step; an
    adaptive strategy looks at the student after every stage, so that each of its stages is a step.

    Raises:
        InputError: a strategy that cannot be followed on the route, or epochs that do not go round; it names the branch.
    """
    epochs, decays = planned_route(branches[0].config)
    needs = {}
    for branch in branches:
        try:
            stages = stages_on(branch.config, epochs, decays)
            _lengths(branch, epochs, decays)
        except InputError as error:
            raise in_branch(branch.name, error) from None
        needs[branch.key] = stages if isinstance(branch.config.anchors.strategy, Adaptive) else 1
    return needs


def _lengths(branch: Branch, epochs: tuple[int, ...], decays: tuple[int, ...]) -> tuple[int, ...]:
    if branch.like is None:
        return ()
    return planned_lengths(branch.config.student_train.epochs, stages_on(branch.like, epochs, decays))


def shape_of(comparison: Comparison) -> Shape:
    """What a pipeline for this comparison alone is compiled for.

    Raises:
        InputError: as `steps_needed`.
    """
    return Shape(kinds=comparison.kinds, grid=comparison.grid, steps=steps_needed(comparison.branches))


def _require_compiled(comparison: Comparison, needs: Mapping[str, int], compiled: Mapping[str, int]) -> None:
    """Refuse a comparison that the pipeline was not compiled for."""
    for branch in comparison.branches:
        need, has = needs[branch.key], compiled.get(branch.key)
        if has is None:
            raise InputError(
                "branches",
                branch.key,
                f"is not one that the pipeline was compiled for: {', '.join(compiled)}",
                "Compile it for these parameters",
            )
        if need > has:
            raise InputError(
                "branches",
                branch.key,
                f"needs {need} stages, and the pipeline was compiled with {has}",
                f"Compile with --max-stages {need}, or use fewer anchors",
            )
    if missing := [key for key in compiled if key not in needs]:
        raise InputError(
            "branches",
            missing[0],
            "is one that the pipeline was compiled for, and these parameters have no such branch",
            "Compile it for these parameters",
        )


def validate_comparison(comparison: Comparison, *, compiled: Mapping[str, int] | None = None) -> ComputeConfig:
    """Refuse a comparison that cannot work.

    Args:
        compiled: `Shape.steps` of the pipeline; None: it will be compiled as needed.

    Returns:
        how this machine will compute.

    Raises:
        InputError: the first thing that cannot work.
    """
    reference = _reference(comparison)
    compute = validate(reference)  # data, teacher, route: what it refuses is wrong with all branches
    needs = steps_needed(comparison.branches)
    if compiled is not None:
        _require_compiled(comparison, needs, compiled)
    checked = {(reference.student, reference.objective)}
    for branch in comparison.branches:
        student = (branch.config.student, branch.config.objective)
        if student not in checked:
            try:
                validate(branch.config)
            except InputError as error:
                raise in_branch(branch.name, error) from None
            checked.add(student)
    return compute


def costs_of_anchors(branches: Sequence[Branch]) -> list[str]:
    """What it costs that stages have several anchors, branch by branch, in words."""
    route = planned_route(branches[0].config)
    costs = {branch.name: cost_of_anchors(branch.config, *route) for branch in branches}
    return [f"{name}: {cost}" for name, cost in costs.items() if cost]


def _reference(comparison: Comparison) -> RunConfig:
    return next(branch.config for branch in comparison.branches if not branch.reference)


def preflight_comparison(comparison: Comparison, *, compiled: Mapping[str, int] | None = None) -> ComparisonSettings:
    """Validate every branch and resolve its settings.

    Args:
        compiled: as for `validate_comparison`.

    Raises:
        InputError: as `validate_comparison`.
    """
    compute = validate_comparison(comparison, compiled=compiled)
    branches, seeds, reference = comparison.branches, comparison.seeds, _reference(comparison)
    common = preflight(reference)
    epochs, decays = planned_route(reference)
    route = existing_route(reference)
    tau = float(comparison.shared["tau"])
    made: dict[str, BranchTasks] = {}
    for branch in branches:
        config = branch.config
        students_code = code_digest(config.student.model)
        both = f"{common.teacher.code} {students_code}".strip()
        made[branch.key] = BranchTasks(
            students=StudentsSettings(
                student=config.student,
                seeds=seeds,
                compute=compute,
                code=students_code,
                route_data=route.data_digest if route else "",
            ),
            choice=ChoiceSettings(
                anchors=anchor_settings(config),
                seeds=seeds,
                lengths=_lengths(branch, epochs, decays),
            ),
            branch=BranchSettings(
                branch=branch.name,
                kind=branch.kind,
                seeds=seeds,
                stage=replace(
                    common.stage,
                    student=config.student,
                    train=config.student_train,
                    objective=config.objective,
                    anchors=config.anchors,
                    code=both,
                    plugins=used_by(config.anchors, config.objective, config.student_train),
                ),
            ),
            measure=MeasureSettings(
                branch=branch.name,
                teacher=config.teacher,
                student=config.student,
                seeds=seeds,
                tau=tau,
                compute=compute,
                code=both,
            ),
        )
    return ComparisonSettings(
        data=common.data,
        teacher=common.teacher,
        filing=ComparisonFiling(
            experiment=reference.tracking.experiment,
            parameters={
                **comparison.shared,
                "source": reference.data.source.plugin_name,
                **jsonable(compute),
                **_plugins(branches),
            },
            branches=tuple(branch.name for branch in branches),
            references={branch.name: branch.reference for branch in branches},
            kinds={branch.name: branch.kind for branch in branches},
            seeds=seeds,
            restart_like=comparison.restart_like,
        ),
        branches=made,
    )


def _plugins(branches: Sequence[Branch]) -> dict[str, str]:
    used = {line for branch in branches for line in plugin_parameters(branch.config).values()}
    return {"plugins": ", ".join(sorted(used))} if used else {}


def branch_outputs(settings: ComparisonSettings, labels: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """The settings of every branch's tasks, as the check hands them on: `students_kd`, `choice_kd`, ...

    Args:
        labels: of the branches, by key (`rco.config.shape.Shape.labels`).
    """
    return {
        f"{task}_{labels[key]}": jsonable(getattr(tasks, task))
        for key, tasks in settings.branches.items()
        for task in BranchTasks.__dataclass_fields__
    }
