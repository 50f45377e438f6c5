"""MLflow as people have it: folders, servers without logged models, servers with many experiments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.local.work import execute
from rco.core.errors import InputError
from rco.core.tensors import save_model
from rco.models.spec import save_network
from rco.tasks.check import check, mention_anchors
from rco.tracking import anchors, probe, registry
from rco.tracking.context import Context
from rco.tracking.model_run import ModelRun
from rco.tracking.probe import has_logged_models
from rco.tracking.registry import load, register, registered_version
from rco.tracking.runs import find_parent, open_parent
from rco.tracking.tracker import tracked
from tests import faults
from tests.tasks.test_tracking import SPEC, anchor, children, context, opened, record, server

__all__ = ["server"]  # a fixture


class TestAFolder:
    """MLFLOW_TRACKING_URI=./mlruns, as it was in every tutorial."""

    WORDS = (
        r"MLFLOW_TRACKING_URI = .*mlruns.*: is a folder.*Name a database: sqlite:///mlflow.db .*MLFLOW_ALLOW_FILE_STORE=true"
    )

    @pytest.mark.parametrize("address", ["./mlruns", "mlruns", "file:mlruns", "{folder}/mlruns", "file://{folder}/mlruns"])
    def test_is_refused_in_one_line(self, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(InputError, match=self.WORDS) as refused:
            Context(tracking_uri=address.format(folder=tmp_path), pipeline_run="x").client()
        assert "\n" not in str(refused.value)
        assert not list(tmp_path.iterdir())

    def test_before_anything_starts(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", str(tmp_path / "mlruns"))
        folder = tmp_path / "run"
        folder.mkdir()
        request = {"pipeline": "run", "parameters": {}, "home": str(tmp_path), "cache": True, "folder": str(folder)}
        with pytest.raises(InputError, match=self.WORDS):
            execute(request, None)
        with pytest.raises(InputError, match=self.WORDS):
            check({}, compiled={})
        assert not list(folder.iterdir())

    def test_is_used_where_mlflow_is_told_to(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        where = Context(tracking_uri=str(tmp_path / "mlruns"), pipeline_run="folder")
        open_parent(where, "tests", "folder", {})
        assert find_parent(where, where.client()) is not None


class TestWithoutLoggedModels:
    @pytest.mark.parametrize(
        ("status", "body"), [(404, b"<!doctype html><title>404 Not Found</title>"), (405, b""), (501, b"")]
    )
    def test_it_is_told_from_the_answer(self, status: int, body: bytes) -> None:
        with faults.Proxy("http://127.0.0.1:9") as proxy:
            proxy.inject(faults.Fault(answer=(status, body)), path="logged-models", times=None)
            client = Context(tracking_uri=proxy.address, pipeline_run="x").client()
            assert not has_logged_models(client, "0")
            assert not has_logged_models(client, "0")
            assert proxy.injected == 1, "what is known is not asked again"

    def test_another_failure_says_nothing(self) -> None:
        with faults.Proxy("http://127.0.0.1:9") as proxy:
            proxy.inject(faults.Fault(answer=(403, b"")), path="logged-models", times=None)
            client = Context(tracking_uri=proxy.address, pipeline_run="x").client()
            with pytest.raises(Exception, match="403"):
                has_logged_models(client, "0")

    @pytest.fixture
    def older(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for module in (anchors, registry, probe):
            monkeypatch.setattr(module, "has_logged_models", lambda *_: False)
        monkeypatch.setattr("rco.tasks.check.has_logged_models", lambda *_: False)

    def test_it_is_said_at_the_start(self, older: None, server: Path, said: Any) -> None:
        where, _ = opened(server, "older-said")
        mention_anchors(where)
        assert "has no logged models (MLflow 3 has): anchors become plain artifacts of their students' runs" in said()

    def test_anchors_are_artifacts_of_the_run(self, older: None, server: Path, tmp_path: Path) -> None:
        where, client = opened(server, "older")
        for _ in range(2):  # a task that is tried again
            with tracked(where, record()) as tracker:
                tracker.log_anchor(anchor(tmp_path, 12, seed=1))
        (child,) = children(client, "older")
        address = child.data.tags["rco.anchor.12"]
        assert address == f"runs:/{child.info.run_id}/anchors/epoch-0012"
        assert (child.data.metrics["anchor_val_accuracy"], child.data.metrics["anchor_hardness"]) == (0.5, 0.25)
        loaded = load(address, tracking_uri=where.tracking_uri)
        assert save_model(tmp_path / "x", loaded) == save_model(tmp_path / "y", SPEC.build(1).eval())

    def test_a_student_is_registered(self, older: None, server: Path, tmp_path: Path) -> None:
        import mlflow

        where, client = opened(server, "older-student")
        model = SPEC.build(0).eval()
        pixels = np.random.default_rng(0).random((2, 1, 8, 8), dtype=np.float32)
        with torch.inference_mode():
            logits = model(torch.from_numpy(pixels)).numpy()
        weights = tmp_path / "student.safetensors"
        digest = save_network(weights, model, SPEC)
        given = {"example": pixels, "expected": logits, "weights": weights, "sha256": digest, "params": {}}
        assert register(where, "older-student", model, record(rows=1), **given) == "1"
        assert registered_version(where, "older-student", digest) == "1"
        (child,) = children(client, "older-student")
        assert child.info.status == "FINISHED"
        found = mlflow.pyfunc.load_model("models:/older-student/1").predict(pixels)
        np.testing.assert_allclose(found, logits, rtol=0, atol=1e-5)
        loaded = load("models:/older-student/1", tracking_uri=where.tracking_uri)
        assert save_model(tmp_path / "x", loaded) == save_model(tmp_path / "y", model)


@pytest.mark.parametrize("named", [True, False])
def test_the_experiments_of_others_are_never_listed(named: bool, server: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where, client = opened(server, f"shared-{named}")
    theirs = {client.create_experiment(f"theirs {named} {i}") for i in range(5)}
    seen: list[str] = []
    look = type(client).search_experiments

    def search(self: Any, *arguments: Any, **more: Any) -> Any:
        page = look(self, *arguments, **more)
        seen.extend(experiment.experiment_id for experiment in page)
        return page

    monkeypatch.setattr(type(client), "search_experiments", search)
    where = Context(**{**vars(where), "experiment": "tests" if named else ""})
    ModelRun.open(where, client, record(rows=1)).end()
    own = client.get_experiment_by_name("tests").experiment_id
    assert seen == [] if named else own in seen
    assert not theirs & {*seen}


def test_a_run_in_another_experiment_than_the_named_one_is_found(server: Path) -> None:
    _, client = opened(server, "elsewhere")
    client.create_experiment("named, and not used")
    where = Context(**{**vars(context(server, "elsewhere")), "experiment": "named, and not used"})
    parent = find_parent(where, client)
    assert parent is not None
    assert parent.data.params == {"tau": "4.0"}
