"""The open-set recipe through the tasks of the pipeline: train on seven digits, identify three."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pipelines.cli.recipes import read_recipe
from rco.core.documents import read_json
from rco.evaluation import openset
from rco.tasks.report import close_run
from rco.tracking.record import Record
from tests.in_process import Walk
from tests.local_runs import runs_of, tracking_uri

TINY = {
    "teacher": "digits-cnn-s",
    "student": "digits-mlp",
    "teacher_epochs": 4,
    "checkpoint_every": 1,
    "epochs": 4,
    "strategy": "equal-interval",
    "n_anchors": 2,
    "threads": 1,
    "workers": 0,
}


@dataclass(frozen=True)
class Walked:
    """A finished run: its tasks with what they have made, the student's record, the summary."""

    walk: Walk
    record: Record
    summary: dict[str, Any]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Walked:
    folder = tmp_path_factory.mktemp("openset")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("MLFLOW_TRACKING_URI", tracking_uri(folder))
        environment.setenv("RCO_ARTIFACT_ROOT", (folder / "artifacts").as_uri())
        environment.setenv("RCO_PIPELINE_RUN", "openset")
        walk = Walk(folder, **{**read_recipe("digits-openset"), **TINY})
        walk.prepare()
        walk.teach()
        record = walk.walk()
        walk.evaluate()
        summary = walk.report()
        close_run(succeeded=True)
    return Walked(walk, record, summary)


def test_the_figures_are_those_of_the_student_that_came_out(run: Walked) -> None:
    from rco.data.dataset import Dataset
    from rco.models.embeddings import Embedder
    from rco.models.predict import predict
    from rco.models.spec import load_network

    summary = run.summary
    assert summary["open_set"]["classes"] == ["7", "8", "9"]
    assert summary["dataset"]["num_classes"] == 7
    data = Dataset.open(run.walk.dataset)
    student = load_network(run.walk.student / "student.safetensors")
    vectors, labels = predict(Embedder(student), data.split("open"))
    assert set(labels) == {7, 8, 9}
    assert vectors.shape == (summary["dataset"]["sizes"]["open"], 16)
    measured = openset.measure(vectors, labels)
    ours = summary["open_set"]["student"]
    assert ours["rank1"] == pytest.approx(measured["rank1"], abs=1e-3)
    assert ours["tar_at_far"] == pytest.approx(measured["tar_at_far"], abs=1e-3)
    assert ours["genuine_pairs"] + ours["impostor_pairs"] == len(labels) * (len(labels) - 1) / 2
    assert summary["open_set"]["teacher"]["rank1"] != ours["rank1"]


def test_the_stages_mimicked_embeddings(run: Walked) -> None:
    assert [s["anchor_epoch"] for s in run.summary["stages"]] == [2, 4]
    assert run.record.params["objective.objective"] == "embedding"
    assert len(run.record.rows) == 4
    # Unrelated embeddings of 16 components of unit variance are about 32 apart, and the weight is 0.1.
    assert all(0 < row["metrics"]["mimic_loss"] < 3.2 for row in run.record.rows)


def test_report_and_mlflow_say_it(run: Walked) -> None:
    folder, summary = run.walk.folder / "report", run.summary
    assert json.loads((folder / "summary.json").read_text())["open_set"] == summary["open_set"]
    assert (folder / "open_set.png").read_bytes().startswith(b"\x89PNG")
    for page in ("report.md", "report.html"):
        text = (folder / page).read_text()
        assert "Classes never trained on: 7, 8, 9" in text
        assert "rank-1 among 100 distractors" in text
        assert "TAR at FAR 0.01" in text
    parent, children = runs_of(run.walk.folder, summary["parent_run_id"])
    student = children["student"]
    ours = summary["open_set"]["student"]
    assert student.data.metrics["open_tar_at_far_0.01"] == ours["tar_at_far"]["0.01"]
    assert student.data.metrics["open_rank1_at_100"] == ours["rank1"]["100"]
    assert parent.data.metrics["student_open_rank1_at_100"] == ours["rank1"]["100"]
    assert parent.data.metrics["teacher_open_rank1_at_100"] == summary["open_set"]["teacher"]["rank1"]["100"]


def test_a_comparison_measures_the_same(run: Walked, tmp_path: Path) -> None:
    import shutil

    from rco.core.settings import jsonable
    from rco.models.config import ModelConfig
    from rco.reporting.side_by_side import metrics
    from rco.reporting.student import Student
    from rco.tasks.evaluate import evaluate_students
    from rco.tasks.settings import EvaluateSettings
    from rco.training.config import ComputeConfig

    shutil.copytree(run.walk.student, tmp_path / "students" / "seed-0")
    settings = EvaluateSettings(
        branch="kd",
        teacher=ModelConfig(model="digits-cnn-s", embedding_dim=16),
        student=ModelConfig(model="digits-mlp", embedding_dim=16),
        seeds=(0,),
        tau=4.0,
        compute=ComputeConfig(device="cpu", precision="fp32", threads=1, workers=0),
    )
    evaluate_students(
        jsonable(settings),
        dataset=run.walk.dataset,
        students=tmp_path / "students",
        anchors=run.walk.route,
        evaluation=tmp_path / "evaluation",
    )
    folder = tmp_path / "evaluation" / "seed-0"
    evaluation = read_json(folder / "evaluation.json")
    figures = metrics(Student(record=Record.read(folder), evaluation=evaluation))
    expected = {**openset.figures(run.summary["open_set"]["student"]), "test_accuracy": run.summary["student"]["accuracy"]}
    assert {name: figures[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    theirs = openset.figures(run.summary["open_set"]["teacher"])
    assert openset.figures(evaluation["open_set"]["teacher"]) == pytest.approx(theirs, abs=1e-6)
