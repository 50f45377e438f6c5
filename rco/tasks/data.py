"""The task that prepares the data set."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rco.core.errors import InputError
from rco.tasks.process import log, read_settings, task
from rco.tasks.settings import (
    DataSettings,
)


@task
def prepare_data(settings: Mapping[str, Any], *, dataset: Path) -> dict[str, Any]:
    """Read, split and store the data set, and say what became of its source.

    Returns:
        figures for the artifact's metadata.

    Raises:
        InputError: as `rco.data.prepare.prepare`; or the source is not what the check has seen.
    """
    s = read_settings(DataSettings, settings)
    from rco.data.prepare import prepare
    from rco.data.sources.kinds import source_digest

    log.info("preparing %s", s.data.dataset)
    manifest = prepare(s.data, dataset, s.source_digest, kept_size=s.kept_size or 0, refer=True)
    if (found := source_digest(s.data)) != s.source_digest:
        raise InputError(
            "dataset",
            s.data.dataset,
            f"has changed since it was checked (its digest was {s.source_digest[:12]}, and is {found[:12]})",
            "Start the run again, when the files are at rest and the same for all machines",
        )
    sizes = ", ".join(f"{size} {split}" for split, size in manifest.sizes.items())
    log.info("%d classes of %s images: %s", manifest.num_classes, "x".join(map(str, manifest.image_shape)), sizes)
    if manifest.kept_size:
        log.info("they are kept at %dx%d for the teacher", manifest.kept_size, manifest.kept_size)
    for line in manifest.account.lines:
        log.info("%s", line)
    about = manifest.account
    left_out = sum(counted.count for counted in about.left_out.values())
    repeated = {f"duplicates_{pair.replace(' ', '_')}": counted.count for pair, counted in about.duplicates.items()}
    figures = {"digest": manifest.digest, "num_classes": manifest.num_classes, **manifest.sizes}
    return {**figures, **({"left_out": left_out} if left_out else {}), **repeated}
