"""A real MLflow server that holds a comparison, and a browser that looks at it.

RCO_BROWSER_HOME=DIR looks at the state of local runs in DIR (as `--home` of `rco`) instead of a small comparison made here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import servers
from tests.browser import truth, ui

HOME = os.environ.get("RCO_BROWSER_HOME", "")  # read here: tests run without RCO_* in their environment
EVIDENCE = Path(__file__).parents[2] / "build" / "test-browser"


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an MLflow server with a comparison in it."""
    folder = tmp_path_factory.mktemp("mlflow")
    if HOME:
        with servers.mlflow_server(folder, database=Path(HOME) / "mlflow.db") as address:
            yield address
        return
    from tests.browser import comparison

    with servers.mlflow_server(folder) as address:
        comparison.fill(address, folder / "work")
        yield address


@pytest.fixture(scope="session")
def held(server: str) -> truth.Comparison:
    """What the server holds."""
    return truth.read(server)


@pytest.fixture
def mlflow_ui(server: str, request: pytest.FixtureRequest) -> Iterator[ui.Mlflow]:
    """A fresh browser. If the test fails, what it saw goes to build/test-browser."""
    failed_before = request.session.testsfailed
    with ui.chromium() as page:
        opened = ui.Mlflow(page, server)
        yield opened
        if request.session.testsfailed > failed_before:
            folder = EVIDENCE / re.sub(r"\W+", "-", request.node.name)
            opened.save_evidence(folder)
            print(f"screenshot and console: {folder}")
