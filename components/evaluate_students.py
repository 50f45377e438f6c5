"""evaluate_students: measure the student of every seed, and the teacher, on the test part."""

from kfp import dsl

from components.component import component


@component("train")
def evaluate_students(
    settings: dict,
    dataset: dsl.Input[dsl.Dataset],
    students: dsl.Input[dsl.Model],
    anchors: dsl.Input[dsl.Model],
    evaluation: dsl.Output[dsl.Artifact],
    metrics: dsl.Output[dsl.Metrics],
    confusion: dsl.Output[dsl.ClassificationMetrics],
):
    """Measure the students and the converged teacher on the test part, which no other task touches; export a run's student.

    Args:
        settings: rco.tasks.settings.EvaluateSettings.
        dataset: of prepare_data.
        students: of the last step.
        anchors: of the last step: they hold the converged teacher.
        evaluation: of each seed the figures and the tracking record; of a run also its student's files of other formats.
        metrics: the headline figures.
        confusion: the confusion matrix, summed over the students, unless there are more classes than a person can read.
    """
    import json
    from pathlib import Path

    from rco.tasks.evaluate import CONFUSION, evaluate_students

    folder = Path(evaluation.path)
    figures = evaluate_students(
        settings,
        dataset=Path(dataset.path),
        students=Path(students.path),
        anchors=Path(anchors.path),
        evaluation=folder,
    )
    for name, value in figures.items():
        metrics.log_metric(name, value)
    matrix = json.loads((folder / CONFUSION).read_text()) if (folder / CONFUSION).is_file() else {}
    if matrix:
        confusion.log_confusion_matrix(matrix["class_names"], matrix["matrix"])
    # Without a file at these paths KFP's local cache would never hit.
    Path(metrics.path).write_text(json.dumps(figures))
    Path(confusion.path).write_text(json.dumps(matrix))
