"""Components whose interface follows from a registry, or from what a pipeline is compiled for: no list is copied by hand.

KFP reads a component's interface from a function's signature and its code from the function's source text. So we write the
text, let `linecache` have it as if it were a file, and execute it: types and quotes survive, compiled and locally. A compiled
pipeline has only the interface: in the image the text is written anew, for the inputs that the task is given (`in_image` in the
component's file).
"""

from __future__ import annotations

import hashlib
import linecache
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from kfp import dsl

from components.component import TaskClass, component

if TYPE_CHECKING:
    from kfp.dsl import base_component


def function_of(text: str, name: str) -> Callable[..., Any]:
    """The function that is given as source text.

    Args:
        text: it may use `dsl` and `NamedTuple`.
        name: of the function, and of the file of `components` that it is written in.
    """
    file = f"<component {name} {hashlib.sha256(text.encode()).hexdigest()[:12]}>"
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    scope: dict[str, Any] = {"NamedTuple": NamedTuple, "dsl": dsl, "__name__": f"components.{name}"}
    exec(compile(text, file, "exec", dont_inherit=True), scope)
    made: Callable[..., Any] = scope[name]
    return made


def component_of(text: str, name: str, task_class: TaskClass, *, cached: bool = True) -> base_component.BaseComponent:
    """The component of such a function.

    Args:
        text, name: as for `function_of`.
        task_class, cached: as for `components.component.component`.
    """
    return component(task_class, cached=cached)(function_of(text, name))


def parameters_of(executor_input: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that a task is given, by name: of what KFP hands to its executor."""
    return dict(executor_input.get("inputs", {}).get("parameterValues", {}))


def artifacts_of(executor_input: Mapping[str, Any]) -> list[str]:
    """Names of the artifacts that a task is given."""
    return list(executor_input.get("inputs", {}).get("artifacts", {}))


def outputs_of(executor_input: Mapping[str, Any]) -> list[str]:
    """Names of the parameters that a task returns."""
    return list(executor_input.get("outputs", {}).get("parameters", {}))
