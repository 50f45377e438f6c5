"""Plug-ins: classes that are chosen by name and bring parameters of their own.

A plug-in is a frozen dataclass in a file of its own, registered under the name by which people choose it. Its fields are its
parameters: name, type, default and help are read from them, and `__post_init__` refuses what cannot work. Nothing else names
it: flags, recipes, forms, MLflow's parameters and cache keys follow from the registry (`rco.config.parameters`).

    @STRATEGIES.register("every-other")
    @dataclass(frozen=True, kw_only=True)
    class EveryOther(Planned):
        first: int = setting(1, "epoch of the first anchor")

A group of settings has a plug-in as a field (`plugin_setting`); as JSON, and as parameters, the group is flat: the field holds
the plug-in's name, and the plug-in's parameters stand beside it.

Where a registry follows another setting of its group, AUTO stands for the plug-in that claims that setting's value: the group
itself puts it in AUTO's place, so that code, JSON and cache keys never meet AUTO.

Plug-ins of other packages are found by their entry points: the group is the registry's (`rco.strategies`), the entry point's
name the plug-in's, its value the module that registers it. One that cannot be imported takes nothing else down: it is told in
`failures`, and choosing it says why.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from importlib.metadata import Distribution, EntryPoint, entry_points
from typing import Any, ClassVar, Generic, Self, TypeVar, cast

from rco.core.code import package_digest
from rco.core.errors import InputError, UnusedError, choice

#: In place of a plug-in's name: the one that follows from another setting (`Registry.follows`).
AUTO = "auto"


class Plugin:
    """What all plug-ins are. A kind of plug-in is a subclass that says what its plug-ins can do."""

    #: The name under which it is registered.
    plugin_name: ClassVar[str] = ""
    #: What it is, in a few words.
    summary: ClassVar[str]

    @classmethod
    def claims(cls, value: str) -> bool:
        """Whether AUTO means this plug-in where the setting that its registry follows has this value."""
        return False


P = TypeVar("P", bound=Plugin)


@dataclass(frozen=True)
class Origin:
    """The package that a plug-in comes from, if it is not this one.

    Attributes:
        package: its name, as it was installed.
        version: of the package.
        digest: of its code (`rco.core.code.package_digest`).
    """

    package: str
    version: str
    digest: str

    def __str__(self) -> str:
        return f"{self.package} {self.version} ({self.digest[:12]})"


class Registry(Generic[P]):
    """The plug-ins of one kind.

    Args:
        setting: the parameter that chooses among them, such as "strategy".
        base: what all of them are.
        package: the package whose modules register those that are built in.
        helpers: modules of this package that register nothing; those who need them import them.
        group: of the entry points of other packages; empty: the package's name.
        reserved: names that no plug-in may have.
        follows: the setting of the same group whose value is claimed by the plug-in that AUTO means; empty: there is no AUTO.
        otherwise: the plug-in that AUTO means where none claims the value.
    """

    def __init__(
        self,
        setting: str,
        base: type[P],
        *,
        package: str,
        helpers: tuple[str, ...] = (),
        group: str = "",
        reserved: tuple[str, ...] = (),
        follows: str = "",
        otherwise: str = "",
    ) -> None:
        self.setting, self.base, self.package, self.group = setting, base, package, group or package
        self.helpers, self.reserved = helpers, (*reserved, *([AUTO] if follows else []))
        self.follows, self.otherwise = follows, otherwise
        self._failures: dict[str, str] = {}
        self._classes: dict[str, type[P]] = {}
        self._origins: dict[str, Distribution] = {}

    def register(self, name: str) -> Callable[[type[P]], type[P]]:
        """Decorate a plug-in's class.

        Raises:
            TypeError: it is not a frozen dataclass of this kind, a field has no help, the name is taken, or a parameter has
                another type or default than that of another plug-in with the same name.
        """

        def add(cls: type[P]) -> type[P]:
            if not issubclass(cls, self.base) or not dataclasses.is_dataclass(cls):
                raise TypeError(f"{cls.__qualname__} must be a dataclass and a {self.base.__name__}, to be a {self.setting}")
            if not cls.__dataclass_params__.frozen:  # type: ignore[attr-defined]
                raise TypeError(f"{cls.__qualname__} must be frozen: its values are a cache key")
            for f in fields(cls):
                if "help" not in f.metadata or f.default is dataclasses.MISSING:
                    raise TypeError(f"{cls.__qualname__}.{f.name} must be a setting(default, help)")
            if not getattr(cls, "summary", ""):
                raise TypeError(f"{cls.__qualname__} needs a summary")
            if name in self.reserved:
                raise TypeError(f"{self.setting} {name!r} is a name that means something else")
            if (other := self._classes.get(name)) is not None and other.__module__ != cls.__module__:
                raise TypeError(f"{self.setting} {name!r} is taken by {other.__module__}.{other.__qualname__}")
            self._require_like(cls)
            cls.plugin_name = name
            self._classes[name] = cls
            self._forget()
            return cls

        return add

    @cached_property
    def _loaded(self) -> dict[str, type[P]]:
        package = importlib.import_module(self.package)
        for module in sorted({m.name for m in pkgutil.iter_modules(package.__path__)} - {*self.helpers}):
            importlib.import_module(f"{self.package}.{module}")
        for entry in sorted(entry_points(group=self.group), key=lambda e: (e.name, e.value)):
            self._load(entry)
        return dict(sorted(self._classes.items()))

    def _forget(self) -> None:
        """What was read of the registry is read again: a notebook may register a plug-in at any time."""
        for cached in ("_loaded", "parameters"):
            self.__dict__.pop(cached, None)

    def _load(self, entry: EntryPoint) -> None:
        if entry.name in self._failures:
            return
        before, package = set(self._classes), entry.module.partition(".")[0]
        problem = ""
        try:
            entry.load()
            cls = self._classes.get(entry.name)
            if cls is None:
                problem = f"{entry.value} registers no {self.setting} of that name"
            elif cls.__module__.partition(".")[0] != package:
                problem = f"the name is taken by {cls.__module__}"
        except (Exception, SystemExit) as error:  # whatever another package's code raises
            problem = f"{type(error).__name__}: {error}"
        new = set(self._classes) - before
        if problem:
            self._failures[entry.name] = f"{entry.dist.name if entry.dist else entry.value}: {problem}"
            for name in new:
                del self._classes[name]
        elif entry.dist is not None:
            self._origins |= dict.fromkeys({*new, entry.name}, entry.dist)

    def refuse(self, name: str, problem: str) -> None:
        """Do without a plug-in of another package."""
        dist = self._origins.pop(name)
        self._failures[name] = f"{dist.name}: {problem}"
        del self._classes[name]
        self._forget()

    @property
    def failures(self) -> dict[str, str]:
        """The plug-ins of other packages that cannot be used: name -> why."""
        self._loaded  # noqa: B018 (they are known once all entry points were read)
        return dict(self._failures)

    @property
    def names(self) -> tuple[str, ...]:
        """Of all plug-ins, in alphabetical order."""
        return tuple(self._loaded)

    def __iter__(self) -> Iterator[type[P]]:
        return iter(self._loaded.values())

    def __getitem__(self, name: str) -> type[P]:
        """A plug-in's class.

        Raises:
            InputError: there is none of that name, or it cannot be imported.
        """
        if name not in self._loaded and name in self.failures:
            raise InputError(self.setting, name, f"cannot be used ({self.failures[name]})", "Mend or remove that package")
        choice(self.setting, name, self.names)
        return self._loaded[name]

    def follow(self, value: str) -> str:
        """The name of the plug-in that AUTO means where the setting that is followed has this value.

        Raises:
            InputError: several claim it, or a value that cannot be read.
        """
        claiming: list[str] = []
        for name, cls in self._loaded.items():
            try:
                if cls.claims(value):
                    claiming.append(name)
            except Exception as error:
                if isinstance(error, InputError) or name not in self._origins:
                    raise
                # One of another package takes nothing down. It can still be chosen by its name.
                self._failures[name] = f"{self._origins[name].name}: {type(error).__name__}: {error}"
        if len(claiming) > 1:
            named = f"{', '.join(claiming[:-1])} and {claiming[-1]}"
            problem = f"is not clear: the {self.follows} may be of {named}"
            raise InputError(self.setting, AUTO, problem, f"Set {self.setting} to one of them")
        return claiming[0] if claiming else self.otherwise

    def origin(self, name: str) -> Origin | None:
        """Where a plug-in comes from; None: from this project."""
        dist, cls = self._origins.get(name), self._loaded.get(name)
        return Origin(dist.name, dist.version, package_digest(cls.__module__)) if dist and cls else None

    def owners(self, parameter: str) -> tuple[str, ...]:
        """The plug-ins that have a parameter of this name."""
        return tuple(name for name, cls in self._loaded.items() if any(f.name == parameter for f in fields(cls)))  # type: ignore[arg-type]

    @cached_property
    def parameters(self) -> dict[str, dataclasses.Field[Any]]:
        """The parameters of all plug-ins by name; of one with several owners, the first's field."""
        found: dict[str, dataclasses.Field[Any]] = {}
        for cls in self:
            for f in fields(cls):  # type: ignore[arg-type]
                found.setdefault(f.name, f)
        return found

    def _require_like(self, cls: type[P]) -> None:
        for name, other in self._classes.items():
            known = _declared(other)
            for parameter, declared in _declared(cls).items():
                if known.get(parameter, declared) != declared:
                    raise TypeError(f"{parameter} has another type or default than that of {self.setting} {name!r}")

    def help(self, parameter: str) -> str:
        """What a parameter means to each of its owners."""
        said: dict[str, list[str]] = {}
        for name in self.owners(parameter):
            (f,) = (f for f in fields(self[name]) if f.name == parameter)  # type: ignore[arg-type]
            said.setdefault(f.metadata["help"], []).append(name)
        return "; ".join(f"{', '.join(names)}: {text}" for text, names in said.items())


def _declared(cls: Any) -> dict[str, tuple[Any, Any]]:
    hints = typing.get_type_hints(cls)
    return {f.name: (hints[f.name], f.default) for f in fields(cls)}


def plugin_setting(registry: Registry[P], default: str, help: str) -> Any:
    """A field of a settings dataclass that holds a plug-in.

    Args:
        default: name of the plug-in; its parameters have their defaults. With AUTO, the group calls `Settings.follow`.
        help: of the parameter that chooses; the names of the plug-ins follow it.
    """
    return field(
        default_factory=lambda: AUTO if default == AUTO else registry[default](), metadata={"help": help, "registry": registry}
    )


def registry_of(f: dataclasses.Field[Any]) -> Registry[Any] | None:
    """The registry whose plug-ins a field holds, if it holds plug-ins."""
    return f.metadata.get("registry")


class Settings:
    """A group of settings; those with plug-ins are made by `of`."""

    @classmethod
    def of(cls, **values: Any) -> Self:
        """Settings from flat values: `of(strategy="greedy", delta=2.0)`. What is left out keeps its default.

        Raises:
            InputError: a plug-in that is not known, a value that cannot work, or a parameter of a plug-in that is not chosen.
            TypeError: a name that is not a parameter.
        """
        return cls().with_values(**values)

    def with_values(self, **values: Any) -> Self:
        """The same settings, but for some flat values. A plug-in that changes begins with its defaults; one that follows a
        setting that is given does so again.

        Raises:
            InputError, TypeError: as `of`.
        """
        own: dict[str, Any] = {}
        for f in fields(self):  # type: ignore[arg-type]
            registry = registry_of(f)
            if registry is None or isinstance(values.get(f.name), Plugin):
                if f.name in values:
                    own[f.name] = values.pop(f.name)
                continue
            before: Plugin = getattr(self, f.name)
            name = values.pop(f.name, None)
            chosen, instead = f"{registry.setting} = {name or before.plugin_name}", f"set {registry.setting}"
            if registry.follows and name in (None, AUTO):
                now = {**values, **own}
                followed = now.get(registry.follows, getattr(self, registry.follows))
                name = registry.follow(followed) if name == AUTO or registry.follows in now else before.plugin_name
                chosen = f"{registry.follows} = {followed} ({registry.setting} {name})"
                instead = f"give a {registry.follows} of {registry.setting}"
            given = {p: values.pop(p) for p in registry.parameters if p in values}
            own[f.name] = _chosen(registry, name or before.plugin_name, given, before, (chosen, instead))
        if values:
            raise TypeError(f"{type(self).__name__} has no {', '.join(values)}")
        return cast("Self", dataclasses.replace(cast("Any", self), **own))

    def follow(self) -> None:
        """Put the plug-ins that are meant, with their defaults, in the places of AUTO; for `__post_init__`.

        Raises:
            InputError: as `Registry.follow`.
        """
        for f in fields(self):  # type: ignore[arg-type]
            registry = registry_of(f)
            if registry is not None and registry.follows and getattr(self, f.name) == AUTO:
                name = registry.follow(getattr(self, registry.follows))
                object.__setattr__(self, f.name, registry[name]())  # the group is frozen, and not made yet


def _chosen(registry: Registry[Any], name: str, given: Mapping[str, Any], before: Plugin, words: tuple[str, str]) -> Any:
    cls = registry[name]
    known = {f.name for f in fields(cls)}
    for parameter, value in given.items():
        if parameter not in known and value != registry.parameters[parameter].default:
            raise unused(parameter, value, *words, registry.owners(parameter))
    own = {parameter: value for parameter, value in given.items() if parameter in known}
    return dataclasses.replace(cast("Any", before), **own) if isinstance(before, cls) else cls(**own)


def unused(parameter: str, value: Any, chosen: str, instead: str, owners: tuple[str, ...]) -> UnusedError:
    """The refusal of a parameter of plug-ins none of which was chosen.

    Args:
        chosen: what was, in words.
        instead: how one of them would be, in words that the plug-in's name follows: "set strategy".
        owners: the plug-ins that have the parameter.
    """
    listed = ", ".join(owners[:-1]) + (" or " if len(owners) > 1 else "") + owners[-1]
    return UnusedError(parameter, value, f"means nothing with {chosen}", f"Leave it out, or {instead} = {listed}")
