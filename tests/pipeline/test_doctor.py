"""What `rco doctor` says of Kubeflow and of the image, how it shows it, and where the first task asks the services."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from components.image import content_hash
from pipelines import doctor
from pipelines.cluster import controller
from pipelines.cluster.placement import Cluster
from pipelines.display import print_findings
from pipelines.pipeline import make_pipeline
from rco.config.branches import Comparison
from rco.config.shape import Shape
from rco.tasks.services import FAIL, OK, SKIPPED, WARN, Finding
from rco.tasks.validate import shape_of

RECORDED = Path(__file__).parents[1] / "recorded"
CANARY = "canary-2b9e"
DIGEST = f"sha256:{'0a' * 32}"


def only(findings: list[Finding]) -> Finding:
    assert len(findings) == 1
    return findings[0]


@contextmanager
def stub(answers: dict[str, tuple[int, str]]) -> Iterator[str]:
    """A stub of an HTTP service: path -> status and body; gives its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = answers.get(self.path.split("?")[0], (404, ""))
            self.send_response(status)
            self.send_header("Content-Type", "application/json" if body.startswith("{") else "text/html")
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


class TestKubeflow:
    HEALTH, EXPERIMENTS = "/apis/v2beta1/healthz", "/apis/v2beta1/experiments"

    @pytest.mark.parametrize(
        ("health", "experiments", "status", "words"),
        [
            ((200, '{"tag_name": "2.17.0"}'), (200, "{}"), OK, "KFP 2.17.0; lets this user in"),
            ((200, '{"tag_name": "2.16.0"}'), (200, "{}"), WARN, "older than the"),
            ((200, '{"tag_name": "2.4.1"}'), (200, "{}"), FAIL, "nested pipelines do not hand on artifacts there"),
            ((200, '{"tag_name": "1.8.0"}'), (200, "{}"), FAIL, "too old"),
            ((200, '{"tag_name": "2.17.0"}'), (401, '{"message": "no"}'), FAIL, "does not know who we are"),
            ((200, '{"tag_name": "2.17.0"}'), (403, '{"message": "no"}'), FAIL, "does not allow this"),
            ((200, "<html>Sign in</html>"), (200, "{}"), FAIL, "wants us to sign in"),
            ((404, ""), (404, ""), FAIL, "it is not KFP's API"),
        ],
    )
    def test_words(
        self,
        monkeypatch: pytest.MonkeyPatch,
        health: tuple[int, str],
        experiments: tuple[int, str],
        status: str,
        words: str,
    ) -> None:
        monkeypatch.setenv("KFP_EXISTING_TOKEN", CANARY)
        with stub({self.HEALTH: health, self.EXPERIMENTS: experiments}) as address:
            found = only(doctor.kubeflow(address))
        assert found.status == status, found
        assert words in found.found
        assert bool(found.next_step) == (status != OK)
        assert CANARY not in repr(found)

    def test_not_named_and_not_there(self) -> None:
        from tests.servers import free_port

        assert only(doctor.kubeflow("")).status == SKIPPED
        found = only(doctor.kubeflow(f"http://127.0.0.1:{free_port()}"))
        assert found.status == FAIL
        assert "nothing listens there" in found.found
        found = only(doctor.kubeflow(f"http://me:{CANARY}@127.0.0.1:1"))
        assert found.status == FAIL
        assert CANARY not in repr(found)

    def test_the_mlflow_plugin_is_told_of(self) -> None:
        run = json.loads((RECORDED / "failed-in-check.json").read_text())
        answers = {
            self.HEALTH: (200, '{"tag_name": "2.17.0"}'),
            self.EXPERIMENTS: (200, "{}"),
            "/apis/v2beta1/runs": (200, json.dumps({"runs": [run]})),
        }
        with stub(answers) as address:
            found = only(doctor.kubeflow(address))
        assert found.status == OK
        assert "its MLflow plugin is on (plugin failed)" in found.found


class TestWorkflows:
    """What KFP's controller does with workflows, read in the defaults that KFP 2.17 comes with."""

    DEFAULTS = json.loads((RECORDED / "workflow-controller.json").read_text())["workflowDefaults"]

    def found(self, monkeypatch: pytest.MonkeyPatch, defaults: str | None) -> Finding:
        monkeypatch.setattr(controller, "ask", lambda namespace: defaults)
        return only(doctor.workflows("http://kfp"))

    def test_kfp_as_it_comes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        found = self.found(monkeypatch, self.DEFAULTS)
        assert found.status == WARN
        assert "OnError is the policy of all retries: a task that dies or times out is not tried again" in found.found
        assert "deleted, with the logs of its pods, 1 h 00 min after its end" in found.found
        assert "--retry-failed" in found.next_step
        assert controller.doubles(self.DEFAULTS)

    @pytest.mark.parametrize(
        "defaults",
        ["", "spec: {ttlStrategy: {}}", "spec:\n  templateDefaults:\n    retryStrategy: {limit: 2}\n", "- 1", "a: ["],
    )
    def test_without_that_default(self, monkeypatch: pytest.MonkeyPatch, defaults: str) -> None:
        found = self.found(monkeypatch, defaults)
        assert (found.status, "as the deployment file says; workflows are kept" in found.found) == (OK, True)

    def test_what_cannot_be_read(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        assert self.found(monkeypatch, None).status == SKIPPED
        monkeypatch.undo()
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
        monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
        assert only(doctor.workflows("http://kfp")).status == SKIPPED
        assert only(doctor.workflows("")).status == SKIPPED


class TestImage:
    @pytest.mark.parametrize(
        ("name", "status", "words"),
        [
            (f"registry.example:5000/ml/rco-python@{DIGEST}", OK, "not known here"),
            (f"registry.example/ml/rco@{DIGEST}", OK, "without 'python'"),
            ("registry.example/ml/rco-python:1.0", WARN, "a tag, which can be moved"),
            ("registry.example/ml/rco-python", WARN, "its tag moves"),
            ("registry.example/ml/rco-python:latest", WARN, "its tag moves"),
            ("registry.example/ML/RCO", FAIL, "is not an image reference"),
            ("rco-python@sha256:beef", FAIL, "is not an image reference"),
            (f"https://me:{CANARY}@registry.example/rco", FAIL, "is not an image reference"),
        ],
    )
    def test_named(self, tmp_path: Path, name: str, status: str, words: str) -> None:
        found = only(doctor.image(name, tmp_path / "image.json"))
        assert (found.status, words in found.found) == (status, True), found
        assert bool(found.next_step) == (status != OK)
        assert CANARY not in repr(found)

    def test_built(self, tmp_path: Path) -> None:
        build = tmp_path / "image.json"
        assert only(doctor.image("", build)).status == SKIPPED
        pushed = f"registry.example/rco-python@{DIGEST}"
        for reference, content, status, words in (
            (pushed, content_hash(), OK, "holds this checkout"),
            (pushed, "0123456789ab", WARN, "other code than this checkout"),
            ("rco-python:abc", content_hash(), WARN, "can be moved"),
        ):
            build.write_text(json.dumps({"reference": reference, "content": content}))
            for named in ("", reference):
                found = only(doctor.image(named, build))
                assert (found.status, words in found.found) == (status, True), found
        for broken in ("", "[]", '{"reference": 7}'):
            build.write_text(broken)
            found = only(doctor.image("", build))
            assert (found.status, "does not describe an image" in found.found) == (FAIL, True)


FINDINGS = [
    Finding(name="Python", status=OK, found="3.11 [of all things]"),
    Finding(name="S3", status=FAIL, found="s3://b is refused", next_step="Check the key"),
]


def test_lines_where_nobody_watches() -> None:
    out = StringIO()
    print_findings(FINDINGS, Console(file=out, highlight=False, soft_wrap=True))
    assert out.getvalue().splitlines() == [
        "ok       Python     3.11 [of all things]",
        "fail     S3         s3://b is refused",
        "                    -> Check the key",
    ]


def test_a_table_in_a_terminal() -> None:
    out = StringIO()
    print_findings(FINDINGS, Console(file=out, force_terminal=True, width=100))
    text = out.getvalue()
    assert "next step" in text
    assert "3.11 [of all things]" in text
    assert text.count("│") >= 8


def test_the_first_task_asks_the_services_on_a_cluster() -> None:
    for cluster, asks in ((Cluster(), True), (None, False)):
        for shape in (Shape.of_run(1), shape_of(Comparison.of({}))):
            make = make_pipeline(shape, cluster=cluster)
            parameter = make.pipeline_spec.root.input_definitions.parameters["check_services"]
            assert parameter.default_value.bool_value is asks
