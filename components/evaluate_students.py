"""evaluate_students: measure the student of every seed on the test part."""

from kfp import dsl

from components.component import component


@component("train")
def evaluate_students(
    settings: dict,
    dataset: dsl.Input[dsl.Dataset],
    students: dsl.Input[dsl.Model],
    anchors: dsl.Input[dsl.Model],
    evaluation: dsl.Output[dsl.Artifact],
):
    """Measure the students and the converged teacher on the test part, which no other task touches.

    Args:
        settings: rco.tasks.settings.MeasureSettings.
        dataset: of prepare_data.
        students: of the last step.
        anchors: of the last step: they hold the converged teacher.
        evaluation: of each seed the figures and the tracking record.
    """
    from pathlib import Path

    from rco.tasks import comparison as comparison_tasks

    figures = comparison_tasks.evaluate_students(
        settings,
        dataset=Path(dataset.path),
        students=Path(students.path),
        anchors=Path(anchors.path),
        evaluation=Path(evaluation.path),
    )
    evaluation.metadata.update(figures)
