"""The task that measures student and teacher on the test part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rco.core.documents import read_as, read_json, write_json
from rco.core.errors import InputError
from rco.core.tensors import save_arrays
from rco.data.dataset import Dataset
from rco.evaluation import openset
from rco.models.route import Anchor
from rco.models.spec import NetworkSpec, load_network
from rco.tasks.process import log, read_settings, task
from rco.tasks.selection import converged_teacher
from rco.tasks.settings import (
    EvaluateSettings,
)
from rco.tasks.students import (
    ANCHOR,
    load_student,
)
from rco.training.config import ComputeConfig

EVALUATION = "evaluation.json"


@task
def evaluate(settings: Mapping[str, Any], *, dataset: Path, student: Path, anchors: Path, evaluation: Path) -> dict[str, Any]:
    """Measure the student and the converged teacher on the test part, which nothing before has touched.

    Writes evaluation.json, and an example batch with the student's answer, for a test of what serves it.

    Args:
        anchors: from the last stage's `select_anchor`.

    Returns:
        headline figures.
    """
    s = read_settings(EvaluateSettings, settings)
    from rco.evaluation.classification import measure
    from rco.evaluation.cost import count_macs, latency, parameter_count
    from rco.models.predict import predict
    from rco.strategies.hardness import kl
    from rco.training.device import prepare_process

    prepare_process(s.compute)
    data = Dataset.open(dataset)
    manifest = data.manifest
    test = data.split("test")
    teacher = converged_teacher(anchors)
    models = {
        "teacher": load_network(
            teacher / ANCHOR, expected_sha256=Anchor.read(teacher).sha256, spec=NetworkSpec.of(s.teacher, manifest)
        ),
        "student": load_student(student, NetworkSpec.of(s.student, manifest)),
    }
    result: dict[str, Any] = {}
    logits = {}
    for name, model in models.items():
        log.info("measuring the %s on %d test images", name, len(test))
        model.to(s.compute.device)
        answers, labels = predict(
            model, test, device=s.compute.device, precision=s.compute.precision, workers=s.compute.workers
        )
        logits[name] = answers
        timing = latency(model, manifest.image_shape, device=s.compute.device)
        result[name] = {
            **measure(answers, labels, manifest.num_classes),
            "parameters": parameter_count(model),
            "macs": count_macs(model, manifest.image_shape),
            "latency_ms": timing.median_ms,
            "latency_p95_ms": timing.p95_ms,
        }
    if manifest.open_classes:
        result["open_set"] = _evaluate_open_set(models, data, s)
    result["congruence_kl"] = kl(logits["teacher"], logits["student"], s.tau)
    result["tau"] = s.tau
    result["class_names"] = list(manifest.class_names)
    result["device"] = s.compute.device
    write_json(evaluation / EVALUATION, result)
    write_example(evaluation, data, models["student"].cpu())
    return {
        f"{name}_{figure}": result[name][figure]
        for name in models
        for figure in ("accuracy", "parameters", "macs", "latency_ms")
    } | openset.both_figures(result.get("open_set"))


@dataclass(frozen=True, kw_only=True)
class _Measured:
    """What is needed of what `evaluate` says of a network."""

    accuracy: float
    cross_entropy: float
    ece: float
    parameters: int
    macs: int
    latency_ms: float
    confusion: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, kw_only=True)
class _Evaluation:
    student: _Measured
    teacher: _Measured
    congruence_kl: float
    tau: float
    class_names: tuple[str, ...]
    device: str
    open_set: openset.OpenSet | None = None

    def __post_init__(self) -> None:
        classes = len(self.class_names)
        for model in (self.student, self.teacher):
            if len(model.confusion) != classes or {len(row) for row in model.confusion} != {classes}:
                raise InputError("confusion", len(model.confusion), f"is not of {classes} classes", "Evaluate again")


def read_evaluation(folder: Path) -> dict[str, Any]:
    """What `evaluate` has written.

    Raises:
        InputError: it is something else.
    """
    path = folder / EVALUATION
    read_as(_Evaluation, path, "Run evaluate again", partial=True)
    document: dict[str, Any] = read_json(path)
    return document


def _evaluate_open_set(models: Mapping[str, Any], data: Dataset, s: EvaluateSettings) -> dict[str, Any]:
    """Verification and identification of the classes that nothing was trained on, by teacher and student."""
    classes = list(data.manifest.open_classes)
    result: dict[str, Any] = {"classes": classes}
    for name, model in models.items():
        log.info("comparing the %s's embeddings of %d images of %d unseen classes", name, len(data.split("open")), len(classes))
        result[name] = measure_unseen(model, data, s.compute)
    return result


def measure_unseen(model: Any, data: Dataset, compute: ComputeConfig) -> dict[str, Any]:
    """What `rco.evaluation.openset.measure` says of a network's embeddings of the open classes."""
    from rco.models.embeddings import Embedder
    from rco.models.predict import predict

    vectors, labels = predict(
        Embedder(model), data.split("open"), device=compute.device, precision=compute.precision, workers=compute.workers
    )
    return openset.measure(vectors, labels)


def write_example(folder: Path, data: Dataset, student: Any) -> None:
    """Two validation images as pixels in 0..1, and the student's logits for them."""
    import torch

    x, _ = next(iter(data.probe().batches(2)))
    shape = (1, -1, 1, 1)
    mean, std = (torch.tensor(v, dtype=torch.float32).view(shape) for v in (data.manifest.mean, data.manifest.std))
    with torch.inference_mode():
        pixels = x * std + mean
        answer = student((pixels - mean) / std)
    arrays = {"pixels": pixels.numpy(), "logits": answer.numpy(), "mean": mean.numpy(), "std": std.numpy()}
    save_arrays(folder / "example.safetensors", arrays)
