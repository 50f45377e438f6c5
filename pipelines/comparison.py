"""The comparison: one teacher, its route, and branches that train the same students from it, side by side.

    check_comparison -> prepare_data -> train_teacher -> branch A, branch B, ... -> report_comparison
    a branch: init_students -> [select_anchors -> distill_students] x steps -> evaluate_students

A task trains all seeds of its branch. Anchors that are known before the first stage are one step; the greedy search
looks at the student after every stage, so each of its stages is a step. Branches are unrolled by a factory, because a
pipeline's shape is fixed when it is compiled; all else is a run-time parameter. A step that a search does not need hands its
students on.
prepare_data and train_teacher are those of `pipelines.rco`, with the same settings: they share its cache.
"""

import contextlib
import inspect
from typing import Any, NamedTuple

from kfp import dsl
from kfp.dsl import base_component

from components.check_comparison import check_comparison
from components.close_run import close_run
from components.distill_students import distill_students
from components.evaluate_students import evaluate_students
from components.init_students import init_students
from components.prepare_data import prepare_data
from components.report_comparison import report_comparison
from components.select_anchors import select_anchors
from components.train_teacher import train_teacher
from pipelines.cluster.placement import Cluster, place_locally
from pipelines.rco import Place
from rco.config.kinds import COMPILED, DEFAULTS, OPTIONS, SHARED
from rco.config.parameters import PARAMETERS
from rco.config.shape import Shape

NAME = "route-constrained-optimization-comparison"


class Outputs(NamedTuple):
    """What the local pipeline returns."""

    summary: dsl.Artifact


class Branch(NamedTuple):
    """What a branch hands on."""

    evaluation: dsl.Artifact


def make_branch(key: str, label: str, steps: int, *, place: Place) -> base_component.BaseComponent:
    """One branch as a pipeline of its own, so that the UI shows it as one node that opens.

    Args:
        key, label, steps: as in `rco.config.shape.Shape`.
        place: applied to every task.
    """

    def branch(
        students_settings: dict,
        choice_settings: dict,
        branch_settings: dict,
        measure_settings: dict,
        route: dsl.Input[dsl.Model],
        route_index: dsl.Input[dsl.Artifact],
        dataset: dsl.Input[dsl.Dataset],
    ) -> Branch:
        students = place(init_students(settings=students_settings, dataset=dataset)).outputs["students"]
        selection: Any = {}
        for _ in range(steps):
            chosen = place(
                select_anchors(
                    settings=choice_settings, previous=selection, route=route, route_index=route_index, students=students
                )
            )
            selection, anchors = chosen.outputs["Output"], chosen.outputs["anchors"]
            distilled = distill_students(
                settings=branch_settings, selection=selection, dataset=dataset, anchors=anchors, students=students
            )
            students = place(distilled).outputs["distilled"]
        measured = evaluate_students(settings=measure_settings, dataset=dataset, students=students, anchors=anchors)
        return Branch(evaluation=place(measured).outputs["evaluation"])

    described = "all stages in one step" if steps == 1 else f"up to {steps} stages, each with an anchor chosen for the student"
    return dsl.pipeline(name=f"branch-{label.replace('_', '-')}", description=f"Branch {key}: {described}")(branch)


def make_comparison(shape: Shape, *, cluster: Cluster | None = None) -> base_component.BaseComponent:
    """The pipeline of a comparison.

    Args:
        shape: its branches (`rco.tasks.comparison_preflight.shape_of`).
        cluster: as in `pipelines.rco.make_pipeline`.
    """
    place: Place = cluster.place if cluster else place_locally
    branches = {label: make_branch(key, label, shape.steps[key], place=place) for key, label in shape.labels.items()}
    check, report = check_comparison(shape), report_comparison(shape)
    options = {name: option for name, option in OPTIONS.items() if name not in COMPILED}

    def pipeline(*arguments: Any) -> Any:
        parameters = dict(zip([*options, *SHARED], arguments, strict=True))
        guard = dsl.ExitHandler(place(close_run())) if cluster else contextlib.nullcontext()
        with guard:
            checked = place(check(**shape.constants, **parameters))
            settings = checked.outputs
            dataset = place(prepare_data(settings=settings["data"])).outputs["dataset"]
            teacher = place(train_teacher(settings=settings["teacher"], dataset=dataset))
            evaluations = {
                f"evaluation_{label}": make(
                    students_settings=settings[f"students_{label}"],
                    choice_settings=settings[f"choice_{label}"],
                    branch_settings=settings[f"branch_{label}"],
                    measure_settings=settings[f"measure_{label}"],
                    route=teacher.outputs["route"],
                    route_index=teacher.outputs["route_index"],
                    dataset=dataset,
                ).outputs["evaluation"]
                for label, make in branches.items()
            }
            reported = report(
                settings=settings["filing"],
                route=teacher.outputs["route"],
                route_index=teacher.outputs["route_index"],
                **evaluations,
            )
            place(reported)
        return None if cluster else Outputs(summary=reported.outputs["summary"])

    # KFP reads a pipeline's parameters from its signature. The configuration is their one source, but for what follows from
    # the site's nodes.
    site = cluster.deployment.parameters if cluster else {}
    known = [(name, option.kind, option.default, option.help) for name, option in options.items()]
    defaults = {**{name: p.default for name, p in PARAMETERS.items()}, **DEFAULTS, **site}
    known += [(name, PARAMETERS[name].kind, defaults[name], PARAMETERS[name].help) for name in SHARED]
    pipeline.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=kind)
            for name, kind, default, _ in known
        ],
        return_annotation=inspect.Signature.empty if cluster else Outputs,
    )
    described = "\n".join(f"    {name}: {help}" for name, _, _, help in known)
    pipeline.__doc__ = f"Compare ways to train one student: {', '.join(shape.steps)}.\n\nArgs:\n{described}\n"
    return dsl.pipeline(name=NAME)(pipeline)
