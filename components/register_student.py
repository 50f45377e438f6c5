"""register_student: put the student into the model registry."""

from kfp import dsl

from components.component import component


@component("light", cached=False)
def register_student(settings: dict, student: dsl.Input[dsl.Model], evaluation: dsl.Input[dsl.Artifact]) -> dict:
    """Put the student into the MLflow model registry, unless these very weights are there.

    Args:
        settings: rco.tasks.settings.FilingSettings.
        student: of the last stage.
        evaluation: of evaluate, for the example batch.
    """
    from pathlib import Path

    from rco.tasks.register import register_student

    return register_student(settings, student=Path(student.path), evaluation=Path(evaluation.path))
