"""select_anchors: choose the anchors of one step, for every seed."""

from kfp import dsl

from components.component import component


@component("light")
def select_anchors(
    settings: dict,
    previous: dict,
    last_step: bool,
    route: dsl.Input[dsl.Model],
    route_index: dsl.Input[dsl.Artifact],
    students: dsl.Input[dsl.Model],
    anchors: dsl.Output[dsl.Model],
) -> dict:
    """Choose the next anchors with the students that will learn from them, and hand out those checkpoints.

    Args:
        settings: rco.tasks.settings.AnchorSettings.
        previous: the selection of the step before; empty in the first.
        last_step: whether this is the pipeline's last: it hands out the converged teacher as well, for the evaluation.
        route: of train_teacher.
        route_index: of train_teacher.
        students: as the step before left them.
        anchors: the route with the chosen weights only.
    """
    from pathlib import Path

    from rco.tasks.selection import select_anchors

    selection = select_anchors(
        settings,
        previous=previous,
        last_step=last_step,
        route=Path(route.path),
        route_index=Path(route_index.path),
        students=Path(students.path),
        anchors=Path(anchors.path),
    )
    stages = [stage for of_seed in selection.values() for stage in of_seed["stages"]]
    anchors.metadata["epochs"] = sorted({epoch for stage in stages for epoch in stage["anchor_epochs"]})
    return selection
