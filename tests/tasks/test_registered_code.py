"""A student that cannot be traced is registered as its factory's code and its weights."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import safetensors
import torch
from click.testing import CliRunner

from pipelines.cli.main import main
from rco.core.code import importable
from rco.core.documents import write_json
from rco.core.settings import jsonable
from rco.core.tensors import load_arrays
from rco.data.dataset import Dataset
from rco.evaluation.measured import FILE as EVALUATION
from rco.models.normalized import Normalized, untraceable
from rco.models.spec import NetworkSpec, save_network
from rco.tasks.evaluate import write_example
from rco.tasks.students import STUDENT
from rco.tracking.registry import load
from tests.in_process import settings_of
from tests.tasks.test_outbox import kept, report
from tests.tasks.test_tracking import record, server

__all__ = ["report", "server"]  # fixtures

MODULE = """
import torch
from of_mine_layers import two

class Net(torch.nn.Module):
    def __init__(self, classes, pixels):
        super().__init__()
        self.layers = two(pixels, classes)

    def forward(self, images):
        logits = self.layers(images.flatten(1))
        return logits * 2 if logits.sum() > 0 else logits - 1

def net(num_classes, **kwargs):
    return make(num_classes, **kwargs)

def make(num_classes, in_channels, image_size):
    return Net(num_classes, in_channels * image_size**2)
"""
LAYERS = """
from torch import nn

def two(inputs, outputs):
    return nn.Sequential(nn.Linear(inputs, 8), nn.ReLU(), nn.Linear(8, outputs))
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with a user's modules that Python has not been told of."""
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    (tmp_path / "of_mine.py").write_text(MODULE)
    (tmp_path / "of_mine_layers.py").write_text(LAYERS)
    (tmp_path / "not_asked_for.py").write_text("SECRET = 1\n")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in ("of_mine", "of_mine_layers"):
        sys.modules.pop(name, None)


def waiting(folder: Path, digits: Path) -> tuple[Path, Path, NetworkSpec]:
    """A student and its evaluation, as a report keeps them; and what the student is."""
    data = Dataset.open(digits)
    student, evaluation = folder / "student", folder / "evaluation"
    spec = NetworkSpec(model="of_mine:net", stem="auto", in_channels=1, num_classes=10, image_size=8)
    network = spec.build(0).eval()
    save_network(student / STUDENT, network, spec)
    record(rows=1).write(student)
    write_example(evaluation, data, network)
    figures = {"n": 10, "accuracy": 0.1, "cross_entropy": 2.3, "ece": 0.0, "parameters": 1, "macs": 1, "latency_ms": 1.0}
    figures |= {"confusion": [[1, 0], [0, 1]]}
    about = {"congruence_kl": 0.0, "tau": 4.0, "class_names": ["a", "b"], "device": "cpu"}
    write_json(evaluation / EVALUATION, {"student": figures, "teacher": figures, **about})
    return student, evaluation, spec


def keep(folder: Path, digits: Path, server: Path, report: Path, run: str) -> NetworkSpec:
    """A report that waits, with the student's registration."""
    sys.path.insert(0, str(folder))  # as in the run that has trained it
    student, evaluation, spec = waiting(folder / "made", digits)
    settings = settings_of({"student": spec.model, "device": "cpu", "registered_model": run})
    sys.path.remove(str(folder))

    def registration(target: Path) -> None:
        shutil.copytree(student, target / "student")
        shutil.copytree(evaluation, target / "evaluation")
        write_json(target / "settings.json", jsonable(settings.filing))

    kept(server, report, run, registration=registration)
    return spec


def test_it_is_registered_without_a_trace_and_without_pickle(here: Path, digits: Path, server: Path, report: Path) -> None:
    import mlflow

    run = "of-mine"
    spec = keep(here, digits, server, report, run)
    done = CliRunner().invoke(main, ["sync", "--home", str(here)])
    assert done.exit_code == 0, done.output
    assert "delivered, run" in done.output
    folder = Path(mlflow.artifacts.download_artifacts(f"models:/{run}/1"))
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {"code/of_mine.py", "code/of_mine_layers.py", "artifacts/student.safetensors", "served.py"} <= names
    assert not [name for name in names if name.endswith((".pkl", ".pt", ".pth")) or "not_asked_for" in name]
    assert f"safetensors=={safetensors.__version__}" in (folder / "requirements.txt").read_text()
    (tag,) = (version.tags["rco.not_traced"] for version in mlflow.MlflowClient().search_model_versions(f"name = '{run}'"))
    assert "data-dependent" in tag

    arrays, _ = load_arrays(here / "made" / "evaluation" / "example.safetensors")
    bare = load(f"models:/{run}/1", model=spec)
    whole = Normalized(bare, torch.from_numpy(arrays["mean"]), torch.from_numpy(arrays["std"])).eval()
    for name in ("of_mine", "of_mine_layers"):
        sys.modules.pop(name)
    sys.path = [entry for entry in sys.path if entry != str(here)]
    os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
    served = mlflow.pyfunc.load_model(f"models:/{run}/1")
    for count in (1, 3):
        pixels = np.random.default_rng(count).random((count, 1, 8, 8), dtype=np.float32)
        with torch.inference_mode():
            expected = whole(torch.from_numpy(pixels)).numpy()
        assert np.array_equal(served.predict(pixels), expected)
        assert np.ptp(expected) > 0
    assert not str(sys.modules["of_mine"].__file__).startswith(str(here / "of_mine"))


def test_what_keeps_a_registration_waiting_is_said(
    here: Path, digits: Path, server: Path, report: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not always the server that is away."""
    import mlflow

    def full(**given: object) -> None:
        raise OSError(28, "No space left on device")

    keep(here, digits, server, report, "full")
    monkeypatch.setattr(mlflow.pyfunc, "log_model", full)
    done = CliRunner().invoke(main, ["sync", "--home", str(here)])
    assert done.exit_code == 1
    assert "not delivered, and kept (OSError: [Errno 28] No space left on device)" in done.output
    assert (report / "outbox" / "registration").is_dir()


def test_a_network_that_can_be_traced_needs_no_code() -> None:
    network = NetworkSpec(model="digits-mlp", stem="auto", in_channels=1, num_classes=10, image_size=8).build(0).eval()
    assert untraceable(network, np.zeros((2, 1, 8, 8), np.float32)) == ""


def test_what_another_machine_needs_to_import_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert importable("safetensors.torch").requirements == (f"safetensors=={safetensors.__version__}",)
    (tmp_path / "of_mine_package").mkdir()
    (tmp_path / "of_mine_package" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert importable("of_mine_package.nets").paths == (tmp_path / "of_mine_package",)
    assert importable("nowhere") == importable("nowhere.at_all")
