"""The real pipeline, run locally through KFP on real digits: figures, MLflow, the cache, failures.

One home for all of them, so that the teacher is trained once and the rest comes from the cache, as it would for a user. One
strategy goes through KFP; the others follow the same teacher's route by the same tasks, called in this process. What kills a
run is in tests/chaos; other ways that it can go, in tests/release/test_whole_runs.py.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from pipelines.cli.main import main
from pipelines.local import run as outer
from pipelines.local import work
from pipelines.local.run import interruptible
from rco.config.parameters import RunConfig
from rco.core.files import sha256_of
from rco.core.tensors import load_arrays
from rco.evaluation.measured import read_evaluation
from rco.tasks.process import log
from rco.tasks.report import close_run
from rco.tracking.context import Context
from rco.tracking.runs import require_parent
from tests import zygote
from tests.hostile import hostile_pickle, with_record
from tests.in_process import Walk, settings_of
from tests.local_runs import (
    TINY,
    Ran,
    client,
    paragraphs,
    runs_of,
    shows_everything,
    tiny,
    tracking_uri,
)

pytestmark = pytest.mark.usefixtures("_zygote")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def first(home: Path) -> Ran:
    return Ran(home, strategy="equal-interval")


class TestFirstRun:
    def test_summary_has_every_figure(self, first: Ran) -> None:
        summary = json.loads((first.home / "last-run" / "summary.json").read_text())
        assert summary == first.summary
        assert [s["stage"] for s in summary["stages"]] == [1, 2, 3]
        assert [s["anchor_epoch"] for s in summary["stages"]] == [2, 4, 6]
        for stage in summary["stages"]:
            assert 0 <= stage["val_accuracy"] <= 1
            assert stage["kl_to_anchor"] > 0
            assert stage["kl_to_teacher"] > 0
            assert stage["reason"]
        # In the last stage the anchor is the teacher.
        assert summary["stages"][-1]["kl_to_anchor"] == summary["stages"][-1]["kl_to_teacher"]
        for role in ("teacher", "student"):
            assert summary[role]["accuracy"] > 0.3
            assert summary[role]["parameters"] > 0
            assert summary[role]["macs"] > 0
            assert summary[role]["latency_ms"] > 0
            assert 0 < summary[role]["macro_f1"] <= 1
            assert [row["recall"] for row in summary[role]["per_class"]] == summary[role]["per_class_accuracy"]
        assert summary["tracking_uri"].startswith("sqlite:///")

    def test_pictures_page_and_student_are_there(self, first: Ran) -> None:
        folder = first.home / "last-run"
        for name in ("route", "student", "hardness", "confusion"):
            assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "converged" not in (folder / "report.html").read_text()[:200]
        assert "| 3 | 6 |" in (folder / "report.md").read_text()
        assert "macro F1" in (folder / "report.html").read_text()
        assert (folder / "per_class.csv").read_text().startswith("class,test_images,student_precision,")
        from rco.models.spec import load_network

        assert load_network(folder / "student" / "student.safetensors")

    def test_mlflow_has_a_parent_a_child_per_model_and_one_axis(self, first: Ran) -> None:
        parent, children = runs_of(first.home, first.summary["parent_run_id"])
        assert set(children) == {"teacher", "student"}
        assert {r.info.status for r in (parent, *children.values())} == {"FINISHED"}
        assert parent.data.metrics["student_test_accuracy"] == first.summary["student"]["accuracy"]
        for name in ("balanced_accuracy", "macro_f1", "top5"):
            assert parent.data.metrics[f"student_test_{name}"] == first.summary["student"][name]
            assert children["student"].data.metrics[f"test_{name}"] == first.summary["student"][name]
        c = client(first.home)
        history = c.get_metric_history(children["student"].info.run_id, "val_accuracy")
        assert [m.step for m in history] == [1, 2, 3, 4, 5, 6]
        stages = c.get_metric_history(children["student"].info.run_id, "stage")
        assert [m.value for m in stages] == [1, 1, 2, 2, 3, 3]
        assert children["student"].data.params["objective.tau"] == "4.0"
        (dataset,) = children["student"].inputs.dataset_inputs
        assert dataset.dataset.name == "digits"
        assert first.summary["dataset"]["digest"].startswith(dataset.dataset.digest)
        assert {a.path for a in c.list_artifacts(parent.info.run_id, "report")} >= {
            *("report/report.html", "report/route.png", "report/per_class.csv")
        }

    def test_every_anchor_is_a_logged_model_that_loads(self, first: Ran) -> None:
        import mlflow

        import rco

        parent, _ = runs_of(first.home, first.summary["parent_run_id"])
        c = client(first.home)
        anchors = c.search_logged_models([parent.info.experiment_id], "model_type = 'anchor'")
        by_epoch = {int(m.tags["rco.epoch"]): m for m in anchors}
        assert set(by_epoch) >= {2, 4, 6}
        for stage in first.summary["stages"]:
            model = by_epoch[stage["anchor_epoch"]]
            assert model.tags["rco.sha256"] == stage["anchor_sha256"]
            assert any(m.key == "anchor_val_accuracy" and m.step == stage["anchor_epoch"] for m in model.metrics)
            folder = Path(mlflow.artifacts.download_artifacts(f"models:/{model.model_id}"))
            assert sha256_of(folder / "anchor.safetensors") == stage["anchor_sha256"]
            module = rco.load(f"models:/{model.model_id}", tracking_uri=f"sqlite:///{first.home}/mlflow.db")
            assert not module.training
            assert all(p.shape for p in module.parameters())

    def test_registered_student_answers_without_pickle(self, first: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", raising=False)
        import mlflow

        Context(tracking_uri=f"sqlite:///{first.home}/mlflow.db", pipeline_run="").client()  # it is this that sets it
        name, version = first.summary["registered"]["name"], first.summary["registered"]["version"]
        served = mlflow.pyfunc.load_model(f"models:/{name}/{version}")
        assert served.metadata.signature.inputs.inputs[0].shape == (-1, 1, 8, 8)
        assert served.input_example is not None
        import torch

        from rco.models.spec import load_network

        pixels = np.random.default_rng(0).random((5, 1, 8, 8), dtype=np.float32)
        eager = load_network(first.home / "last-run" / "student" / "student.safetensors")
        (example,) = (first.home / "pipeline").rglob("example.safetensors")
        arrays, _ = load_arrays(example)
        with torch.inference_mode():
            expected = eager(torch.from_numpy((pixels - arrays["mean"]) / arrays["std"])).numpy()
        np.testing.assert_allclose(served.predict(pixels), expected, atol=1e-4)

    def test_a_registered_student_that_somebody_changed_is_refused(
        self, first: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", raising=False)
        import mlflow

        Context(tracking_uri=f"sqlite:///{first.home}/mlflow.db", pipeline_run="").client()  # it is this that sets it
        name, version = first.summary["registered"]["name"], first.summary["registered"]["version"]
        folder = Path(mlflow.artifacts.download_artifacts(f"models:/{name}/{version}", dst_path=str(tmp_path)))
        (program,) = folder.rglob("*.pt2")
        whole, canary = program.read_bytes(), tmp_path / "owned"
        for part in ("sample_inputs", "weight_0"):
            pickled = with_record(whole, part, hostile_pickle(canary))
            config = json.dumps({"config": {"x": {"path_name": "weight_0", "use_pickle": True, "is_param": True}}})
            program.write_bytes(with_record(pickled, "model_weights_config", config.encode()))
            with pytest.raises(mlflow.exceptions.MlflowException, match="pickle"):
                mlflow.pyfunc.load_model(str(folder))
        assert not canary.exists()


def test_second_run_trains_nothing_and_shows_everything(first: Ran, monkeypatch: pytest.MonkeyPatch) -> None:
    # A fixed name of the image would hide edits of the code from the local cache: it counts on clusters only.
    monkeypatch.setenv("RCO_IMAGE", "registry.example/rco:fixed")
    second = Ran(first.home, strategy="equal-interval")
    assert {"prepare-data", "train-teacher", "init-students", "distill-students", "evaluate-students"} <= second.cached
    shows_everything(first, second)


class Followed(Walk):
    """A student that follows the route of the first run, with what that run's tasks have made, in a run of its own in MLflow.

    Attributes:
        cached: the tasks whose settings are those of the first run, so that a pipeline would not run them again.
    """

    def __init__(self, first: Ran, folder: Path, monkeypatch: pytest.MonkeyPatch, **parameters: Any) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri(first.home))
        monkeypatch.setenv("RCO_ARTIFACT_ROOT", (first.home / "artifacts").as_uri())
        monkeypatch.setenv("RCO_PIPELINE_RUN", folder.name)
        super().__init__(folder, **tiny(**parameters))
        made = next(path.parents[1] for path in (first.home / "pipeline").glob("*/prepare-data/dataset"))
        self.dataset = made / "prepare-data" / "dataset"
        self.route, self.index = made / "train-teacher" / "route", made / "train-teacher" / "route_index"
        of_first = settings_of({**TINY, "strategy": "equal-interval"}).outputs()
        self.cached = {task for task, given in self.settings.items() if of_first[task] == given}

    def history(self, metric: str) -> list[int]:
        """The epochs of which MLflow has a metric of the student."""
        context = Context.from_environment()
        parent = require_parent(context, context.client())
        _, children = runs_of(Path(context.tracking_uri.removeprefix("sqlite:///")).parent, parent.info.run_id)
        self.params, self.tags = children["student"].data.params, children["student"].data.tags
        return [m.step for m in context.client().get_metric_history(children["student"].info.run_id, metric)]


@pytest.fixture
def follow(first: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Followed]]:
    """Makes a walk along the first run's route; its runs in MLflow are closed afterwards, as by a pipeline's exit task."""
    yield lambda **parameters: Followed(first, tmp_path, monkeypatch, **parameters)
    close_run(succeeded=True)


@pytest.mark.parametrize(
    ("parameters", "epochs"),
    [
        ({"strategy": "lr-decay"}, [2, 4, 6]),
        ({"strategy": "explicit", "anchor_epochs": [3, 6]}, [3, 6]),
        ({"strategy": "greedy", "delta": 1000.0}, [1, 6]),
        ({"strategy": "accuracy-interval"}, [1, 3, 6]),
        ({"strategy": "worthy"}, [2, 6]),
        ({"strategy": "checkpoint-ensemble", "members": 2}, [2]),
    ],
)
def test_every_strategy_walks_the_same_teachers_route(
    follow: Callable[..., Followed], parameters: dict[str, Any], epochs: list[int]
) -> None:
    walk = follow(**parameters)
    assert {"data", "teacher"} <= walk.cached
    record = walk.walk()
    assert [stage["anchor_epoch"] for stage in record.stages] == epochs
    assert record.stages[-1]["last_epoch"] == TINY["epochs"], "all of the student's epochs are used"
    assert walk.history("loss") == [1, 2, 3, 4, 5, 6]


def test_each_of_several_anchors_is_a_model_of_its_own(follow: Callable[..., Followed]) -> None:
    walk = follow(strategy="checkpoint-ensemble", members=3, members_to=4)
    (stage,) = walk.walk().stages
    walk.history("loss")
    for anchor in stage["anchors"]:
        model = Context.from_environment().client().get_logged_model(walk.tags[f"rco.anchor.{anchor['epoch']}"])
        assert model.tags["rco.sha256"] == anchor["sha256"]
    assert {tag for tag in walk.tags if tag.startswith("rco.anchor.")} == {"rco.anchor.1", "rco.anchor.2", "rco.anchor.4"}


def test_another_objective_walks_the_same_teachers_route_and_logs_its_parts(follow: Callable[..., Followed]) -> None:
    hint = {"objective": "hint", "student_tap": "2", "teacher_tap": "input:classifier"}
    walk = follow(strategy="explicit", anchor_epochs=[3, 6], **hint)
    assert {"data", "teacher", "init_student"} <= walk.cached
    assert [stage["anchor_epoch"] for stage in walk.walk().stages] == [3, 6]
    assert walk.history("hint_loss") == [1, 2, 3, 4, 5, 6]
    assert walk.params["objective.objective"] == "hint"


def test_a_route_that_exists_is_used_without_training(first: Ran, follow: Callable[..., Followed], tmp_path: Path) -> None:
    trained = follow(strategy="explicit", anchor_epochs=[6]).route
    walk = follow(strategy="explicit", anchor_epochs=[6], route=str(trained))
    walk.route, walk.index = tmp_path / "route", tmp_path / "index"
    walk.teach()
    assert "train" not in walk.settings["teacher"]
    assert sha256_of(walk.route / "epoch-0006.safetensors") == sha256_of(trained / "epoch-0006.safetensors")
    assert len(walk.walk().stages) == 1
    walk.evaluate()
    evaluation = read_evaluation(walk.evaluation / "seed-0")
    assert evaluation["teacher"]["accuracy"] == first.summary["teacher"]["accuracy"]


def test_bad_input_is_one_paragraph_and_nothing_starts(home: Path, first: Ran) -> None:
    bad = ["--n-anchors", "50", "--strategy", "equal-interval"]
    before = sorted(p.name for p in (home / "pipeline").iterdir())
    process = zygote.cli("run", "--home", str(home), *bad)
    said = process.communicate()
    assert process.returncode == 2, said
    assert "n_anchors = 50: is more than the 11 checkpoints" in said
    assert "Traceback" not in said
    assert len(paragraphs(said)) == 1
    assert sorted(p.name for p in (home / "pipeline").iterdir()) == before


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (["--tau", "0"], "tau = 0.0: must be"),
        (["--student", "digits-cn"], "student = 'digits-cn'"),
        (["--dataset", "digitz"], "dataset = 'digitz'"),
    ],
)
def test_every_bad_input_is_one_paragraph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: list[str], words: str) -> None:
    """The same, with what the inner process does done in this one."""
    monkeypatch.setattr(log, "handlers", [logging.NullHandler()])
    monkeypatch.setattr(outer, "_supervise", lambda request, *more: (work.main(request), [], None))
    monkeypatch.setenv("RCO_WARM", "0")
    done = CliRunner().invoke(main, ["run", "--home", str(tmp_path), *bad])
    assert done.exit_code == 2, done.output
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "pipeline").exists()


def test_no_password_of_a_tracking_server_reaches_a_report(first: Ran, tmp_path: Path) -> None:
    from rco.config.filing import Filing
    from rco.models.route import Route
    from rco.reporting import in_depth
    from rco.reporting.student import Student

    root = first.home / "pipeline"
    evaluation = next(root.rglob("evaluation.json")).parent
    student = first.home / "last-run" / "student"
    in_depth.write(
        tmp_path,
        Filing(experiment="rco", parameters=RunConfig.from_flat(TINY).to_flat(), seeds=(0,)),
        index=Route.open(next(p.parent for p in root.rglob("route_index/manifest.json"))),
        student=Student.read(evaluation, in_depth=True),
        logits=load_arrays(student / "probe.safetensors")[0]["logits"],
        registered={},
        context=Context(tracking_uri="https://me:hunter2@mlflow.example", pipeline_run="x"),
        parent_run_id="1",
    )
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert "mlflow.example" in (tmp_path / "summary.json").read_text()
    assert not [p for p in files if b"hunter2" in p.read_bytes()]


def test_a_run_under_nohup_outlives_its_terminal() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interruptible():
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.1)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
