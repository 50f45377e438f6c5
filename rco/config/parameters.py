"""Every setting of a run: the groups that packages own, what must hold between them, and one flat view of them all.

The flat view (`PARAMETERS`, `RunConfig.from_flat`, `RunConfig.to_flat`) is what people meet: command-line flags, recipe
files, the form in the Kubeflow UI, MLflow parameters. The groups are what code meets. A task is given the group it uses and
nothing else, so that changing one setting invalidates the caches of the tasks that depend on it and of no others.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from rco.core.errors import InputError, UnusedError, choice
from rco.core.plugins import AUTO, Registry, Settings, registry_of, unused
from rco.core.settings import jsonable, typed
from rco.data.config import DataConfig, InputConfig
from rco.exporting.config import ExportConfig
from rco.models.config import ModelConfig, StartConfig
from rco.objectives.config import ObjectiveConfig
from rco.strategies.config import AnchorConfig
from rco.tracking.config import ServicesConfig, TrackingConfig
from rco.training.config import ComputeConfig, EmaConfig, RouteConfig, TrainConfig


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything one run of the pipeline is told."""

    data: DataConfig = field(default_factory=DataConfig)
    teacher: ModelConfig = field(default_factory=lambda: ModelConfig(model="digits-cnn-l"))
    teacher_input: InputConfig = field(default_factory=InputConfig)
    teacher_start: StartConfig = field(default_factory=StartConfig)
    teacher_train: TrainConfig = field(default_factory=lambda: TrainConfig(epochs=40, lr=0.05, augment="shift"))
    route: RouteConfig = field(default_factory=RouteConfig)
    student: ModelConfig = field(default_factory=lambda: ModelConfig(model="digits-cnn-s"))
    student_start: StartConfig = field(default_factory=StartConfig)
    student_train: TrainConfig = field(default_factory=lambda: TrainConfig(epochs=80, lr=0.05, augment="shift"))
    ema: EmaConfig = field(default_factory=EmaConfig)
    anchors: AnchorConfig = field(default_factory=AnchorConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    exporting: ExportConfig = field(default_factory=ExportConfig)
    services: ServicesConfig = field(default_factory=ServicesConfig)

    def __post_init__(self) -> None:
        self.student_train.require_fit(self.objective)
        if self.tracking.registered_weights == "ema" and not self.ema.ema_decay:
            raise InputError(
                "registered_weights", "ema", "is asked for, but ema_decay = 0 keeps no average", "Set ema_decay, such as 0.999"
            )
        mimicked, compared = self.objective.objective.needs_embeddings, bool(self.data.open_classes)
        for role, model in (("teacher", self.teacher), ("student", self.student)):
            if (mimicked or compared) and not model.embedding_dim:
                reason = f"objective = {self.objective.objective.plugin_name}" if mimicked else "open_classes"
                raise InputError(
                    f"{role}_embedding_dim", 0, f"is not a size, but {reason} needs embeddings", "Give a size such as 32"
                )
        if mimicked and self.teacher.embedding_dim != self.student.embedding_dim:
            raise InputError(
                "student_embedding_dim",
                self.student.embedding_dim,
                f"differs from teacher_embedding_dim = {self.teacher.embedding_dim}, so embeddings cannot be compared",
                "Make them equal: the student's embedding layer maps its features to the teacher's size",
            )

    @classmethod
    def from_flat(cls, flat: Mapping[str, Any]) -> RunConfig:
        """Build from flat parameters; what is left out keeps its default.

        Values may be strings (command line, YAML): they are read as the type of the parameter.

        Raises:
            InputError: an unknown name, a value of the wrong type, a value that cannot work, or one that reaches nothing:
                no plug-in that has this parameter was chosen, or another parameter leaves it unread.
        """
        unknown = [name for name in flat if name not in PARAMETERS]
        if unknown:
            choice("parameter", unknown[0], tuple(PARAMETERS))
        _refuse_unread(flat)
        return cls(**{group: read_group(group, flat) for group in _GROUPS})

    def to_flat(self) -> dict[str, Any]:
        """All parameters by flat name, JSON-ready (tuples as lists)."""
        groups = {group: jsonable(getattr(self, group)) for group in _GROUPS}
        return {p.name: groups[p.group].get(p.field, p.default) for p in PARAMETERS.values()}


def _refuse_unread(flat: Mapping[str, Any]) -> None:
    """Raise UnusedError for a value that another parameter leaves unread. The default may be there unasked, and is let pass."""
    unread: dict[str, tuple[str, str]] = {}
    if flat.get("route", ""):  # which may hold a password, so it is not said
        words = ("means nothing beside route, whose teacher is trained", "Leave it out, or leave out route")
        of_training = [p.name for p in PARAMETERS.values() if p.group in ("teacher_start", "teacher_train")]
        unread = dict.fromkeys([*of_training, "checkpoint_every"], words)
    if not flat.get("registered_model", True):
        words = ("means nothing where no student is registered", "Leave it out, or name a registered_model")
        unread |= dict.fromkeys(("champion_margin", "registered_weights"), words)
    for name, (problem, remedy) in unread.items():
        if name in flat and (value := read_value(name, flat[name])) != PARAMETERS[name].default:
            raise UnusedError(name, value, problem, remedy)


@dataclass(frozen=True)
class Parameter:
    """One flat parameter.

    Attributes:
        name: under which people know it.
        kind: str, int, float, bool or list.
        item: the type of a list's items.
        default: JSON-ready.
        help: what it means; of a plug-in's, to whom.
        group: the field of `RunConfig` it belongs to.
        field: its name within the group.
        registry: of a parameter that chooses a plug-in: those it chooses from.
        chooser: of a plug-in's own parameter: the flat parameter that chooses the plug-in.
        owners: of a plug-in's own parameter: the plug-ins that read it.
        owned_in: the registry of these.
    """

    name: str
    kind: type
    item: type | None
    default: Any
    help: str
    group: str
    field: str
    registry: Registry[Any] | None = None
    chooser: str = ""
    owners: tuple[str, ...] = ()
    owned_in: Registry[Any] | None = None


# Group -> prefix of its flat names.
_GROUPS = {
    "data": "",
    "teacher": "teacher_",
    "teacher_input": "teacher_",
    "teacher_start": "teacher_",
    "teacher_train": "teacher_",
    "route": "",
    "student": "student_",
    "student_start": "student_",
    "student_train": "",
    "ema": "",
    "anchors": "",
    "objective": "",
    "compute": "",
    "tracking": "",
    "exporting": "",
    "services": "",
}


def _flat_name(prefix: str, name: str) -> str:
    return prefix.removesuffix("_") if name == "model" else prefix + name


def _parameters() -> dict[str, Parameter]:
    defaults = RunConfig()
    found = [p for group, prefix in _GROUPS.items() for p in _parameters_of(getattr(defaults, group), group, prefix)]
    ours, result = {p.name for p in found if not _foreign(p)}, dict[str, Parameter]()
    for p in found:
        if p.name in result or (_foreign(p) and p.name in ours):
            if not (foreign := _foreign(p)):
                raise TypeError(f"the parameter {p.name} of {p.group} has a name that is taken")
            for registry, owner in foreign:  # a plug-in of another package takes nothing down
                registry.refuse(owner, f"the name of its parameter {p.name} is taken")
            return _parameters()
        result[p.name] = p
    return result


def _foreign(p: Parameter) -> list[tuple[Registry[Any], str]]:
    """The plug-ins that own a parameter, if all of them are of other packages."""
    if not p.owners or p.owned_in is None or any(p.owned_in.origin(owner) is None for owner in p.owners):
        return []
    return [(p.owned_in, owner) for owner in p.owners]


def _parameters_of(config: Any, group: str, prefix: str) -> Iterator[Parameter]:
    hints = typing.get_type_hints(type(config))
    for f in fields(config):
        name, value = _flat_name(prefix, f.name), getattr(config, f.name)
        registry = registry_of(f)
        if registry is None:
            yield Parameter(name, *_kind(hints[f.name]), jsonable(value), f.metadata["help"], group, f.name)
            continue
        choices = [f"{cls.plugin_name} ({cls.summary})" for cls in registry]
        if registry.follows:
            choices.insert(0, f"{AUTO} (as {registry.follows} says)")
        default = AUTO if registry.follows else value.plugin_name
        help = f"{f.metadata['help']}: {' | '.join(choices)}"
        yield Parameter(name, str, None, default, help, group, f.name, registry=registry)
        for own in registry.parameters.values():
            owners = registry.owners(own.name)
            kind = _kind(typing.get_type_hints(registry[owners[0]])[own.name])
            default = jsonable(getattr(value, own.name, own.default))
            yield Parameter(
                *(_flat_name(prefix, own.name), *kind, default, registry.help(own.name), group, own.name),
                chooser=name,
                owners=owners,
                owned_in=registry,
            )


def _kind(hint: Any) -> tuple[type, type | None]:
    return (list, typing.get_args(hint)[0]) if typing.get_origin(hint) is tuple else (hint, None)


def read_group(group: str, flat: Mapping[str, Any]) -> Any:
    """One group of a run's settings, from flat parameters; those of other groups are passed over.

    Args:
        group: a field of `RunConfig`.

    Raises:
        InputError: as `RunConfig.from_flat`.
    """
    prefix, before = _GROUPS[group], getattr(RunConfig(), group)
    values = {p.field: _coerce(p, flat[p.name]) for p in PARAMETERS.values() if p.group == group and p.name in flat}
    try:
        return before.with_values(**values) if isinstance(before, Settings) else dataclasses.replace(before, **values)
    except UnusedError as error:
        if not prefix:
            raise
        p = PARAMETERS[_flat_name(prefix, error.parameter)]
        if not p.chooser:
            raise error.renamed(p.name) from None
        chosen = flat.get(p.chooser, PARAMETERS[p.chooser].default)
        raise unused(p.name, error.value, f"{p.chooser} = {chosen}", f"set {p.chooser}", p.owners) from None
    except InputError as error:
        raise error.renamed(_flat_name(prefix, error.parameter)) from None


def chosen_plugin(chooser: str, flat: Mapping[str, Any]) -> str:
    """The name of the plug-in that flat parameters choose.

    Args:
        chooser: the parameter that chooses, such as "strategy".

    Raises:
        InputError: one that follows from another parameter does not (`rco.core.plugins.Registry.follow`).
    """
    p = PARAMETERS[chooser]
    name = str(flat.get(chooser, p.default))
    if p.registry is None or not p.registry.follows or name != AUTO:
        return name
    followed = PARAMETERS[_flat_name(_GROUPS[p.group], p.registry.follows)]
    return p.registry.follow(flat.get(followed.name, followed.default))


def read_value(name: str, value: Any) -> Any:
    """A value of the parameter `name`, JSON-ready, read as its type. Whether it can work is for the whole configuration to say.

    Raises:
        InputError: an unknown name, or a value of the wrong type.
    """
    choice("parameter", name, tuple(PARAMETERS))
    return jsonable(_coerce(PARAMETERS[name], value))


def _coerce(p: Parameter, value: Any) -> Any:
    try:
        return typed(tuple[p.item, ...] if p.item else p.kind, value, lenient=True)  # type: ignore[name-defined]
    except (TypeError, ValueError, OverflowError):
        want = (
            f"a list of {p.item.__name__}"
            if p.item
            else {"str": "text", "bool": "true or false"}.get(p.kind.__name__, p.kind.__name__)
        )
        quoted = "; an item with a comma in it has quotes around it" if p.item and isinstance(value, str) else ""
        raise InputError(p.name, value, f"is not {want}", f"The default is {p.default!r}{quoted}") from None


PARAMETERS: dict[str, Parameter] = _parameters()
