"""Components whose parameters follow from a registry, or from what a pipeline is compiled for: no list is copied by hand.

KFP reads a component's interface from a function's signature and its code from the function's source text. So we write the
text, let `linecache` have it as if it were a file, and execute it: types and quotes survive, compiled and locally.
"""

from __future__ import annotations

import hashlib
import linecache
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from kfp import dsl
from kfp.dsl import base_component

from components.component import TaskClass, component

# The text is in every pipeline, so it is short. Its first statement comes before any other name is bound: KFP reads the
# signature, and the body need not repeat its names.
_CHECK = '''def check({parameters}) -> NamedTuple("Checked", [{outputs}]):
    """Validate every parameter, resolve what was left open, open the run in MLflow."""
    parameters = dict(locals())
    from collections import namedtuple

    from rco.tasks.check import check

    settings = check({given})
    return namedtuple("Checked", settings)(**settings)
'''


def component_of(text: str, name: str, task_class: TaskClass, *, cached: bool = True) -> base_component.BaseComponent:
    """The component of a function that is given as source text.

    Args:
        text: it may use `dsl` and `NamedTuple`.
        name: of the function.
        task_class, cached: as for `components.component.component`.
    """
    file = f"<component {name} {hashlib.sha256(text.encode()).hexdigest()[:12]}>"
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    scope: dict[str, Any] = {"NamedTuple": NamedTuple, "dsl": dsl, "__name__": __name__}
    exec(compile(text, file, "exec", dont_inherit=True), scope)
    return component(task_class, cached=cached)(scope[name])


def check_component(
    *, own: Mapping[str, type], constants: Mapping[str, Any], parameters: Mapping[str, type], outputs: Sequence[str]
) -> base_component.BaseComponent:
    """The component that validates everything: it calls `rco.tasks.check.check(parameters, own..., constants...)`.

    Args:
        own: parameters that are the pipeline's, not the user's: name -> type.
        constants: what is known when the pipeline is compiled; JSON-ready.
        parameters: flat parameters: name -> type.
        outputs: of the task, each a dict of settings.
    """
    signature = {**own, **parameters}
    given = ["parameters", *(f"{p}=parameters.pop({p!r})" for p in own), *(f"{p}={v!r}" for p, v in constants.items())]
    text = _CHECK.format(
        parameters=", ".join(f"{p}: {kind.__name__}" for p, kind in signature.items()),
        outputs=", ".join(f"({output!r}, dict)" for output in outputs),
        given=", ".join(given),
    )
    return component_of(text, "check", "check", cached=False)
