"""The task that prepares the data set."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rco.tasks.process import log, read_settings, task
from rco.tasks.settings import (
    DataSettings,
)


@task
def prepare_data(settings: Mapping[str, Any], *, dataset: Path) -> dict[str, Any]:
    """Read, split and store the data set.

    Returns:
        figures for the artifact's metadata.
    """
    s = read_settings(DataSettings, settings)
    from rco.data.prepare import prepare

    log.info("preparing %s", s.data.dataset)
    manifest = prepare(s.data, dataset, s.source_digest)
    sizes = ", ".join(f"{size} {split}" for split, size in manifest.sizes.items())
    log.info("%d classes of %s images: %s", manifest.num_classes, "x".join(map(str, manifest.image_shape)), sizes)
    return {"digest": manifest.digest, "num_classes": manifest.num_classes, **manifest.sizes}
