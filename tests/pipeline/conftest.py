"""What the tests of whole runs share: a process that their runs are forked from."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests import zygote


@pytest.fixture(scope="session")
def _zygote() -> Iterator[None]:
    with zygote.running():
        yield
