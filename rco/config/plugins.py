"""The registries there are, and the plug-ins of other packages among what they hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from rco.core.errors import InputError
from rco.core.plugins import Plugin, Registry, registry_of
from rco.data.sources.base import SOURCES
from rco.models.config import ModelConfig
from rco.models.families import packages
from rco.objectives.base import OBJECTIVES
from rco.strategies.base import STRATEGIES
from rco.training.optimizers.base import OPTIMIZERS
from rco.training.schedules.base import SCHEDULES

REGISTRIES: tuple[Registry[Any], ...] = (STRATEGIES, OBJECTIVES, OPTIMIZERS, SCHEDULES, SOURCES)


def installed() -> dict[str, str]:
    """The plug-ins of other packages that are here: "strategy its-name" -> "package version (digest)"."""
    return {
        f"{registry.setting} {name}": str(origin)
        for registry in REGISTRIES
        for name in registry.names
        if (origin := registry.origin(name)) is not None
    } | {f"model {name}": str(packages.origin(name)) for name in packages.names()}


def failures() -> list[str]:
    """The plug-ins of other packages that cannot be used, and why."""
    return [
        f"{registry.setting} {name!r} cannot be used ({problem})"
        for registry in REGISTRIES
        for name, problem in registry.failures.items()
    ] + [f"model {name!r} cannot be used ({problem})" for name, problem in packages.failures().items()]


def used_by(*groups: Any) -> dict[str, str]:
    """The plug-ins of other packages that groups of settings hold, as `installed` names them."""
    used: dict[str, str] = {}
    for group in groups:
        if isinstance(group, ModelConfig) and (origin := packages.origin(group.model)):
            used[f"model {group.model}"] = str(origin)
        for f in dataclasses.fields(group):
            registry, plugin = registry_of(f), getattr(group, f.name)
            if registry is not None and isinstance(plugin, Plugin) and (origin := registry.origin(plugin.plugin_name)):
                used[f"{registry.setting} {plugin.plugin_name}"] = str(origin)
    return used


def require(compiled: Mapping[str, str]) -> None:
    """Refuse a pipeline that was compiled with plug-ins which are not here.

    Args:
        compiled: `installed`, where the pipeline was compiled.

    Raises:
        InputError: a plug-in is missing, or is another one here.
    """
    here = installed()
    for name, there in compiled.items():
        if here.get(name) != there:
            kind, _, plugin = name.partition(" ")
            raise InputError(
                kind,
                plugin,
                f"is of {there} where the pipeline was compiled, and {'of ' + here[name] if name in here else 'missing'} here",
                "Build the image with that package (make build-images EXTRA=...), or compile with what the image has",
            )
