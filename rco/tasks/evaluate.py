"""The task that measures students and teacher on the test part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from rco.config.branches import student_key
from rco.core.documents import write_json
from rco.core.files import sha256_of
from rco.core.settings import jsonable
from rco.core.tensors import save_arrays
from rco.data.dataset import Dataset
from rco.data.referred import open_dataset
from rco.evaluation import openset
from rco.evaluation.measured import FILE
from rco.models.route import Route
from rco.models.spec import NetworkSpec, load_network
from rco.tasks.exported import write_formats
from rco.tasks.launch import in_workers
from rco.tasks.process import log, read_settings, task
from rco.tasks.settings import EvaluateSettings
from rco.tasks.students import EMA, STUDENT, load_averaged, load_student, seed_folder
from rco.tracking.record import Record

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

CONFUSION = "confusion.json"
_READABLE = 100  # classes: KFP keeps the matrix in its database, and shows it in one page
_SIDE_BY_SIDE = ("n", "accuracy", "top5", "cross_entropy", "ece", "balanced_accuracy", "macro_f1")


@task
@in_workers(lambda settings: settings["compute"])
def evaluate_students(
    settings: Mapping[str, Any], *, dataset: Path, students: Path, anchors: Path, evaluation: Path
) -> dict[str, float]:
    """Measure the student of every seed, and the converged teacher, on the test part, which nothing before has touched.

    Writes of each student a folder with its figures (`rco.evaluation.measured`) and its tracking record; in depth also an
    example batch with the student's answer, for a test of what serves it, and the student in other formats if it is to be
    exported. The confusion matrix, summed over the students, is beside them if a person can read it.

    Args:
        anchors: of the last step: the converged teacher is among them.

    Returns:
        headline figures; of several students their means.
    """
    evaluation.mkdir(parents=True, exist_ok=True)
    s = read_settings(EvaluateSettings, settings)
    from rco.strategies.hardness import kl
    from rco.training.device import prepare_process
    from rco.training.fed import fed

    prepare_process(s.compute)
    data = open_dataset(dataset)
    manifest, route = data.manifest, Route.open(anchors)
    converged, teachers_data = route.checkpoints[-1], fed(route, data)
    spec = NetworkSpec.of(s.teacher, teachers_data.manifest)
    network = load_network(anchors / converged.file, expected_sha256=converged.sha256, spec=spec)
    teacher = _measure(network, teachers_data, s, "teacher")
    measured = []
    for seed in s.seeds:
        folder, out, key = seed_folder(students, seed), seed_folder(evaluation, seed), student_key(s.branch, seed)
        student_spec = NetworkSpec.of(s.student, manifest)
        model, averaged = load_student(folder, student_spec), load_averaged(folder, student_spec)
        student = _measure(model, data, s, "student")
        of_ema = None if averaged is None else _measure(averaged, data, s, "student's moving average")
        if teacher is None or student is None:
            continue
        document = {
            "branch": s.branch,
            "seed": seed,
            "student": student.figures,
            "teacher": teacher.figures,
            "congruence_kl": kl(teacher.logits, student.logits, s.tau),
            "tau": s.tau,
            "student_sha256": sha256_of(folder / STUDENT),
            "teacher_sha256": converged.sha256,
            "class_names": list(manifest.class_names),
            "device": s.compute.device,
        }
        if teachers_data is not data:
            document["teacher_input"] = jsonable(teachers_data.input)
        if of_ema is not None:
            document |= {"student_ema": of_ema.figures, "ema_sha256": sha256_of(folder / EMA)}
        if manifest.open_classes:
            document["open_set"] = {
                "classes": list(manifest.open_classes),
                "teacher": teacher.unseen,
                "student": student.unseen,
            }
        registered, weights = (averaged, EMA) if s.registered_weights == "ema" else (model, STUDENT)
        if s.export:
            document["export"] = write_formats(out, s.export, data, registered.cpu(), folder / weights, s.student.model)
        write_json(out / FILE, document)
        Record.read(folder).write(out)
        if s.in_depth:
            write_example(out, data, registered.cpu())
        if s.branch:
            log.info("%s: test accuracy %.2f %%", key, 100 * student.figures["accuracy"])
        measured.append(replace(student, logits=student.logits[:0]))  # of all seeds they may not fit into memory
    if teacher is None:  # the first worker has the figures
        return {}
    write_confusion(evaluation, manifest.class_names, [student.confusion for student in measured])
    return _headline("teacher", [teacher]) | _headline("student", measured)


def write_confusion(evaluation: Path, class_names: Sequence[str], matrices: Sequence[list[list[int]]]) -> None:
    """Write the sum of confusion matrices (K, K) for the Kubeflow UI, unless there are more classes than a person can read."""
    if len(class_names) <= _READABLE:
        write_json(evaluation / CONFUSION, {"class_names": list(class_names), "matrix": np.sum(matrices, axis=0).tolist()})


@dataclass(frozen=True, kw_only=True)
class _Answers:
    """A network on the test part.

    Attributes:
        logits: (N, K).
        figures: JSON-ready.
        confusion: [true][predicted] counts.
        unseen: what `rco.evaluation.openset.measure` says of the classes never trained on; None: there are none.
    """

    logits: NDArray[np.float32]
    figures: dict[str, Any]
    confusion: list[list[int]]
    unseen: dict[str, Any] | None


def _measure(model: nn.Module, data: Dataset, s: EvaluateSettings, role: str) -> _Answers | None:
    """Measure a network; in the first worker of several, which share the images."""
    from rco.evaluation.classification import measure
    from rco.evaluation.cost import count_macs, latency, parameter_count
    from rco.training.distributed import World, answers

    test, manifest = data.split("test"), data.manifest
    if s.in_depth:
        log.info("measuring the %s on %d test images", role, len(test))
    model.to(s.compute.device)
    logits, labels = answers(model, test, s.compute)
    unseen = _measure_unseen(model, data, s, role) if manifest.open_classes else None
    if not World.current().main:
        return None
    everything = measure(logits, labels, manifest.num_classes)
    figures = dict(everything) if s.in_depth else {name: everything[name] for name in _SIDE_BY_SIDE if name in everything}
    figures |= {"parameters": parameter_count(model), "macs": count_macs(model, manifest.image_shape)}
    if s.in_depth:
        timing = latency(model, manifest.image_shape, device=s.compute.device)
        figures |= {"latency_ms": timing.median_ms, "latency_p95_ms": timing.p95_ms}
    return _Answers(
        logits=logits,
        figures=figures,
        confusion=everything["confusion"],
        unseen=unseen,
    )


def _measure_unseen(model: nn.Module, data: Dataset, s: EvaluateSettings, role: str) -> dict[str, Any]:
    """What `rco.evaluation.openset.measure` says of a network's embeddings of the open classes."""
    from rco.models.embeddings import Embedder
    from rco.training.distributed import World, answers

    images, compute = data.split("open"), s.compute
    if s.in_depth:
        log.info(
            "comparing the %s's embeddings of %d images of %d unseen classes",
            role,
            len(images),
            len(data.manifest.open_classes),
        )
    vectors, labels = answers(Embedder(model), images, compute)
    return openset.measure(vectors, labels) if World.current().main else {}


def _headline(role: str, measured: list[_Answers]) -> dict[str, float]:
    names = [name for name in ("accuracy", "parameters", "macs", "latency_ms") if name in measured[0].figures]
    figures = [
        {**{name: one.figures[name] for name in names}, **(openset.figures(one.unseen) if one.unseen else {})}
        for one in measured
    ]
    return {f"{role}_{name}": fmean(each[name] for each in figures) for name in figures[0]}


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
