"""select_anchor: choose the anchor of one stage."""

from kfp import dsl

from components.component import component


@component("light")
def select_anchor(
    settings: dict,
    previous: dict,
    last_stage: bool,
    route: dsl.Input[dsl.Model],
    route_index: dsl.Input[dsl.Artifact],
    student: dsl.Input[dsl.Model],
    anchor: dsl.Output[dsl.Model],
    anchors: dsl.Output[dsl.Artifact],
) -> dict:
    """Choose the next anchor with the student that will learn from it, and hand out that one checkpoint.

    Args:
        settings: rco.tasks.settings.AnchorSettings.
        previous: the selection of the stage before; empty in stage 1.
        last_stage: whether this is the pipeline's last stage: it hands out all chosen anchors for the report.
        route: of train_teacher.
        route_index: of train_teacher.
        student: as the stage before left it.
        anchor: the chosen checkpoint; of several, a folder each.
        anchors: the list of the anchors chosen so far; in the last stage with their checkpoints and the converged teacher.
    """
    from pathlib import Path

    from rco.tasks.selection import select_anchor

    selection = select_anchor(
        settings,
        previous=previous,
        route=Path(route.path),
        route_index=Path(route_index.path),
        student=Path(student.path),
        anchor=Path(anchor.path),
        anchors=Path(anchors.path),
        last_stage=last_stage,
    )
    anchor.metadata["epochs"] = selection["anchor_epochs"]
    return selection
