"""check: validate everything before anything expensive."""

from __future__ import annotations

from kfp.dsl import base_component

from components.generated import check_component
from rco.config.plugins import installed
from rco.config.shape import Shape
from rco.tasks.settings import BranchTasks


def check(shape: Shape) -> base_component.BaseComponent:
    """The component for a pipeline of this shape; it has outputs for each branch, so that the settings of one are no input of
    another's tasks."""
    return check_component(
        own={"compiled": dict},
        constants={"plugins": installed()},
        parameters={
            **{name: type(value) for name, value in shape.constants.items() if name != "compiled"},
            **{field.name: field.kind for field in shape.form},
        },
        outputs=[
            *("data", "teacher", "filing"),
            *(f"{task}_{label}" for label in shape.labels.values() for task in BranchTasks.__dataclass_fields__),
        ],
    )
