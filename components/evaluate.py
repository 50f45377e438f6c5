"""evaluate: measure student and teacher on the test part."""

from kfp import dsl

from components.component import component


@component("train")
def evaluate(
    settings: dict,
    dataset: dsl.Input[dsl.Dataset],
    student: dsl.Input[dsl.Model],
    anchors: dsl.Input[dsl.Artifact],
    evaluation: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    confusion: dsl.Output[dsl.ClassificationMetrics],
):
    """Measure student and converged teacher on the test part, which no other task touches.

    Args:
        settings: rco.tasks.settings.EvaluateSettings.
        dataset: of prepare_data.
        student: of the last stage.
        anchors: of the last stage; the converged teacher is among them.
        evaluation: all figures, and an example batch.
        metrics: the headline figures.
        confusion: the student's confusion matrix.
    """
    import json
    from pathlib import Path

    from rco.tasks.evaluate import evaluate

    folder = Path(evaluation.path)
    figures = evaluate(
        settings, dataset=Path(dataset.path), student=Path(student.path), anchors=Path(anchors.path), evaluation=folder
    )
    for name, value in figures.items():
        metrics.log_metric(name, value)
    full = json.loads((folder / "evaluation.json").read_text())
    confusion.log_confusion_matrix(full["class_names"], full["student"]["confusion"])
    # Without a file at these paths KFP's local cache would never hit.
    Path(metrics.path).write_text(json.dumps(figures))
    Path(confusion.path).write_text(json.dumps(full["student"]["confusion"]))
