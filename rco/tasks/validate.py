"""What can be known to fail before it costs anything.

Every branch of a comparison is checked with its own overrides, and errors name the branch. A run is one branch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from rco.config.branches import Branch, Comparison, in_branch
from rco.config.parameters import RunConfig
from rco.config.shape import STUDENT, Shape
from rco.core.errors import InputError
from rco.core.settings import jsonable
from rco.core.words import counted
from rco.data.config import LARGEST_IMAGE
from rco.data.sources.base import Info
from rco.models.config import ModelConfig
from rco.models.route import MANIFEST, Route
from rco.models.spec import NetworkSpec
from rco.strategies.base import Adaptive, Planned, Schedule
from rco.strategies.walk import planned_lengths
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


def stages_on(config: RunConfig, epochs: tuple[int, ...], decays: tuple[int, ...]) -> int:
    """How many stages a student has (greedy: may have) on a route of these checkpoints and decays.

    Raises:
        InputError: the strategy cannot be followed on the route, or the student's epochs do not go round.
    """
    stages = config.anchors.strategy.most_stages(Schedule(epochs=epochs, decays=decays))
    config.objective.require_logits_alone(_most_anchors(config, epochs, decays))
    train = config.student_train
    share = train.epochs // stages
    if share < 1:
        raise InputError(
            "epochs", train.epochs, f"is less than one epoch for each of {stages} stages", f"Give at least {stages}"
        )
    if config.anchors.continuous:
        return stages
    try:
        replace(train, epochs=share)  # schedule and warm-up restart in every stage, so they must fit into one
    except InputError as error:
        raise InputError(error.parameter, error.value, f"in stages of {share} epochs: {error.problem}", error.remedy) from None
    return stages


def _most_anchors(config: RunConfig, epochs: tuple[int, ...], decays: tuple[int, ...]) -> int:
    strategy = config.anchors.strategy
    return strategy.most_anchors(Schedule(epochs=epochs, decays=decays)) if isinstance(strategy, Planned) else 1


def shape_of(comparison: Comparison) -> Shape:
    """What a pipeline for this comparison alone is compiled for.

    Raises:
        InputError: a strategy that cannot be followed on the route, or epochs that do not go round; it names the branch.
    """
    epochs, decays = planned_route(comparison.reference)
    steps = {}
    for branch in comparison.branches:
        try:
            stages = stages_on(branch.config, epochs, decays)
            restarts(branch, epochs, decays)
        except InputError as error:
            raise _named(branch, error) from None
        steps[branch.key] = stages if chooses_one_by_one(branch) else 1
    race = jsonable(comparison.race) if comparison.race else {}
    return Shape(kinds=comparison.kinds, grid=comparison.grid, steps=steps, race=race)


def chooses_one_by_one(branch: Branch) -> bool:
    """Whether every stage is a step of its own: in a run, where the graph shows them; and where an adaptive strategy looks at
    the student after every stage."""
    return not branch.kind or isinstance(branch.config.anchors.strategy, Adaptive)


def restarts(branch: Branch, epochs: tuple[int, ...], decays: tuple[int, ...]) -> tuple[int, ...]:
    """Lengths of the stages into which kd-restart cuts its only one; empty for other branches."""
    if branch.like is None:
        return ()
    # Whatever the branch that it is like, its own stages restart: they must hold a schedule each.
    like = replace(branch.like, anchors=replace(branch.like.anchors, stage_schedule="restart"))
    return planned_lengths(branch.config.student_train.epochs, stages_on(like, epochs, decays))


def _named(branch: Branch, error: InputError) -> InputError:
    return in_branch(branch.name, error) if branch.name else error


def _require_compiled(comparison: Comparison, needs: Mapping[str, int], compiled: Mapping[str, int]) -> None:
    """Refuse what the pipeline was not compiled for."""
    if comparison.is_run:
        _require_stages(comparison.reference, needs[STUDENT], compiled.get(STUDENT, 0))
        return
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


def _require_stages(config: RunConfig, need: int, has: int) -> None:
    if need > has:
        strategy = config.anchors.strategy
        counted = getattr(strategy, "n_anchors", None)
        raise InputError(
            "n_anchors" if counted else "strategy",
            counted or strategy.plugin_name,
            f"needs {need} stages, but the pipeline was compiled with {has}",
            f"Compile with --max-stages {need}, or use fewer anchors",
        )


def validate(comparison: Comparison, *, compiled: Mapping[str, int] | None = None) -> ComputeConfig:
    """Refuse what cannot work. Costs seconds: no image is decoded but the first one's header, nothing large is hashed but the
    checkpoints of a local route.

    Args:
        compiled: `Shape.steps` of the pipeline; None: it will be compiled as needed.

    Returns:
        how this machine will compute.

    Raises:
        InputError: the first thing that cannot work.
    """
    from rco.training import device

    reference = comparison.reference
    validate_networks(reference)  # data, teacher, route: what it refuses is wrong with all branches
    needs = shape_of(comparison).steps
    if compiled is not None:
        _require_compiled(comparison, needs, compiled)
    compute = device.resolve(reference.compute)
    _validate_batches(comparison, compute)
    checked = {(reference.student, reference.objective)}
    for branch in comparison.branches:
        student = (branch.config.student, branch.config.objective)
        if student not in checked:
            try:
                validate_networks(branch.config)
            except InputError as error:
                raise _named(branch, error) from None
            checked.add(student)
    return compute


def _validate_batches(comparison: Comparison, compute: ComputeConfig) -> None:
    """Refuse batches that the workers of a task cannot share. Of GPUs elsewhere only tasks know the number: they look, too."""
    from rco.training.distributed import check_batch

    reference = comparison.reference
    if not reference.route.route:
        check_batch("teacher_batch_size", reference.teacher_train.batch_size, compute.workers_per_task)
    for branch in comparison.branches:
        try:
            check_batch("batch_size", branch.config.student_train.batch_size, compute.workers_per_task)
        except InputError as error:
            raise _named(branch, error) from None


def validate_networks(config: RunConfig) -> None:
    """Refuse data, networks and a route that do not go together.

    Raises:
        InputError: the first thing that cannot work.
    """
    from rco.core.storage.addresses import is_remote
    from rco.data.sources.kinds import check_source
    from rco.models.build import check_network

    info = check_source(config.data)
    channels, height, width = info.image_shape
    if height != width:
        raise InputError(
            "image_size", config.data.image_size, f"images are {height}x{width}", "Set image_size to make them square"
        )
    trained = (("", config.student_train), *(() if config.route.route else (("teacher_", config.teacher_train),)))
    for prefix, train in trained:
        try:
            train.augmentation.require_channels(channels)
        except InputError as error:
            raise error.renamed(prefix + error.parameter) from None
    route = existing_route(config)
    sizes = sizes_of(config, info, route)
    for parameter, model, size in (("teacher", config.teacher, sizes.teacher), ("student", config.student, height)):
        check_network(
            model.model,
            in_channels=channels,
            num_classes=info.num_classes,
            image_size=size,
            stem=model.stem,
            embedding_dim=model.embedding_dim,
            parameter=parameter,
        )
    if config.objective.objective.needs_features:
        _check_taps(config, info.image_shape, info.num_classes, sizes.teacher)
    if config.exporting.export:
        from rco.exporting.trial import try_export

        try_export(config.exporting.export, student_spec(config, info))
    if route:
        if not is_remote(config.route.route):  # the files of another are verified when they have been fetched
            route.verify()
        _check_route(route, config, info.image_shape, info.num_classes)


@dataclass(frozen=True)
class Sizes:
    """Of images, in pixels of a side: what teacher and student take, and what is kept for both."""

    teacher: int
    student: int
    kept: int


def sizes_of(config: RunConfig, info: Info, route: Route | None) -> Sizes:
    """The sizes that settings, data and a route mean. A route says what its teacher takes.

    Raises:
        InputError: the settings say another input than the route; a mean of other channels; images that would be made smaller
            for the student than files are, without a word on how small.
    """
    from rco.data.network_input import kept_for
    from rco.data.normalisation import normalisation
    from rco.data.sources.files import ImageFiles
    from rco.training.fed import require_agreement

    asked, (channels, student, _) = config.teacher_input, info.image_shape
    if route:
        require_agreement(route, asked)
    normalisation(asked.image_mean, asked.image_std, channels, "teacher_")
    teacher = route.network.image_size if route else asked.image_size or student
    crop = route.crop if route else asked.image_crop or 1.0
    kept = max(student, kept_for(teacher, crop))
    if kept > LARGEST_IMAGE:
        problem = f"means that images are kept at {kept} pixels, more than {LARGEST_IMAGE}"
        raise InputError("teacher_image_size", teacher, problem, "Give a smaller one, or see more of the image")
    if kept > student and not config.data.image_size and isinstance(config.data.source, ImageFiles):
        problem = f"is left out, so that image files keep their size, but for the teacher they are kept at {kept} pixels"
        raise InputError("image_size", 0, problem, f"Set image_size, which is then the student's, such as {student}")
    return Sizes(teacher, student, kept)


def spec_of(model: ModelConfig, info: Info, image_size: int) -> NetworkSpec:
    """A network that the settings name, for data that `rco.data.sources.kinds.check_source` has looked at."""
    return NetworkSpec(
        model=model.model,
        stem=model.stem,
        in_channels=info.image_shape[0],
        num_classes=info.num_classes,
        image_size=image_size,
        embedding_dim=model.embedding_dim,
    )


def student_spec(config: RunConfig, info: Info) -> NetworkSpec:
    """The student's network.

    Args:
        info: as for `spec_of`.
    """
    return spec_of(config.student, info, info.image_shape[1])


def _check_route(route: Route, config: RunConfig, image_shape: tuple[int, int, int], num_classes: int) -> None:
    channels, _, _ = image_shape
    has = route.network
    for parameter, value, theirs in (
        ("teacher", config.teacher.model, has.model),
        ("teacher_stem", config.teacher.stem, has.stem),
        ("teacher_embedding_dim", config.teacher.embedding_dim, has.embedding_dim),
        ("dataset", _shape_of(num_classes, channels), _shape_of(has.num_classes, has.in_channels)),
    ):
        if value != theirs:
            raise InputError(parameter, value, f"is not what the route's teacher was trained as ({theirs})", "Make them agree")


def _shape_of(classes: int, channels: int) -> str:
    return f"{counted(classes, 'class', 'classes')} of images with {counted(channels, 'channel')}"


def _check_taps(config: RunConfig, image_shape: tuple[int, int, int], num_classes: int, teachers_size: int) -> None:
    # A route that exists needs no look of its own: its teacher is the one that is named, or `_check_route` says so.
    from rco.objectives.make import make_objective

    channels, size, _ = image_shape
    dictated = {"in_channels": channels, "num_classes": num_classes}
    student, teacher = (
        NetworkSpec(model=m.model, stem=m.stem, embedding_dim=m.embedding_dim, image_size=pixels, **dictated).blank()
        for m, pixels in ((config.student, size), (config.teacher, teachers_size))
    )
    make_objective(config.objective, student, teacher, image_shape, anchor_shape=(channels, teachers_size, teachers_size))


def costs_of_anchors(branches: Sequence[Branch]) -> list[str]:
    """What it costs that stages have several anchors, in words, branch by branch."""
    route = planned_route(branches[0].config)
    costs = {branch.name: _cost_of_anchors(branch.config, *route) for branch in branches}
    return [f"{name}: {cost}" if name else cost for name, cost in costs.items() if cost]


def _cost_of_anchors(config: RunConfig, epochs: tuple[int, ...], decays: tuple[int, ...]) -> str:
    """Empty: no stage has several, or none is asked."""
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
