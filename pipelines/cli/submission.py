"""What a command asks a cluster to run: which parameters, in a pipeline of which shape."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from pipelines.cli.recipes import merged_comparison, merged_parameters, read_recipe
from rco.config.branches import Comparison
from rco.config.kinds import COMPILED, NOT_SHARED, read_grid, read_kinds
from rco.config.parameters import PARAMETERS, RunConfig, read_value
from rco.config.shape import Shape
from rco.core.errors import InputError


@dataclass(frozen=True)
class ComparisonOptions:
    """The options of a comparison, as text; None: not given."""

    branches: str | None
    seeds: str | None
    restart_like: str | None
    grid: str | None

    def given(self) -> dict[str, Any]:
        """Those that the user gave.

        Raises:
            InputError: a grid that is not a mapping.
        """
        options = {f.name: getattr(self, f.name) for f in fields(self)}
        if self.grid is not None:
            options["grid"] = _mapping("grid", self.grid)
        return {name: value for name, value in options.items() if value is not None}


@dataclass(frozen=True)
class Submission:
    """What is to be run.

    Attributes:
        parameters: those that were given, typed.
        experiment: name of the experiment.
        label: what the run is, for its name.
        shape: of the pipeline.
    """

    parameters: dict[str, Any]
    experiment: str
    label: str
    shape: Shape


def describe(
    comparison: bool,
    recipe: str | None,
    flags: Mapping[str, Any],
    options: Mapping[str, Any],
    max_stages: int | None,
    compared: Mapping[str, Any] | None = None,
) -> Submission:
    """The submission that flags, recipe and options mean.

    Args:
        max_stages: None: the default number, or what the run needs.
        compared: branches and grid of a package that is there; None: the pipeline is yet to be compiled.

    Raises:
        InputError: parameters that cannot work, or that mean nothing in this pipeline.
    """
    from pipelines.cluster.sizes import shape_for

    if not comparison:
        if options:
            name, value = next(iter(options.items()))
            raise InputError(name, value, "is of the comparison alone", "Add --pipeline comparison, or leave it out")
        merged = merged_parameters(recipe, flags)
        config = RunConfig.from_flat(merged)
        flat = config.to_flat()
        return Submission(
            parameters={name: read_value(name, value) for name, value in merged.items()},
            experiment=flat["experiment"],
            label=f"{flat['student']} {flat['strategy']}",
            shape=shape_for(Comparison.of_run(config), max_stages),
        )
    for name in NOT_SHARED:
        if name in flags:
            raise InputError(name, flags[name], "means nothing in a comparison", "Leave it out; its branches set it")
    if recipe and compared is not None:
        _require_like(recipe, compared)
    given = merged_comparison(recipe, {**flags, **options, **(compared or {})})
    wanted = Comparison.of(given)
    full = wanted.to_parameters()
    return Submission(
        parameters={name: full[name] for name in given if name in full and name not in COMPILED},
        experiment=full.get("experiment", PARAMETERS["experiment"].default),
        label=f"comparison {full.get('student', PARAMETERS['student'].default)}",
        shape=shape_for(wanted, max_stages),
    )


def _require_like(recipe: str, compared: Mapping[str, Any]) -> None:
    """Refuse a recipe of other branches than a package has."""
    read = read_recipe(recipe)
    for name, normal in (("branches", read_kinds), ("grid", read_grid)):
        if name in read and normal(read[name]) != normal(compared[name]):
            problem = f"of the recipe {recipe} is not what the package was compiled for ({compared[name]})"
            raise InputError(name, read[name], problem, "Leave --package out: then the comparison is compiled for it")


def _mapping(name: str, text: str) -> dict[str, Any]:
    import yaml

    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError:
        document = None
    if not isinstance(document, dict):
        raise InputError(name, text, "is not a mapping of parameters to lists", 'Give {"tau": [2, 4]}')
    return document


def in_seconds(text: str | None) -> float | None:
    """A length of time as people write it ("90m"), in seconds; None stays None.

    Raises:
        InputError: it is not a length of time.
    """
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|h|d)?", text.strip())
    if not match or float(match[1]) == 0:
        raise InputError("timeout", text, "is not a length of time", "Write it as 90m, 12h or 2d; a number alone is seconds")
    return float(match[1]) * {None: 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]
