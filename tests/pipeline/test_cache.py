"""KFP's local cache never hides an edit: of the data, or of the code."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kfp import dsl, local
from PIL import Image

from components.prepare_data import prepare_data
from rco.core.settings import jsonable
from rco.data.config import DataConfig
from rco.data.sources.kinds import source_digest
from rco.tasks.settings import DataSettings


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(6):
            Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)).save(tmp_path / "data" / name / f"{i}.png")
    return tmp_path / "data"


def prepared(folder: Path, image: str | None = None) -> str:
    """Where the pipeline's data set lies: the same place as before if it came from the cache."""
    config = DataConfig(dataset=str(folder))
    settings = jsonable(DataSettings(data=config, source_digest=source_digest(config)))
    settings = {name: value for name, value in settings.items() if value is not None}  # as `check` hands them on

    @dsl.pipeline(name="preparation")
    def preparation() -> dsl.Dataset:
        task = prepare_data(settings=settings)
        if image:
            task.set_container_image(image)
        return task.outputs["dataset"]

    # A nested pipeline, because that is where KFP's local runner uses its cache.
    @dsl.pipeline(name="outer")
    def outer() -> dsl.Dataset:
        return preparation().output

    result: Any = outer()
    uri: str = result.output.uri
    return uri


def test_edits_are_never_hidden(folder: Path, tmp_path: Path) -> None:
    local.init(
        runner=local.SubprocessRunner(use_venv=False),
        pipeline_root=str(tmp_path / "root"),
        enable_caching=True,
        cache_root=str(tmp_path / "cache"),
    )
    first = prepared(folder)
    assert prepared(folder) == first, "nothing has changed"
    picture = folder / "cat" / "3.png"
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(picture)
    second = prepared(folder)
    assert second != first, "the data has changed"
    # The image's name carries a hash of the code (tests/pipeline/test_compile.py).
    assert prepared(folder, image="rco-python:edited") != second, "the code has changed"
