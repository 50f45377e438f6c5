"""The pipeline: one teacher, its route, and students that follow it. A run is a comparison of one branch and one seed.

    check -> prepare_data -> train_teacher -> branch A, branch B, ... -> report
    a branch: init_students -> [select_anchors -> distill_students] x steps -> evaluate_students

A task trains all seeds of its branch. In a run each stage is a step, and a node that opens in the UI; its only branch is not
wrapped, and its student is registered. Where that is to be exported, the evaluation does it, which has the data at hand: a
component of its own would be two pods more, and the data once more. In a comparison each branch is a node that opens, anchors
that are known before the first stage are one step, and the greedy search, which looks at the students after every stage, has a
step a stage. A round of a race (`pipelines.local.race`) has no evaluations: nothing in it touches the test part.
Branches and steps are unrolled by a factory, because a pipeline's shape is fixed when it is compiled (`rco.config.shape`); all
else is a run-time parameter. A step that finds nothing left to do hands its students on.
"""

import contextlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from kfp import dsl
from kfp.dsl import base_component

from components.check import check
from components.close_run import close_run
from components.distill_students import distill_students
from components.evaluate_students import evaluate_students
from components.init_students import init_students
from components.prepare_data import prepare_data
from components.register_student import register_student
from components.report import report
from components.select_anchors import select_anchors
from components.train_teacher import train_teacher
from pipelines.cluster.placement import Cluster, place_locally
from rco.config.plugins import installed
from rco.config.shape import Shape
from rco.tasks.settings import BranchTasks

NAME = "route-constrained-optimization"

Place = Callable[[dsl.PipelineTask], dsl.PipelineTask]


class Step(NamedTuple):
    """What a step hands on."""

    students: dsl.Model
    anchors: dsl.Model
    selection: dict


class Walked(NamedTuple):
    """What a branch hands on."""

    students: dsl.Model
    evaluation: dsl.Artifact


class Raced(NamedTuple):
    """What a branch hands on in a round of a race."""

    students: dsl.Model


class Comparison(NamedTuple):
    """What a comparison on this machine returns."""

    summary: dsl.Artifact


class Run(NamedTuple):
    """What a run on this machine returns."""

    summary: dsl.Artifact
    students: dsl.Model


def make_step(*, place: Place) -> Callable[..., Step]:
    """One step: choose anchors, distil from them.

    Args:
        place: applied to every task.
    """

    def step(
        anchors_settings: dict,
        distill_settings: dict,
        previous: dict,
        last_step: bool,
        route: dsl.Input[dsl.Model],
        route_index: dsl.Input[dsl.Artifact],
        dataset: dsl.Input[dsl.Dataset],
        students: dsl.Input[dsl.Model],
    ) -> Step:
        chosen = select_anchors(
            settings=anchors_settings,
            previous=previous,
            last_step=last_step,
            route=route,
            route_index=route_index,
            students=students,
        )
        selection, anchors = place(chosen).outputs["Output"], chosen.outputs["anchors"]
        distilled = distill_students(
            settings=distill_settings, selection=selection, dataset=dataset, anchors=anchors, students=students
        )
        return Step(students=place(distilled).outputs["distilled"], anchors=anchors, selection=selection)

    return step


def make_stage(number: int, *, place: Place) -> Callable[..., Step]:
    """A run's stage: a step that is one node, which opens. All stages are alike, so that they share a component
    (`pipelines.cluster.merge`): which is the last one is told them."""
    node = dsl.pipeline(name=f"stage-{number}", description=f"Stage {number}: choose an anchor, distil from it")
    stage = node(make_step(place=place))

    def call(**inputs: Any) -> Step:
        outputs = stage(**inputs).outputs
        return Step(**{name: outputs[name] for name in Step._fields})

    return call


def make_walk(steps: int, *, nodes: bool, place: Place, measured: bool = True) -> Callable[..., Walked | Raced]:
    """A branch: initial students, all steps, the evaluation.

    Args:
        steps: how many times it can choose an anchor.
        nodes: make each step a node.
        place: applied to every task.
        measured: whether there is an evaluation.
    """
    made = [make_stage(number, place=place) if nodes else make_step(place=place) for number in range(1, steps + 1)]

    def follow(
        init_settings: Any, anchors_settings: Any, distill_settings: Any, route: Any, route_index: Any, dataset: Any
    ) -> tuple[Any, Any]:
        students = place(init_students(settings=init_settings, dataset=dataset)).outputs["students"]
        selection: Any = {}
        for number, step in enumerate(made, 1):
            students, anchors, selection = step(
                anchors_settings=anchors_settings,
                distill_settings=distill_settings,
                previous=selection,
                last_step=number == steps,
                route=route,
                route_index=route_index,
                dataset=dataset,
                students=students,
            )
        return students, anchors

    def walk(
        init_settings: dict,
        anchors_settings: dict,
        distill_settings: dict,
        evaluate_settings: dict,
        route: dsl.Input[dsl.Model],
        route_index: dsl.Input[dsl.Artifact],
        dataset: dsl.Input[dsl.Dataset],
    ) -> Walked:
        students, anchors = follow(init_settings, anchors_settings, distill_settings, route, route_index, dataset)
        figures = evaluate_students(settings=evaluate_settings, dataset=dataset, students=students, anchors=anchors)
        return Walked(students=students, evaluation=place(figures).outputs["evaluation"])

    def race(
        init_settings: dict,
        anchors_settings: dict,
        distill_settings: dict,
        route: dsl.Input[dsl.Model],
        route_index: dsl.Input[dsl.Artifact],
        dataset: dsl.Input[dsl.Dataset],
    ) -> Raced:
        students, _ = follow(init_settings, anchors_settings, distill_settings, route, route_index, dataset)
        return Raced(students=students)

    return walk if measured else race


def make_branch(key: str, label: str, steps: int, *, place: Place, measured: bool = True) -> Callable[..., Walked | Raced]:
    """A comparison's branch: one node, which opens.

    Args:
        key, label, steps: as in `rco.config.shape.Shape`.
        place: applied to every task.
        measured: as for `make_walk`.
    """
    described = "all stages in one step" if steps == 1 else f"up to {steps} stages, each with an anchor chosen for the student"
    node = dsl.pipeline(name=f"branch-{label.replace('_', '-')}", description=f"Branch {key}: {described}")
    branch = node(make_walk(steps, nodes=False, place=place, measured=measured))
    handed_on: type[Walked | Raced] = Walked if measured else Raced

    def call(**inputs: Any) -> Walked | Raced:
        outputs = branch(**inputs).outputs
        return handed_on(**{name: outputs[name] for name in handed_on._fields})

    return call


def make_pipeline(shape: Shape, *, cluster: Cluster | None = None) -> base_component.BaseComponent:
    """The pipeline of a shape.

    Args:
        shape: its branches (`rco.tasks.validate.shape_of`, or `Shape.of_run`).
        cluster: what it is compiled for; None: this machine. On a cluster an exit task closes the MLflow runs however the
            tasks after the check end. Locally the runner does that, which also sees interruptions; and KFP returns no outputs
            from inside an exit handler.
    """
    place: Place = cluster.place if cluster else place_locally
    walks = {
        label: make_walk(shape.steps[key], nodes=True, place=place)
        if shape.is_run
        else make_branch(key, label, shape.steps[key], place=place, measured=not shape.is_round)
        for key, label in shape.labels.items()
    }
    checks, reports, returned = check(shape), report(shape), Run if shape.is_run else Comparison
    tasks = [name for name in BranchTasks.__dataclass_fields__ if not (shape.is_round and name == "evaluate")]
    read = "students" if shape.is_round else "evaluation"

    def pipeline(*arguments: Any) -> Any:
        parameters = dict(zip([field.name for field in shape.form], arguments, strict=True))
        guard = dsl.ExitHandler(place(close_run())) if cluster else contextlib.nullcontext()
        # Outside: KFP writes all parameters twice more for a task inside. A check that fails ends its own run in MLflow.
        settings = place(checks(**shape.constants, plugins=installed(), **parameters)).outputs
        with guard:
            dataset = place(prepare_data(settings=settings["data"])).outputs["dataset"]
            teacher = place(train_teacher(settings=settings["teacher"], dataset=dataset))
            route = {name: teacher.outputs[name] for name in ("route", "route_index")}
            walked = {
                label: walk(
                    **{f"{task}_settings": settings[f"{task}_{label}"] for task in tasks},
                    **route,
                    dataset=dataset,
                )
                for label, walk in walks.items()
            }
            inputs = {f"{read}_{label}": getattr(outputs, read) for label, outputs in walked.items()}
            if shape.is_run:
                inputs |= _registered(*walked.values(), settings=settings, place=place)
            summary = place(reports(settings=settings["filing"], **route, **inputs)).outputs["summary"]
        outputs = {"summary": summary, "students": inputs.get("students")}
        return None if cluster else returned(**{name: outputs[name] for name in returned._fields})

    # KFP reads a pipeline's parameters from its signature. The configuration is their one source, but for what follows from
    # the site's nodes.
    site = cluster.deployment.parameters if cluster else {}
    pipeline.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(
                f.name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=site.get(f.name, f.default), annotation=f.kind
            )
            for f in shape.form
        ],
        return_annotation=inspect.Signature.empty if cluster else returned,
    )
    described = "\n".join(f"    {field.name}: {field.help}" for field in shape.form)
    what = (
        "Distil a student along its teacher's training route."
        if shape.is_run
        else f"Compare ways to train one student: {', '.join(shape.steps)}."
    )
    pipeline.__doc__ = f"{what}\n\nArgs:\n{described}\n"
    return dsl.pipeline(name=NAME if shape.is_run else f"{NAME}-comparison")(pipeline)


def _registered(walked: Any, *, settings: Mapping[str, Any], place: Place) -> dict[str, Any]:
    """The student of a run, registered, as inputs of the report."""
    registered = register_student(settings=settings["filing"], students=walked.students, evaluation=walked.evaluation)
    return {"students": walked.students, "registered": place(registered).output}
