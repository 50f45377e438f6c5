"""What can be known to fail before it costs anything; and, if nothing does, the settings of every task."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from rco.config.parameters import RunConfig
from rco.config.plugins import used_by
from rco.core.code import package_digest
from rco.core.errors import InputError
from rco.core.settings import jsonable
from rco.models.families import packages
from rco.models.route import MANIFEST, Route
from rco.models.spec import NetworkSpec
from rco.strategies.base import Planned, Schedule
from rco.tasks.settings import (
    AnchorSettings,
    DataSettings,
    EvaluateSettings,
    FilingSettings,
    Settings,
    StageSettings,
    StudentSettings,
    TeacherSettings,
)
from rco.training.config import ComputeConfig
from rco.training.schedule import checkpoint_epochs


def planned_route(config: RunConfig) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Epochs and decay epochs of the route this run will have: read from its manifest, or foreseen from the teacher's schedule.

    Raises:
        InputError: an address without a route.
    """
    route = existing_route(config)
    if route is None:
        train = config.teacher_train
        return checkpoint_epochs(train, config.route.checkpoint_every), train.decay_epochs(train.epochs)
    return route.epochs, route.decay_epochs


def existing_route(config: RunConfig) -> Route | None:
    """The manifest of the route that the settings name, if they name one. `Route.verify` looks at the files of a local one.

    Raises:
        InputError: an address without a route.
    """
    from rco.core.storage.addresses import is_remote, local_path
    from rco.core.storage.transfer import fetch

    uri = config.route.route.rstrip("/")
    if not uri:
        return None

    with TemporaryDirectory() as scratch:
        try:
            folder = Path(scratch) if is_remote(uri) else local_path(uri)
            if is_remote(uri):
                fetch(f"{uri}/{MANIFEST}", folder)
        except InputError as error:
            raise (error.renamed("route") if error.parameter == "uri" else error) from None
        return Route.open(folder)


def stages_needed(config: RunConfig) -> int:
    """How many stages this run has (greedy: may have). A pipeline must be compiled with at least as many.

    Raises:
        InputError: the strategy cannot be followed on the route, or the student's epochs do not go round.
    """
    return stages_on(config, *planned_route(config))


def stages_on(config: RunConfig, epochs: tuple[int, ...], decays: tuple[int, ...]) -> int:
    """As `stages_needed`, on a route of these checkpoints and decays."""
    stages = config.anchors.strategy.most_stages(Schedule(epochs=epochs, decays=decays))
    config.objective.require_logits_alone(_most_anchors(config, epochs, decays))
    train = config.student_train
    share = train.epochs // stages
    if share < 1:
        raise InputError(
            "epochs", train.epochs, f"is less than one epoch for each of {stages} stages", f"Give at least {stages}"
        )
    try:
        replace(train, epochs=share)  # schedule and warm-up restart in every stage, so they must fit into one
    except InputError as error:
        raise InputError(error.parameter, error.value, f"in stages of {share} epochs: {error.problem}", error.remedy) from None
    return stages


def _most_anchors(config: RunConfig, epochs: tuple[int, ...], decays: tuple[int, ...]) -> int:
    strategy = config.anchors.strategy
    return strategy.most_anchors(Schedule(epochs=epochs, decays=decays)) if isinstance(strategy, Planned) else 1


def cost_of_anchors(config: RunConfig, epochs: tuple[int, ...], decays: tuple[int, ...]) -> str:
    """What it costs that a stage has several anchors, in words; empty: none has, or none is asked."""
    anchors = _most_anchors(config, epochs, decays)
    if anchors == 1 or not config.objective.needs_anchor:
        return ""
    if views := config.objective.views:
        return (
            f"{anchors} anchors teach at once: their answers to {views} views are computed once, {anchors} forward passes each"
        )
    return (
        f"{anchors} anchors teach at once: every training image costs {anchors} forward passes of the teacher an epoch "
        "(views = 8, for example, keeps their answers)"
    )


def _check_route(route: Route, config: RunConfig, image_shape: tuple[int, int, int], num_classes: int) -> None:
    channels, size, _ = image_shape
    has = route.network
    for parameter, value, theirs in (
        ("teacher", config.teacher.model, has.model),
        ("teacher_stem", config.teacher.stem, has.stem),
        ("teacher_embedding_dim", config.teacher.embedding_dim, has.embedding_dim),
        ("dataset", f"{num_classes} classes of {channels}x{size}x{size}", _shape_of(has)),
    ):
        if value != theirs:
            raise InputError(parameter, value, f"is not what the route's teacher was trained as ({theirs})", "Make them agree")


def _shape_of(network: NetworkSpec) -> str:
    return f"{network.num_classes} classes of {network.in_channels}x{network.image_size}x{network.image_size}"


def _check_taps(config: RunConfig, image_shape: tuple[int, int, int], num_classes: int) -> None:
    # A route that exists needs no look of its own: its teacher is the one that is named, or `_check_route` says so.
    from rco.models.build import blank_network
    from rco.objectives.make import make_objective

    channels, size, _ = image_shape
    student, teacher = (
        blank_network(
            m.model,
            in_channels=channels,
            num_classes=num_classes,
            image_size=size,
            stem=m.stem,
            embedding_dim=m.embedding_dim,
        )
        for m in (config.student, config.teacher)
    )
    make_objective(config.objective, student, teacher, image_shape)


def validate(config: RunConfig, max_stages: int | None = None) -> ComputeConfig:
    """Refuse a run that cannot work. Costs seconds: no image is decoded but the first one's header, nothing large is hashed
    but the checkpoints of a local route.

    Args:
        max_stages: how many stages the pipeline was compiled with; None: as many as needed.

    Returns:
        how this machine will compute.

    Raises:
        InputError: the first thing that cannot work.
    """
    from rco.core.storage.addresses import is_remote
    from rco.data.sources.kinds import check_source
    from rco.models.build import check_network
    from rco.training import device

    info = check_source(config.data)
    channels, height, width = info.image_shape
    if height != width:
        raise InputError(
            "image_size", config.data.image_size, f"images are {height}x{width}", "Set image_size to make them square"
        )
    for parameter, model in (("teacher", config.teacher), ("student", config.student)):
        check_network(
            model.model,
            in_channels=channels,
            num_classes=info.num_classes,
            image_size=height,
            stem=model.stem,
            embedding_dim=model.embedding_dim,
            parameter=parameter,
        )
    if config.objective.objective.needs_features:
        _check_taps(config, info.image_shape, info.num_classes)
    if route := existing_route(config):
        if not is_remote(config.route.route):  # the files of another are verified when they have been fetched
            route.verify()
        _check_route(route, config, info.image_shape, info.num_classes)
    needed = stages_needed(config)
    if max_stages is not None and needed > max_stages:
        strategy = config.anchors.strategy
        counted = getattr(strategy, "n_anchors", None)
        raise InputError(
            "n_anchors" if counted else "strategy",
            counted or strategy.plugin_name,
            f"needs {needed} stages, but the pipeline was compiled with {max_stages}",
            f"Compile with --max-stages {needed}, or use fewer anchors",
        )
    return device.resolve(config.compute)


def code_digest(name: str) -> str:
    """What is behind a model that is neither ours nor torchvision's, as a cache key: the digest of a user's factory
    (`rco.core.code`); of a model of another package, also the package's name and version. Empty for every other model."""
    module, separator, _ = name.partition(":")
    return package_digest(module) if separator else str(packages.origin(name) or "")


def anchor_settings(config: RunConfig) -> AnchorSettings:
    """What the choice of anchors is given."""
    return AnchorSettings(
        anchors=config.anchors,
        tau=config.objective.tau,
        student_epochs=config.student_train.epochs,
        plugins=used_by(config.anchors),
    )


def plugin_parameters(config: RunConfig) -> dict[str, str]:
    """The plug-ins of other packages that a run uses, as a parameter of the record; nothing, if there are none."""
    used = used_by(*(getattr(config, f.name) for f in fields(config)))
    return {"plugins": ", ".join(f"{name} of {origin}" for name, origin in used.items())} if used else {}


def preflight(config: RunConfig, max_stages: int | None = None) -> Settings:
    """Validate a whole run and resolve its settings: `validate`, and a look at all that the data and the route hold.

    Args:
        max_stages: as for `validate`.

    Raises:
        InputError: as `validate`.
    """
    from rco.core.storage.contents import fingerprint
    from rco.data.sources.kinds import source_digest

    compute = validate(config, max_stages)
    teachers_code = code_digest(config.teacher.model)
    students_code = code_digest(config.student.model)
    both = f"{teachers_code} {students_code}".strip()
    route = config.route.route.rstrip("/")
    if route:
        teacher = TeacherSettings(
            teacher=config.teacher,
            compute=compute,
            code=teachers_code,
            route=route,
            route_digest=fingerprint(route),
        )
    else:
        teacher = TeacherSettings(
            teacher=config.teacher,
            compute=compute,
            code=teachers_code,
            train=config.teacher_train,
            checkpoint_every=config.route.checkpoint_every,
            plugins=used_by(config.teacher_train),
        )
    return Settings(
        data=DataSettings(data=config.data, source_digest=source_digest(config.data), plugins=used_by(config.data)),
        teacher=teacher,
        student=StudentSettings(student=config.student, seed=config.student_train.seed, compute=compute, code=students_code),
        anchors=anchor_settings(config),
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
        evaluate=EvaluateSettings(
            teacher=config.teacher, student=config.student, tau=config.objective.tau, compute=compute, code=both
        ),
        filing=FilingSettings(
            experiment=config.tracking.experiment,
            registered_model=config.tracking.registered_model,
            champion_margin=config.tracking.champion_margin,
            student=config.student,
            parameters={**config.to_flat(), **jsonable(compute), **plugin_parameters(config)},
        ),
    )
