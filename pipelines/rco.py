"""The pipeline: one teacher, its route, and a student that follows it.

    check -> prepare_data -> train_teacher -> init_student -> [select_anchor -> distill_stage] x N -> evaluate
          -> register_student -> report

The stages are unrolled by a factory, because a pipeline's shape is fixed when it is compiled. N is a maximum: a stage that
the route does not need passes the student through. Everything else is a run-time parameter, those of
`rco.config.parameters.RunConfig`.
"""

import contextlib
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

from kfp import dsl
from kfp.dsl import base_component

from components.check import check
from components.close_run import close_run
from components.distill_stage import distill_stage
from components.evaluate import evaluate
from components.init_student import init_student
from components.prepare_data import prepare_data
from components.register_student import register_student
from components.report import report
from components.select_anchor import select_anchor
from components.train_teacher import train_teacher
from pipelines.cluster.placement import Cluster, place_locally
from rco.config.parameters import PARAMETERS

NAME = "route-constrained-optimization"
DEFAULT_STAGES = 4

Place = Callable[[dsl.PipelineTask], dsl.PipelineTask]


class StageOutputs(NamedTuple):
    """What a stage hands on."""

    student: dsl.Model
    anchors: dsl.Artifact
    selection: dict


def make_stage(number: int, *, last: bool, place: Place) -> base_component.BaseComponent:
    """One stage as a pipeline of its own, so that the UI shows it as one node that opens.

    Args:
        number: from 1.
        last: whether it is the pipeline's last.
        place: applied to every task.
    """

    def stage(
        anchor_settings: dict,
        stage_settings: dict,
        previous: dict,
        route: dsl.Input[dsl.Model],
        route_index: dsl.Input[dsl.Artifact],
        dataset: dsl.Input[dsl.Dataset],
        student: dsl.Input[dsl.Model],
    ) -> StageOutputs:
        chosen = select_anchor(
            settings=anchor_settings,
            previous=previous,
            last_stage=last,
            route=route,
            route_index=route_index,
            student=student,
        )
        place(chosen)
        distilled = distill_stage(
            settings=stage_settings,
            selection=chosen.outputs["Output"],
            dataset=dataset,
            anchor=chosen.outputs["anchor"],
            student=student,
        )
        place(distilled)
        return StageOutputs(
            student=distilled.outputs["distilled"],
            anchors=chosen.outputs["anchors"],
            selection=chosen.outputs["Output"],
        )

    return dsl.pipeline(name=f"stage-{number}", description=f"Stage {number}: choose an anchor, distil from it")(stage)


class Outputs(NamedTuple):
    """What the local pipeline returns."""

    summary: dsl.Artifact
    student: dsl.Model


def make_pipeline(max_stages: int = DEFAULT_STAGES, *, cluster: Cluster | None = None) -> base_component.BaseComponent:
    """The pipeline with room for `max_stages` stages.

    Args:
        cluster: what it is compiled for; None: this machine. On a cluster an exit task closes the MLflow runs however the
            pipeline ends. Locally the runner does that, which also sees interruptions; and KFP returns no outputs from
            inside an exit handler.

    Raises:
        ValueError: fewer than one stage.
    """
    if max_stages < 1:
        raise ValueError(f"max_stages = {max_stages}: a pipeline needs one stage or more")

    place: Place = cluster.place if cluster else place_locally
    stages = [make_stage(number, last=number == max_stages, place=place) for number in range(1, max_stages + 1)]

    def pipeline(*arguments: Any) -> Any:
        parameters = dict(zip(PARAMETERS, arguments, strict=True))
        guard = dsl.ExitHandler(place(close_run())) if cluster else contextlib.nullcontext()
        with guard:
            checked = place(check(max_stages=max_stages, **parameters))
            settings = checked.outputs
            data = place(prepare_data(settings=settings["data"]))
            dataset = data.outputs["dataset"]
            teacher = place(train_teacher(settings=settings["teacher"], dataset=dataset))
            student = place(init_student(settings=settings["student"], dataset=dataset)).outputs["student"]
            selection: Any = {}
            for make in stages:
                stage = make(
                    anchor_settings=settings["anchors"],
                    stage_settings=settings["stage"],
                    previous=selection,
                    route=teacher.outputs["route"],
                    route_index=teacher.outputs["route_index"],
                    dataset=dataset,
                    student=student,
                )
                student, selection = stage.outputs["student"], stage.outputs["selection"]
            evaluated = evaluate(
                settings=settings["evaluate"], dataset=dataset, student=student, anchors=stage.outputs["anchors"]
            )
            evaluation = place(evaluated).outputs["evaluation"]
            registered = place(register_student(settings=settings["filing"], student=student, evaluation=evaluation))
            reported = report(
                settings=settings["filing"],
                registered=registered.output,
                route_index=teacher.outputs["route_index"],
                student=student,
                anchors=stage.outputs["anchors"],
                evaluation=evaluation,
            )
            place(reported)
        return None if cluster else Outputs(summary=reported.outputs["summary"], student=student)

    # KFP reads a pipeline's parameters from its signature. The configuration is their one source, but for what follows from
    # the site's nodes.
    site = cluster.deployment.parameters if cluster else {}
    pipeline.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(
                p.name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=site.get(p.name, p.default), annotation=p.kind
            )
            for p in PARAMETERS.values()
        ],
        return_annotation=inspect.Signature.empty if cluster else Outputs,
    )
    described = "\n".join(f"    {p.name}: {p.help}" for p in PARAMETERS.values())
    pipeline.__doc__ = f"Distil a student along its teacher's training route.\n\nArgs:\n{described}\n"
    return dsl.pipeline(name=NAME)(pipeline)
