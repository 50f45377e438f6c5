"""The registered student behind `mlflow models serve`: a real server, a real request, the network's own answer."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rco.core.documents import write_json
from rco.core.settings import jsonable
from rco.core.tensors import load_arrays
from rco.data.dataset import Dataset
from rco.evaluation.measured import FILE as EVALUATION
from rco.models.normalized import Normalized
from rco.models.spec import NetworkSpec, load_network
from rco.tasks.evaluate import write_example
from rco.tasks.init import init_students
from rco.tasks.register import register_student
from rco.tasks.students import STUDENT, data_summary
from rco.tracking.context import Context
from rco.tracking.record import Record
from rco.tracking.runs import open_parent
from tests import servers
from tests.in_process import settings_of

NAME = "tiny-student"


@dataclass(frozen=True)
class Served:
    """A served student.

    Attributes:
        address: of `mlflow models serve`.
        tracking: of the MLflow server where it is registered.
        student: the same network, eager, in evaluation mode; takes pixels in 0..1.
    """

    address: str
    tracking: str
    student: torch.nn.Module

    def answer(self, pixels: np.ndarray) -> np.ndarray:
        """(B, K) logits for (B, 1, 8, 8) pixels, over HTTP."""
        reply = self.post(json.dumps({"inputs": pixels.tolist()}).encode())
        return np.asarray(reply["predictions"], dtype=np.float32)

    def post(self, body: bytes) -> Any:
        """What /invocations replies to a JSON body."""
        request = urllib.request.Request(f"{self.address}/invocations", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)

    def eager(self, pixels: np.ndarray) -> np.ndarray:
        """What the network itself answers."""
        with torch.inference_mode():
            answer: np.ndarray = self.student(torch.from_numpy(pixels)).numpy()
        return answer


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Iterator[Served]:
    """A student with weights from a seed, registered by the task of the pipeline and served."""
    folder = tmp_path_factory.mktemp("serving")
    flat = {"device": "cpu", "precision": "fp32", "threads": 1, "workers": 0, "experiment": "serving", "registered_model": NAME}
    settings = settings_of(flat)
    init = settings.branches["student"].init
    with servers.mlflow_server(folder / "mlflow") as tracking, pytest.MonkeyPatch.context() as environment:
        environment.setenv("MLFLOW_TRACKING_URI", tracking)
        environment.setenv("RCO_PIPELINE_RUN", "serving")
        open_parent(Context.from_environment(), "serving", "serving", {})
        student, evaluation = folder / "students" / "seed-0", folder / "evaluation" / "seed-0"
        init_students(jsonable(init), dataset=digits, students=student.parent)
        data = Dataset.open(digits)
        network = load_network(student / STUDENT, spec=NetworkSpec.of(init.student, data.manifest))
        write_example(evaluation, data, network)
        Record(key="student", params={}, data=data_summary(data)).write(student)
        figures = {"n": 10, "accuracy": 0.1, "cross_entropy": 2.3, "ece": 0.0, "parameters": 1, "macs": 1, "latency_ms": 1.0}
        figures |= {"confusion": [[1, 0], [0, 1]]}
        about = {"congruence_kl": 0.0, "tau": 4.0, "class_names": ["a", "b"], "device": "cpu"}
        write_json(evaluation / EVALUATION, {"student": figures, "teacher": figures, **about})
        registered = register_student(jsonable(settings.filing), students=student.parent, evaluation=evaluation.parent)
        assert (registered["version"], registered["champion"]) == ("1", True)
        arrays, _ = load_arrays(evaluation / "example.safetensors")
        eager = Normalized(network, torch.from_numpy(arrays["mean"]), torch.from_numpy(arrays["std"])).eval()
        with servers.served_model(f"models:/{NAME}@champion", tracking, folder) as address:
            yield Served(address, tracking, eager)


def test_the_logged_example_is_answered_as_the_network_answers(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", served.tracking)
    mlflow.set_tracking_uri(served.tracking)
    folder = Path(mlflow.artifacts.download_artifacts(f"models:/{NAME}/1"))
    body = (folder / "serving_input_example.json").read_bytes()
    pixels = np.asarray(json.loads(body)["inputs"], dtype=np.float32)
    assert pixels.shape == (2, 1, 8, 8)
    answer = np.asarray(served.post(body)["predictions"], dtype=np.float32)
    np.testing.assert_allclose(answer, served.eager(pixels), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_any_number_of_images_is_answered(served: Served, batch: int) -> None:
    pixels = np.random.default_rng(batch).random((batch, 1, 8, 8), dtype=np.float32)
    answer = served.answer(pixels)
    assert answer.shape == (batch, 10)
    np.testing.assert_allclose(answer, served.eager(pixels), rtol=1e-5, atol=1e-5)
    assert np.ptp(answer) > 0.1, "logits that are all alike would agree with anything"


def test_images_of_another_size_are_refused(served: Served) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        served.answer(np.zeros((1, 1, 9, 9), dtype=np.float32))
    assert refused.value.code == 400
    assert "8" in refused.value.read().decode()
