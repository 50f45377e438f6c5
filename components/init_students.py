"""init_students: make the initial student of every seed."""

from kfp import dsl

from components.component import component


@component("train")
def init_students(settings: dict, dataset: dsl.Input[dsl.Dataset], students: dsl.Output[dsl.Model]):
    """Make the initial student of every seed.

    Args:
        settings: rco.tasks.settings.InitSettings.
        dataset: of prepare_data.
        students: of each seed a folder: initial weights, and their logits on the probe samples.
    """
    from pathlib import Path

    from rco.tasks.init import init_students

    init_students(settings, dataset=Path(dataset.path), students=Path(students.path))
