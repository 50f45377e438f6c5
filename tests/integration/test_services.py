"""Pipelines against real services: MLflow on PostgreSQL, artifacts and data sets in an S3-compatible store.

One server hands artifacts on (its clients know nothing of the store), the other leaves them to its clients. Three pipelines
run at once: two against the first server, in one home; one, with its data set in the store, against the second. A last one
begins while the first server is away.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rco.core.errors import InputError
from rco.data.config import DataConfig
from tests import faults, servers

EPOCHS = {"teacher": 3, "student": 4}
PARAMETERS = {
    "teacher": "digits-cnn-s",
    "student": "digits-mlp",
    "teacher_epochs": EPOCHS["teacher"],
    "teacher_milestones": "1",
    "checkpoint_every": 1,
    "epochs": EPOCHS["student"],
    "strategy": "explicit",
    "anchor_epochs": "1,3",
    "threads": 1,
    "workers": 0,
    "device": "cpu",
}
CLASSES = ("cat", "dog", "owl")
COMMAND = [sys.executable, "-c", "from pipelines.cli.main import main; main()"]
PATIENCE = 1500  # seconds for all three pipelines, on a busy machine
pytestmark = pytest.mark.timeout(PATIENCE + 300)
BUCKET = "services"


class Running:
    """`rco run` in a process of its own."""

    def __init__(self, home: Path, environment: dict[str, str], **parameters: Any) -> None:
        self.home = home
        flags = [f"--{name.replace('_', '-')}={value}" for name, value in {**PARAMETERS, **parameters}.items()]
        self.process = subprocess.Popen(
            [*COMMAND, "run", f"--home={home}", *flags],
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def end(self) -> Ran:
        """Wait for its success."""
        try:
            said, _ = self.process.communicate(timeout=PATIENCE)
        finally:
            self.stop()
        assert self.process.returncode == 0, said
        name = next(line for line in said.splitlines() if line.startswith("run local-")).split()[1].rstrip(";")
        folder = self.home / "runs" / name
        return Ran(name, folder, said)

    def stop(self) -> None:
        """End it, if it has not ended. It ends its own tasks."""
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(PATIENCE)


@dataclass(frozen=True)
class Ran:
    """A pipeline run that has ended well.

    Attributes:
        name: its id.
        folder: what it left in its home.
        said: what a person saw.
    """

    name: str
    folder: Path
    said: str

    @cached_property
    def summary(self) -> dict[str, Any]:
        """Its figures."""
        document: dict[str, Any] = json.loads((self.folder / "report" / "summary.json").read_text())
        return document

    @cached_property
    def student(self) -> str:
        """Hex sha256 of the student's weights."""
        return hashlib.sha256((self.folder / "report" / "student" / "student.safetensors").read_bytes()).hexdigest()


@dataclass(frozen=True)
class Tracked:
    """An MLflow server, and what it holds of pipeline runs."""

    address: str

    @property
    def client(self) -> Any:
        """A client of MLflow's own."""
        import mlflow

        mlflow.set_tracking_uri(self.address)
        return mlflow.MlflowClient(self.address, self.address)

    def runs(self) -> list[Any]:
        """All of them, in all experiments."""
        ids = [experiment.experiment_id for experiment in self.client.search_experiments()]
        return list(self.client.search_runs(ids))

    def of(self, ran: Ran) -> dict[str, Any]:
        """The runs of a pipeline run by what they are: pipeline, teacher, student."""
        mine = [run for run in self.runs() if run.data.tags["rco.pipeline_run"] == ran.name]
        found = {run.data.tags.get("rco.key", "pipeline"): run for run in mine}
        assert len(mine) == len(found) == 3
        return found

    def anchors(self) -> list[Any]:
        """All anchors that it knows."""
        ids = [experiment.experiment_id for experiment in self.client.search_experiments()]
        return list(self.client.search_logged_models(ids, "model_type = 'anchor'"))


@pytest.fixture(scope="module")
def bucket(seaweed: servers.Seaweed) -> str:
    return seaweed.make_bucket(BUCKET)


@pytest.fixture(scope="module")
def gate(
    seaweed: servers.Seaweed, postgres: servers.Postgres, bucket: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[faults.Proxy]:
    """What lies before the server that hands artifacts on."""
    with (
        servers.mlflow_server(
            tmp_path_factory.mktemp("proxied"),
            backend=postgres.make_database("proxied"),
            artifacts=f"{bucket}/proxied",
            environment=seaweed.environment(),
        ) as address,
        faults.Proxy(address) as proxy,
    ):
        yield proxy


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 54 pictures that are easy to tell apart: each class has its own bright corner."""
    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for label, name in enumerate(CLASSES):
        (folder / name).mkdir()
        for number in range(18):
            pixels = generator.integers(0, 60, (8, 8, 3), dtype=np.uint8)
            pixels[(label // 2) * 4 :][:4, (label % 2) * 4 :][:, :4] += 180
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def stored_images(seaweed: servers.Seaweed, bucket: str, images: Path) -> str:
    """The pictures as objects, and beside them one tar, and one list, of them."""
    client = seaweed.client()
    for path in images.rglob("*.png"):
        client.upload_file(str(path), BUCKET, f"images/{path.relative_to(images)}")
    with tarfile.open(images.parent / "images.tar.gz", "w:gz") as tar:
        tar.add(images, "images")
    client.upload_file(str(images.parent / "images.tar.gz"), BUCKET, "images.tar.gz")
    rows = [f"images/{path.relative_to(images)},{path.parent.name}" for path in images.rglob("*.png")]
    client.put_object(Bucket=BUCKET, Key="images.csv", Body="\n".join(["path,label", *rows]).encode())
    return f"{bucket}/images"


@pytest.fixture
def store(seaweed: servers.Seaweed, monkeypatch: pytest.MonkeyPatch) -> servers.Seaweed:
    """The store, as this process's environment describes it. Clients of another store, of tests before, are forgotten."""
    import boto3
    from mlflow.store.artifact import s3_artifact_repo

    s3_artifact_repo._cached_get_s3_client.cache_clear()
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    for name, value in seaweed.environment().items():
        monkeypatch.setenv(name, value)
    return seaweed


@pytest.fixture(scope="module")
def direct(
    seaweed: servers.Seaweed, postgres: servers.Postgres, bucket: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Address of the server that leaves artifacts to its clients; it has no key for the store."""
    folder, database = tmp_path_factory.mktemp("direct"), postgres.make_database("direct")
    with servers.mlflow_server(folder, backend=database, artifacts=f"{bucket}/direct", proxied=False) as address:
        yield address


@pytest.fixture(scope="module")
def ran(
    gate: faults.Proxy,
    direct: str,
    seaweed: servers.Seaweed,
    stored_images: str,
    home: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Ran, Ran, Ran]:
    """Three pipelines at once: two that differ in the student's seed, and one that talks to the store itself."""
    own = {"dataset": stored_images, "batch_size": 8, "probe_size": 4, "augment": "none"}
    begun = [Running(home, {"MLFLOW_TRACKING_URI": gate.address}, seed=seed) for seed in (0, 1)]
    begun.append(Running(tmp_path_factory.mktemp("home"), {"MLFLOW_TRACKING_URI": direct, **seaweed.environment()}, **own))
    try:
        first, second, third = (running.end() for running in begun)
    finally:
        for running in begun:
            running.stop()
    return first, second, third


@pytest.fixture(scope="module")
def pair(ran: tuple[Ran, Ran, Ran]) -> tuple[Ran, Ran]:
    return ran[:2]


@pytest.fixture(scope="module")
def alone(ran: tuple[Ran, Ran, Ran]) -> Ran:
    return ran[2]


@pytest.fixture(scope="module")
def proxied(gate: faults.Proxy) -> Tracked:
    return Tracked(gate.address)


def check_runs(tracked: Tracked, ran: Ran) -> None:
    """Runs, parameters and metrics: all there, each once."""
    runs = tracked.of(ran)
    parent = runs["pipeline"]
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert parent.data.metrics["student_test_accuracy"] == ran.summary["student"]["accuracy"]
    assert parent.data.params["strategy"] == "explicit"
    report = {file.path for file in tracked.client.list_artifacts(parent.info.run_id, "report")}
    assert report >= {"report/report.html", "report/summary.json", "report/route.png"}
    for key, epochs in EPOCHS.items():
        run = runs[key]
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        for metric in ("loss", "val_accuracy", "lr", "epoch"):
            history = tracked.client.get_metric_history(run.info.run_id, metric)
            assert [m.step for m in history] == list(range(1, epochs + 1)), (key, metric)
        assert run.data.metrics["epoch"] == epochs
    stages = tracked.client.get_metric_history(runs["student"].info.run_id, "stage")
    assert [m.value for m in stages] == [1, 1, 2, 2]
    assert runs["student"].data.params["objective.tau"] == "4.0"


READ = """
import hashlib, json, pathlib, sys
import mlflow, rco
mlflow.set_tracking_uri(sys.argv[1])
found = {}
for model in sys.argv[2:]:
    folder = pathlib.Path(mlflow.artifacts.download_artifacts(f"models:/{model}"))
    sha256 = hashlib.sha256((folder / "anchor.safetensors").read_bytes()).hexdigest()
    network = rco.load(f"models:/{model}", tracking_uri=sys.argv[1])
    found[model] = sha256, sum(p.numel() for p in network.parameters())
print(json.dumps(found))
"""


def check_anchors(tracked: Tracked, rans: list[Ran], environment: dict[str, str]) -> None:
    """Every anchor is there once, and another process reads from it what was recorded."""
    expected = {stage["anchor_sha256"] for ran in rans for stage in ran.summary["stages"]}
    anchors = tracked.anchors()
    assert {str(model.status).rpartition(".")[2] for model in anchors} == {"READY"}
    assert sorted(model.tags["rco.sha256"] for model in anchors) == sorted(expected), "each once"
    done = subprocess.run(
        [sys.executable, "-c", READ, tracked.address, *(model.model_id for model in anchors)],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    weights = rans[0].summary["teacher"]["parameters"]
    assert found == {model.model_id: [model.tags["rco.sha256"], weights] for model in anchors}
    for ran in rans:
        tags = tracked.of(ran)["student"].data.tags
        for stage in ran.summary["stages"]:
            assert found[tags[f"rco.anchor.{stage['anchor_epoch']}"]][0] == stage["anchor_sha256"]


def test_two_at_once_are_whole(proxied: Tracked, pair: tuple[Ran, Ran]) -> None:
    for ran in pair:
        check_runs(proxied, ran)


def test_two_at_once_do_not_mix(proxied: Tracked, pair: tuple[Ran, Ran], home: Path) -> None:
    first, second = (proxied.of(ran) for ran in pair)
    assert pair[0].name != pair[1].name
    assert not {run.info.run_id for run in first.values()} & {run.info.run_id for run in second.values()}
    assert [runs["student"].data.params["train.seed"] for runs in (first, second)] == ["0", "1"]
    assert pair[0].student != pair[1].student
    assert len({runs["pipeline"].info.experiment_id for runs in (first, second)}) == 1
    assert {run.info.status for run in proxied.runs()} == {"FINISHED"}


def test_anchors_through_the_server(proxied: Tracked, pair: tuple[Ran, Ran], seaweed: servers.Seaweed) -> None:
    check_anchors(proxied, list(pair), {})
    kept = seaweed.client().list_objects_v2(Bucket=BUCKET, Prefix="proxied/")["Contents"]
    assert sum(entry["Key"].endswith("/anchor.safetensors") for entry in kept) == 2


def test_registry_has_both_students_and_one_champion(proxied: Tracked, pair: tuple[Ran, Ran]) -> None:
    versions = proxied.client.search_model_versions("name = 'rco-student'")
    assert {version.tags["rco.sha256"] for version in versions} == {ran.student for ran in pair}
    champion = proxied.client.get_model_version_by_alias("rco-student", "champion")
    assert champion.tags["rco.champion"] == "true"
    assert champion.version in {version.version for version in versions}


def test_a_pipeline_that_talks_to_the_store_itself(direct: str, alone: Ran, store: servers.Seaweed, stored_images: str) -> None:
    tracked = Tracked(direct)
    check_runs(tracked, alone)
    parent = tracked.of(alone)["pipeline"]
    assert parent.info.artifact_uri.startswith(f"s3://{BUCKET}/direct/")
    assert parent.data.params["dataset"] == stored_images
    check_anchors(tracked, [alone], store.environment())
    champion = tracked.client.get_model_version_by_alias("rco-student", "champion")
    assert champion.tags["rco.sha256"] == alone.student


def test_secrets_stay_out_of_what_is_kept(alone: Ran, seaweed: servers.Seaweed) -> None:
    kept = [path for path in alone.folder.parents[1].rglob("*") if path.is_file()]
    assert alone.folder / "pipeline.log" in kept
    for path in kept:
        assert seaweed.secret_key.encode() not in path.read_bytes(), path


def test_folder_tar_and_list_in_the_store_hold_the_same(
    store: servers.Seaweed, images: Path, stored_images: str, tmp_path: Path
) -> None:
    from rco.data.prepare import prepare
    from rco.data.sources.kinds import source_digest

    digests = set()
    for number, source in enumerate((str(images), stored_images, f"{stored_images}.tar.gz", f"{stored_images}.csv")):
        config = DataConfig(dataset=source, probe_size=4)
        digests.add(prepare(config, tmp_path / str(number), source_digest(config)).digest)
    assert len(digests) == 1


def test_a_store_that_refuses_or_is_not_there_is_said_before_training(
    store: servers.Seaweed, stored_images: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from rco.data.sources.kinds import check_source

    config = DataConfig(dataset=stored_images)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-canary")
    with pytest.raises(InputError, match=r"dataset = .*is refused by the store .SignatureDoesNotMatch.*AWS_SECRET_") as caught:
        check_source(config)
    assert "canary" not in str(caught.value)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{servers.free_port()}")
    with pytest.raises(InputError, match=r"dataset = .*cannot be reached at http://127.*AWS_ENDPOINT_URL_S3"):
        check_source(config)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", store.endpoint)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", store.secret_key)
    with pytest.raises(InputError, match=r"dataset = .*holds no objects"):
        check_source(DataConfig(dataset=f"{stored_images}-of-nobody"))


def test_a_server_that_is_away_holds_nothing_up(
    proxied: Tracked, gate: faults.Proxy, pair: tuple[Ran, Ran], home: Path
) -> None:
    before = {run.info.run_id for run in proxied.runs()}
    tracking = {"MLFLOW_TRACKING_URI": gate.address}
    gate.down()
    try:
        ran = Running(home, tracking, seed=2, registered_model="").end()
    finally:
        gate.up()
    assert "train-teacher: unchanged, taken from the cache" in ran.said
    assert "rco sync" in ran.said
    assert {run.info.run_id for run in proxied.runs()} == before
    subprocess.run([*COMMAND, "sync", f"--home={home}"], env={**os.environ, **tracking}, check=True)
    check_runs(proxied, ran)
    check_anchors(proxied, [*pair, ran], {})
