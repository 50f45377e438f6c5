"""report: tell people what came out, and complete MLflow."""

from __future__ import annotations

from kfp.dsl import base_component

from components.generated import component_of
from rco.config.shape import Shape

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


def report(shape: Shape) -> base_component.BaseComponent:
    """The component for a pipeline of this shape: an artifact list cannot be gathered from tasks that are not a loop, so each
    branch has an input of its own, `evaluation_LABEL`. Of a run it is given the student, and what the registry has, too."""
    evaluations = {label: f"evaluation_{label}" for label in shape.labels.values()}
    inputs = [f"{name}: dsl.Input[dsl.Artifact]," for name in evaluations.values()]
    described = [f"{name}: of evaluate_students of the branch {label}." for label, name in evaluations.items()]
    if shape.is_run:
        inputs += ["students: dsl.Input[dsl.Model],", "registered: dict,"]
        described += ["students: of the last stage.", "registered: of register_student."]
    text = _TEXT.format(
        inputs="\n".join(f"    {line}" for line in inputs),
        described="\n".join(f"        {line}" for line in described),
        evaluations=", ".join(evaluations.values()),
        more=_STUDENT if shape.is_run else "",
    )
    return component_of(text, "report", "light", cached=False)
