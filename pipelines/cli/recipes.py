"""Recipes: files of parameters."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rco.core.errors import InputError

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
    from rco.config.parameters import RunConfig

    merged = {**(read_recipe(recipe) if recipe else {}), **flags}
    RunConfig.from_flat(merged)
    return merged
