"""How long the recipe cifar10.yaml would take on this machine: three measured epochs of each part of it, extrapolated.

What the recipe trains, validates and keeps is done as a run does it; pipeline, tracking and reports are left out. Nothing here
says how good its networks would become.
"""

from __future__ import annotations

import ast
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from harness import machine

from benchmarks.gpu.common import RECIPE, Part, cifar, said
from rco.config.parameters import RunConfig
from rco.data.dataset import Dataset
from rco.models.predict import predict
from rco.models.spec import NetworkSpec
from rco.training.config import ComputeConfig
from rco.training.device import prepare_process
from rco.training.distillation import ProbeTargets, probe_logits, train_stage
from rco.training.teacher import train_teacher

FLAT = Path(__file__).resolve().parents[2] / "pipelines" / "recipes" / "cifar10.yaml"
_MEASURED = 3  # epochs, after one that does not count
_SMOKE = {"teacher": "resnet8", "batch_size": 12, "teacher_batch_size": 12, "probe_size": 20}


def read_recipe(text: str) -> dict[str, Any]:
    """A recipe whose lines are `name: value`, as all of ours are: no YAML library is needed.

    Raises:
        ValueError: a line of another kind.
    """
    found: dict[str, Any] = {}
    for line in text.splitlines():
        line = line.split(" #")[0].rstrip()
        if not line or line.startswith("#"):
            continue
        name, colon, value = line.partition(": ")
        if not colon or name != name.strip():
            raise ValueError(f"not `name: value`: {line!r}")
        words = {"true": True, "false": False}
        try:
            found[name] = words[value] if value in words else ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[name] = value
    return found


def run(part: Part) -> None:
    """Measure, extrapolate, write."""
    flat = read_recipe(FLAT.read_text()) | (_SMOKE if part.smoke else {})
    config = RunConfig.from_flat(flat)
    started = time.perf_counter()
    data, images = cifar(part)
    document: dict[str, Any] = {
        "machine": machine(part.device),
        "recipe": FLAT.name,
        "images": images,
        "extrapolated": f"from {_MEASURED} measured epochs of each part, after one that is not counted",
        "precision": part.precision,
        "prepare_seconds": time.perf_counter() - started,
        "parts": {},
    }
    compute = ComputeConfig(device=part.device, precision=part.precision, threads=torch.get_num_threads(), workers=0)
    prepare_process(compute)
    trainings = {
        "teacher": (_teacher(part, config, data, compute), config.teacher_train.epochs),
        "student": (_student(config, data, compute), config.student_train.epochs),
    }
    for name, (rows, epochs) in trainings.items():
        seconds = []
        for _ in range(1 + _MEASURED):
            before = time.perf_counter()
            next(rows)
            part.wait()
            seconds.append(time.perf_counter() - before)
            if part.left() < 2 * seconds[-1] and len(seconds) < 1 + _MEASURED:
                said(f"  {name}: not extrapolated: the time was spent after {len(seconds)} epochs")
                document["parts"][name] = {"skipped": "the time was spent", "epoch_seconds": seconds}
                part.save(RECIPE, document)
                return
        rows.close()
        median = statistics.median(seconds[1:])
        document["parts"][name] = {
            "epoch_seconds": seconds,
            "median_epoch_seconds": median,
            "epochs": epochs,
            "extrapolated_seconds": median * epochs,
            "images_per_second": len(data.split("train")) / median,
        }
        part.save(RECIPE, document)
        said(f"  {name}: {median:.3g} s an epoch; {epochs} epochs would take {median * epochs / 60:.3g} min (extrapolated)")
    document["extrapolated_seconds"] = document["prepare_seconds"] + sum(
        p["extrapolated_seconds"] for p in document["parts"].values()
    )
    part.save(RECIPE, document)
    said(f"  {FLAT.name}: {document['extrapolated_seconds'] / 60:.3g} min, extrapolated, without pipeline and tracking")


def _teacher(part: Part, config: RunConfig, data: Dataset, compute: ComputeConfig) -> Iterator[dict[str, Any]]:
    """The epochs of the teacher, with validation."""
    spec = NetworkSpec.of(config.teacher, data.manifest)
    every = config.route.checkpoint_every
    folder = part.scratch / "recipe"
    return train_teacher(data, spec, config.teacher_train, compute, checkpoint_every=every, folder=folder)


def _student(config: RunConfig, data: Dataset, compute: ComputeConfig) -> Iterator[dict[str, Any]]:
    """The epochs of a stage: a live anchor, validation, congruence. The anchor's weights do not matter for the time."""
    anchor, student = (NetworkSpec.of(model, data.manifest).build(0) for model in (config.teacher, config.student))
    logits = probe_logits(anchor.to(compute.device), data, compute)
    predict(anchor, data.split("val"), device=compute.device, precision=compute.precision)
    train = config.student_train
    return train_stage(
        student,
        anchor,
        data,
        config.objective,
        train,
        compute,
        ProbeTargets(logits, logits),
        stage=1,
        epochs=train.epochs,
        first_epoch=1,
    )
