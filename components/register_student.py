"""register_student: put the student of a run into the model registry."""

from kfp import dsl

from components.component import component


@component("light", cached=False)
def register_student(settings: dict, students: dsl.Input[dsl.Model], evaluation: dsl.Input[dsl.Artifact]) -> dict:
    """Put the student into the MLflow model registry, unless these very weights are there.

    Args:
        settings: rco.config.filing.Filing.
        students: of the last stage.
        evaluation: of evaluate_students, for the example batch.
    """
    from pathlib import Path

    from rco.tasks.register import register_student

    return register_student(settings, students=Path(students.path), evaluation=Path(evaluation.path))
