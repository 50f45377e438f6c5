"""What every component says of itself: its image, what it is given on a cluster, and whether its results may be reused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from kfp import dsl
from kfp.dsl import base_component

from components.image import IMAGE

TaskClass = Literal["check", "data", "train", "light"]


@dataclass(frozen=True)
class Policy:
    """How a component's tasks are run.

    Attributes:
        task_class: what they are given on a cluster (`pipelines.cluster.deployment`).
        cached: whether a task with equal inputs may take the results of an earlier one. Not, if it looks at what a source of
            data or the tracking server holds now: what it did before says nothing.
    """

    task_class: TaskClass
    cached: bool


#: Of every component that was imported, by the name that KFP gives it.
POLICIES: dict[str, Policy] = {}


def component(task_class: TaskClass, *, cached: bool = True) -> Callable[[Callable[..., Any]], base_component.BaseComponent]:
    """Make a function a component that runs in the project's image.

    Args:
        task_class, cached: as in `Policy`.
    """

    def make(function: Callable[..., Any]) -> base_component.BaseComponent:
        made = dsl.component(base_image=IMAGE, install_kfp_package=False)(function)
        POLICIES[made.name] = Policy(task_class, cached)
        return made

    return make
