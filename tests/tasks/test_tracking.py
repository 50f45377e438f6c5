"""MLflow as the records' mirror: one run a model, retries and caches included, and never in the way of the work."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from rco.core.documents import read_json, write_json
from rco.core.errors import InputError
from rco.core.settings import jsonable
from rco.core.tensors import save_model
from rco.models.route import Anchor
from rco.models.spec import NetworkSpec, save_network
from rco.tracking import anchors, epochs, registry
from rco.tracking.context import Context, forgiving, without_credentials
from rco.tracking.delivery import Delivery, deliver
from rco.tracking.epochs import EpochBuffer
from rco.tracking.model_run import ModelRun
from rco.tracking.record import Record
from rco.tracking.registry import Promotion, load, register, registered_version
from rco.tracking.runs import end_open_runs, find_parent, open_parent, require_parent
from rco.tracking.tracker import tracked
from tests import faults

SPEC = NetworkSpec(model="digits-cnn-s", stem="auto", in_channels=1, num_classes=10, image_size=8)
DATA = {"name": "digits", "source": "digits", "digest": "d" * 64, "num_classes": 10, "sizes": {"train": 3}}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database of MLflow's own, made once: its first migration takes seconds."""
    return tmp_path_factory.mktemp("mlflow")


def context(server: Path, run: str) -> Context:
    return Context(
        tracking_uri=f"sqlite:///{server}/mlflow.db", pipeline_run=run, artifact_root=(server / "artifacts").as_uri()
    )


def opened(server: Path, run: str) -> tuple[Context, Any]:
    where = context(server, run)
    open_parent(where, "tests", run, {"tau": 4.0})
    return where, where.client()


def record(key: str = "student", rows: int = 0, **more: Any) -> Record:
    made = Record(key=key, params={"lr": 0.1}, data=dict(DATA), **more)
    for step in range(1, rows + 1):
        made.add(step, {"loss": 1 / step, "val_accuracy": step / 10})
    return made


def children(client: Any, run: str) -> list[Any]:
    ids = [e.experiment_id for e in client.search_experiments()]
    return list(client.search_runs(ids, f"tags.`rco.pipeline_run` = '{run}' AND tags.`rco.kind` = 'model'"))


def row(step: int, loss: float) -> dict[str, Any]:
    return Record(key="x", params={}, data={}).add(step, {"loss": loss})


def steps(client: Any, run_id: str) -> list[int]:
    return [m.step for m in client.get_metric_history(run_id, "loss")]


def anchor(folder: Path, epoch: int, seed: int) -> Path:
    digest = save_network(folder / "anchor.safetensors", SPEC.build(seed), SPEC)
    known = {"lr": None, "train_loss": None, "val_accuracy": 0.5, "hardness": 0.25}
    Anchor(epoch=epoch, sha256=digest, model=SPEC.model, index=0, file="anchor.safetensors", **known).write(folder)
    return folder


def test_the_parent_is_opened_once(server: Path) -> None:
    where, client = opened(server, "once")
    assert open_parent(where, "tests", "again", {"tau": 9.0}) == open_parent(where, "tests", "x", {})
    parent = find_parent(where, client)
    assert parent is not None
    assert parent.data.params == {"tau": "4.0"}


def test_stages_share_one_run_and_one_axis(server: Path) -> None:
    where, client = opened(server, "stages")
    travelling = record()
    for first in (1, 4):
        with tracked(where, travelling) as tracker:
            for step in range(first, first + 3):
                tracker.log(step, {"loss": 1.0, "stage": first})
    (child,) = children(client, "stages")
    assert steps(client, child.info.run_id) == [1, 2, 3, 4, 5, 6]
    assert child.info.status == "FINISHED"


def test_the_next_stage_of_a_process_asks_for_nothing_that_is_known(server: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    where, client = opened(server, "known")
    before = record()
    with tracked(where, before) as tracker:
        tracker.log(1, {"loss": 1.0})
    after = Record.of(jsonable(before), "the stage before")
    after.add(2, {"loss": 0.5})  # a result that was found

    def asked(*arguments: Any, **more: Any) -> None:
        raise AssertionError("the run was ended by this process")

    with monkeypatch.context() as patched:
        for name in ("search_runs", "get_run", "get_metric_history", "get_experiment_by_name", "create_run"):
            patched.setattr(MlflowClient, name, asked)
        with tracked(where, after) as tracker:
            assert tracker.model_run is not None
            assert client._tracking_client.get_run(tracker.model_run.run_id).info.status == "RUNNING"
            tracker.log(3, {"loss": 0.25})
    (child,) = children(client, "known")
    assert steps(client, child.info.run_id) == [1, 2, 3]
    assert child.info.status == "FINISHED"


def test_a_run_that_is_deleted_between_two_stages_is_made_again(server: Path) -> None:
    where, client = opened(server, "between")
    travelling = record()
    for step in (1, 2):
        with tracked(where, travelling) as tracker:
            tracker.log(step, {"loss": 1.0})
        if step == 1:
            client.delete_run(children(client, "between")[0].info.run_id)
    (child,) = children(client, "between")
    assert steps(client, child.info.run_id) == [1, 2]


def test_a_retried_task_resumes_its_run_without_doubles(server: Path) -> None:
    where, client = opened(server, "retry")

    def killed_in_the_middle() -> None:
        with tracked(where, record()) as tracker:
            for step in (1, 2, 3):
                tracker.log(step, {"loss": 1.0})
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        killed_in_the_middle()
    (child,) = children(client, "retry")
    assert child.info.status == "FAILED"
    again = record()
    with tracked(where, again) as tracker:
        for step in (1, 2, 3, 4, 5):
            tracker.log(step, {"loss": 1.0})
    (child,) = children(client, "retry")
    assert child.info.status == "FINISHED"
    assert steps(client, child.info.run_id) == [1, 2, 3, 4, 5]
    assert len(again.rows) == 5


def test_cached_work_appears_under_the_new_parent_with_its_origin(server: Path) -> None:
    where, client = opened(server, "origin")
    travelling = record()
    with tracked(where, travelling) as tracker:
        tracker.log(1, {"loss": 1.0})
    later, _ = opened(server, "later")
    parent = deliver(later, [Delivery(record=travelling, metrics={"y": 2.0})], headline={"x": 1.0}, files=[])
    (original,), (copy,) = children(client, "origin"), children(client, "later")
    assert copy.data.tags["reused_from"] == original.info.run_id
    assert client.get_run(parent).data.tags["reused_from"] == original.info.run_id
    assert steps(client, copy.info.run_id) == [1]
    again = deliver(later, [Delivery(record=travelling, metrics={"y": 2.0})], headline={"x": 1.0}, files=[])
    assert again == parent
    assert len(children(client, "later")) == 1
    assert steps(client, copy.info.run_id) == [1]
    for run_id, figure in ((parent, "x"), (copy.info.run_id, "y")):
        assert len(client.get_metric_history(run_id, figure)) == 1, "a report that is retried says nothing twice"


def test_a_report_that_cannot_be_delivered_leaves_nothing_running(server: Path, tmp_path: Path) -> None:
    where, client = opened(server, "undelivered")
    with pytest.raises(OSError, match="nowhere"):
        deliver(where, [Delivery(record=record(rows=1))], headline={}, files=[tmp_path / "nowhere.png"])
    parent = require_parent(where, client)
    assert {run.info.status for run in (parent, *children(client, "undelivered"))} == {"FINISHED"}


def test_a_version_hangs_on_its_students_run_also_when_nothing_was_trained(server: Path, tmp_path: Path) -> None:
    """Everything came from the cache, and the run is filed under a new name: the student has no run of this pipeline yet."""
    where, client = opened(server, "renamed")
    travelling = record(rows=2, origin={"tracking_uri": "elsewhere", "run_id": "gone", "pipeline_run": "before"})
    model = SPEC.build(0).eval()
    pixels = np.random.default_rng(0).random((2, 1, 8, 8), dtype=np.float32)
    with torch.inference_mode():
        logits = model(torch.from_numpy(pixels)).numpy()
    weights = tmp_path / "student.safetensors"
    digest = save_network(weights, model, SPEC)
    version = register(
        where, "renamed", model, travelling, example=pixels, expected=logits, weights=weights, sha256=digest, params={}
    )
    (child,) = children(client, "renamed")
    assert client.get_model_version("renamed", version).run_id == child.info.run_id
    assert registered_version(where, "renamed", digest) == version
    assert require_parent(where, client).info.status == "RUNNING", "the report has not been written yet"


def test_a_deleted_run_is_made_again_from_the_record(server: Path) -> None:
    where, client = opened(server, "deleted")
    travelling = record(rows=0)
    with tracked(where, travelling) as tracker:
        tracker.log(1, {"loss": 1.0})
    client.delete_run(children(client, "deleted")[0].info.run_id)
    deliver(where, [Delivery(record=travelling)], headline={}, files=[])
    (child,) = children(client, "deleted")
    assert steps(client, child.info.run_id) == [1]


def test_anchors_are_uploaded_once_and_linked_everywhere(server: Path, tmp_path: Path) -> None:
    folder = anchor(tmp_path / "a", 12, seed=1)
    ids = set()
    for run in ("anchor-1", "anchor-2", "anchor-2"):
        where, client = opened(server, run)
        with tracked(where, record()) as tracker:
            tracker.log_anchor(folder)
        (child,) = children(client, run)
        ids.add(child.data.tags["rco.anchor.12"])
    assert len(ids) == 1
    model = client.get_logged_model(ids.pop())
    assert (model.model_type, str(model.status).split(".")[-1]) == ("anchor", "READY")
    assert {(m.key, m.value, m.step) for m in model.metrics} == {
        ("anchor_val_accuracy", 0.5, 12),
        ("anchor_hardness", 0.25, 12),
    }
    loaded = load(f"models:/{model.model_id}", tracking_uri=where.tracking_uri)
    assert save_model(tmp_path / "x", loaded) == save_model(tmp_path / "y", SPEC.build(1).eval())


def test_an_anchor_that_another_pipeline_is_uploading_is_waited_for(server: Path, tmp_path: Path) -> None:
    folder = anchor(tmp_path, 14, seed=3)
    sha256 = read_json(folder / "anchor.json")["sha256"]
    where, client = opened(server, "claimed")
    experiment = require_parent(where, client).info.experiment_id
    claimed = client.create_logged_model(experiment, name="theirs", model_type="anchor", tags={"rco.sha256": sha256})
    theirs = threading.Timer(0.7, client.finalize_logged_model, (claimed.model_id, "READY"))
    theirs.start()
    with tracked(where, record()) as tracker:
        tracker.log_anchor(folder)
    theirs.join()
    (child,) = children(client, "claimed")
    assert child.data.tags["rco.anchor.14"] == claimed.model_id
    (only,) = client.search_logged_models([experiment], f"tags.`rco.sha256` = '{sha256}'")
    assert only.model_id == claimed.model_id


def test_an_anchor_whose_uploader_has_died_is_uploaded_again(
    server: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(anchors, "ANCHOR_SECONDS", 0.1)
    folder = anchor(tmp_path, 15, seed=4)
    sha256 = read_json(folder / "anchor.json")["sha256"]
    where, client = opened(server, "abandoned")
    experiment = require_parent(where, client).info.experiment_id
    dead = client.create_logged_model(experiment, name="theirs", model_type="anchor", tags={"rco.sha256": sha256})
    with tracked(where, record()) as tracker:
        tracker.log_anchor(folder)
    (child,) = children(client, "abandoned")
    model = client.get_logged_model(child.data.tags["rco.anchor.15"])
    assert model.model_id != dead.model_id
    assert str(model.status).endswith("READY")


def test_two_pipelines_may_make_the_experiment_at_once(server: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = context(server, "at-once")
    first = open_parent(where, "contested", "first", {})
    look, seen = type(where.client()).get_experiment_by_name, list[str]()

    def late(client: Any, name: str) -> Any:
        seen.append(name)
        return look(client, name) if len(seen) > 1 else None

    monkeypatch.setattr(type(where.client()), "get_experiment_by_name", late)
    assert open_parent(where, "contested", "second", {}) == first
    assert seen == ["contested"] * 2


def test_two_pipelines_may_mark_an_experiment_of_the_users_at_once(server: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = context(server, "marked")
    client = where.client()
    made = client.create_experiment("the user's own")
    mark = MlflowClient.set_experiment_tag

    def refused(self: MlflowClient, experiment: str, key: str, value: str) -> None:
        mark(self, experiment, key, value)  # the other pipeline's
        raise MlflowException("UNIQUE constraint failed: experiment_tags.key, experiment_tags.experiment_id")

    monkeypatch.setattr(MlflowClient, "set_experiment_tag", refused)
    parent = open_parent(where, "the user's own", "marked", {})
    assert client.get_run(parent).info.experiment_id == made
    assert find_parent(where, client) is not None  # found by the mark
    monkeypatch.undo()
    new = open_parent(context(server, "new"), "an experiment that is new", "new", {})
    assert "rco.pipelines" in client.get_experiment(client.get_run(new).info.experiment_id).tags  # with its creation


def test_a_damaged_anchor_is_not_uploaded(server: Path, tmp_path: Path) -> None:
    folder = anchor(tmp_path, 13, seed=2)
    content = bytearray((folder / "anchor.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "anchor.safetensors").write_bytes(content)
    where, _ = opened(server, "damaged")
    with pytest.raises(InputError, match="damaged"), tracked(where, record()) as tracker:
        tracker.log_anchor(folder)


def test_nothing_stays_running(server: Path) -> None:
    where, client = opened(server, "closing")
    ModelRun.open(where, client, record())
    assert end_open_runs(where, "KILLED") == 2
    assert end_open_runs(where, "FAILED") == 0
    assert {r.info.status for r in children(client, "closing")} == {"KILLED"}


def test_work_goes_on_without_a_server(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    away = Context(tracking_uri="http://127.0.0.1:9", pipeline_run="away")
    travelling = record()
    with tracked(away, travelling) as tracker:
        tracker.log(1, {"loss": 1.0})
        tracker.log_anchor(tmp_path)
    assert [row["step"] for row in travelling.rows] == [1]
    assert "was not delivered" in caplog.text


def test_a_server_that_was_away_at_the_start_gets_everything_from_the_report(
    server: Path, caplog: pytest.LogCaptureFixture
) -> None:
    where, travelling = context(server, "late"), record()
    with tracked(where, travelling) as tracker:
        tracker.log(1, {"loss": 1.0})
    assert "no parent run" in caplog.text
    assert travelling.origin is None
    _, client = opened(server, "late")
    deliver(where, [Delivery(record=travelling)], headline={}, files=[])
    (child,) = children(client, "late")
    assert steps(client, child.info.run_id) == [1]
    assert "reused_from" not in child.data.tags


class TestKubeflowsOwnPlugin:
    """It makes a run a task and names it in MLFLOW_RUN_ID; a retried task is given the same run."""

    def task(self, server: Path, run: str, plugins: str, travelling: Record, steps: range, fails: bool = False) -> None:
        os.environ["MLFLOW_RUN_ID"] = plugins
        where = dataclasses.replace(context(server, run), task_run=Context.from_environment().task_run)
        with contextlib.suppress(RuntimeError), tracked(where, travelling) as tracker:
            for step in steps:
                tracker.log(step, {"loss": 1.0 / step})
            if fails:
                raise RuntimeError("killed")

    def test_a_task_logs_into_its_run_and_the_models_run_goes_on(self, server: Path) -> None:
        _, client = opened(server, "plugin")
        experiment = client.create_experiment("the plugin's")
        first, second = (client.create_run(experiment).info.run_id for _ in range(2))
        client.log_param(first, "settings", "{}")  # what the launcher logs
        travelling = record()
        self.task(server, "plugin", first, travelling, range(1, 4))
        self.task(server, "plugin", second, travelling, range(4, 6))
        (child,) = children(client, "plugin")
        assert steps(client, child.info.run_id) == [1, 2, 3, 4, 5]
        assert [steps(client, run) for run in (first, second)] == [[1, 2, 3], [4, 5]]
        assert client.get_run(first).data.params == {"settings": "{}", "lr": "0.1"}
        assert client.get_run(second).data.tags["rco.run"] == child.info.run_id
        assert (child.data.tags["kfp.run.1"], child.data.tags["kfp.run.4"]) == (first, second)
        assert client.get_run(first).info.status == "RUNNING", "its end is the plugin's"
        assert "rco.attempts" not in {**client.get_run(first).data.tags, **child.data.tags}

    def test_a_retry_resumes_the_same_run(self, server: Path) -> None:
        _, client = opened(server, "plugin-retry")
        plugins = client.create_run(client.create_experiment("the plugin's, retried")).info.run_id
        self.task(server, "plugin-retry", plugins, record(), range(1, 4), fails=True)
        changed = record()
        changed.params["lr"] = 0.2  # another value of a parameter that is there would be an error
        self.task(server, "plugin-retry", plugins, changed, range(1, 6))
        assert steps(client, plugins) == [1, 2, 3, 4, 5]
        data = client.get_run(plugins).data
        assert (data.params["lr"], data.tags["rco.attempts"]) == ("0.1", "2")
        (child,) = children(client, "plugin-retry")
        assert (steps(client, child.info.run_id), child.data.tags["rco.attempts"]) == ([1, 2, 3, 4, 5], "2")

    def test_without_a_pipeline_run_the_plugins_run_still_gets_everything(self, server: Path) -> None:
        client = context(server, "").client()
        plugins = client.create_run(client.create_experiment("the plugin's, alone")).info.run_id
        self.task(server, "", plugins, record(), range(1, 3))
        assert steps(client, plugins) == [1, 2]


class TestWhatEndsAsAWarning:
    def test_a_database_that_is_none(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        (tmp_path / "mlflow.db").write_bytes(b"no database" * 1000)
        with forgiving("The parent run") as attempt:
            opened(tmp_path, "damaged")
        assert attempt.failed

    @pytest.mark.parametrize("answer", [b"{", b"[]", b'{"experiment": 5}', b'{"experiment": {"experiment_id": {}}}', b"\xff"])
    def test_answers_that_are_none(self, answer: bytes) -> None:
        with faults.Proxy("http://127.0.0.1:9") as proxy:
            proxy.inject(faults.Fault(answer=(200, answer)), times=None)
            where = Context(tracking_uri=proxy.address, pipeline_run="odd")
            with forgiving("The parent run") as attempt:
                open_parent(where, "tests", "odd", {})
        assert attempt.failed

    def test_but_not_bad_input(self) -> None:
        with pytest.raises(InputError), forgiving("The parent run"):
            raise InputError("experiment", "x", "is a deleted experiment in MLflow", "Restore it")

    def test_what_is_sent_again_to_the_plugins_run_is_there_once(self, server: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """An answer was lost: the server has the epochs, and the client does not know."""
        client = context(server, "").client()
        run = client.create_run(client.create_experiment("the plugin's, lossy")).info.run_id
        buffer = EpochBuffer(client, run)
        really = type(client).log_batch

        def lossy(self: Any, *arguments: Any, **more: Any) -> None:
            really(self, *arguments, **more)
            monkeypatch.undo()
            raise ConnectionError("reset")

        buffer.add(row(1, 1.0))
        monkeypatch.setattr(type(client), "log_batch", lossy)
        with pytest.raises(ConnectionError):
            buffer.send()
        buffer.add(row(2, 0.5))
        buffer.send()
        assert steps(client, run) == [1, 2]

    def test_a_server_that_makes_the_training_wait_is_asked_less_often(self, monkeypatch: pytest.MonkeyPatch) -> None:
        clock = [0.0]
        monkeypatch.setattr(epochs.time, "monotonic", lambda: clock[0])

        class Hanging:
            asked = 0

            def log_batch(self, *arguments: Any, **more: Any) -> None:
                self.asked += 1
                clock[0] += 60
                raise ConnectionError("no answer")

        hanging = Hanging()
        buffer = EpochBuffer(hanging, "run")  # type: ignore[arg-type]
        for epoch in range(1, 1001):  # of two seconds each
            clock[0] += 2
            with forgiving("Epoch"):
                buffer.add(row(epoch, 1.0))
        assert hanging.asked * 60 <= 0.06 * clock[0]


class TestPromotion:
    @pytest.fixture
    def promote(self, server: Path, request: pytest.FixtureRequest) -> Any:
        where = context(server, "promotion")
        client, name = where.client(), request.node.name
        client.create_registered_model(name)

        def promote(accuracy: float, digest: str = "d", margin: float = 0.0, version: str = "") -> tuple[str, Any]:
            version = version or str(client.create_model_version(name, source="s3://models/student").version)
            told = registry.promote(where, name, version, accuracy=accuracy, data_digest=digest, margin=margin)
            tags = client.get_model_version(name, version).tags
            assert (tags["rco.champion"], tags["rco.champion_reason"]) == (str(told.champion).lower(), told.reason)
            return str(client.get_model_version_by_alias(name, "champion").version), told

        return promote

    def test_only_a_better_student_takes_over(self, promote: Any) -> None:
        assert promote(0.9) == ("1", Promotion(True, "there was no champion"))
        assert promote(0.9)[0] == "1"
        assert promote(0.91) == ("3", Promotion(True, "91.00 % against 90.00 % of version 1: better"))
        assert promote(0.905)[0] == "3"

    def test_by_the_users_margin(self, promote: Any) -> None:
        promote(0.9)
        assert promote(0.91, margin=0.02) == (
            "1",
            Promotion(False, "91.00 % against 90.00 % of version 1: not better by more than 2 points"),
        )
        assert promote(0.93, margin=0.02)[0] == "3"

    def test_never_across_data_sets(self, promote: Any) -> None:
        promote(0.5, digest="a")
        champion, told = promote(0.9, digest="b")
        assert champion == "1"
        assert told.reason == "the champion, version 1, was measured on other data"

    def test_the_champion_stays_it_when_asked_again(self, promote: Any) -> None:
        promote(0.9)
        assert promote(0.9, version="1") == ("1", Promotion(True, "there was no champion"))


def test_records_survive_the_disk_and_lies_are_refused(tmp_path: Path) -> None:
    made = record(rows=2)
    made.write(tmp_path)
    assert Record.read(tmp_path) == made
    write_json(tmp_path / "record.json", {"key": "x", "evil": 1})
    with pytest.raises(InputError, match="not a tracking record"):
        Record.read(tmp_path)


def test_credentials_in_an_address_stay_out_of_records() -> None:
    assert without_credentials("https://me:secret@mlflow.example/x") == "https://mlflow.example/x"
    assert without_credentials("sqlite:////a@b/mlflow.db") == "sqlite:////a@b/mlflow.db"
