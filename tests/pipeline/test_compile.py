"""The compiled pipeline, read back with KFP's own loader and protos."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from kfp import components
from kfp.pipeline_spec import pipeline_spec_pb2

from components.image import IMAGE, content_hash
from pipelines.cluster.merge import merge
from pipelines.compile import compile_to
from rco.config.parameters import PARAMETERS
from rco.config.shape import Shape

STAGES = 3


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> pipeline_spec_pb2.PipelineSpec:
    path = compile_to(tmp_path_factory.mktemp("yaml") / "rco.yaml", Shape.of_run(STAGES))
    return components.load_component_from_file(str(path)).pipeline_spec


def dag(spec: pipeline_spec_pb2.PipelineSpec) -> pipeline_spec_pb2.DagSpec:
    """The tasks inside the exit handler."""
    return spec.components["comp-exit-handler-1"].dag


def source(task: pipeline_spec_pb2.PipelineTaskSpec, name: str) -> tuple[str, str]:
    """Which task's which output an input artifact comes from."""
    chosen = task.inputs.artifacts[name].task_output_artifact
    return chosen.producer_task, chosen.output_artifact_key


def inner(spec: pipeline_spec_pb2.PipelineSpec, number: int) -> pipeline_spec_pb2.DagSpec:
    return spec.components[dag(spec).tasks[f"stage-{number}"].component_ref.name].dag


def task(d: pipeline_spec_pb2.DagSpec, prefix: str) -> tuple[str, pipeline_spec_pb2.PipelineTaskSpec]:
    (found,) = [(name, t) for name, t in d.tasks.items() if name.startswith(prefix)]
    return found


def test_each_stage_continues_the_student_of_the_one_before(spec: pipeline_spec_pb2.PipelineSpec) -> None:
    tasks = dag(spec).tasks
    assert source(tasks["stage-1"], "students") == ("init-students", "students")
    for k in range(2, STAGES + 1):
        assert source(tasks[f"stage-{k}"], "students") == (f"stage-{k - 1}", "students")
        previous = tasks[f"stage-{k}"].inputs.parameters["previous"].task_output_parameter
        assert (previous.producer_task, previous.output_parameter_key) == (f"stage-{k - 1}", "selection")


def test_every_anchor_comes_from_the_teachers_route(spec: pipeline_spec_pb2.PipelineSpec) -> None:
    for k in range(1, STAGES + 1):
        stage = dag(spec).tasks[f"stage-{k}"]
        assert source(stage, "route") == ("train-teacher", "route")
        assert source(stage, "route_index") == ("train-teacher", "route_index")
        chooser_name, chooser = task(inner(spec, k), "select-anchors")
        assert chooser.inputs.artifacts["route"].component_input_artifact == "route"
        _, learner = task(inner(spec, k), "distill-students")
        assert source(learner, "anchors") == (chooser_name, "anchors")
        # The anchor is chosen with the very student that will learn from it.
        assert chooser.inputs.artifacts["students"].component_input_artifact == "students"
        assert learner.inputs.artifacts["students"].component_input_artifact == "students"


def test_stages_hand_on_what_was_distilled(spec: pipeline_spec_pb2.PipelineSpec) -> None:
    for k in range(1, STAGES + 1):
        learner_name, _ = task(inner(spec, k), "distill-students")
        (selector,) = inner(spec, k).outputs.artifacts["students"].artifact_selectors
        assert (selector.producer_subtask, selector.output_artifact_key) == (learner_name, "distilled")


def test_evaluation_and_report_see_the_last_stage(spec: pipeline_spec_pb2.PipelineSpec) -> None:
    tasks = dag(spec).tasks
    last = f"stage-{STAGES}"
    assert source(tasks["evaluate-students"], "students") == (last, "students")
    assert source(tasks["evaluate-students"], "anchors") == (last, "anchors")
    assert source(tasks["register-student"], "students") == (last, "students")
    assert source(tasks["report"], "students") == (last, "students")
    assert source(tasks["report"], "evaluation_student") == ("evaluate-students", "evaluation")


def test_only_the_last_stage_hands_out_the_converged_teacher(spec: pipeline_spec_pb2.PipelineSpec) -> None:
    stages = [dag(spec).tasks[f"stage-{k}"] for k in range(1, STAGES + 1)]
    flags = [stage.inputs.parameters["last_step"].runtime_value.constant.bool_value for stage in stages]
    assert flags == [False] * (STAGES - 1) + [True]
    for k in range(1, STAGES + 1):
        _, chooser = task(inner(spec, k), "select-anchors")
        assert chooser.inputs.parameters["last_step"].component_input_parameter == "last_step"


def test_tasks_that_are_alike_share_a_component(spec: pipeline_spec_pb2.PipelineSpec) -> None:
    assert {dag(spec).tasks[f"stage-{k}"].component_ref.name for k in range(1, STAGES + 1)} == {"comp-stage-1"}
    leaves = [component for component in spec.components.values() if component.executor_label]
    assert len(leaves) == len(spec.deployment_spec["executors"].fields) == 10


def test_tasks_that_differ_in_one_thing_share_none() -> None:
    """2 is as 1; 3 has another image, 4 another interface, 5 is given something else. A DAG of 1 and one of 2 are alike."""
    numbers = range(1, 6)
    tasks = {f"a-{n}": {"componentRef": {"name": f"comp-a-{n}"}} for n in numbers}
    pipeline: dict[str, Any] = {
        "components": {f"comp-a-{n}": {"executorLabel": f"exec-a-{n}"} for n in numbers}
        | {f"comp-dag-{n}": {"dag": {"tasks": {"a": {"componentRef": {"name": f"comp-a-{n}"}}}}} for n in (1, 2, 3)},
        "deploymentSpec": {"executors": {f"exec-a-{n}": {"container": {"image": "i"}} for n in numbers}},
        "root": {"dag": {"tasks": tasks | {f"d-{n}": {"componentRef": {"name": f"comp-dag-{n}"}} for n in (1, 2, 3)}}},
    }
    pipeline["deploymentSpec"]["executors"]["exec-a-3"] = {"container": {"image": "another"}}
    pipeline["components"]["comp-a-4"]["inputDefinitions"] = {}
    platform = {"platforms": {"kubernetes": {"deploymentSpec": {"executors": {"exec-a-5": {"activeDeadlineSeconds": "5"}}}}}}
    merge(pipeline, platform)
    names = {name: task["componentRef"]["name"] for name, task in pipeline["root"]["dag"]["tasks"].items()}
    shared = {"a-2": "comp-a-1", "d-2": "comp-dag-1"}
    assert names == {name: shared.get(name, f"comp-{'a' if name[0] == 'a' else 'dag'}-{name[2:]}") for name in names}
    assert set(pipeline["components"]) == set(names.values())
    assert set(pipeline["deploymentSpec"]["executors"]) == {"exec-a-1", "exec-a-3", "exec-a-4", "exec-a-5"}


def test_cache_policy_of_every_task(spec: pipeline_spec_pb2.PipelineSpec) -> None:
    tasks = {**spec.root.dag.tasks, **dag(spec).tasks}
    uncached = {name for name, t in tasks.items() if not t.caching_options.enable_cache}
    assert uncached - {"exit-handler-1"} == {"check", "register-student", "report", "close-run"}


def test_parameters_and_defaults_are_the_configurations(spec: pipeline_spec_pb2.PipelineSpec) -> None:
    inputs = spec.root.input_definitions.parameters
    assert set(inputs) == set(PARAMETERS)
    assert inputs["tau"].default_value.number_value == PARAMETERS["tau"].default
    assert inputs["strategy"].default_value.string_value == PARAMETERS["strategy"].default


def test_the_run_is_closed_however_it_ends(spec: pipeline_spec_pb2.PipelineSpec) -> None:
    closer = spec.root.dag.tasks["close-run"]
    assert closer.trigger_policy.strategy == closer.trigger_policy.ALL_UPSTREAM_TASKS_COMPLETED


def test_nothing_starts_before_the_check(spec: pipeline_spec_pb2.PipelineSpec) -> None:
    assert set(spec.root.dag.tasks) == {"check", "exit-handler-1", "close-run"}
    assert list(spec.root.dag.tasks["exit-handler-1"].dependent_tasks) == ["check"]
    # KFP would write every parameter of the pipeline into its input definitions and those of the task that opens it.
    assert set(spec.components["comp-exit-handler-1"].input_definitions.parameters) == {
        f"pipelinechannel--check-{name}"
        for name in ("data", "teacher", "filing", *(f"{t}_student" for t in ("init", "anchors", "distill", "evaluate")))
    }


def test_one_image_and_nothing_installed_at_run_time(spec: pipeline_spec_pb2.PipelineSpec) -> None:
    executors = spec.deployment_spec["executors"]
    for name in executors:
        container = executors[name]["container"]
        assert container["image"] == IMAGE
        assert "pip install" not in " ".join(container["command"])


def test_the_images_name_follows_every_edit(tmp_path: Path) -> None:
    import shutil

    root = Path(__file__).parents[2]
    for name in ("rco", "components"):
        shutil.copytree(root / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("requirements.lock", "pyproject.toml"):
        shutil.copy(root / name, tmp_path / name)
    seen = {content_hash(tmp_path)}
    assert seen == {content_hash(root)}
    for edited in ("rco/objectives/route.py", "components/evaluate_students.py", "requirements.lock"):
        with (tmp_path / edited).open("a") as file:
            file.write("#\n")
        seen.add(content_hash(tmp_path))
    (tmp_path / "rco" / "new.py").touch()
    seen.add(content_hash(tmp_path))
    assert len(seen) == 5


def test_every_task_knows_its_run_without_a_changing_input(tmp_path: Path) -> None:
    import yaml
    from google.protobuf import json_format
    from kfp.kubernetes import kubernetes_executor_config_pb2 as config_pb2

    documents = list(yaml.safe_load_all(compile_to(tmp_path / "rco.yaml", Shape.of_run(STAGES)).read_text()))
    executors = documents[0]["deploymentSpec"]["executors"]
    platform = documents[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert set(platform) == set(executors)
    for document in platform.values():
        (env,) = json_format.ParseDict(document, config_pb2.KubernetesExecutorConfig()).field_path_as_env
        assert (env.name, env.field_path) == ("RCO_PIPELINE_RUN", "metadata.labels['pipeline/runid']")


def test_a_pipeline_needs_a_stage() -> None:
    with pytest.raises(ValueError, match="student has 0 stages"):
        Shape.of_run(0)
