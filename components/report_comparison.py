"""report_comparison: tell people what came out, and complete MLflow."""

from __future__ import annotations

from kfp.dsl import base_component

from components.generated import component_of
from rco.config.shape import Shape

_TEXT = '''def report_comparison(
    settings: dict,
    route: dsl.Input[dsl.Model],
    route_index: dsl.Input[dsl.Artifact],
{evaluations}
    summary: dsl.Output[dsl.Artifact],
    page: dsl.Output[dsl.HTML],
    metrics: dsl.Output[dsl.Metrics],
):
    """Write table, curves, verdict and page, and bring MLflow up to date with what cached tasks did not say.

    Args:
        settings: rco.config.branches.ComparisonFiling.
        route: of train_teacher: all anchors that any branch has used.
        route_index: of train_teacher.
        summary: a folder with summary.json, CSV files, the page and the pictures.
        page: the page, for the Kubeflow UI.
        metrics: the headline figures, for the Kubeflow UI.
{described}
    """
    evaluations = [{names}]
    import json
    import shutil
    from pathlib import Path

    from rco.reporting import comparison_report
    from rco.tasks import comparison as comparison_tasks

    folder = Path(summary.path)
    result = comparison_tasks.report_comparison(
        settings,
        route=Path(route.path),
        route_index=Path(route_index.path),
        evaluations=[Path(evaluation.path) for evaluation in evaluations],
        folder=folder,
    )
    shutil.copyfile(folder / "report.html", page.path)
    figures = comparison_report.headline_metrics(result)
    for name, value in figures.items():
        metrics.log_metric(name, value)
    Path(metrics.path).write_text(json.dumps(figures))
'''


def report_comparison(shape: Shape) -> base_component.BaseComponent:
    """The component for a comparison of these branches: an artifact list cannot be gathered from tasks that are not a loop, so
    each branch has an input of its own, `evaluation_LABEL`."""
    names = {label: f"evaluation_{label}" for label in shape.labels.values()}
    text = _TEXT.format(
        evaluations="\n".join(f"    {name}: dsl.Input[dsl.Artifact]," for name in names.values()),
        described="\n".join(f"        {name}: of evaluate_students of the branch {label}." for label, name in names.items()),
        names=", ".join(names.values()),
    )
    return component_of(text, "report_comparison", "light", cached=False)
