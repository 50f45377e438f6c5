"""distill_stage: train the student on one anchor."""

from kfp import dsl

from components.component import component


@component("train")
def distill_stage(
    settings: dict,
    selection: dict,
    dataset: dsl.Input[dsl.Dataset],
    anchor: dsl.Input[dsl.Model],
    student: dsl.Input[dsl.Model],
    distilled: dsl.Output[dsl.Model],
):
    """Train the student on one anchor; pass it through if the route has been walked.

    Args:
        settings: rco.tasks.settings.StageSettings.
        selection: of this stage's select_anchor.
        dataset: of prepare_data.
        anchor: of this stage's select_anchor.
        student: as the stage before left it.
        distilled: weights, probe logits and tracking record after this stage.
    """
    from pathlib import Path

    from rco.tasks.distill import distill_stage

    figures = distill_stage(
        settings,
        selection=selection,
        dataset=Path(dataset.path),
        anchor=Path(anchor.path),
        student=Path(student.path),
        distilled=Path(distilled.path),
    )
    distilled.metadata.update(figures)
