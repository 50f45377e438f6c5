"""What the probe of `rco doctor --cluster` runs in its pod, without services (with real ones: integration/test_doctor.py)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rco.core import mounted
from rco.core.marks import PREFIX, PROBED
from rco.tasks.probe import lines, main, probe, read
from rco.tasks.services import FAIL, OK, SKIPPED, Finding


@pytest.fixture(autouse=True)
def nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables that are taken end with the test."""
    monkeypatch.setattr(os, "environ", {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "MLFLOW_", "RCO_"))})


def test_without_services(tmp_path: Path) -> None:
    findings = probe(folder=tmp_path)
    assert [(finding.name, finding.status) for finding in findings] == [("pod", OK), ("MLflow", SKIPPED), ("S3", SKIPPED)]
    assert findings[0].found == "tasks are given no variables of MLflow and S3"


def test_a_key_that_must_be_there(tmp_path: Path) -> None:
    source = mounted.Mounted(folder="secret/team", variables={"AWS_ACCESS_KEY_ID": "key"}, optional=False)
    os.environ[mounted.VARIABLE] = source.described
    (finding,) = probe(folder=tmp_path)
    assert (finding.name, finding.status) == ("pod", FAIL)
    assert "the Secret team has no key key" in finding.found
    assert finding.next_step


def test_names_are_told_and_no_values(tmp_path: Path) -> None:
    folder = tmp_path / "secret" / "rco-credentials"
    folder.mkdir(parents=True)
    (folder / "AWS_SECRET_ACCESS_KEY").write_text("canary-31aa\n")
    os.environ["RCO_RESUME"] = str(tmp_path)
    first, *others = probe(folder=tmp_path)
    assert first.found == "tasks are given AWS_SECRET_ACCESS_KEY, RCO_RESUME"
    assert {finding.name: finding.status for finding in others}["resume"] == OK
    assert "canary" not in "".join(lines([first, *others]))


def test_findings_go_through_a_log() -> None:
    findings = [
        Finding(name="S3", status=FAIL, found="s3://b is\n refused", next_step="Check the key"),
        Finding(name="a", status=OK, found="b"),
    ]
    log = "\n".join(["I0101 launcher", *lines(findings), "the end"])
    assert read(log) == findings


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"name": 1}', '{"name": "a", "status": "ok"}', '{"name": "a", "status": "good", "found": "b"}']
)
def test_what_is_no_finding_is_left_out(text: str) -> None:
    assert read(f"{PREFIX}{PROBED}{text}\n") == []


def test_the_exit_status(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("logging.disable", lambda: None)
    assert main([]) == 0
    assert [finding.name for finding in read(capsys.readouterr().out)] == ["pod", "MLflow", "S3"]
    os.environ["RCO_RESUME"] = "/proc/nowhere"
    assert main([]) == 1
