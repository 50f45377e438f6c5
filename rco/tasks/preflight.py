"""The settings of every task, once nothing speaks against a run or a comparison.

A task is given the settings that it uses and no others. A branch's name is one of them, because its MLflow runs carry it; so
names are functions of what is special about a branch (`rco.config.branches.Branch.name`), and equal work has equal keys.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from rco.config.branches import Branch, Comparison
from rco.config.filing import Filing
from rco.config.parameters import RunConfig
from rco.config.plugins import used_by
from rco.core.code import package_digest
from rco.core.errors import InputError
from rco.core.settings import jsonable
from rco.data.config import DataConfig, InputConfig
from rco.data.sources.base import Info
from rco.models.config import ModelConfig, StartConfig
from rco.models.families import packages, timm
from rco.models.route import Route
from rco.models.spec import NetworkSpec
from rco.tasks.precision import settle
from rco.tasks.process import log
from rco.tasks.settings import (
    AnchorSettings,
    BranchTasks,
    DataSettings,
    DistillSettings,
    EvaluateSettings,
    InitSettings,
    Settings,
    StageSettings,
    StartSettings,
    TeacherSettings,
)
from rco.tasks.validate import Sizes, chooses_one_by_one, existing_route, planned_route, restarts, sizes_of, spec_of, validate
from rco.training.config import ComputeConfig, TrainConfig


def preflight(comparison: Comparison, *, compiled: Mapping[str, int] | None = None) -> Settings:
    """Validate a comparison or a run and resolve its settings: `validate`, and a look at all that the data and the route hold.

    Args:
        compiled: as for `rco.tasks.validate.validate`.

    Raises:
        InputError: as `validate`.
    """
    from rco.data.sources.kinds import check_source, source_digest

    compute = settle(comparison, validate(comparison, compiled=compiled))
    reference = comparison.reference
    starts = _Starts(reference)
    teacher, ahead = _teacher_settings(reference, compute, starts), planned_route(reference)
    # A run measures its teacher again on other data, and says so; what is compared must have been learnt from the same.
    existing = existing_route(reference)
    route = None if comparison.is_run else existing
    common = _Common(
        seeds=comparison.seeds,
        compute=compute,
        teachers_code=teacher.code,
        route_data=route.data_digest if route else "",
        tau=float(comparison.shared["tau"]),
        starts=starts,
    )
    data, teacher_input = _normalised_as_trained(comparison, teacher.teacher_input or InputConfig())
    teacher = replace(teacher, teacher_input=None if teacher_input == InputConfig() else teacher_input)
    sizes: Sizes | None = None
    if existing or teacher_input != InputConfig():
        sizes = sizes_of(reference, check_source(data), existing)
    larger = sizes is not None and sizes.kept > sizes.student
    if sizes and larger:  # what the student takes is said, for the images do not
        data = data.with_values(image_size=sizes.student)
    return Settings(
        data=DataSettings(
            data=data,
            source_digest=source_digest(data),
            kept_size=sizes.kept if sizes and larger else None,
            plugins=used_by(data),
        ),
        teacher=teacher,
        filing=Filing(
            experiment=reference.tracking.experiment,
            parameters={
                **comparison.shared,
                "source": data.source.plugin_name,
                "image_mean": list(data.image_mean),
                "image_std": list(data.image_std),
                **(_input_parameters(teacher_input, sizes, existing) if sizes else {}),
                **jsonable(compute),
                **_plugins(comparison.branches),
            },
            seeds=comparison.seeds,
            branches=() if comparison.is_run else tuple(branch.name for branch in comparison.branches),
            references={branch.name: branch.reference for branch in comparison.branches if branch.name},
            kinds={branch.name: branch.kind for branch in comparison.branches if branch.name},
            restart_like=comparison.restart_like,
            registered_model=reference.tracking.registered_model if comparison.is_run else "",
            registered_weights=reference.tracking.registered_weights,
            race=comparison.race,
            champion_margin=reference.tracking.champion_margin if comparison.is_run else 0.0,
        ),
        branches={branch.key: _branch_tasks(branch, common, restarts(branch, *ahead)) for branch in comparison.branches},
    )


def _input_parameters(teacher: InputConfig, sizes: Sizes, route: Route | None) -> dict[str, Any]:
    """What the teacher takes, as parameters of the record, where it is known beforehand and not as the student's."""
    mean, std = (route.mean, route.std) if route and route.mean else (teacher.image_mean, teacher.image_std)
    crop = route.crop if route else teacher.image_crop
    return {
        **({"teacher_image_size": sizes.teacher} if sizes.teacher != sizes.student else {}),
        **({"teacher_image_mean": [*map(str, mean)], "teacher_image_std": [*map(str, std)]} if mean else {}),
        **({"teacher_image_crop": crop} if crop not in (0, 1) else {}),
    }


def _normalised_as_trained(comparison: Comparison, teacher_input: InputConfig) -> tuple[DataConfig, InputConfig]:
    """The data's settings, and those of the teacher's input, with mean and deviation of published weights that networks begin
    with, unless the user gave others. The teacher's are its own where its weights need other ones than the students'.

    Raises:
        InputError: two students begin with weights that were trained with different ones.
    """
    from rco.tasks.weights import published_for

    data, reference = comparison.reference.data, comparison.reference
    students: _Wanted = {}
    for config in (branch.config for branch in comparison.branches):
        if known := published_for("student", config.student_start, config.student.model):
            students.setdefault((known.mean, known.std), known.name)
    teacher: _Wanted = {}
    own = not reference.route.route and not teacher_input.image_mean
    if own and (known := published_for("teacher", reference.teacher_start, reference.teacher.model)):
        teacher[known.mean, known.std] = known.name
    if data.image_mean or not (students or teacher):
        return data, teacher_input
    if len(students) > 1:
        each = "; ".join(f"{name} with {_words(mean)} and {_words(std)}" for (mean, std), name in students.items())
        problem = f"is left out, and weights were trained with different means and deviations: {each}"
        raise InputError("image_mean", [], problem, "Give image_mean and image_std, or begin with other weights")
    (((mean, std), name),) = (students or teacher).items()
    log.info("images are normalised as for %s: image_mean = %s, image_std = %s", name, _words(mean), _words(std))
    data = data.with_values(image_mean=tuple(map(str, mean)), image_std=tuple(map(str, std)))
    for (mean, std), name in teacher.items():
        if (mean, std) not in (students or teacher):
            words = (name, _words(mean), _words(std))
            log.info("the teacher's are normalised as for %s: teacher_image_mean = %s, teacher_image_std = %s", *words)
            teacher_input = replace(teacher_input, image_mean=tuple(map(str, mean)), image_std=tuple(map(str, std)))
    return data, teacher_input


def _words(numbers: Sequence[float]) -> str:
    return ",".join(map(str, numbers))


#: Mean and deviation that published weights need -> of which weights.
_Wanted = dict[tuple[tuple[float, ...], tuple[float, ...]], str]


class _Starts:
    """The weights that networks begin with, each read once.

    Args:
        config: its data are those of all branches.
    """

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self._checked: dict[tuple[str, StartConfig, ModelConfig], StartSettings | None] = {}
        self._info: Info | None = None

    def check(self, role: str, start: StartConfig, model: ModelConfig, train: TrainConfig) -> StartSettings | None:
        """As `rco.tasks.weights.check_start`.

        Raises:
            InputError: as it; or the body is to have a rate of its own, and the network has no head.
        """
        if train.body_lr_factor != 1:
            from rco.models.head import head_paths

            try:
                head_paths(self._spec(role, model).blank(), self._spec(role, model).num_classes)
            except InputError as error:
                name = "teacher_body_lr_factor" if role == "teacher" else "body_lr_factor"
                remedy = f"{error.remedy}, or leave {name} out"
                raise InputError(name, train.body_lr_factor, f"the {role}'s head {error.problem}", remedy) from None
        if not start.weights:
            return None
        from rco.tasks.weights import check_start

        key = role, start, model
        if key not in self._checked:
            self._checked[key] = check_start(role, start, self._spec(role, model))
        return self._checked[key]

    def _spec(self, role: str, model: ModelConfig) -> NetworkSpec:
        from rco.data.sources.kinds import check_source

        if self._info is None:
            self._info = check_source(self.config.data)
        sizes = sizes_of(self.config, self._info, None)  # with a route that exists, no teacher begins with weights
        return spec_of(model, self._info, sizes.teacher if role == "teacher" else sizes.student)


def _teacher_settings(config: RunConfig, compute: ComputeConfig, starts: _Starts) -> TeacherSettings:
    from rco.core.storage.contents import fingerprint

    code = code_digest(config.teacher.model)
    asked = None if config.teacher_input == InputConfig() else config.teacher_input
    if route := config.route.route.rstrip("/"):
        return TeacherSettings(
            teacher=config.teacher,
            compute=compute,
            code=code,
            teacher_input=asked,
            route=route,
            route_digest=fingerprint(route),
        )
    return TeacherSettings(
        teacher=config.teacher,
        compute=compute,
        code=code,
        teacher_input=asked,
        start=starts.check("teacher", config.teacher_start, config.teacher, config.teacher_train),
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
    starts: _Starts


def _branch_tasks(branch: Branch, common: _Common, lengths: tuple[int, ...]) -> BranchTasks:
    config, seeds, compute = branch.config, common.seeds, common.compute
    students_code = code_digest(config.student.model)
    both = f"{common.teachers_code} {students_code}".strip()
    return BranchTasks(
        init=InitSettings(
            student=config.student,
            seeds=seeds,
            compute=compute.alone,
            code=students_code,
            start=common.starts.check("student", config.student_start, config.student, config.student_train),
            route_data=common.route_data,
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
                ema=config.ema,
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
            registered_weights=config.tracking.registered_weights,
            export=config.exporting.export or None,
        ),
    )


def code_digest(name: str) -> str:
    """What is behind a model that is neither ours nor torchvision's, as a cache key: the digest of a user's factory
    (`rco.core.code`); of a model of another package, also the package's name and version; of timm, its version. Empty for every
    other model."""
    if name.startswith(timm.PREFIX):
        return timm.version()
    module, separator, _ = name.partition(":")
    return package_digest(module) if separator else str(packages.origin(name) or "")


def _plugins(branches: Sequence[Branch]) -> dict[str, str]:
    used = {line for branch in branches for line in plugin_parameters(branch.config).values()}
    return {"plugins": ", ".join(sorted(used))} if used else {}


def plugin_parameters(config: RunConfig) -> dict[str, str]:
    """The plug-ins of other packages that a run uses, as a parameter of the record; nothing, if there are none."""
    used = used_by(*(getattr(config, f.name) for f in fields(config)))
    return {"plugins": ", ".join(f"{name} of {origin}" for name, origin in used.items())} if used else {}
