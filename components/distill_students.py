"""distill_students: train the student of every seed through one step."""

from kfp import dsl

from components.component import component


@component("train")
def distill_students(
    settings: dict,
    selection: dict,
    dataset: dsl.Input[dsl.Dataset],
    anchors: dsl.Input[dsl.Model],
    students: dsl.Input[dsl.Model],
    distilled: dsl.Output[dsl.Model],
):
    """Train the student of every seed through the stages of one step.

    Args:
        settings: rco.tasks.settings.DistillSettings.
        selection: of this step's select_anchors.
        dataset: of prepare_data.
        anchors: of this step's select_anchors.
        students: as the step before left them.
        distilled: weights, probe logits and tracking record of each seed after this step.
    """
    from pathlib import Path

    from rco.tasks.distill import distill_students

    figures = distill_students(
        settings,
        selection=selection,
        dataset=Path(dataset.path),
        anchors=Path(anchors.path),
        students=Path(students.path),
        distilled=Path(distilled.path),
    )
    distilled.metadata.update(figures)
