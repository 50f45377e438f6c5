"""What all tests share: no tracking by accident, one thread, a tiny prepared data set, groups of tests."""

from __future__ import annotations

import gc
import inspect
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

from rco.data.config import DataConfig
from rco.training import precision
from rco.training.config import ComputeConfig

if TYPE_CHECKING:
    from rco.data.dataset import Dataset

# A busy machine is no reason to fail. CI tries more examples, with the newest PyTorch alone.
_EXAMPLES = int(os.environ.get("HYPOTHESIS_EXAMPLES") or (100 if os.environ.get("CI") else 30))
hypothesis.settings.register_profile("rco", deadline=None, max_examples=_EXAMPLES)
hypothesis.settings.load_profile("rco")

# Files of tests that take longest, in this order; see `pytest_collection_modifyitems`.
LONGEST = ("pipeline/test_comparison", "pipeline/test_local", "pipeline/test_submit", "tasks/test_resume")

# KFP looks at the stack for every setting of a task. For a frame of xdist's, which is of no module, `inspect` would go through
# all modules there are, with PyTorch's 50 ms a look.
_frame = inspect.currentframe()
while _frame is not None:
    if inspect.getmodule(_frame) is None:
        for _name in (_frame.f_code.co_filename, os.path.abspath(_frame.f_code.co_filename)):
            inspect.modulesbyfile[_name] = __name__  # type: ignore[attr-defined]
    _frame = _frame.f_back

CPU = ComputeConfig(device="cpu", precision="fp32", threads=1, workers=0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files come first. `--dist loadfile` gives files to workers in this order, each whole, because its tests share
    a home and its cache: so no worker is left with a long one at the end."""
    names = {item: item.path.relative_to(Path(__file__).parent).with_suffix("").as_posix() for item in items}
    items.sort(key=lambda item: LONGEST.index(names[item]) if names[item] in LONGEST else len(LONGEST))


def pytest_collection_finish() -> None:
    """What has been imported until now stays: the garbage collector need not look at it again and again."""
    gc.freeze()


def pytest_sessionfinish() -> None:
    """At the end they are collected as ever."""
    gc.unfreeze()


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


@pytest.fixture(autouse=True)
def _same_on_every_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """`precision = auto` makes no trial in a test that does not ask for one: with networks that bf16 speeds up by about as much
    as it must to be chosen, two trials in a row can end differently."""
    monkeypatch.setattr(precision, "cpu_computes_bf16", lambda: False)


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], str]]:
    """What was told to people so far."""
    import logging

    from rco.tasks.process import log

    monkeypatch.setattr(log, "propagate", True)
    monkeypatch.setattr(log, "handlers", [logging.NullHandler()])
    with caplog.at_level(logging.INFO, "rco"):
        yield lambda: caplog.text


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded data set, prepared."""
    from rco.data.prepare import prepare
    from rco.data.sources.kinds import source_digest

    folder = tmp_path_factory.mktemp("digits")
    config = DataConfig(probe_size=64)
    prepare(config, folder, source_digest(config))
    return folder


@pytest.fixture(scope="session")
def data(digits: Path) -> Dataset:
    """That data set, open. Nothing changes it, so all tests of a process share what it holds in memory."""
    from rco.data.dataset import Dataset

    return Dataset.open(digits)


@pytest.fixture(scope="session")
def _zygote() -> Iterator[None]:
    """A process that the whole runs of these tests are forked from."""
    from tests import zygote

    with zygote.running():
        yield
