"""What all tests share: no tracking by accident, one thread, a tiny prepared data set, groups of tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from rco.data.config import DataConfig
from rco.training.config import ComputeConfig

# A busy machine is no reason to fail. CI tries more examples.
hypothesis.settings.register_profile("rco", deadline=None, max_examples=100 if os.environ.get("CI") else 30)
hypothesis.settings.load_profile("rco")

# Files of tests that take longest, in this order; see `pytest_collection_modifyitems`.
LONGEST = ("pipeline/test_comparison", "pipeline/test_local", "pipeline/test_shared_home", "fuzz/test_fuzz", "unit/test_resume")

CPU = ComputeConfig(device="cpu", precision="fp32", threads=1, workers=0)


@pytest.hookimpl(tryfirst=True)  # xdist reads the marks in a hook of the same name
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With `--dist loadgroup`, tests of one file stay together, and so do those that are marked as a group because they
    share a home and its cache. The longest come first, so that no worker is left with one of them at the end."""
    if config.getoption("dist", "no") != "loadgroup":
        return
    names = {item: item.path.relative_to(Path(__file__).parent).with_suffix("").as_posix() for item in items}
    for item, name in names.items():
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(name))
    items.sort(key=lambda item: LONGEST.index(names[item]) if names[item] in LONGEST else len(LONGEST))


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
    from rco.data.sources.kinds import source_digest

    folder = tmp_path_factory.mktemp("digits")
    config = DataConfig(probe_size=64)
    prepare(config, folder, source_digest(config))
    return folder
