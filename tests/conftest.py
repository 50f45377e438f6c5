"""What all tests share: no tracking by accident, one thread, and a tiny prepared data set."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rco.config import ComputeConfig, DataConfig

CPU = ComputeConfig(device="cpu", precision="fp32", threads=1, workers=0)


@pytest.fixture(autouse=True)
def _no_tracking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the developer's own environment may reach a test."""
    for name in list(os.environ):
        if name.startswith(("MLFLOW_", "RCO_", "AWS_", "KFP_")):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded data set, prepared."""
    from rco.prepare import prepare
    from rco.sources import source_digest

    folder = tmp_path_factory.mktemp("digits")
    config = DataConfig(probe_size=64)
    prepare(config, folder, source_digest(config))
    return folder
