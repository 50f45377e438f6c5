"""The servers that the tests of this folder share: each is started once, by the first test that needs it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests import servers


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Seaweed]:
    """A real S3-compatible store."""
    with servers.seaweed(tmp_path_factory.mktemp("seaweed")) as store:
        yield store


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Postgres]:
    """A real PostgreSQL."""
    with servers.postgres(tmp_path_factory.mktemp("postgres")) as database:
        yield database
