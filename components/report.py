"""report: tell people what came out, and complete MLflow."""

from kfp import dsl

from components.component import component


@component("light", cached=False)
def report(
    settings: dict,
    registered: dict,
    route_index: dsl.Input[dsl.Artifact],
    student: dsl.Input[dsl.Model],
    anchors: dsl.Input[dsl.Artifact],
    evaluation: dsl.Input[dsl.Artifact],
    summary: dsl.Output[dsl.Artifact],
    page: dsl.Output[dsl.HTML],
    metrics: dsl.Output[dsl.Metrics],
):
    """Write summary, pictures and page, and bring MLflow up to date with what cached tasks did not say.

    Args:
        settings: rco.tasks.settings.FilingSettings.
        registered: of register_student.
        route_index: of train_teacher.
        student: of the last stage.
        anchors: of the last stage's select_anchor.
        evaluation: of evaluate.
        summary: a folder with summary.json, the page and the pictures.
        page: the page, for the Kubeflow UI.
        metrics: the headline figures, for the Kubeflow UI.
    """
    import json
    import shutil
    from pathlib import Path

    from rco.tasks.report import report

    folder = Path(summary.path)
    result = report(
        settings,
        registered=registered,
        route_index=Path(route_index.path),
        student=Path(student.path),
        anchors=Path(anchors.path),
        evaluation=Path(evaluation.path),
        folder=folder,
    )
    shutil.copyfile(folder / "report.html", page.path)
    figures = {
        "teacher_accuracy": result["teacher"]["accuracy"],
        "student_accuracy": result["student"]["accuracy"],
        "congruence_kl": result["congruence_kl"],
        "stages": len(result["stages"]),
    }
    for name, value in figures.items():
        metrics.log_metric(name, value)
    Path(metrics.path).write_text(json.dumps(figures))
