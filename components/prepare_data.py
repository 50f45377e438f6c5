"""prepare_data: read, split and store the data set."""

from kfp import dsl

from components.component import component


@component("data")
def prepare_data(settings: dict, dataset: dsl.Output[dsl.Dataset]):
    """Read, split and store the data set.

    Args:
        settings: rco.tasks.settings.DataSettings.
        dataset: the prepared data set (manifest, and one file a split).
    """
    from pathlib import Path

    from rco.tasks.data import prepare_data

    dataset.metadata.update(prepare_data(settings, dataset=Path(dataset.path)))
