"""report_comparison: tell people what came out, and complete MLflow."""

from kfp import dsl

from components.component import component


@component("light", cached=False)
def report_comparison(
    settings: dict,
    route: dsl.Input[dsl.Model],
    route_index: dsl.Input[dsl.Artifact],
    summary: dsl.Output[dsl.Artifact],
    page: dsl.Output[dsl.HTML],
    metrics: dsl.Output[dsl.Metrics],
    slot_1: dsl.Input[dsl.Artifact] = None,
    slot_2: dsl.Input[dsl.Artifact] = None,
    slot_3: dsl.Input[dsl.Artifact] = None,
    slot_4: dsl.Input[dsl.Artifact] = None,
    slot_5: dsl.Input[dsl.Artifact] = None,
    slot_6: dsl.Input[dsl.Artifact] = None,
    slot_7: dsl.Input[dsl.Artifact] = None,
    slot_8: dsl.Input[dsl.Artifact] = None,
    slot_9: dsl.Input[dsl.Artifact] = None,
    slot_10: dsl.Input[dsl.Artifact] = None,
    slot_11: dsl.Input[dsl.Artifact] = None,
    slot_12: dsl.Input[dsl.Artifact] = None,
    slot_13: dsl.Input[dsl.Artifact] = None,
    slot_14: dsl.Input[dsl.Artifact] = None,
    slot_15: dsl.Input[dsl.Artifact] = None,
    slot_16: dsl.Input[dsl.Artifact] = None,
    slot_17: dsl.Input[dsl.Artifact] = None,
    slot_18: dsl.Input[dsl.Artifact] = None,
    slot_19: dsl.Input[dsl.Artifact] = None,
    slot_20: dsl.Input[dsl.Artifact] = None,
    slot_21: dsl.Input[dsl.Artifact] = None,
    slot_22: dsl.Input[dsl.Artifact] = None,
    slot_23: dsl.Input[dsl.Artifact] = None,
    slot_24: dsl.Input[dsl.Artifact] = None,
):
    """Write table, curves, verdict and page, and bring MLflow up to date with what cached tasks did not say.

    Args:
        settings: rco.config.branches.ComparisonFiling.
        route: of train_teacher: all anchors that any branch has used.
        route_index: of train_teacher.
        summary: a folder with summary.json, CSV files, the page and the pictures.
        page: the page, for the Kubeflow UI.
        metrics: the headline figures, for the Kubeflow UI.
        slot_1: what evaluate_students wrote in the first slot; and so on.
    """
    # First, before any other name is bound. An artifact list cannot be gathered from tasks that are not a loop.
    given = dict(locals())
    import json
    import shutil
    from pathlib import Path

    from rco.reporting import comparison_report
    from rco.tasks import comparison as comparison_tasks

    slots = [given[f"slot_{number}"] for number in range(1, 25)]
    folder = Path(summary.path)
    result = comparison_tasks.report_comparison(
        settings,
        route=Path(route.path),
        route_index=Path(route_index.path),
        evaluations=[Path(slot.path) for slot in slots if slot is not None],
        folder=folder,
    )
    shutil.copyfile(folder / "report.html", page.path)
    figures = comparison_report.headline_metrics(result)
    for name, value in figures.items():
        metrics.log_metric(name, value)
    Path(metrics.path).write_text(json.dumps(figures))
