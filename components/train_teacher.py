"""train_teacher: train the teacher and keep its route."""

from kfp import dsl

from components.component import component


@component("train")
def train_teacher(
    settings: dict,
    dataset: dsl.Input[dsl.Dataset],
    route: dsl.Output[dsl.Model],
    route_index: dsl.Output[dsl.Artifact],
):
    """Train the teacher and keep its route, or adopt a route that exists.

    Args:
        settings: rco.tasks.settings.TeacherSettings.
        dataset: of prepare_data.
        route: every checkpoint, manifest and probe logits.
        route_index: the route without the weights, and the teacher's tracking record.
    """
    from pathlib import Path

    from rco.tasks.teacher import train_teacher

    figures = train_teacher(settings, dataset=Path(dataset.path), route=Path(route.path), route_index=Path(route_index.path))
    route.metadata.update(figures)
