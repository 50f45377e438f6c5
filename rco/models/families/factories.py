"""Networks from the user's own code: `package.module:factory`."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable
from dataclasses import asdict
from difflib import get_close_matches
from functools import partial
from operator import attrgetter
from typing import Any

from torch import nn

from rco.core.errors import InputError
from rco.models.families.layers import Dimensions, NetworkMaker, first_line

# What Python says of a keyword argument that the called code does not take, or has already.
_REFUSED = re.compile(r"(?:unexpected keyword argument|multiple values for (?:keyword )?argument) '(\w+)'")


def find_maker(name: str, parameter: str, path: str = "") -> NetworkMaker:
    """What calls a factory; its module is imported. Arguments and errors are those of `find_factory`.

    Raises:
        InputError: there is no such module or factory. What is returned raises it too: if the factory fails, or returns
            something else than a module with weights.
    """
    return partial(_call_factory, find_factory(name, parameter, path), name, parameter)


def find_factory(name: str, parameter: str, path: str = "") -> Callable[..., Any]:
    """A factory; its module is imported.

    Args:
        name: of the network, as the user knows it.
        path: of the factory, `package.module:factory`; empty: the name is its path.

    Raises:
        InputError: there is no such module or factory; it names `parameter`.
    """
    module_name, _, attribute = (path or name).partition(":")
    if not module_name or not attribute:
        raise InputError(
            parameter, name, "is not of the form package.module:factory", "Name a module, a colon and a function in it"
        )
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # whatever the user's code raises
        raise InputError(
            parameter,
            name,
            f"{module_name} cannot be imported ({type(error).__name__}: {first_line(error)})",
            "Install the package, in the image too, or put its folder on PYTHONPATH",
        ) from error
    try:
        factory = attrgetter(attribute)(module)
    except AttributeError as error:
        near = get_close_matches(attribute, dir(module), n=1)
        hint = f"Did you mean {near[0]!r}? " if near else ""
        raise InputError(
            parameter, name, f"{module_name} has no {attribute!r}", f"{hint}Name a function or class of that module"
        ) from error
    if not callable(factory):
        raise InputError(
            parameter,
            name,
            f"{attribute} cannot be called (it is of type {type(factory).__name__})",
            "Name a function or class that yields a module",
        )
    found: Callable[..., Any] = factory
    return found


def arguments_of(factory: Callable[..., Any], dimensions: Dimensions) -> dict[str, Any]:
    """The keyword arguments that a factory is called with; it is called to find them."""
    return _call(factory, _offered(factory, dimensions))[1]


def _offered(factory: Callable[..., Any], dimensions: Dimensions) -> dict[str, Any]:
    arguments = asdict(dimensions)
    if not dimensions.embedding_dim:
        del arguments["embedding_dim"]
    return _accepted(factory, arguments)


def _call_factory(factory: Callable[..., Any], name: str, parameter: str, dimensions: Dimensions) -> nn.Module:
    try:
        network, _ = _call(factory, _offered(factory, dimensions))
    except Exception as error:
        raise InputError(
            parameter,
            name,
            f"raised {type(error).__name__}: {first_line(error)}",
            "It is called with those of num_classes, in_channels, image_size and embedding_dim that it takes, by keyword",
        ) from error
    if not isinstance(network, nn.Module):
        raise InputError(
            parameter, name, f"yields an object of type {type(network).__name__}", "It must yield a torch.nn.Module"
        )
    if any(isinstance(p, nn.parameter.UninitializedParameter) for p in network.parameters()):
        raise InputError(
            parameter, name, "has lazy layers that are still without weights", "Run a batch through it in the factory"
        )
    return network


def _call(factory: Callable[..., Any], arguments: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """What `factory` yields, and the arguments that it has taken. One that takes any keyword (**kwargs) may hand them to code
    that takes fewer, or has set some."""
    while True:
        try:
            return factory(**arguments), arguments
        except TypeError as error:
            match = _REFUSED.search(str(error))
            if match is None or match[1] not in arguments or not _takes_any(factory):
                raise
            arguments = {name: value for name, value in arguments.items() if name != match[1]}


def _takes_any(factory: Callable[..., Any]) -> bool:
    try:
        return any(p.kind is p.VAR_KEYWORD for p in inspect.signature(factory).parameters.values())
    except ValueError:  # some builtins have no signature
        return False


def _accepted(factory: Callable[..., Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """Those of `arguments` that `factory` takes by keyword."""
    try:
        parameters = inspect.signature(factory).parameters
    except ValueError:  # some builtins have no signature
        return arguments
    if _takes_any(factory):
        return arguments
    by_keyword = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {n: v for n, v in arguments.items() if n in parameters and parameters[n].kind in by_keyword}
