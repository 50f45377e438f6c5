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
from rco.core.errors import InputError
from rco.core.settings import jsonable
from rco.data.config import DataConfig
from rco.data.sources.base import Info
from rco.models.config import ModelConfig, StartConfig
from rco.models.families import packages, timm
from rco.models.spec import NetworkSpec
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
from rco.tasks.validate import chooses_one_by_one, existing_route, planned_route, restarts, validate
from rco.training.config import ComputeConfig, TrainConfig


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
    starts = _Starts(reference)
    teacher, ahead = _teacher_settings(reference, compute, starts), planned_route(reference)
    # A run measures its teacher again on other data, and says so; what is compared must have been learnt from the same.
    route = None if comparison.is_run else existing_route(reference)
    common = _Common(
        seeds=comparison.seeds,
        compute=compute,
        teachers_code=teacher.code,
        route_data=route.data_digest if route else "",
        tau=float(comparison.shared["tau"]),
        starts=starts,
    )
    data = _normalised_as_trained(comparison)
    return Settings(
        data=DataSettings(data=data, source_digest=source_digest(data), plugins=used_by(data)),
        teacher=teacher,
        filing=Filing(
            experiment=reference.tracking.experiment,
            parameters={
                **comparison.shared,
                "source": data.source.plugin_name,
                "image_mean": list(data.image_mean),
                "image_std": list(data.image_std),
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


def _normalised_as_trained(comparison: Comparison) -> DataConfig:
    """The data's settings, with mean and deviation of published weights that networks begin with, unless the user gave others.

    Raises:
        InputError: two networks begin with weights that were trained with different ones.
    """
    from rco.tasks.weights import published_for

    data = comparison.reference.data
    wanted: dict[tuple[tuple[float, ...], tuple[float, ...]], str] = {}
    for config in (branch.config for branch in comparison.branches):
        teacher = [] if config.route.route else [("teacher", config.teacher_start, config.teacher.model)]
        for role, start, model in (*teacher, ("student", config.student_start, config.student.model)):
            if known := published_for(role, start, model):
                wanted.setdefault((known.mean, known.std), known.name)
    if not wanted or data.image_mean:
        return data
    if len(wanted) > 1:
        each = "; ".join(f"{name} with {_words(mean)} and {_words(std)}" for (mean, std), name in wanted.items())
        problem = f"is left out, and weights were trained with different means and deviations: {each}"
        raise InputError("image_mean", [], problem, "Give image_mean and image_std, or begin with other weights")
    (((mean, std), name),) = wanted.items()
    log.info("images are normalised as for %s: image_mean = %s, image_std = %s", name, _words(mean), _words(std))
    return data.with_values(image_mean=tuple(map(str, mean)), image_std=tuple(map(str, std)))


def _words(numbers: Sequence[float]) -> str:
    return ",".join(map(str, numbers))


class _Starts:
    """The weights that networks begin with, each read once.

    Args:
        config: its data are those of all branches.
    """

    def __init__(self, config: RunConfig) -> None:
        self.data = config.data
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
                head_paths(self._spec(model).blank(), self._spec(model).num_classes)
            except InputError as error:
                name = "teacher_body_lr_factor" if role == "teacher" else "body_lr_factor"
                remedy = f"{error.remedy}, or leave {name} out"
                raise InputError(name, train.body_lr_factor, f"the {role}'s head {error.problem}", remedy) from None
        if not start.weights:
            return None
        from rco.tasks.weights import check_start

        key = role, start, model
        if key not in self._checked:
            self._checked[key] = check_start(role, start, self._spec(model))
        return self._checked[key]

    def _spec(self, model: ModelConfig) -> NetworkSpec:
        from rco.data.sources.kinds import check_source

        if self._info is None:
            self._info = check_source(self.data)
        channels, height, _ = self._info.image_shape
        return NetworkSpec(
            model=model.model,
            stem=model.stem,
            in_channels=channels,
            num_classes=self._info.num_classes,
            image_size=height,
            embedding_dim=model.embedding_dim,
        )


def _teacher_settings(config: RunConfig, compute: ComputeConfig, starts: _Starts) -> TeacherSettings:
    from rco.core.storage.contents import fingerprint

    code = code_digest(config.teacher.model)
    if route := config.route.route.rstrip("/"):
        return TeacherSettings(teacher=config.teacher, compute=compute, code=code, route=route, route_digest=fingerprint(route))
    return TeacherSettings(
        teacher=config.teacher,
        compute=compute,
        code=code,
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
