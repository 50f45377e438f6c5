"""check: validate everything before anything expensive."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from components.generated import component_of, function_of, outputs_of, parameters_of
from rco.config.kinds import OPTIONS
from rco.config.parameters import PARAMETERS
from rco.config.shape import Shape
from rco.tasks.settings import BranchTasks

if TYPE_CHECKING:
    from kfp.dsl import base_component

# Its first statement comes before any other name is bound: KFP reads the signature, and the body need not repeat its names.
_TEXT = '''def check({parameters}) -> NamedTuple("Checked", [{outputs}]):
    """Validate every parameter, resolve what was left open, open the run in MLflow."""
    parameters = dict(locals())
    from collections import namedtuple

    from rco.tasks.check import check

    own = {{name: parameters.pop(name) for name in {own}}}
    settings = check(parameters, **own)
    return namedtuple("Checked", settings)(**settings)
'''
#: What the pipeline says, not the user (`rco.tasks.check.check`).
_OWN = ("compiled", "plugins")


def check(shape: Shape) -> base_component.BaseComponent:
    """The component for a pipeline of this shape; it has outputs for each branch, so that the settings of one are no input of
    another's tasks."""
    branches = (f"{task}_{label}" for label in shape.labels.values() for task in BranchTasks.__dataclass_fields__)
    constants = {name: type(value) for name, value in shape.constants.items()}
    text = _text(
        {**constants, "plugins": dict, **{field.name: field.kind for field in shape.form}},
        ["data", "teacher", "filing", *branches],
    )
    return component_of(text, "check", "check", cached=False)


def in_image(executor_input: Mapping[str, Any]) -> Callable[..., Any]:
    """The function of the task that is given this input. A parameter of a plug-in that the image lacks has the type of its
    value: the task will say what is wrong."""
    kinds = {option.name: option.kind for option in OPTIONS.values()} | {p.name: p.kind for p in PARAMETERS.values()}
    given = {name: kinds.get(name, type(value)) for name, value in parameters_of(executor_input).items()}
    return function_of(_text(given, outputs_of(executor_input)), "check")


def _text(parameters: Mapping[str, type], outputs: Sequence[str]) -> str:
    return _TEXT.format(
        parameters=", ".join(f"{name}: {kind.__name__}" for name, kind in parameters.items()),
        outputs=", ".join(f"({output!r}, dict)" for output in outputs),
        own=_OWN,
    )
