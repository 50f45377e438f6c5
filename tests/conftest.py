"""What all tests share: no tracking by accident, one thread, and a tiny prepared data set."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from rco.data.config import DataConfig
from rco.training.config import ComputeConfig

# A busy machine is no reason to fail.
hypothesis.settings.register_profile("rco", deadline=None)
hypothesis.settings.load_profile("rco")

CPU = ComputeConfig(device="cpu", precision="fp32", threads=1, workers=0)


def _clean_environment() -> None:
    for name in list(os.environ):
        if name.startswith(("MLFLOW_", "RCO_", "AWS_", "KFP_", "KF_PIPELINES_")):
            del os.environ[name]


@pytest.fixture(autouse=True)
def _isolated() -> Iterator[None]:
    """Nothing of the developer's environment, or of another test's, may reach a test: MLflow puts its address there."""
    _clean_environment()
    yield
    _clean_environment()


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded data set, prepared."""
    from rco.data.prepare import prepare
    from rco.data.sources import source_digest

    folder = tmp_path_factory.mktemp("digits")
    config = DataConfig(probe_size=64)
    prepare(config, folder, source_digest(config))
    return folder
