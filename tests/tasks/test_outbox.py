"""What a server that was away has missed is kept whole, and delivered once."""

from __future__ import annotations

import os
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from pipelines.cli.main import main
from rco.core.documents import write_json
from rco.core.errors import InputError
from rco.core.files import sha256_of
from rco.tasks.report import sync
from rco.tracking import outbox
from rco.tracking.context import Context
from rco.tracking.delivery import Delivery
from rco.tracking.record import Record
from tests.tasks.test_tracking import anchor, children, context, record, server, steps

__all__ = ["server"]  # a fixture


def pending(folder: Path, learner: Record, epochs: tuple[int, ...] = (4, 8)) -> outbox.PendingReport:
    anchors = {epoch: partial(nullcontext, anchor(folder / f"epoch-{epoch:04d}", epoch, seed=epoch)) for epoch in epochs}
    return outbox.PendingReport(
        parent={"experiment": "tests", "name": "late", "params": {"tau": 4.0}, "tags": {"rco.comparison": "true"}},
        deliveries=[
            Delivery(record=record("teacher", rows=2)),
            Delivery(record=learner, anchors=anchors, metrics={"test_accuracy": 0.9}),
        ],
        headline={"student_test_accuracy": 0.9},
        note="# It went well",
    )


@pytest.fixture
def report(tmp_path: Path) -> Path:
    folder = tmp_path / "runs" / "r" / "report"
    folder.mkdir(parents=True)
    (folder / "report.html").write_text("<p>")
    return folder


def kept(server: Path, report: Path, run: str, **more: Any) -> Context:
    where = context(server, run)
    outbox.keep(report, pending(report.parent / "anchors", record(rows=3)), where, **more)
    os.environ["MLFLOW_TRACKING_URI"] = where.tracking_uri
    os.environ["RCO_ARTIFACT_ROOT"] = where.artifact_root
    return where


def test_everything_arrives_later_and_once(server: Path, report: Path) -> None:
    import mlflow

    where = kept(server, report, "later")
    assert outbox.waiting(report)
    run_id, problem = sync(report)
    assert problem == ""
    assert not outbox.waiting(report)
    assert not (report / outbox.FOLDER).exists()
    client = where.client()
    parent = client.get_run(run_id)
    assert (parent.info.status, parent.data.metrics["student_test_accuracy"]) == ("FINISHED", 0.9)
    assert parent.data.tags["rco.comparison"] == "true"
    assert parent.data.tags["mlflow.note.content"] == "# It went well"
    assert [a.path for a in client.list_artifacts(run_id, "report")] == ["report/report.html"]
    runs = {child.data.tags["rco.key"]: child for child in children(client, "later")}
    assert {key: steps(client, run.info.run_id) for key, run in runs.items()} == {"teacher": [1, 2], "student": [1, 2, 3]}
    assert runs["student"].data.metrics["test_accuracy"] == 0.9
    for epoch in (4, 8):
        model = client.get_logged_model(runs["student"].data.tags[f"rco.anchor.{epoch}"])
        assert str(model.status).endswith("READY")
        folder = Path(mlflow.artifacts.download_artifacts(model.model_uri))
        assert sha256_of(folder / "anchor.safetensors") == model.tags["rco.sha256"]

    again = kept(server, report, "later")
    assert sync(report).run_id == run_id
    assert {r.info.run_id for r in children(client, "later")} == {r.info.run_id for r in runs.values()}
    assert steps(client, runs["student"].info.run_id) == [1, 2, 3]
    assert again == where


def test_while_the_server_is_away_all_is_kept(server: Path, report: Path) -> None:
    kept(server, report, "still-away")
    os.environ["MLFLOW_TRACKING_URI"] = "http://127.0.0.1:9"
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
    before = sorted(path for path in report.rglob("*") if path.is_file())
    run_id, problem = sync(report, anywhere=True)
    assert run_id == ""
    assert "Connection" in problem
    assert sorted(path for path in report.rglob("*") if path.is_file()) == before


def test_another_server_gets_nothing_by_accident(server: Path, report: Path) -> None:
    kept(server, report, "elsewhere")
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{report}/other.db"
    with pytest.raises(InputError, match=r"is not where run elsewhere was tracked\. Set it to sqlite:"):
        sync(report)
    assert outbox.waiting(report)


def test_no_password_is_kept(report: Path) -> None:
    where = Context(tracking_uri="http://me:canary@127.0.0.1:9", pipeline_run="secret")
    outbox.keep(report, pending(report.parent / "anchors", record(rows=1)), where)
    assert not [path for path in report.rglob("*") if path.is_file() and b"canary" in path.read_bytes()]


def test_an_outbox_cut_short_is_refused(report: Path) -> None:
    def full(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        outbox.keep(report, pending(report.parent / "anchors", record(rows=1)), context(report, "full"), full)
    assert not outbox.waiting(report)


@pytest.mark.parametrize("damage", ["index", "record", "weights", "path"])
def test_a_damaged_outbox_is_refused(server: Path, report: Path, damage: str) -> None:
    kept(server, report, f"damaged-{damage}")
    folder = report / outbox.FOLDER
    if damage == "index":
        (folder / "outbox.json").write_text('{"models": [{}]}')
    elif damage == "record":
        (folder / "models" / "1" / "record.json").write_text("[]")
    elif damage == "weights":
        for path in (folder / "weights").iterdir():
            path.write_bytes(path.read_bytes()[:-1] + b"!")
    else:
        write_json(folder / "models" / "1" / "epoch-0004" / "anchor.json", {"epoch": 4, "sha256": "../../x"})
    with pytest.raises(InputError, match=r"Copy|Run the task again"):
        sync(report)
    assert outbox.waiting(report)


def test_the_command_looks_through_the_runs_of_a_home(server: Path, report: Path, tmp_path: Path) -> None:
    kept(server, report, "command")
    ran = CliRunner().invoke(main, ["sync", "--home", str(tmp_path)])
    assert (ran.exit_code, "delivered, run" in ran.output) == (0, True), ran.output
    ran = CliRunner().invoke(main, ["sync", "--home", str(tmp_path)])
    assert (ran.exit_code, ran.output) == (0, "nothing waits for delivery\n")
