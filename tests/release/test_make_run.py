"""What the README promises of `make run`, on this checkout: exit codes, files, MLflow, and a quick second run."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def make_run(home: Path, *flags: str) -> tuple[subprocess.CompletedProcess[str], float]:
    started = time.monotonic()
    command = ["make", "run", f"ARGS=--home {home} {' '.join(flags)}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    print(done.stdout, done.stderr)
    return done, time.monotonic() - started


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def first(home: Path) -> tuple[subprocess.CompletedProcess[str], float]:
    return make_run(home)


def summary(home: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((home / "last-run" / "summary.json").read_text())
    return document


def test_it_distils_a_student(first: tuple[subprocess.CompletedProcess[str], float], home: Path) -> None:
    done, seconds = first
    print(f"the first run took {seconds:.0f} s")
    assert done.returncode == 0
    for words in ("The route the student took", "Teacher and student", "mlflow ui", "student.safetensors"):
        assert words in done.stdout
    result = summary(home)
    assert result["teacher"]["accuracy"] > 0.95
    assert result["student"]["accuracy"] > 0.9
    assert result["student"]["parameters"] < result["teacher"]["parameters"] / 10
    assert result["stages"][-1]["anchor_epoch"] == result["teacher"]["epochs"]
    for name in ("summary.json", "report.html", "report.md", "route.png", "student.png", "hardness.png"):
        assert (home / "last-run" / name).stat().st_size > 500


def test_mlflow_holds_runs_and_anchors(first: tuple[subprocess.CompletedProcess[str], float], home: Path) -> None:
    import mlflow

    result = summary(home)
    client = mlflow.MlflowClient(result["tracking_uri"])
    parent = client.get_run(result["parent_run_id"])
    assert parent.info.status == "FINISHED"
    anchors = client.search_logged_models([parent.info.experiment_id], "model_type = 'anchor'")
    assert {m.tags["rco.sha256"] for m in anchors} == {s["anchor_sha256"] for s in result["stages"]}
    assert {int(m.tags["rco.epoch"]) for m in anchors} == {s["anchor_epoch"] for s in result["stages"]}


def test_the_second_run_trains_nothing(first: tuple[subprocess.CompletedProcess[str], float], home: Path) -> None:
    before = summary(home)
    done, seconds = make_run(home)
    print(f"the second run took {seconds:.0f} s, the first {first[1]:.0f} s")
    assert done.returncode == 0
    assert "train-teacher: unchanged, taken from the cache" in done.stdout
    assert "setting up" not in done.stdout
    after = summary(home)
    assert after["stages"] == before["stages"]
    assert after["parent_run_id"] != before["parent_run_id"]


def test_bad_input_ends_with_two(home: Path) -> None:
    done, _ = make_run(home, "--tau", "-1")
    assert done.returncode == 2
    assert "tau = -1.0" in done.stderr
    assert "Traceback" not in done.stderr


def test_help_lists_every_target() -> None:
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    targets = {line.split(":")[0] for line in (ROOT / "Makefile").read_text().splitlines() if line.startswith(".PHONY")}
    assert targets == {".PHONY"}
    named = [line.split(":")[1].strip() for line in (ROOT / "Makefile").read_text().splitlines() if line.startswith(".PHONY")]
    for target in named:
        assert f"  {target} " in done.stdout
