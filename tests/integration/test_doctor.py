"""The doctor before real servers: SeaweedFS, and MLflow that asks for a login and keeps its artifacts in SeaweedFS.

The first task of the pipeline asks them in the same way.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
import requests

from rco.config.parameters import PARAMETERS
from rco.core.errors import InputError
from rco.tasks import probe as pod
from rco.tasks import services as service_checks
from rco.tasks.check import check
from rco.tasks.services import FAIL, OK, Finding
from rco.tracking.context import Context
from rco.tracking.probe import probe
from rco.tracking.runs import open_parent
from tests.servers import Seaweed, Server, answers, free_port, mlflow_server, on_free_ports, seaweed

CANARY = "canary-5d1c"
SECRETS = ("_KEY", "_KEY_ID", "_PASSWORD", "_TOKEN")


@dataclass(frozen=True)
class Tracker:
    """An MLflow server with a login, whose clients themselves read and write artifacts at s3://kept/mlflow."""

    address: str
    environment: dict[str, str]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweed]:
    """SeaweedFS with the bucket `kept`."""
    with seaweed(tmp_path_factory.mktemp("seaweed")) as running:
        running.make_bucket("kept")
        yield running


@pytest.fixture(scope="module")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tracker]:
    folder = tmp_path_factory.mktemp("mlflow")
    password = f"{CANARY}-{secrets.token_hex(8)}"
    (folder / "auth.ini").write_text(
        "[mlflow]\ndefault_permission = NO_PERMISSIONS\n"
        f"database_uri = sqlite:///{folder}/auth.db\nadmin_username = admin\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\nauth_cache_ttl_seconds = 600\n"
    )
    environment = {
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"),
        "MLFLOW_AUTH_ADMIN_PASSWORD": password,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(16),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }

    @contextmanager
    def serve(port: int) -> Iterator[str]:
        command = [sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth", "--workers", "1"]
        command += ["--host", "127.0.0.1", "--port", str(port), "--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
        command += ["--no-serve-artifacts", "--default-artifact-root", "s3://kept/mlflow"]
        address = f"http://127.0.0.1:{port}"
        with Server(command, lambda: answers(f"{address}/health"), folder / "server.log", environment):
            yield address

    with on_free_ports(1, serve) as address:
        login = {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": password}
        yield Tracker(address, {"MLFLOW_TRACKING_URI": address, **login})


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, store: Seaweed, tracker: Tracker, tmp_path: Path) -> dict[str, str]:
    """All that is right, set."""
    right = {
        **store.environment(),
        **tracker.environment,
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
        "RCO_RESUME": "s3://kept/resume",
    }
    for name, value in right.items():
        monkeypatch.setenv(name, value)
    return right


def forget() -> None:
    """MLflow keeps its S3 clients, and boto3 its session, with the credentials of their first use."""
    from mlflow.store.artifact import s3_artifact_repo

    s3_artifact_repo._cached_get_s3_client.cache_clear()
    boto3.DEFAULT_SESSION = None


def ask(*services: str, **environment: str) -> dict[str, Finding]:
    """What the doctor finds of services with some of the environment changed; by name. No secret is in it."""
    forget()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        hidden = [value for name, value in os.environ.items() if name.endswith(SECRETS) and value]
        checks = service_checks.services(Context.from_environment())
        found = service_checks.run({name: check for name, check in checks.items() if name.split()[0] in services}, 500)
    assert not [secret for secret in [*hidden, CANARY] if secret in repr(found)]
    return {finding.name.split()[0]: finding for finding in found}


def keys(store: Seaweed) -> list[str]:
    return [found["Key"] for found in store.client().list_objects_v2(Bucket="kept").get("Contents", ())]


def experiments() -> dict[str, str]:
    """All experiments with their stage, those that are deleted too."""
    from mlflow.entities import ViewType

    client = Context.from_environment().client()
    return {e.name: e.lifecycle_stage for e in client.search_experiments(view_type=ViewType.ALL)}


def mount(folder: Path, **objects: dict[str, str]) -> None:
    """ConfigMaps and Secrets as the kubelet mounts them: each key is a link into a folder that it may exchange."""
    for name, data in objects.items():
        there = folder / name
        (there / "..2026_01_01").mkdir(parents=True)
        (there / "..data").symlink_to("..2026_01_01")
        for key, value in data.items():
            (there / "..2026_01_01" / key).write_text(value)
            (there / key).symlink_to(f"..data/{key}")


def test_the_probe_of_a_cluster_uses_what_is_mounted_for_tasks(
    store: Seaweed, tracker: Tracker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What `rco doctor --cluster --probe` runs in its pod: it writes to and deletes from both by the names that tasks use."""
    services = {**store.environment(), **tracker.environment}
    hidden = {name: value for name, value in services.items() if name.endswith(SECRETS) or name.endswith("_USERNAME")}
    mount(
        tmp_path / "mounted",
        **{
            "config-map/rco-settings": {name: value for name, value in services.items() if name not in hidden},
            "secret/rco-credentials": hidden,
        },
    )
    files = dict.fromkeys(("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"), str(tmp_path / "none"))
    given = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "MLFLOW_", "RCO_"))}
    monkeypatch.setattr(os, "environ", {**given, **files, "RCO_RESUME": "s3://kept/resume"})
    forget()
    before = keys(store)
    findings = pod.probe(["s3://kept/data"], 500, tmp_path / "mounted")
    assert {finding.name: finding.status for finding in findings} == {"pod": OK, "MLflow": OK, "S3": OK}, findings
    assert "AWS_SECRET_ACCESS_KEY" in findings[0].found, "names alone"
    assert sum("written, read and deleted" in finding.found for finding in findings) == 3
    assert keys(store) == before == []
    printed = "\n".join(pod.lines(findings))
    assert pod.read(f"noise\n{printed}\n") == findings
    assert not [value for name, value in hidden.items() if name.endswith(SECRETS) and value in printed]


@pytest.mark.usefixtures("environment")
class TestServices:
    def test_right_credentials_pass_and_nothing_stays_but_what_mlflow_only_marks_as_deleted(self, store: Seaweed) -> None:
        before = experiments()
        found = ask("MLflow", "S3")
        assert {name: finding.status for name, finding in found.items()} == {"MLflow": OK, "S3": OK}, found
        assert "server 3." in found["MLflow"].found
        assert keys(store) == []
        new = {name: stage for name, stage in experiments().items() if name not in before}
        assert list(new.values()) == ["deleted"]
        assert next(iter(new)).startswith("rco-doctor-")

    @pytest.mark.parametrize(
        ("environment_change", "words", "step"),
        [
            ({"AWS_SECRET_ACCESS_KEY": f"{CANARY}-secret"}, "is refused by the store", "AWS_SECRET_ACCESS_KEY"),
            ({"AWS_ACCESS_KEY_ID": f"{CANARY}-key"}, "is refused by the store", "AWS_ACCESS_KEY_ID"),
            ({"RCO_RESUME": "s3://no-such-bucket/resume"}, "bucket that does not exist", "create it"),
            (
                {"AWS_ENDPOINT_URL_S3": f"http://me:{CANARY}@127.0.0.1:{free_port()}"},
                "cannot be reached",
                "AWS_ENDPOINT_URL_S3",
            ),
        ],
        ids=["secret", "key", "bucket", "endpoint"],
    )
    def test_s3(self, store: Seaweed, environment_change: dict[str, str], words: str, step: str) -> None:
        found = ask("S3", **environment_change)["S3"]
        assert [bucket["Name"] for bucket in store.client().list_buckets()["Buckets"]] == ["kept"]
        assert found.status == FAIL
        assert words in found.found
        assert step in found.next_step

    @pytest.mark.parametrize(
        ("environment_change", "words", "step"),
        [
            ({"MLFLOW_TRACKING_PASSWORD": f"{CANARY}-wrong"}, "refuses the login", "MLFLOW_TRACKING_PASSWORD"),
            ({"MLFLOW_TRACKING_USERNAME": "", "MLFLOW_TRACKING_PASSWORD": ""}, "asks for a login", "MLFLOW_TRACKING_TOKEN"),
            ({"MLFLOW_TRACKING_URI": f"http://me:{CANARY}@127.0.0.1:{free_port()}"}, "nothing listens there", "server runs"),
            ({"AWS_SECRET_ACCESS_KEY": f"{CANARY}-secret"}, "artifacts, at s3://kept/mlflow/", "AWS_ACCESS_KEY_ID"),
        ],
        ids=["password", "anonymous", "down", "artifacts"],
    )
    def test_mlflow(self, environment_change: dict[str, str], words: str, step: str) -> None:
        found = ask("MLflow", **environment_change)["MLflow"]
        assert found.status == FAIL
        assert words in found.found
        assert step in found.next_step

    def test_a_login_without_rights(self, tracker: Tracker) -> None:
        """Reading is all that this user may do, and only its own experiments: the artifacts of others are closed to it."""
        answer = requests.post(
            f"{tracker.address}/api/2.0/mlflow/users/create",
            json={"username": "guest", "password": f"{CANARY}-guest-password"},
            auth=("admin", tracker.environment["MLFLOW_TRACKING_PASSWORD"]),
            timeout=30,
        )
        assert answer.status_code == 200, answer.text
        client = Context.from_environment().client()
        if client.get_experiment_by_name("closed") is None:
            client.create_experiment("closed")
        login = {"MLFLOW_TRACKING_USERNAME": "guest", "MLFLOW_TRACKING_PASSWORD": f"{CANARY}-guest-password"}
        with pytest.MonkeyPatch.context() as patch:
            for name, value in login.items():
                patch.setenv(name, value)
            context = Context.from_environment()
            with pytest.raises(InputError, match=r"this login may not \(403\)") as caught:
                probe(context, lambda: open_parent(context, "closed", "guest's run", {}))
        assert CANARY not in str(caught.value)

    @pytest.mark.parametrize("minutes", [-20, 20])
    def test_a_wrong_clock_is_named(self, minutes: int) -> None:
        faketime = shutil.which("faketime")
        assert faketime is not None, "faketime is not installed (Debian: apt install faketime)"
        script = "import json; from rco.tasks.services import run, s3; print(json.dumps([f.found + f.next_step for f in run("
        script += "{'S3': lambda: s3('s3://kept/clock')})]))"
        done = subprocess.run(
            [faketime, "-f", f"{minutes:+d}m", sys.executable, "-c", script],
            capture_output=True,
            text=True,
            timeout=300,
            env={**os.environ, "FAKETIME_DONT_FAKE_MONOTONIC": "1"},
        )
        assert done.returncode == 0, done.stderr
        (told,) = json.loads(done.stdout)
        assert f"this machine's clock is 20 minutes {'ahead of' if minutes > 0 else 'behind'} the store's" in told
        assert "Set the clock" in told


def test_a_server_whose_own_secret_is_wrong(store: Seaweed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client can see only that the server fails; the words send to its log."""
    wrong = {**store.environment(), "AWS_SECRET_ACCESS_KEY": f"{CANARY}-secret", "MLFLOW_S3_ENDPOINT_URL": store.endpoint}
    with mlflow_server(tmp_path, artifacts="s3://kept/proxied", environment=wrong) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        found = ask("MLflow")["MLflow"]
        assert found.status == FAIL
        assert "artifacts" in found.found
        assert "the server answers 500" in found.found
        assert "the bucket and secret of the store behind it" in found.next_step
        assert set(experiments().values()) == {"active", "deleted"}


@pytest.mark.usefixtures("environment")
class TestFirstTask:
    def check(self, run: str, **environment: str) -> Any:
        forget()
        with pytest.MonkeyPatch.context() as patch:
            for name, value in {"RCO_PIPELINE_RUN": run, **environment}.items():
                patch.setenv(name, value)
            return check({p.name: p.default for p in PARAMETERS.values()} | {"check_services": True}, compiled={"student": 4})

    def test_the_runs_own_parent_is_what_is_written(self, store: Seaweed) -> None:
        before = experiments()
        self.check("run-1")
        self.check("run-1")  # as a retried task does
        assert {name for name in experiments() if name not in before} == {"rco"}
        assert keys(store) == []
        from mlflow.entities import ViewType

        client = Context.from_environment().client()
        experiment = client.get_experiment_by_name("rco")
        runs = client.search_runs([experiment.experiment_id], run_view_type=ViewType.ALL)
        assert [run.data.tags["rco.pipeline_run"] for run in runs] == ["run-1"]
        assert not [tag for tag in runs[0].data.tags if "probe" in tag]

    def test_a_wrong_secret_ends_the_run_before_it_begins(self) -> None:
        with pytest.raises(InputError, match=r"MLflow: .*artifacts.* S3: s3://kept/resume is refused by the store") as caught:
            self.check("run-2", AWS_SECRET_ACCESS_KEY=f"{CANARY}-secret")
        assert "check_services = false" in str(caught.value)
        assert CANARY not in str(caught.value)


class TestCommand:
    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pipelines.cli", "doctor", "--limit", "500", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=550, env={**os.environ, **environment})

    def test_all_is_right(self, environment: dict[str, str], store: Seaweed, tmp_path: Path) -> None:
        done = self.run("--home", str(tmp_path / "home"), "--s3", "s3://kept/mine", "--device", "cpu")
        assert done.returncode == 0, done.stdout + done.stderr
        lines = done.stdout.splitlines()
        assert [line.split()[1] for line in lines if not line.startswith(" ")] == [
            *("Python", "libraries", "plug-ins", "PyTorch", "device", "machine", "state"),
            *("MLflow", "S3", "S3", "Kubeflow", "workflows", "image"),
        ]
        assert not done.stderr
        assert keys(store) == []
        assert not (tmp_path / "home").exists()
        assert not [value for name, value in environment.items() if name.endswith(SECRETS) and value in done.stdout]

    def test_all_is_wrong(self, environment: dict[str, str], tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        nowhere = f"127.0.0.1:{free_port()}"
        wrong = {
            "MLFLOW_TRACKING_URI": f"http://me:{CANARY}@{nowhere}",
            "MLFLOW_TRACKING_TOKEN": CANARY,
            "AWS_SECRET_ACCESS_KEY": CANARY,
            "KFP_ENDPOINT": f"http://me:{CANARY}@{nowhere}",
            "KFP_EXISTING_TOKEN": CANARY,
            "RCO_IMAGE": f"https://me:{CANARY}@Registry/image",
        }
        done = self.run("--json", "--home", str(tmp_path / "file" / "home"), "--device", "cuda", **wrong)
        assert done.returncode == 1
        told = json.loads(done.stdout)
        assert told["ok"] is False
        status = {finding["name"]: finding["status"] for finding in told["findings"]}
        assert {name for name, value in status.items() if value == FAIL} >= {
            "state",
            "MLflow",
            "S3",
            "Kubeflow",
            "image",
            "device",
        }
        assert all(finding["next_step"] for finding in told["findings"] if finding["status"] == FAIL)
        assert not done.stderr
        assert CANARY not in done.stdout

    def test_bad_options_are_one_line(self) -> None:
        done = self.run("--s3", "bucket/prefix")
        assert done.returncode == 2
        assert done.stderr.startswith("rco: s3 = 'bucket/prefix': is not an s3:// address")
