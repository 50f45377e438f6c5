"""What tests against a stub of KFP's API share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from kfp import Client

from pipelines.cluster import service, watch
from pipelines.cluster.service import Pace
from pipelines.compile import compile_to
from rco.config.branches import Comparison
from rco.config.shape import Shape
from rco.tasks.validate import shape_of
from tests.kfp_stub import KfpStub


@pytest.fixture
def quick_and_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No pauses, and nothing of this machine's own KFP or Kubernetes."""
    quick = Pace(first=0.01, longest=0.02, patience=0.5)
    monkeypatch.setattr(service, "ASK", quick)
    monkeypatch.setattr(watch, "WATCH", quick)
    monkeypatch.setattr(Client, "_LOCAL_KFP_CONTEXT", str(tmp_path / "context.json"))
    monkeypatch.setattr(Client, "_NAMESPACE_PATH", str(tmp_path / "namespace"))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)


@pytest.fixture(scope="session")
def rco_yaml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two stages, compiled."""
    return compile_to(tmp_path_factory.mktemp("package") / "rco.yaml", Shape.of_run(2))


@pytest.fixture(scope="session")
def comparison_yaml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison of two branches, compiled."""
    shape = shape_of(Comparison.of({"branches": ["kd", "lr-decay"]}))
    return compile_to(tmp_path_factory.mktemp("package") / "comparison.yaml", shape)


@pytest.fixture
def stub() -> Iterator[KfpStub]:
    """It listens."""
    with KfpStub().listening() as listening:
        yield listening
