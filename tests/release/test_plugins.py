"""The plug-ins that CONTRIBUTING.md shows, word for word: in a package, installed as an image installs it, and used."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
TINY = ["--teacher=digits-cnn-s", "--student=two-layers", "--teacher-epochs=6", "--teacher-milestones=2,4", "--epochs=6"]
RUN = [*TINY, "--checkpoint-every=1", "--threads=1", "--nth=2", "--objective=logit-distance", "--distance-scale=0.02"]
ORIGIN = r"mypackage 0\.1 \([0-9a-f]{12}\)"


def shown() -> tuple[list[str], str]:
    """The modules and the pyproject.toml that CONTRIBUTING.md shows."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    (toml,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL), toml


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """With the package on Python's path, as in an image that was built with EXTRA."""
    folder, extra = tmp_path_factory.mktemp("package"), tmp_path_factory.mktemp("extra")
    modules, toml = shown()
    (folder / "mypackage").mkdir()
    (folder / "mypackage" / "__init__.py").touch()
    for module in modules:
        (name,) = re.findall(r'register\("([a-z-]+)"\)|^def (two_layers)', module, re.MULTILINE)
        name = "".join(name)
        (folder / "mypackage" / f"{name.replace('-', '_')}.py").write_text(module)
    (folder / "pyproject.toml").write_text(toml)
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-compile", "--no-build-isolation"]
    subprocess.run([*install, "--target", str(extra), str(folder)], check=True)
    return {**os.environ, "PYTHONPATH": str(extra)}


def rco(environment: dict[str, str], *arguments: str) -> str:
    command = [sys.executable, "-m", "pipelines.cli", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


def test_they_are_as_short_as_they_are_said_to_be() -> None:
    strategy, objective, model = shown()[0]
    assert len(strategy.splitlines()) <= 40
    assert len(objective.splitlines()) <= 50
    assert len(model.splitlines()) <= 15


def test_a_run(environment: dict[str, str], home: Path) -> None:
    rco(environment, "run", "--home", str(home), "--strategy=every-nth", *RUN)
    summary: dict[str, Any] = json.loads((home / "last-run" / "summary.json").read_text())
    assert [stage["anchor_epoch"] for stage in summary["stages"]] == [2, 4, 6]
    import mlflow

    run = mlflow.MlflowClient(summary["tracking_uri"]).get_run(summary["parent_run_id"])
    used = rf"model two-layers of {ORIGIN}, strategy every-nth of {ORIGIN}, objective logit-distance of {ORIGIN}"
    assert re.fullmatch(used, run.data.params["plugins"]), run.data.params["plugins"]
    assert run.data.params["distance_scale"] == "0.02"


def test_a_comparison(environment: dict[str, str], home: Path) -> None:
    said = rco(environment, "compare", "--home", str(home), "--branches=kd,every-nth", "--seeds=0,1", *RUN)
    assert "every-nth" in said
    assert "train-teacher: unchanged, taken from the cache" in said
    page = (home / "last-comparison" / "report.md").read_text()
    assert "every n-th checkpoint" in page


def test_a_package_for_a_cluster(environment: dict[str, str], tmp_path: Path) -> None:
    rco(environment, "compile", "--output", str(tmp_path / "rco.yaml"), "--comparison", str(tmp_path / "comparison.yaml"))
    spec = next(yaml.safe_load_all((tmp_path / "rco.yaml").read_text()))
    form = spec["root"]["inputDefinitions"]["parameters"]
    assert (form["nth"]["defaultValue"], form["nth"]["parameterType"]) == (2.0, "NUMBER_INTEGER")
    assert form["distance_scale"]["defaultValue"] == 0.01
    assert "every-nth (every n-th checkpoint)" in form["strategy"]["description"]
    assert "or of another package (two-layers)" in form["student"]["description"]
    plugins = spec["root"]["dag"]["tasks"]["check"]["inputs"]["parameters"]["plugins"]["runtimeValue"]["constant"]
    for name in ("strategy every-nth", "model two-layers"):
        assert re.fullmatch(ORIGIN, plugins[name])
    # An image without the package refuses it.
    without = {**environment, "PYTHONPATH": ""}
    code = "from rco.config.plugins import require; require({'strategy every-nth': 'mypackage 0.1 (0)'})"
    done = subprocess.run([sys.executable, "-c", code], env=without, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "is of mypackage 0.1 (0) where the pipeline was compiled, and missing here" in done.stderr


def test_the_doctor_lists_them(environment: dict[str, str], home: Path) -> None:
    command = [sys.executable, "-m", "pipelines.cli", "doctor", "--home", str(home)]
    said = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False).stdout
    for name in ("strategy every-nth", "model two-layers"):
        assert re.search(rf"{name} of {ORIGIN}", said), said
