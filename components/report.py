"""report: tell people what came out, and complete MLflow."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from components.generated import artifacts_of, component_of, function_of
from rco.config.shape import Shape

if TYPE_CHECKING:
    from kfp.dsl import base_component

_TEXT = '''def report(
    settings: dict,
    route: dsl.Input[dsl.Model],
    route_index: dsl.Input[dsl.Artifact],
{inputs}
    summary: dsl.Output[dsl.Artifact],
    page: dsl.Output[dsl.HTML],
    metrics: dsl.Output[dsl.Metrics],
):
    """Write tables, pictures and page, and bring MLflow up to date with what cached tasks did not say.

    Args:
        settings: rco.config.filing.Filing.
        route: of train_teacher: all anchors that any student has learnt from.
        route_index: of train_teacher.
        summary: a folder with summary.json, the page, the pictures, and what else the report has.
        page: the page, for the Kubeflow UI.
        metrics: the headline figures, for the Kubeflow UI.
{described}
    """
    evaluations = [{evaluations}]
    import json
    import shutil
    from pathlib import Path

    from rco.tasks.report import headline_figures, report

    folder = Path(summary.path)
    result = report(
        settings,
        route=Path(route.path),
        route_index=Path(route_index.path),
        evaluations=[Path(evaluation.path) for evaluation in evaluations],
        folder=folder,{more}
    )
    shutil.copyfile(folder / "report.html", page.path)
    figures = headline_figures(result)
    for name, value in figures.items():
        metrics.log_metric(name, value)
    Path(metrics.path).write_text(json.dumps(figures))
'''
_STUDENT = """
        students=Path(students.path),
        registered=registered,"""
_EVALUATION = "evaluation_"
_ROUND = '''def report(
    settings: dict,
    route: dsl.Input[dsl.Model],
    route_index: dsl.Input[dsl.Artifact],
{inputs}
    summary: dsl.Output[dsl.Artifact],
):
    """Write how a round of a race has ended, on the validation part, and bring MLflow up to date.

    Args:
        settings: rco.config.filing.Filing.
        route: of train_teacher: all anchors that any student has learnt from.
        route_index: of train_teacher.
        summary: a folder with summary.json.
{described}
    """
    students = [{students}]
    from pathlib import Path

    from rco.tasks.report_round import report_round

    report_round(
        settings,
        route=Path(route.path),
        route_index=Path(route_index.path),
        students=[Path(of_branch.path) for of_branch in students],
        folder=Path(summary.path),
    )
'''


def report(shape: Shape) -> base_component.BaseComponent:
    """The component for a pipeline of this shape: an artifact list cannot be gathered from tasks that are not a loop, so each
    branch has an input of its own, `evaluation_LABEL`. Of a run it is given the student, and what the registry has, too; of a
    round of a race, which is of this machine alone, `students_LABEL` and no evaluation."""
    if shape.is_round:
        students = {label: f"students_{label}" for label in shape.labels.values()}
        text = _ROUND.format(
            inputs="\n".join(f"    {name}: dsl.Input[dsl.Model]," for name in students.values()),
            described="\n".join(f"        {name}: of the branch {label}." for label, name in students.items()),
            students=", ".join(students.values()),
        )
        return component_of(text, "report", "light", cached=False)
    return component_of(_text(shape.labels.values(), is_run=shape.is_run), "report", "light", cached=False)


def in_image(executor_input: Mapping[str, Any]) -> Callable[..., Any]:
    """The function of the task that is given this input."""
    given = artifacts_of(executor_input)
    labels = [name.removeprefix(_EVALUATION) for name in given if name.startswith(_EVALUATION)]
    return function_of(_text(labels, is_run="students" in given), "report")


def _text(labels: Iterable[str], *, is_run: bool) -> str:
    evaluations = {label: f"{_EVALUATION}{label}" for label in labels}
    inputs = [f"{name}: dsl.Input[dsl.Artifact]," for name in evaluations.values()]
    described = [f"{name}: of evaluate_students of the branch {label}." for label, name in evaluations.items()]
    if is_run:
        inputs += ["students: dsl.Input[dsl.Model],", "registered: dict,"]
        described += ["students: of the last stage.", "registered: of register_student."]
    return _TEXT.format(
        inputs="\n".join(f"    {line}" for line in inputs),
        described="\n".join(f"        {line}" for line in described),
        evaluations=", ".join(evaluations.values()),
        more=_STUDENT if is_run else "",
    )
