"""What the doctor says: of each way to fail, the words, from facts made by hand."""

from __future__ import annotations

import importlib.metadata
import shutil
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import boto3
import pytest
import requests
from botocore.exceptions import ClientError
from mlflow.exceptions import MlflowException, RestException
from moto import mock_aws

from rco import doctor
from rco.config.parameters import PARAMETERS
from rco.core.errors import InputError, why_unreachable
from rco.core.storage import probe as storage_probe
from rco.core.storage.probe import StoreProbe, probe_store
from rco.core.storage.s3 import connection
from rco.tasks import services
from rco.tasks.check import check
from rco.tasks.services import FAIL, OK, WARN, Finding
from rco.tracking.context import Context, forgiving, without_credentials
from rco.tracking.probe import Probe, explained
from rco.tracking.runs import open_parent
from tests.in_process import settings_of

CANARY = "canary-7f3a"


def only(findings: list[Finding]) -> Finding:
    assert len(findings) == 1
    return findings[0]


class TestRunning:
    def test_findings_come_in_order_whatever_a_check_does(self) -> None:
        forever = threading.Event()

        def bad() -> list[Finding]:
            raise InputError("uri", "s3://b", "names a bucket that does not exist", "Create it")

        def broken() -> list[Finding]:
            raise KeyError(CANARY)

        def slow() -> list[Finding]:
            forever.wait()
            return []

        def good() -> list[Finding]:
            return [Finding(name="x", status=OK, found="x"), Finding(name="y", status=WARN, found="y")]

        found = services.run({"late s3://b": slow, "bad": bad, "broken": broken, "good": good}, 0.5)
        forever.set()
        assert [(f.name, f.status) for f in found] == [
            ("late", FAIL),
            ("bad", FAIL),
            ("broken", FAIL),
            ("x", OK),
            ("y", WARN),
        ]
        assert found[0].found == "s3://b gives no result within 0.5 s"
        assert found[1].found == "s3://b names a bucket that does not exist"
        assert found[1].next_step == "Create it"
        assert found[2].found == "could not be checked (KeyError)"
        assert not services.healthy(found)
        assert services.healthy(found[3:])

    def test_checks_run_side_by_side(self) -> None:
        both = threading.Barrier(2, timeout=60)

        def meet() -> list[Finding]:
            both.wait()
            return [Finding(name="met", status=OK, found="")]

        assert [f.status for f in services.run({"a": meet, "b": meet}, 60)] == [OK, OK]

    def test_what_is_wrong_is_bad_input(self) -> None:
        def bad() -> list[Finding]:
            return [Finding(name="S3", status=FAIL, found="is refused", next_step="Check the key")]

        def meh() -> list[Finding]:
            return [Finding(name="MLflow", status=WARN, found="is old", next_step="Update")]

        assert [f.name for f in services.require({"m": meh})] == ["MLflow"]
        with pytest.raises(InputError, match=r"S3: is refused\. Check the key\. With check_services = false") as caught:
            services.require({"b": bad, "m": meh})
        assert caught.value.parameter == "check_services"


class TestThisMachine:
    def test_what_the_tests_run_on_is_right(self) -> None:
        assert only(doctor.python()).status == OK
        found = only(doctor.libraries())
        assert found.status == OK, found
        assert f"kfp {importlib.metadata.version('kfp')}" in found.found

    def test_another_python(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "version_info", (3, 9, 1))
        found = only(doctor.python())
        assert (found.status, found.found) == (FAIL, "3.9.1 (needs >=3.11)")

    def test_libraries_out_of_range_and_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        wanted = ["boto3<1", "no-such-thing>=2", "numpy>=1", 'pytest<1; extra == "dev"']
        monkeypatch.setattr(doctor.metadata, "requires", lambda name: wanted)
        found = only(doctor.libraries())
        assert found.status == FAIL
        assert found.found == f"boto3 {importlib.metadata.version('boto3')} (needs <1), no-such-thing is missing"

    @pytest.mark.parametrize(
        ("facts", "device", "status", "found", "step"),
        [
            ({}, "auto", OK, "no GPU; computes on the CPU", ""),
            ({}, "cuda", FAIL, "no GPU", "--gpus all"),
            ({"gpus": ["H100 (80 GiB)"], "driver": "580.1", "driver_cuda": "13.2"}, "auto", OK, "H100 (80 GiB)", ""),
            (
                {"gpus": ["K80 (12 GiB)"], "driver": "580.1", "failed": "no kernel image is available"},
                "auto",
                FAIL,
                "cannot compute there (no kernel image",
                "another build",
            ),
            ({"driver": "535.1", "driver_cuda": "12.2"}, "auto", WARN, "for CUDA up to 12.2", "Update the driver"),
            ({"driver": "535.1", "driver_cuda": "12.2"}, "cuda", FAIL, "NVIDIA driver 535.1", "Update the driver"),
            ({"driver": "590.1", "driver_cuda": "13.4"}, "auto", WARN, "finds no GPU", "CUDA_VISIBLE_DEVICES"),
            ({"driver": "590.1", "cuda_build": ""}, "auto", WARN, "built for the CPU alone", "PyPI's build"),
            ({"failed": "the result is wrong"}, "cpu", FAIL, "cannot compute on the CPU", "make setup"),
        ],
    )
    def test_gpus_and_drivers(self, facts: dict[str, Any], device: str, status: str, found: str, step: str) -> None:
        whole = {
            "torch": "2.15.0",
            "torchvision": "0.29.2",
            "problem": "",
            "cuda_build": "13.2",
            "gpus": [],
            "failed": "",
            "driver": "",
            "driver_cuda": "",
        }
        torch, about = doctor.judge_pytorch({**whole, **facts}, device)
        assert (torch.status, about.status) == (OK, status)
        assert found in about.found
        assert step in about.next_step

    def test_pairs_that_do_not_go_together(self) -> None:
        facts = {"torch": "2.15.0+cpu", "torchvision": "0.29.2", "problem": "operator torchvision::nms does not exist"}
        found = only(doctor.judge_pytorch(facts, "auto"))
        assert found.status == FAIL
        assert "torchvision::nms" in found.found
        assert "different builds" in found.next_step
        found = only(doctor.judge_pytorch({**facts, "torch": "2.15.0"}, "auto"))
        assert "different builds" not in found.next_step
        assert "status -4" in only(doctor.judge_pytorch({"crashed": -4}, "auto")).found

    def test_little_shared_memory_is_a_warning(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Usage(NamedTuple):
            total: int
            used: int
            free: int

        monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(64 * 2**20, 0, 64 * 2**20))
        found = only(doctor.machine())
        assert found.status == WARN
        assert "64 MiB in /dev/shm" in found.found
        assert "--shm-size" in found.next_step

    def test_state_that_can_be_written_is_left_as_it_was(self, tmp_path: Path) -> None:
        found = only(services.writable("state", tmp_path / "not" / "yet", "--home"))
        assert found.status in (OK, WARN)
        assert str(tmp_path / "not" / "yet") in found.found
        assert list(tmp_path.iterdir()) == []

    def test_state_that_cannot_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        found = only(services.writable("state", tmp_path / "file" / "home", "--home"))
        assert found.status == FAIL
        assert "Not a directory" in found.found


def raised(function: Callable[[], Any]) -> Exception:
    try:
        function()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


class TestWordsOfTheNetwork:
    def test_no_listener(self, closed_port: int) -> None:
        error = raised(lambda: requests.get(f"http://me:{CANARY}@127.0.0.1:{closed_port}"))
        assert why_unreachable(error) == "nothing listens there"

    def test_no_host(self) -> None:
        assert why_unreachable(raised(lambda: requests.get("http://no-such-host.invalid"))) == "there is no host of that name"

    def test_no_address(self) -> None:
        assert "cannot be read as an address" in why_unreachable(raised(lambda: requests.get("http://me:pass/word@host")))

    def test_no_answer_and_no_reason(self) -> None:
        assert why_unreachable(requests.exceptions.ReadTimeout()) == "it does not answer"
        assert why_unreachable(ValueError(CANARY)) == "the connection failed"


@pytest.fixture
def closed_port() -> int:
    from tests.servers import free_port

    return free_port()


class TestMLflow:
    def problem(self, error: Exception) -> str:
        with pytest.raises(InputError) as caught, explained("http://mlflow", "cannot keep runs"):
            raise error
        assert CANARY not in str(caught.value)
        return f"{caught.value.problem}. {caught.value.remedy}"

    @pytest.mark.parametrize(
        ("error", "words"),
        [
            (RestException({"error_code": "PERMISSION_DENIED", "message": CANARY}), "this login may not"),
            (MlflowException("failed with error code 403 != 200. Response body: 'Invalid Host header'"), "--allowed-hosts"),
            (MlflowException(f"too many 500 error responses {CANARY}"), "the server answers 500. See its log"),
            (PermissionError(13, "Permission denied", CANARY), r"Permission denied\). Start the server with --serve-artifacts"),
            (ModuleNotFoundError(name="psycopg2"), "the module psycopg2 is missing"),
            (ClientError({"Error": {"Code": "AccessDenied", "Message": CANARY}}, "PutObject"), "AccessDenied"),
            (RuntimeError(CANARY), "RuntimeError"),
        ],
    )
    def test_words(self, error: Exception, words: str) -> None:
        assert words.replace("\\", "") in self.problem(error)

    def test_login(self, monkeypatch: pytest.MonkeyPatch) -> None:
        error = MlflowException("failed with error code 401 != 200")
        assert "asks for a login" in self.problem(error)
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", CANARY)
        assert "refuses the login" in self.problem(error)

    @pytest.mark.parametrize(
        ("server", "artifacts", "left", "status", "words"),
        [
            ("3.17.2", "mlflow-artifacts:/1/2/artifacts", "", OK, ""),
            ("3.17.2", "s3://bucket/1/2/artifacts", "", OK, ""),
            ("99.0", "mlflow-artifacts:/1", "", OK, ""),
            ("3.2.0", "mlflow-artifacts:/1", "", WARN, "older than the client"),
            ("2.22.0", "mlflow-artifacts:/1", "", WARN, "plain artifacts"),
            ("3.17.2", "/mlruns/1/2/artifacts", "", WARN, "--serve-artifacts"),
            ("3.17.2", "file:///mlruns/1", "", WARN, "--serve-artifacts"),
            ("", "file:///home/.rco/artifacts/1", "", OK, ""),
            ("3.17.2", "s3://bucket/1", "s3://bucket/1/x", WARN, "allow this login to delete"),
        ],
    )
    def test_what_was_found(
        self, monkeypatch: pytest.MonkeyPatch, server: str, artifacts: str, left: str, status: str, words: str
    ) -> None:
        probe = Probe(server, "3.17.2", artifacts, left, 0.1, not server.startswith("2."))
        monkeypatch.setattr(services, "probe", lambda *_: probe)
        found = only(services.mlflow(Context(tracking_uri=f"http://me:{CANARY}@mlflow?{CANARY}", pipeline_run="")))
        assert found.status == status
        assert words in found.next_step
        assert found.found.startswith("http://mlflow: a run and an artifact written")


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", CANARY)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with mock_aws():
        client = boto3.client("s3")
        client.create_bucket(Bucket="bucket")
        yield client


class TestS3:
    def test_nothing_stays(self, bucket: Any) -> None:
        for uri in ("s3://bucket", "s3://bucket/a/b/"):
            assert only(services.s3(uri)).status == OK
        assert "Contents" not in bucket.list_objects_v2(Bucket="bucket")

    @pytest.mark.parametrize(
        ("ahead", "status", "words"),
        [(30, OK, ""), (-75, OK, "75 seconds behind"), (420, WARN, "7 minutes ahead of"), (-7200, WARN, "120 minutes behind")],
    )
    def test_clocks(self, monkeypatch: pytest.MonkeyPatch, ahead: float, status: str, words: str) -> None:
        monkeypatch.setattr(services, "probe_store", lambda uri: StoreProbe("http://s3", ahead, "", 0.1))
        found = only(services.s3("s3://bucket/x"))
        assert found.status == status
        assert words in found.found
        assert ("clock" in found.next_step) == bool(words)

    def test_bytes_that_changed(self, monkeypatch: pytest.MonkeyPatch, bucket: Any) -> None:
        contents = iter([b"written", b"another"])
        monkeypatch.setattr(storage_probe.secrets, "token_bytes", lambda size: b"written")
        real = storage_probe.hashlib.sha256
        monkeypatch.setattr(storage_probe.hashlib, "sha256", lambda _: real(next(contents)))
        with pytest.raises(InputError, match="other bytes"):
            probe_store("s3://bucket")

    def test_credentials_that_have_expired(self) -> None:
        answer = {"Error": {"Code": "ExpiredToken", "Message": CANARY}, "ResponseMetadata": {"HTTPStatusCode": 400}}
        with pytest.raises(InputError, match="have expired") as caught, connection("s3://bucket"):
            raise ClientError(answer, "PutObject")
        assert CANARY not in str(caught.value)

    def test_no_right_to_delete(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(services, "probe_store", lambda uri: StoreProbe("http://s3", None, "x/rco-doctor-1", 0.1))
        found = only(services.s3("s3://bucket/x"))
        assert found.status == WARN
        assert "x/rco-doctor-1 could not be deleted" in found.found


def test_only_what_is_named_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = Context(tracking_uri="", pipeline_run="")
    assert services.services(nothing) == {}
    monkeypatch.setenv("RCO_RESUME", "s3://b/resume")
    everything = replace(nothing, tracking_uri="http://m", artifact_root="s3://b/artifacts")
    names = list(services.services(everything, ["s3://b/resume", "s3://b/mine"]))
    assert names == ["MLflow", "S3 s3://b/resume", "S3 s3://b/mine", "S3 s3://b/artifacts"]
    monkeypatch.setenv("RCO_RESUME", "/mnt/resume")
    assert list(services.services(replace(nothing, artifact_root="file:///x"))) == ["resume"]
    monkeypatch.setenv("RCO_RESULTS", "/mnt/resume/results")
    assert list(services.services(nothing)) == ["resume"], "one check for what lies in one place"
    monkeypatch.setenv("RCO_RESULTS", "s3://b/results")
    assert list(services.services(nothing)) == ["S3 s3://b/results", "resume"]


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        (f"https://me:{CANARY}@mlflow.example/x?token={CANARY}#{CANARY}", "https://mlflow.example/x"),
        (f"https://me:{CANARY}/9@mlflow.example/x", "https://..."),
        (f"postgresql+psycopg2://me:{CANARY}@db:5432/mlflow?password={CANARY}", "postgresql+psycopg2://db:5432/mlflow"),
        ("sqlite:////tmp/a@b/mlflow.db", "sqlite:////tmp/a@b/mlflow.db"),
        ("sqlite:///relative.db", "sqlite:///relative.db"),
    ],
)
def test_addresses_that_may_be_shown(uri: str, shown: str) -> None:
    assert without_credentials(uri) == shown


def test_a_warning_of_tracking_shows_no_password(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, closed_port: int
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    context = Context(tracking_uri=f"http://me:{CANARY}@127.0.0.1:{closed_port}", pipeline_run="run-1")
    with caplog.at_level("WARNING"), forgiving("The parent run"):
        open_parent(context, "rco", "run", {})
    assert f"127.0.0.1:{closed_port}" in caplog.text
    assert CANARY not in caplog.text


class TestFirstTask:
    """The pipeline's parameter check_services."""

    def check(self, **parameters: Any) -> Any:
        return check({p.name: p.default for p in PARAMETERS.values()} | parameters, compiled={"student": 4})

    def test_a_server_that_is_away_ends_the_run_before_it_begins(
        self, monkeypatch: pytest.MonkeyPatch, closed_port: int
    ) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:{CANARY}@127.0.0.1:{closed_port}")
        monkeypatch.setenv("RCO_PIPELINE_RUN", "run-1")
        with pytest.raises(InputError, match=f"MLflow: http://127.0.0.1:{closed_port} cannot be reached") as caught:
            self.check(check_services=True)
        assert CANARY not in str(caught.value)

    def test_both_services_are_named(self, monkeypatch: pytest.MonkeyPatch, closed_port: int) -> None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{closed_port}")
        monkeypatch.setenv("RCO_PIPELINE_RUN", "run-1")
        monkeypatch.setenv("RCO_RESUME", "s3://bucket/resume")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, CANARY)
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{closed_port}")
        with pytest.raises(InputError, match=r"MLflow: .*; S3: s3://bucket/resume cannot be reached") as caught:
            self.check(check_services=True)
        assert CANARY not in str(caught.value)

    def test_without_services_there_is_nothing_to_check(self) -> None:
        assert set(self.check(check_services=True)) == set(self.check(check_services=False))

    def test_it_is_in_no_cached_tasks_settings(self) -> None:
        with_it = settings_of({"check_services": True})
        without = settings_of({"check_services": False})
        assert with_it.filing != without.filing  # of tasks that are never cached
        assert replace(with_it, filing=without.filing) == without
