"""What a pipeline that ended without its exit task leaves open in MLflow: who ends it, and who does not."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from rco.core.errors import InputError
from rco.tasks import check, services
from rco.tasks.left_open import asking, close_left_open
from rco.tasks.report import close_run
from rco.tasks.services import FAIL, Finding
from rco.tracking.context import Context
from rco.tracking.runs import end_open_runs, find_parent, open_parent
from rco.training import resume
from tests.servers import free_port

RECORDED = Path(__file__).parents[1] / "recorded"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture(autouse=True)
def _in_a_pod(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")


def opened(server: str, run: str = "", experiment: str = "tests") -> Context:
    context = Context(tracking_uri=server, pipeline_run=run or str(uuid.uuid4()), artifact_root="file:///tmp/unused")
    open_parent(context, experiment, "r", {})
    return context


def status(context: Context) -> str:
    parent = find_parent(context, context.client())
    assert parent is not None
    return str(parent.info.status)


class Asked(NamedTuple):
    path: str
    authorization: str | None


@contextmanager
def kfp(answers: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Asked]]:
    """Kubeflow's API inside a cluster: run -> its state, all of it, or a status of HTTP; gives what was asked."""
    asked: list[Asked] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(Asked(self.path, self.headers["Authorization"]))
            answer = answers.get(self.path.rpartition("/")[2], 404)
            self.send_response(answer if isinstance(answer, int) else 200)
            self.end_headers()
            self.wfile.write(json.dumps(answer if isinstance(answer, dict) else {"state": answer}).encode())

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        monkeypatch.setenv("ML_PIPELINE_SERVICE_HOST", "127.0.0.1")
        monkeypatch.setenv("ML_PIPELINE_SERVICE_PORT", str(listening.server_port))
        try:
            yield asked
        finally:
            listening.shutdown()
            thread.join()


def test_what_kubeflow_reports_as_ended_is_ended(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    terminated, failed, succeeded, running, deleted = (opened(server) for _ in range(5))
    local, elsewhere, mine = opened(server, "20260101-120000-abcd"), opened(server, experiment="another"), opened(server)
    answers = {
        terminated.pipeline_run: "CANCELED",
        failed.pipeline_run: "FAILED",
        succeeded.pipeline_run: "SUCCEEDED",
        running.pipeline_run: "RUNNING",
        elsewhere.pipeline_run: "FAILED",
        mine.pipeline_run: "FAILED",
    }
    with kfp(answers, monkeypatch) as asked:
        assert close_left_open(mine) == 3
    assert [status(c) for c in (terminated, failed, succeeded)] == ["KILLED", "FAILED", "FINISHED"]
    assert {status(c) for c in (running, deleted, local, elsewhere, mine)} == {"RUNNING"}
    assert {a.path.rpartition("/")[0] for a in asked} == {"/apis/v2beta1/runs"}
    assert len(asked) == 5


@pytest.mark.parametrize("answer", [401, 403, 500, None])
def test_without_the_api_nothing_is_ended_and_that_is_said(
    server: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, answer: int | None
) -> None:
    experiment = f"away {answer}"
    others, mine = [opened(server, experiment=experiment) for _ in range(2)], opened(server, experiment=experiment)
    monkeypatch.setattr("rco.tasks.process.log.propagate", True)
    with caplog.at_level("INFO", "rco"):
        if answer is None:
            monkeypatch.setenv("ML_PIPELINE_SERVICE_HOST", "127.0.0.1")
            monkeypatch.setenv("ML_PIPELINE_SERVICE_PORT", str(free_port()))
            assert close_left_open(mine) == 0
        else:
            with kfp({c.pipeline_run: answer for c in others}, monkeypatch) as asked:
                assert close_left_open(mine) == 0
            assert len(asked) == 1, "it is asked no more"
    assert "MLflow shows 2 earlier pipeline runs as running; Kubeflow's API cannot be asked from here" in caplog.text
    assert [status(c) for c in others] == ["RUNNING", "RUNNING"]


def test_on_a_machine_that_is_no_pod_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST")
    assert close_left_open(Context(tracking_uri="http://127.0.0.1:1", pipeline_run="x")) == 0


def test_the_api_is_asked_with_the_token_of_the_pod(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import os

    (tmp_path / "token").write_text("secret\n")
    run = json.loads((RECORDED / "terminated.json").read_text())
    with kfp({run["run_id"]: run}, monkeypatch) as asked:
        assert asking(os.environ, tmp_path / "token")(run["run_id"]) == "FAILED"
    assert [a.authorization for a in asked] == ["Bearer secret"]


def test_a_check_that_fails_ends_its_own_run(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    context = Context(tracking_uri=server, pipeline_run=str(uuid.uuid4()), artifact_root="file:///tmp/unused")

    def checks(_: Context, open_run: Any) -> Any:
        def mlflow() -> list[Finding]:
            open_run()
            return [Finding(name="S3", status=FAIL, found="refused")]

        return {"MLflow": mlflow}

    monkeypatch.setattr(services, "services", checks)
    with pytest.raises(InputError, match="refused"):
        check.require_services(context, lambda: open_parent(context, "checks", "r", {}))
    assert status(context) == "FAILED"


def test_a_run_that_succeeds_when_it_is_tried_again_is_finished(server: str) -> None:
    context = opened(server)
    end_open_runs(context, "FAILED")
    end_open_runs(context, "FAILED")
    assert status(context) == "FAILED"
    end_open_runs(context, "FINISHED")
    assert status(context) == "FINISHED"


@pytest.mark.parametrize("reported", [True, False])
def test_an_exit_task_that_is_told_running_asks_for_the_report(
    server: str, monkeypatch: pytest.MonkeyPatch, reported: bool
) -> None:
    """Older backends say RUNNING of a pipeline that has succeeded (kubeflow/pipelines#11979, #13321)."""
    context = opened(server)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    monkeypatch.setenv("RCO_PIPELINE_RUN", context.pipeline_run)
    cleared: list[bool] = []
    monkeypatch.setattr(resume, "clear_run", lambda: cleared.append(True))
    if reported:
        end_open_runs(context, "FINISHED")  # as the report's delivery does
    close_run(succeeded=None)
    assert (status(context), cleared) == (("FINISHED", [True]) if reported else ("FAILED", []))


def test_without_mlflow_the_points_of_an_unknown_end_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(resume, "clear_run", lambda: pytest.fail("they went"))
    assert close_run(succeeded=None) == 0


@pytest.mark.parametrize(
    ("state", "succeeded"),
    [("SUCCEEDED", True), ("COMPLETE", True), ("CACHED", True), ("FAILED", False), ("CANCELED", False), ("RUNNING", None)],
)
def test_states_of_a_pipeline(monkeypatch: pytest.MonkeyPatch, state: str, succeeded: bool | None) -> None:
    from types import SimpleNamespace

    from components.close_run import close_run as component
    from rco.tasks import report

    seen: list[Any] = []
    monkeypatch.setattr(report, "close_run", lambda **given: seen.append(given))
    component.python_func(SimpleNamespace(state=state))
    assert seen == [{"succeeded": succeeded}]
