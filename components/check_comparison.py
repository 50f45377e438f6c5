"""check_comparison: validate a whole comparison before anything expensive."""

from __future__ import annotations

from kfp.dsl import base_component

from components.generated import check_component
from rco.config.kinds import OPTIONS, SHARED
from rco.config.parameters import PARAMETERS
from rco.config.plugins import installed
from rco.config.shape import Shape
from rco.tasks.settings import BranchTasks


def check_comparison(shape: Shape) -> base_component.BaseComponent:
    """The component for a comparison of these branches; it has outputs for each of them, so that the settings of one are no
    input of another's tasks."""
    return check_component(
        "check_comparison",
        module="comparison",
        own={"compiled": dict},
        constants={"plugins": installed()},
        parameters={
            **{option.name: option.kind for option in OPTIONS.values()},
            **{name: PARAMETERS[name].kind for name in SHARED},
        },
        outputs=[
            *("data", "teacher", "filing"),
            *(f"{task}_{label}" for label in shape.labels.values() for task in BranchTasks.__dataclass_fields__),
        ],
        doc="Validate every branch, resolve what was left open, open the run in MLflow.",
    )
