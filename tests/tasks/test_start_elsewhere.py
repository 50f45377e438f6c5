"""Weights to begin with that lie in a store or in MLflow's registry: the same file, and its digest, as beside the task."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from rco.core.errors import InputError
from rco.core.storage.s3 import ENDPOINTS, make_client
from rco.models.config import StartConfig
from rco.models.spec import save_network
from rco.tasks.weights import check_start, initial_networks
from rco.tracking.registry import register
from tests.tasks.test_tracking import SPEC, opened, record, server
from tests.unit.test_start import same

__all__ = ["server"]


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    save_network(tmp_path / "trained.safetensors", SPEC.build(7).eval(), SPEC)
    return tmp_path / "trained.safetensors"


def begun(address: str) -> tuple[str, torch.nn.Module]:
    """The digest that a check notes of the weights, and the network that a task begins with."""
    start = check_start("student", StartConfig(weights=address), SPEC)
    assert start is not None
    ((_, model),) = initial_networks("student", start, SPEC, (0,))
    return start.sha256, model


@pytest.mark.parametrize("key", ["weights/trained.safetensors", "weights"])
def test_in_a_store(key: str, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from moto import mock_aws

    for name in ENDPOINTS:
        monkeypatch.delenv(name, raising=False)
    for name, value in {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_REGION": "us-east-1"}.items():
        monkeypatch.setenv(name, value)
    with mock_aws():
        client = make_client()
        client.create_bucket(Bucket="bucket")
        client.put_object(Bucket="bucket", Key="weights/trained.safetensors", Body=weights.read_bytes())
        digest, model = begun(f"s3://bucket/{key}")
        with pytest.raises(InputError, match=r"student_weights = 's3://bucket/nothing'"):
            begun("s3://bucket/nothing")
    assert digest == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert same(model, SPEC.build(7))


def test_of_a_registered_student(server: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where, _ = opened(server, "begins-again")
    pixels = np.random.default_rng(0).random((2, 1, 8, 8), dtype=np.float32)
    model = SPEC.build(7).eval()
    with torch.inference_mode():
        logits = model(torch.from_numpy(pixels)).numpy()
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    given = {"example": pixels, "expected": logits, "weights": weights, "sha256": digest, "params": {}}
    assert register(where, "begins-again", model, record(rows=1), **given) == "1"
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)  # MLflow puts it there
    with pytest.raises(InputError, match=r"student_weights = 'models:/begins-again/1': .* no server is named"):
        begun("models:/begins-again/1")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", where.tracking_uri)
    found, model = begun("models:/begins-again/1")
    assert (found, same(model, SPEC.build(7))) == (digest, True)
