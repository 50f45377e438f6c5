"""init_student: make the initial student."""

from kfp import dsl

from components.component import component


@component("train")
def init_student(settings: dict, dataset: dsl.Input[dsl.Dataset], student: dsl.Output[dsl.Model]):
    """Make the initial student, a function of its seed.

    Args:
        settings: rco.tasks.settings.StudentSettings.
        dataset: of prepare_data.
        student: initial weights, and their logits on the probe samples.
    """
    from pathlib import Path

    from rco.tasks.students import init_student

    init_student(settings, dataset=Path(dataset.path), student=Path(student.path))
