"""The settings of every task, once nothing speaks against a run or a comparison.

A task is given the settings that it uses and no others. A branch's name is one of them, because its MLflow runs carry it; so
names are functions of what is special about a branch (`rco.config.branches.Branch.name`), and equal work has equal keys.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from rco.config.branches import Branch, Comparison
from rco.config.filing import Filing
from rco.config.parameters import RunConfig
from rco.config.plugins import used_by
from rco.core.code import package_digest
from rco.core.settings import jsonable
from rco.models.families import packages
from rco.tasks.settings import (
    AnchorSettings,
    BranchTasks,
    DataSettings,
    DistillSettings,
    EvaluateSettings,
    InitSettings,
    Settings,
    StageSettings,
    TeacherSettings,
)
from rco.tasks.validate import chooses_one_by_one, existing_route, planned_route, restarts, validate
from rco.training.config import ComputeConfig


def preflight(comparison: Comparison, *, compiled: Mapping[str, int] | None = None) -> Settings:
    """Validate a comparison or a run and resolve its settings: `validate`, and a look at all that the data and the route hold.

    Args:
        compiled: as for `rco.tasks.validate.validate`.

    Raises:
        InputError: as `validate`.
    """
    from rco.data.sources.kinds import source_digest

    compute = validate(comparison, compiled=compiled)
    reference = comparison.reference
    teacher, ahead = _teacher_settings(reference, compute), planned_route(reference)
    # A run measures its teacher again on other data, and says so; what is compared must have been learnt from the same.
    route = None if comparison.is_run else existing_route(reference)
    common = _Common(
        seeds=comparison.seeds,
        compute=compute,
        teachers_code=teacher.code,
        route_data=route.data_digest if route else "",
        tau=float(comparison.shared["tau"]),
    )
    return Settings(
        data=DataSettings(data=reference.data, source_digest=source_digest(reference.data), plugins=used_by(reference.data)),
        teacher=teacher,
        filing=Filing(
            experiment=reference.tracking.experiment,
            parameters={
                **comparison.shared,
                "source": reference.data.source.plugin_name,
                **jsonable(compute),
                **_plugins(comparison.branches),
            },
            seeds=comparison.seeds,
            branches=() if comparison.is_run else tuple(branch.name for branch in comparison.branches),
            references={branch.name: branch.reference for branch in comparison.branches if branch.name},
            kinds={branch.name: branch.kind for branch in comparison.branches if branch.name},
            restart_like=comparison.restart_like,
            registered_model=reference.tracking.registered_model if comparison.is_run else "",
            champion_margin=reference.tracking.champion_margin if comparison.is_run else 0.0,
        ),
        branches={branch.key: _branch_tasks(branch, common, restarts(branch, *ahead)) for branch in comparison.branches},
    )


def _teacher_settings(config: RunConfig, compute: ComputeConfig) -> TeacherSettings:
    from rco.core.storage.contents import fingerprint

    code = code_digest(config.teacher.model)
    if route := config.route.route.rstrip("/"):
        return TeacherSettings(teacher=config.teacher, compute=compute, code=code, route=route, route_digest=fingerprint(route))
    return TeacherSettings(
        teacher=config.teacher,
        compute=compute,
        code=code,
        train=config.teacher_train,
        checkpoint_every=config.route.checkpoint_every,
        plugins=used_by(config.teacher_train),
    )


@dataclass(frozen=True, kw_only=True)
class _Common:
    """What all branches have in common."""

    seeds: tuple[int, ...]
    compute: ComputeConfig
    teachers_code: str
    route_data: str
    tau: float


def _branch_tasks(branch: Branch, common: _Common, lengths: tuple[int, ...]) -> BranchTasks:
    config, seeds, compute = branch.config, common.seeds, common.compute
    students_code = code_digest(config.student.model)
    both = f"{common.teachers_code} {students_code}".strip()
    return BranchTasks(
        init=InitSettings(
            student=config.student, seeds=seeds, compute=compute.alone, code=students_code, route_data=common.route_data
        ),
        anchors=AnchorSettings(
            anchors=config.anchors,
            tau=config.objective.tau,
            student_epochs=config.student_train.epochs,
            seeds=seeds,
            one_by_one=chooses_one_by_one(branch),
            lengths=lengths,
            plugins=used_by(config.anchors),
        ),
        distill=DistillSettings(
            branch=branch.name,
            kind=branch.kind,
            seeds=seeds,
            stage=StageSettings(
                teacher=config.teacher,
                student=config.student,
                train=config.student_train,
                objective=config.objective,
                anchors=config.anchors,
                compute=compute,
                code=both,
                plugins=used_by(config.anchors, config.objective, config.student_train),
            ),
        ),
        evaluate=EvaluateSettings(
            branch=branch.name,
            teacher=config.teacher,
            student=config.student,
            seeds=seeds,
            tau=common.tau,
            compute=compute,
            code=both,
            in_depth=not branch.kind,
            export=config.exporting.export or None,
        ),
    )


def code_digest(name: str) -> str:
    """What is behind a model that is neither ours nor torchvision's, as a cache key: the digest of a user's factory
    (`rco.core.code`); of a model of another package, also the package's name and version. Empty for every other model."""
    module, separator, _ = name.partition(":")
    return package_digest(module) if separator else str(packages.origin(name) or "")


def _plugins(branches: Sequence[Branch]) -> dict[str, str]:
    used = {line for branch in branches for line in plugin_parameters(branch.config).values()}
    return {"plugins": ", ".join(sorted(used))} if used else {}


def plugin_parameters(config: RunConfig) -> dict[str, str]:
    """The plug-ins of other packages that a run uses, as a parameter of the record; nothing, if there are none."""
    used = used_by(*(getattr(config, f.name) for f in fields(config)))
    return {"plugins": ", ".join(f"{name} of {origin}" for name, origin in used.items())} if used else {}
