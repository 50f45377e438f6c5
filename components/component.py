"""What every component says of itself: its image, what it is given on a cluster, and whether its results may be reused."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from kfp.dsl import base_component

TaskClass = Literal["check", "data", "train", "light"]


@dataclass(frozen=True)
class Policy:
    """How a component's tasks are run.

    Attributes:
        task_class: what they are given on a cluster (`pipelines.cluster.deployment`).
        cached: whether a task with equal inputs may take the results of an earlier one. Not, if it looks at what a source of
            data or the tracking server holds now: what it did before says nothing.
        module: that has its code in the image.
    """

    task_class: TaskClass
    cached: bool
    module: str


#: Of every component that was imported, by the name that KFP gives it.
POLICIES: dict[str, Policy] = {}


def component(task_class: TaskClass, *, cached: bool = True) -> Callable[[Callable[..., Any]], base_component.BaseComponent]:
    """Make a function a component that runs in the project's image.

    Args:
        task_class, cached: as in `Policy`.
    """
    if os.environ.get("_KFP_RUNTIME") == "true":  # this is a task's process (`components.__main__`): the function is wanted
        return lambda function: function

    from kfp import dsl

    from components.image import IMAGE

    def make(function: Callable[..., Any]) -> base_component.BaseComponent:
        made = dsl.component(base_image=IMAGE, install_kfp_package=False)(function)
        POLICIES[made.name] = Policy(task_class, cached, function.__name__)
        return made

    return make
