"""A real server without logged models, as MLflow 2 and some hosted ones: a run, its anchor and its student all arrive."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from rco.core.files import sha256_of
from rco.models.spec import save_network
from rco.tasks.services import WARN, mlflow
from rco.tracking.context import Context
from rco.tracking.registry import load, register
from rco.tracking.runs import open_parent
from rco.tracking.tracker import tracked
from tests import faults, servers
from tests.tasks.test_tracking import SPEC, anchor, children, record


@pytest.fixture
def older(tmp_path: Path) -> Iterator[faults.Proxy]:
    with servers.mlflow_server(tmp_path / "server") as address, faults.Proxy(address) as proxy:
        proxy.inject(
            faults.Fault(answer=(404, b"<!doctype html><title>404 Not Found</title>")), path="logged-models", times=None
        )
        yield proxy


def test_all_arrives(older: faults.Proxy, tmp_path: Path) -> None:
    where = Context(tracking_uri=older.address, pipeline_run="older")
    open_parent(where, "tests", "older", {})
    (found,) = mlflow(where)
    assert found.status == WARN
    assert "it has no logged models (MLflow 3 has), and anchors become plain artifacts" in found.next_step
    asked = older.injected
    travelling = record()
    with tracked(where, travelling) as tracker:
        tracker.log(1, {"loss": 1.0})
        tracker.log_anchor(anchor(tmp_path / "anchor", 12, seed=1))
    assert older.injected == asked, "what is known is not asked again"
    client = where.client()
    (child,) = children(client, "older")
    assert child.info.status == "FINISHED"
    assert load(child.data.tags["rco.anchor.12"], tracking_uri=older.address) is not None

    model = SPEC.build(0).eval()
    pixels = np.random.default_rng(0).random((2, 1, 8, 8), dtype=np.float32)
    with torch.inference_mode():
        logits = model(torch.from_numpy(pixels)).numpy()
    weights = tmp_path / "student.safetensors"
    save_network(weights, model, SPEC)
    given = {"example": pixels, "expected": logits, "weights": weights, "sha256": sha256_of(weights), "params": {}}
    assert register(where, "older", model, travelling, **given) == "1"
    version = client.get_model_version("older", "1")
    assert version.run_id == child.info.run_id
    assert load("models:/older/1", tracking_uri=older.address) is not None
