"""`export` of a run: said at the check if it cannot be done, done beside the evaluation, and told to people and to MLflow."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rco.config.branches import Comparison
from rco.config.parameters import RunConfig
from rco.core.documents import read_json
from rco.core.errors import InputError
from rco.exporting import formats
from rco.exporting.config import FILES
from rco.tasks.check import check
from rco.tasks.preflight import preflight
from rco.tasks.register import register_student
from rco.tasks.report import report, sync
from rco.tracking import outbox
from rco.tracking.context import Context
from tests.in_process import Walk, changed, settings_of
from tests.tasks.test_tracking import server

__all__ = ["server"]  # a fixture

SMALL: dict[str, Any] = {
    **{"teacher": "digits-mlp", "student": "digits-mlp", "teacher_epochs": 1, "checkpoint_every": 1, "epochs": 1},
    **{"n_anchors": 1, "teacher_warmup_epochs": 0, "warmup_epochs": 0, "device": "cpu", "threads": 1},
}
DECIDING = """
from torch import nn
class Deciding(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.layer = nn.Linear(64, num_classes)
    def forward(self, x):
        logits = self.layer(x.flatten(1))
        return logits if logits.sum() > 0 else logits * 1.0
"""


@pytest.fixture(scope="module")
def walked(server: Path, tmp_path_factory: pytest.TempPathFactory) -> Walk:
    """A run up to its evaluation. The ONNX file of 8 bits cannot be made."""

    def refuse(*arguments: Any) -> formats.Exported:
        raise InputError("format", "int8", "cannot be made of this network", "Take onnx")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rco.exporting.export.to_int8", refuse)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{server}/mlflow.db")
        patch.setenv("RCO_ARTIFACT_ROOT", (server / "artifacts").as_uri())
        patch.setenv("RCO_PIPELINE_RUN", "exported")
        walk = Walk(tmp_path_factory.mktemp("walk"), **SMALL, export=["onnx", "int8"], experiment="exported")
        walk.prepare()
        walk.teach()
        walk.walk()
        walk.evaluate()
    return walk


@pytest.fixture
def tracked(server: Path) -> Context:
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{server}/mlflow.db"
    os.environ["RCO_ARTIFACT_ROOT"] = (server / "artifacts").as_uri()
    os.environ["RCO_PIPELINE_RUN"] = "exported"
    return Context.from_environment()


def reported(walk: Walk, folder: Path, registered: dict[str, Any]) -> dict[str, Any]:
    given = {"route": walk.route, "route_index": walk.index, "students": walk.students, "evaluations": [walk.evaluation]}
    return dict(report(walk.settings["filing"], registered=registered, folder=folder, **given))


def test_files_are_beside_the_report_and_in_the_students_run(walked: Walk, tracked: Context, tmp_path: Path) -> None:
    import mlflow

    filing = walked.settings["filing"]
    registered = register_student(filing, students=walked.students, evaluation=walked.evaluation)
    summary = reported(walked, tmp_path, registered)
    torch, onnx, int8 = summary["export"]
    assert [torch["format"], onnx["format"], int8["format"]] == ["PyTorch", "onnx", "int8"]
    assert int8 == {"format": "int8", "problem": "cannot be made of this network. Take onnx"}
    file = tmp_path / "export" / FILES["onnx"]
    assert onnx["size"] == file.stat().st_size
    assert 0 <= onnx["difference"] < formats.TOLERANCE
    assert onnx["accuracy"] == torch["accuracy"] == pytest.approx(summary["student"]["val_accuracy"])
    assert min(onnx["latency_ms"], torch["latency_ms"]) > 0
    answers = formats.open_onnx(file).answers(np.zeros((3, 1, 8, 8), np.float32))
    assert answers.shape == (3, 10)

    page = (tmp_path / "report.html").read_text()
    assert f"<td>onnx</td><td>{onnx['size']:,}</td>" in page
    assert "not written: cannot be made of this network" in page

    client = tracked.client()
    version = client.get_model_version(registered["name"], registered["version"])
    assert set(version.tags) & {"rco.export.onnx", "rco.export.int8"} == {"rco.export.onnx"}
    fetched = Path(mlflow.artifacts.download_artifacts(version.tags["rco.export.onnx"], dst_path=str(tmp_path / "fetched")))
    assert fetched.read_bytes() == file.read_bytes()
    run = client.get_run(version.tags["rco.export.onnx"].split("/")[1])
    assert (run.data.tags["rco.key"], run.info.status) == ("student", "FINISHED")
    assert "rco.attempts" not in run.data.tags
    assert run.data.metrics["export_onnx_size"] == onnx["size"]
    assert run.data.metrics["export_onnx_latency_ms"] == pytest.approx(onnx["latency_ms"])
    assert not [name for name in run.data.metrics if name.startswith("export_int8")]


def test_what_the_server_has_missed_arrives_with_the_report(walked: Walk, tracked: Context, tmp_path: Path) -> None:
    os.environ["MLFLOW_TRACKING_URI"] = "http://127.0.0.1:9"
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    os.environ["RCO_PIPELINE_RUN"] = "missed"
    folder = tmp_path / "report"
    reported(walked, folder, {})
    assert outbox.waiting(folder)
    assert not list(folder.glob("outbox/**/*.onnx"))  # once is enough
    os.environ["MLFLOW_TRACKING_URI"] = tracked.tracking_uri
    assert sync(folder, anywhere=True)
    client = tracked.client()
    (version, *_) = client.search_model_versions("name = 'rco-student'")
    run_id = version.tags["rco.export.onnx"].split("/")[1]
    assert [a.path for a in client.list_artifacts(run_id, "export")] == ["export/student.onnx"]
    assert client.get_run(run_id).data.tags["rco.pipeline_run"] == "missed"

    reported(walked, folder, {})  # delivered, but for the registration
    index = folder / outbox.FOLDER / "outbox.json"
    index.write_text(index.read_text().replace('"student.onnx"', '"../student.onnx"'))
    with pytest.raises(InputError, match="is damaged"):
        outbox.take(folder)


def test_nothing_is_exported_unasked(walked: Walk) -> None:
    plain = settings_of(SMALL)
    assert "export" not in plain.outputs()["evaluate_student"]
    assert changed(plain, settings_of({**SMALL, "export": ["pt2"]})) == {"evaluate", "filing"}
    assert [row["format"] for row in read_json(walked.evaluation / "seed-0" / "evaluation.json")["export"]][1:] == [
        "onnx",
        "int8",
    ]
    with pytest.raises(InputError, match="export"):
        Comparison.of({"export": ["onnx"]})


@pytest.mark.parametrize(
    ("export", "words"),
    [
        ("onx", "export = 'onx': is not known. Did you mean 'onnx'"),
        ("pt2,pt2", "names a format twice"),
    ],
)
def test_formats_are_known_ones(export: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        RunConfig.from_flat({"export": export})
    assert words in str(caught.value)


def test_the_check_refuses_what_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(InputError) as caught:
        settings_of({**SMALL, "export": ["pt2", "int8"]})
    assert str(caught.value) == (
        "export = 'int8': needs a library that is not installed (onnxruntime). "
        "Install it: pip install 'rco[export]', or leave out int8"
    )
    settings_of({**SMALL, "export": ["pt2"]})


def test_the_check_says_what_cannot_be_traced(
    said: Callable[[], str], server: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "decide.py").write_text(DECIDING)
    monkeypatch.syspath_prepend(tmp_path)
    mine = {**SMALL, "student": "decide:Deciding"}
    with pytest.raises(InputError, match=r"student = 'decide:Deciding': cannot be traced .*; or leave out export"):
        preflight(Comparison.of_run(RunConfig.from_flat({**mine, "export": ["pt2"]})))
    check(mine, compiled={"student": 1})  # untracked, nothing is registered
    assert "traced graph" not in said()
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{server}/mlflow.db"
    os.environ["RCO_PIPELINE_RUN"] = "deciding"
    check({**mine, "registered_model": ""}, compiled={"student": 1})
    assert "traced graph" not in said()
    check(mine, compiled={"student": 1})
    assert "the registry cannot have decide:Deciding as a traced graph: it cannot be traced by torch.export" in said()
