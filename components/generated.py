"""Components whose parameters follow from a registry, so that no list of parameters is copied by hand.

KFP reads a component's interface from a function's signature and its code from the function's source text. So we write the
text, let `linecache` have it as if it were a file, and execute it: types and quotes survive, compiled and locally.
"""

from __future__ import annotations

import linecache
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from kfp.dsl import base_component

from components.component import component

_TEXT = '''def {name}(
{parameters}
) -> NamedTuple("Checked", [{outputs}]):
    """{doc}"""
    # First, before any other name is bound: KFP reads the signature, and the body need not repeat its names.
    parameters = dict(locals())
    from collections import namedtuple

    from rco.tasks.{module} import {name}

    settings = {name}(parameters, {own})
    return namedtuple("Checked", settings)(**settings)
'''


def check_component(
    name: str,
    *,
    module: str,
    own: Mapping[str, type],
    constants: Mapping[str, Any],
    parameters: Mapping[str, type],
    outputs: Sequence[str],
    doc: str,
) -> base_component.BaseComponent:
    """The component that validates everything: it calls `rco.tasks.{module}.{name}(parameters, own..., constants...)`.

    Args:
        own: parameters that are the pipeline's, not the user's: name -> type.
        constants: what is known when the pipeline is compiled; JSON-ready.
        parameters: flat parameters: name -> type.
        outputs: of the task, each a dict of settings.
        doc: the first line is what the UI shows.
    """
    signature = {**own, **parameters}
    given = [f"{p}=parameters.pop({p!r})" for p in own] + [f"{p}={value!r}" for p, value in constants.items()]
    text = _TEXT.format(
        name=name,
        module=module,
        parameters="\n".join(f"    {p}: {kind.__name__}," for p, kind in signature.items()),
        outputs=", ".join(f"({output!r}, dict)" for output in outputs),
        doc=doc,
        own=", ".join(given),
    )
    file = f"<component {name}>"
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    scope: dict[str, Any] = {"NamedTuple": NamedTuple, "__name__": __name__}
    exec(compile(text, file, "exec", dont_inherit=True), scope)
    return component("check", cached=False)(scope[name])
