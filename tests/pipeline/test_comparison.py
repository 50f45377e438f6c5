"""The comparison: its compiled shape, and what the command line refuses. A real one: tests/release/test_comparison.py."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from kfp import components
from kfp.compiler import Compiler
from kfp.pipeline_spec import pipeline_spec_pb2

from components.check import check as check_component
from components.image import IMAGE
from pipelines.cli.runs import split_axes
from pipelines.compile import compile_to
from pipelines.pipeline import make_pipeline
from rco.config.kinds import COMPILED, DEFAULTS, OPTIONS, SHARED
from rco.config.parameters import PARAMETERS
from rco.config.shape import Shape
from rco.core.settings import jsonable
from rco.evaluation.raced import Race
from rco.tasks.settings import BranchTasks

SHAPE = Shape(kinds=("kd", "kd-restart", "greedy"), grid={}, steps={"kd": 1, "kd-restart": 1, "greedy": 3})
BRANCHES = {"kd": "branch-kd", "kd_restart": "branch-kd-restart", "greedy": "branch-greedy"}


class TestCompiled:
    @pytest.fixture(scope="class")
    def spec(self, tmp_path_factory: pytest.TempPathFactory) -> pipeline_spec_pb2.PipelineSpec:
        path = compile_to(tmp_path_factory.mktemp("yaml") / "comparison.yaml", SHAPE)
        return components.load_component_from_file(str(path)).pipeline_spec

    @pytest.fixture(scope="class")
    def dag(self, spec: pipeline_spec_pb2.PipelineSpec) -> pipeline_spec_pb2.DagSpec:
        return spec.components["comp-exit-handler-1"].dag

    def branch(self, spec: pipeline_spec_pb2.PipelineSpec, name: str) -> pipeline_spec_pb2.DagSpec:
        dag = spec.components["comp-exit-handler-1"].dag
        return spec.components[dag.tasks[name].component_ref.name].dag

    def test_one_teacher_serves_every_branch_and_the_report(self, dag: pipeline_spec_pb2.DagSpec) -> None:
        assert sum(name.startswith("train-teacher") for name in dag.tasks) == 1
        for label, branch in BRANCHES.items():
            inputs = dag.tasks[branch].inputs
            for name in ("route", "route_index"):
                source = inputs.artifacts[name].task_output_artifact
                assert (source.producer_task, source.output_artifact_key) == ("train-teacher", name)
            for name in BranchTasks.__dataclass_fields__:
                given = inputs.parameters[f"{name}_settings"].component_input_parameter
                assert given == f"pipelinechannel--check-{name}_{label}", "of the check, which stands before the exit handler"

    def test_branches_do_not_wait_for_each_other(self, dag: pipeline_spec_pb2.DagSpec) -> None:
        for branch in BRANCHES.values():
            needed = set(dag.tasks[branch].dependent_tasks)
            assert needed == {"prepare-data", "train-teacher"}

    def test_a_branch_chooses_with_the_students_that_learn(self, spec: pipeline_spec_pb2.PipelineSpec) -> None:
        for branch, steps in zip(BRANCHES.values(), SHAPE.steps.values(), strict=True):
            tasks = self.branch(spec, branch).tasks
            by_kind = {
                kind: sorted((n for n in tasks if n.startswith(kind)), key=lambda n: (len(n), n))
                for kind in ("init-students", "select-anchors", "distill-students", "evaluate-students")
            }
            assert [len(names) for names in by_kind.values()] == [1, steps, steps, 1]
            students = ("init-students", "students")
            for step, (choose, learn) in enumerate(zip(by_kind["select-anchors"], by_kind["distill-students"], strict=True)):
                for name in (choose, learn):
                    source = tasks[name].inputs.artifacts["students"].task_output_artifact
                    assert (source.producer_task, source.output_artifact_key) == students
                source = tasks[learn].inputs.artifacts["anchors"].task_output_artifact
                assert (source.producer_task, source.output_artifact_key) == (choose, "anchors")
                if step:
                    before = tasks[choose].inputs.parameters["previous"].task_output_parameter
                    assert before.producer_task == by_kind["select-anchors"][step - 1]
                students = (learn, "distilled")
            source = tasks["evaluate-students"].inputs.artifacts["students"].task_output_artifact
            assert (source.producer_task, source.output_artifact_key) == students

    def test_the_report_sees_every_branch(self, spec: pipeline_spec_pb2.PipelineSpec, dag: pipeline_spec_pb2.DagSpec) -> None:
        defined = spec.components["comp-report"].input_definitions.artifacts
        assert set(defined) == {"route", "route_index", *(f"evaluation_{label}" for label in BRANCHES)}
        artifacts = dag.tasks["report"].inputs.artifacts
        for label, branch in BRANCHES.items():
            assert artifacts[f"evaluation_{label}"].task_output_artifact.producer_task == branch

    def test_only_looking_is_not_cached(self, spec: pipeline_spec_pb2.PipelineSpec, dag: pipeline_spec_pb2.DagSpec) -> None:
        assert {n for n, t in dag.tasks.items() if not t.caching_options.enable_cache} == {"report"}
        assert not spec.root.dag.tasks["check"].caching_options.enable_cache
        for branch in BRANCHES.values():
            assert all(task.caching_options.enable_cache for task in self.branch(spec, branch).tasks.values())

    def test_the_run_is_closed_however_it_ends_and_one_image_serves_all(self, spec: pipeline_spec_pb2.PipelineSpec) -> None:
        closer = spec.root.dag.tasks["close-run"]
        assert closer.trigger_policy.strategy == closer.trigger_policy.ALL_UPSTREAM_TASKS_COMPLETED
        executors = spec.deployment_spec["executors"]
        assert {executors[name]["container"]["image"] for name in executors} == {IMAGE}

    def test_parameters_and_defaults(self, spec: pipeline_spec_pb2.PipelineSpec) -> None:
        inputs = spec.root.input_definitions.parameters
        assert set(inputs) == {*OPTIONS, *SHARED} - {*COMPILED}
        assert inputs["epochs"].default_value.number_value == DEFAULTS["epochs"]
        assert inputs["tau"].default_value.number_value == PARAMETERS["tau"].default
        assert set(check_component(SHAPE).component_spec.inputs) == {*OPTIONS, *SHARED, "compiled", "plugins"}

    def test_teacher_and_data_are_the_tasks_of_a_single_run(self, spec: pipeline_spec_pb2.PipelineSpec, tmp_path: Path) -> None:
        run = compile_to(tmp_path / "rco.yaml", Shape.of_run())
        single = components.load_component_from_file(str(run)).pipeline_spec
        for name in ("prepare-data", "train-teacher"):
            assert single.components[f"comp-{name}"] == spec.components[f"comp-{name}"]
            ours, theirs = (s.deployment_spec["executors"][f"exec-{name}"] for s in (spec, single))
            assert ours == theirs

    def test_with_another_branch_all_others_are_what_they_were(
        self, spec: pipeline_spec_pb2.PipelineSpec, tmp_path: Path
    ) -> None:
        """So that a cluster's cache finds them: it goes by what a task's component is, and what it is given."""
        more = replace(SHAPE, kinds=("scratch", *SHAPE.kinds), steps={"scratch": 1, **SHAPE.steps})
        path = compile_to(tmp_path / "comparison.yaml", more)
        other = components.load_component_from_file(str(path)).pipeline_spec
        for branch in BRANCHES.values():
            ours, theirs = (self.branch(s, branch).tasks for s in (spec, other))
            assert set(ours) == set(theirs)
            for name, task in ours.items():
                parts = [(s, s.components[t.component_ref.name]) for s, t in ((spec, task), (other, theirs[name]))]
                made = [(c.input_definitions, s.deployment_spec["executors"][c.executor_label]) for s, c in parts]
                assert made[0] == made[1]


class TestRound:
    """A round of a race: the comparison's tasks, but nothing that measures on the test part."""

    @pytest.fixture(scope="class")
    def specs(self, tmp_path_factory: pytest.TempPathFactory) -> list[pipeline_spec_pb2.PipelineSpec]:
        folder = tmp_path_factory.mktemp("yaml")
        race = jsonable(Race.start("race-1", "kd", ["kd-restart", "greedy"], [0, 1], 40))
        steps = {"kd-restart": 1, "greedy": 3}
        paths = []
        for name, shape in {"round": replace(SHAPE, kinds=tuple(steps), steps=steps, race=race), "whole": SHAPE}.items():
            made = make_pipeline(shape)
            Compiler().compile(made, str(folder / f"{name}.yaml"))
            paths.append(folder / f"{name}.yaml")
        return [components.load_component_from_file(str(path)).pipeline_spec for path in paths]

    def test_no_task_of_it_measures_on_the_test_part(self, specs: list[pipeline_spec_pb2.PipelineSpec]) -> None:
        raced, whole = (list(spec.deployment_spec["executors"]) for spec in specs)
        assert any("evaluate-students" in name for name in whole)
        assert not any("evaluate" in name for name in raced)

    def test_its_other_tasks_are_those_of_the_comparison_so_that_the_cache_finds_them(
        self, specs: list[pipeline_spec_pb2.PipelineSpec]
    ) -> None:
        for kind in ("prepare-data", "train-teacher", "init-students", "select-anchors", "distill-students"):
            made = [spec.deployment_spec["executors"][f"exec-{kind}"]["container"] for spec in specs]
            assert made[0] == made[1]

    def test_its_report_is_given_every_branchs_students(self, specs: list[pipeline_spec_pb2.PipelineSpec]) -> None:
        defined = specs[0].components["comp-report"].input_definitions.artifacts
        assert set(defined) == {"route", "route_index", "students_kd_restart", "students_greedy"}


def test_flags_with_several_values_are_axes() -> None:
    flags = {"tau": "2,4", "lam": "1", "milestones": "0.5,0.75;0.6", "student": "a,b", "teacher": "x", "download": True}
    assert split_axes(flags) == (
        {"tau": ["2", "4"], "milestones": ["0.5,0.75", "0.6"], "student": ["a", "b"]},
        {"lam": "1", "teacher": "x", "download": True},
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["compare", "--seeds", "0,0"], "seeds = [0, 0]: repeats a seed"),
        (["compare", "--branches", "kd,grady"], "Did you mean 'greedy'"),
        (["compare", "--epochs", "0"], "epochs = 0"),
        (["compare", "--race", "--branches", "kd,greedy"], "race = 2: branches are too few: nothing could be dropped"),
        (["compare", "--race", "--seeds", "3,4"], "seeds = 2: are too few for a race of 6 branches"),
        (["compare", "--race", "--no-cache"], "no_cache = True: means nothing in a race"),
        (["sweep", "--race", "--tau", "2,4"], "race = True: cannot be had here. A sweep compares"),
        (["submit", "--race", "--pipeline", "comparison", "--dry-run"], "Run rco compare --race"),
        (["sweep", "--tau", "2,x"], "tau = 'x': is not float"),
        (["sweep", "--tau", "0,2"], "tau = 0.0"),
        (["sweep", "--tau", "1,2,3,4,5,6,7,8,9,10,11,12,13"], "are more than the 24"),
        (["compile", "--branches", "kd,gready"], "branches = 'gready'"),
        (["compile", "--grid", '{"tau": 2}'], "tau = 2: is not a list of values"),
    ],
)
def test_bad_input_is_one_paragraph(arguments: list[str], words: str, tmp_path: Path) -> None:
    from click.testing import CliRunner

    from pipelines.cli.main import main

    home = ["--home", str(tmp_path / "home")] if arguments[0] in ("compare", "sweep") else []
    done = CliRunner().invoke(main, [*arguments, *home])
    assert done.exit_code == 2, done.output
    assert words in done.output
    assert len(done.output.strip().splitlines()) == 1
    assert not (tmp_path / "home").exists()
