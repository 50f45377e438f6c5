"""Tasks, run as the compiled pipeline calls them and as they are called by hand."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from components import check
from rco.config.shape import Shape
from rco.core.settings import jsonable
from tests import zygote
from tests.in_process import settings_of
from tests.pipeline.test_platform import Task, placed

pytestmark = pytest.mark.usefixtures("_zygote")
ROOT = Path(__file__).parents[2]


def called(task: Task, folder: Path, inputs: dict[str, Any], outputs: dict[str, Any]) -> tuple[int, str]:
    """A task, run as the compiled pipeline calls it: its exit status, and what it has said."""
    given = {"inputs": inputs, "outputs": {**outputs, "outputFile": str(folder / "out.json")}}
    command = [sys.executable, *task.container.command[1:], "--executor_input", json.dumps(given)]
    process = zygote.start(command, {"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(folder)})
    said = process.communicate()
    return process.wait(), said


def test_a_task_runs_as_the_compiled_pipeline_calls_it(tmp_path: Path) -> None:
    (task,) = (t for t in placed(tmp_path, "") if t.component == "close-run")
    status = {"state": "SUCCEEDED", "pipelineTaskName": "t", "pipelineJobResourceName": "r", "error": {}}
    ended, said = called(task, tmp_path, {"parameterValues": {"status": status}}, {})
    assert ended == 0, said
    assert (tmp_path / "out.json").is_file()


def test_the_check_runs_as_the_compiled_pipeline_calls_it(tmp_path: Path) -> None:
    """KFP hands numbers over as JSON has them: 64.0 is 64."""
    (task,), shape = (t for t in placed(tmp_path, "") if t.component == "check"), Shape.of_run(1)
    values = {**shape.constants, "plugins": {}, **{field.name: field.default for field in shape.form}}
    values |= {"check_services": False, "batch_size": 32.0, "tau": 3, "n_anchors": 1}
    outputs = {name: {"outputFile": str(tmp_path / name)} for name in check.check(shape).component_spec.outputs}
    ended, said = called(task, tmp_path, {"parameterValues": values}, {"parameters": outputs})
    assert ended == 0, said
    written = json.loads((tmp_path / "out.json").read_text())["parameterValues"]
    assert set(written) == set(outputs)
    train = written["distill_student"]["stage"]["train"]
    assert (train["batch_size"], type(train["batch_size"])) == (32, int)
    values["teacher"] = "nonsense"
    ended, said = called(task, tmp_path, {"parameterValues": values}, {"parameters": outputs})
    assert (ended, "InputError: teacher = 'nonsense'" in said) == (1, True)


def test_the_other_door_to_a_task(tmp_path: Path) -> None:
    arguments = {"settings": jsonable(settings_of({}).data), "dataset": str(tmp_path / "data")}
    (tmp_path / "arguments.json").write_text(json.dumps(arguments))
    command = [sys.executable, "-m", "rco.tasks", "prepare_data", str(tmp_path / "arguments.json")]
    process = zygote.start(command, dict(os.environ))
    said = process.communicate()
    assert process.wait() == 0, said
    assert json.loads(said.splitlines()[-1])["num_classes"] == 10
    assert (tmp_path / "data" / "manifest.json").is_file()
    assert zygote.start([*command[:3], "nothing"], dict(os.environ)).wait() == 2
