"""Recipes: files of parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from rco.config.branches import Comparison
from rco.config.kinds import NOT_SHARED
from rco.config.parameters import RunConfig
from rco.core.errors import InputError, UnusedError

RECIPES = Path(__file__).parent.parent / "recipes"


def read_recipe(name: str) -> dict[str, Any]:
    """Parameters from a recipe: the name of one that comes with the project, or a YAML file.

    Raises:
        InputError: no such recipe, not a mapping, or parameters that do not exist.
    """
    from pipelines.yamlfile import read_yaml

    known = {path.stem: path for path in sorted(RECIPES.glob("*.yaml"))}
    path = known.get(name, Path(name))
    if not path.is_file():
        raise InputError("recipe", name, "is neither a recipe nor a file", f"Recipes: {', '.join(known)}")
    remedy = "Write one 'parameter: value' a line"
    document = read_yaml(path, "recipe", remedy)
    if document is None:
        return {}
    if not isinstance(document, dict) or not all(isinstance(name, str) for name in document):
        raise InputError("recipe", str(path), "is not a mapping of parameters", remedy)
    return document


def merged_parameters(recipe: str | None, flags: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of a run: flags win over the recipe.

    Raises:
        InputError: what can be refused without looking at data.
    """
    return _merged(recipe, read_recipe(recipe) if recipe else {}, flags, RunConfig.from_flat)


def merged_comparison(recipe: str | None, given: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of a comparison. Its recipe may be of a single run.

    Raises:
        InputError: what can be refused without looking at data.
    """
    read = {name: value for name, value in (read_recipe(recipe) if recipe else {}).items() if name not in NOT_SHARED}
    if "race" in read:
        raise InputError("race", read["race"], "is no parameter", "Leave it out of the recipe, and give rco compare --race")
    return _merged(recipe, read, given, Comparison.of)


def _merged(
    recipe: str | None, read: dict[str, Any], given: Mapping[str, Any], check: Callable[[Mapping[str, Any]], Any]
) -> dict[str, Any]:
    """What the user gives must reach something; a recipe is of many runs, and what means nothing in this one is left out."""
    while True:
        try:
            check({**read, **given})
        except UnusedError as error:
            if error.parameter in given or error.parameter not in read:
                raise
            del read[error.parameter]
            click.echo(f"{error.parameter} of the recipe {recipe} is left out: it {error.problem}", err=True)
        else:
            return {**read, **given}
