"""What a process of a plan does: train a teacher, or one student, and say what came out. Uses the library, and no pipeline."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.evidence.data import prepared, put
from benchmarks.evidence.plan import Plan, Student
from benchmarks.evidence.records import identity_of
from benchmarks.harness import machine
from rco.core.documents import write_json
from rco.core.settings import jsonable
from rco.data.dataset import Dataset
from rco.evaluation.classification import evaluate
from rco.models.route import Route
from rco.models.spec import NetworkSpec, load_network
from rco.strategies.walk import planned_lengths
from rco.training.anchor import FOLDER
from rco.training.config import ComputeConfig
from rco.training.identity import name_of, software

COMPUTE = ComputeConfig(device="cpu", precision="fp32", threads=1, workers=0)
ABOUT = "evidence.json"


@dataclass(frozen=True)
class Places:
    """Where things lie.

    Args:
        cache: prepared data and routes; outside git.
        source: folder of the archives; None: all data are in the cache, or need none.
    """

    cache: Path
    source: Path | None


def route_folder(plan: Plan, student: Student, data: Dataset, cache: Path) -> Path:
    """Where the route of a student's teacher lies, or will lie."""
    config = plan.config(student)
    told = {"teacher": config.teacher, "train": config.teacher_train, "every": config.route.checkpoint_every}
    return cache / f"route-{name_of(jsonable({**told, 'data': data.manifest.digest}), 16)}"


def digest_of(route: Route) -> str:
    """Of a route's weights."""
    return hashlib.sha256(" ".join(c.sha256 for c in route.checkpoints).encode()).hexdigest()[:16]


def teach(plan: Plan, student: Student, places: Places) -> dict[str, Any]:
    """Train the teacher of a student, if it is not in the cache; returns what is known of it: `ABOUT`."""
    from rco.training.device import prepare_process
    from rco.training.teacher import train_teacher

    prepare_process(COMPUTE)
    places.cache.mkdir(parents=True, exist_ok=True)
    data = prepared(plan.settings[student.setting], places.cache, places.source)
    folder, config = route_folder(plan, student, data, places.cache), plan.config(student)
    if not folder.is_dir():
        half = places.cache / f"{folder.name}.half-{os.getpid()}"
        shutil.rmtree(half, ignore_errors=True)
        spec, started = NetworkSpec.of(config.teacher, data.manifest), time.perf_counter()
        every = config.route.checkpoint_every
        for _ in train_teacher(data, spec, config.teacher_train, COMPUTE, checkpoint_every=every, folder=half):
            pass
        seconds = time.perf_counter() - started
        write_json(half / ABOUT, {"seconds": seconds, **_measured(Route.open(half), data)})
        put(half, folder)
    about: dict[str, Any] = json.loads((folder / ABOUT).read_text())
    return about


def _measured(route: Route, data: Dataset) -> dict[str, Any]:
    """What a teacher tells before any student is trained: how far it has gone beyond its best, and how well it knows its
    training images (without augmentation). `val` has a line a checkpoint: epoch, accuracy, NLL in nats at tau = 1."""

    def measure(point: Any, part: str) -> dict[str, Any]:
        network = load_network(route.folder / point.file, expected_sha256=point.sha256, spec=route.network)
        return evaluate(network, data.split(part), num_classes=data.manifest.num_classes, workers=0)

    curve = [(point.epoch, measure(point, "val")) for point in route.checkpoints]
    last = route.checkpoints[-1]
    test, train = measure(last, "test"), measure(last, "train")
    return {
        "route": digest_of(route),
        "model": route.network.model,
        "val": [[epoch, round(m["accuracy"], 4), round(m["cross_entropy"], 4)] for epoch, m in curve],
        "train_accuracy": train["accuracy"],
        "test_accuracy": test["accuracy"],
        "test_nll": test["cross_entropy"],
    }


def train(plan: Plan, student: Student, places: Places) -> dict[str, Any]:
    """Train a student whose teacher is in the cache, and measure it; returns its record."""
    from rco.training.device import hardware, prepare_process

    prepare_process(COMPUTE)
    os.environ[FOLDER] = str(places.cache / "logits")  # an anchor's stored logits are every student's
    setting, config = plan.settings[student.setting], plan.config(student)
    data = prepared(setting, places.cache, places.source)
    folder = route_folder(plan, student, data, places.cache)
    route, about = Route.open(folder), json.loads((folder / ABOUT).read_text())
    network = NetworkSpec.of(config.student, data.manifest).build(student.seed)
    started, cpu = time.perf_counter(), time.process_time()
    rows = list(_epochs(plan, student, network, route, data))
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu
    test = evaluate(network, data.split("test"), num_classes=data.manifest.num_classes, workers=0)
    images = len(data.split("train"))
    anchors = [len(row["anchor_epochs"]) for row in rows]
    passes = sum(anchors) if config.objective.needs_anchor else 0
    if config.objective.views:
        passes = 0 if not passes else sum(min(config.objective.views, len(stage)) * stage[0] for stage in _by_stage(rows))
    return {
        "id": identity_of(plan, student, data.manifest.digest),
        "plan": plan.name,
        "setting": student.setting,
        "branch": student.branch,
        "seed": student.seed,
        "teacher_seed": student.teacher_seed,
        "parameters": {**setting.parameters, **plan.branches[student.branch]},
        "subset": jsonable(setting.subset),
        "data": {"digest": data.manifest.digest, "sizes": dict(data.manifest.sizes), "classes": data.manifest.num_classes},
        "route": about["route"],
        "teacher": about,
        "test_accuracy": test["accuracy"],
        "test_nll": test["cross_entropy"],
        "val_accuracy": rows[-1]["val_accuracy"],
        "congruence_kl": rows[-1]["kl_to_teacher"],
        "curve": {name: [round(row[name], 4) for row in rows] for name in ("val_accuracy", "kl_to_anchor", "kl_to_teacher")},
        "stages": [
            [row["epoch"], row["anchor_epochs"]]
            for row, after in zip(rows, [*rows[1:], None], strict=True)
            if after is None or after["stage"] != row["stage"]
        ],
        "cost": {
            "seconds": round(seconds, 1),
            "cpu_seconds": round(cpu_seconds, 1),
            "epochs": len(rows),
            "images": images * len(rows),
            "teacher_images": images * passes,
        },
        "versions": {**software(), "python": platform.python_version()},
        "machine": {**machine("cpu"), "hardware": hardware(COMPUTE)},
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _by_stage(rows: list[dict[str, Any]]) -> list[list[int]]:
    """Of each stage, how many anchors it has, once an epoch."""
    stages: dict[int, list[int]] = {}
    for row in rows:
        stages.setdefault(row["stage"], []).append(len(row["anchor_epochs"]))
    return list(stages.values())


def _epochs(plan: Plan, student: Student, network: Any, route: Route, data: Dataset) -> Iterator[dict[str, Any]]:
    """Train; yields a row an epoch."""
    from rco.training.distillation import ProbeTargets, anchor_of, distill_route, train_stage

    config, cuts = plan.config(student), plan.restarts(student.branch)
    if not cuts:
        yield from distill_route(
            network,
            route,
            data,
            anchors=config.anchors,
            objective=config.objective,
            train=config.student_train,
            compute=COMPUTE,
        )
        return
    _, logits = route.probe()
    last, done = route.checkpoints[-1], 0
    for stage, length in enumerate(planned_lengths(config.student_train.epochs, cuts), start=1):
        anchor, name = anchor_of([(route.folder / last.file, last.sha256)], route.network, config.objective)
        targets = ProbeTargets(logits[-1], logits[-1])
        options = {"stage": stage, "epochs": length, "first_epoch": done + 1, "anchor_id": name}
        for row in train_stage(network, anchor, data, config.objective, config.student_train, COMPUTE, targets, **options):
            yield {**row, "anchor_epochs": [last.epoch]}
        done += length
