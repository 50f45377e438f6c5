"""Students of the plans, one after the other, until the time is over: students.jsonl has a line for each that was finished.

A plan is a teacher, a student, their data and settings (flat parameters, as a recipe has them), and the branches that are
compared. Its teacher is trained once, and its route kept as route-PLAN.tar, so that the next machine goes on: it is given both
files in --out, and computes no student again that has a line there. What a machine has half done is lost.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from harness import machine

from benchmarks.gpu.common import STUDENTS, Part, cifar, digits, finished, said
from rco.config.parameters import RunConfig
from rco.core.errors import InputError
from rco.data.dataset import Dataset
from rco.evaluation.classification import evaluate
from rco.models.route import Route
from rco.models.spec import NetworkSpec, load_network
from rco.training.config import ComputeConfig
from rco.training.device import hardware, prepare_process
from rco.training.distillation import distill_route
from rco.training.teacher import train_teacher

PLANS = Path(__file__).with_name("plans.json")
_SMOKE = {"teacher_epochs": 4, "checkpoint_every": 1, "epochs": 4, "teacher": "digits-cnn-s", "student": "digits-mlp"}
_SMOKE_STUDENTS = 2


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a file of plans says of one.

    Args:
        data: "cifar10", the tar that --data names, or "digits".
        settings: flat parameters that all its students share.
        branches: name -> what this branch sets beside them.
        seeds: how many, from 0.
    """

    name: str
    data: str
    settings: dict[str, Any]
    branches: dict[str, dict[str, Any]] = field(default_factory=dict)
    seeds: int = 5

    def config(self, branch: str, seed: int) -> RunConfig:
        return RunConfig.from_flat({**self.settings, **self.branches[branch], "seed": seed})


def read_plans(path: Path) -> list[Plan]:
    """The plans of a file.

    Raises:
        InputError: a setting that is not known, or cannot work.
    """
    plans = [Plan(**words) for words in json.loads(path.read_text())]
    for plan in plans:
        for branch in plan.branches:
            plan.config(branch, 0)
    return plans


def run(part: Part) -> None:
    """Train what is not there yet."""
    plans = [plan for plan in read_plans(part.plans) if plan.data == ("cifar10" if part.data else "digits")]
    for plan in plans:
        _run(part, plan)
    if not plans:
        said(f"  no plan in {part.plans.name} for these data")


def _run(part: Part, plan: Plan) -> None:
    if part.smoke:
        settings = plan.settings | _SMOKE
        plan = Plan(name=plan.name, data=plan.data, settings=settings, branches=plan.branches, seeds=1)
    data = cifar(part)[0] if plan.data == "cifar10" else digits(part)
    compute = ComputeConfig(device=part.device, precision=part.precision, threads=torch.get_num_threads(), workers=0)
    prepare_process(compute)
    started = time.perf_counter()
    route = _route(part, plan, data, compute)
    if route is None:
        return
    _, accuracy = _tested(route, data, compute)
    said(f"  {plan.name}: teacher {100 * accuracy:.2f} % on the test part, after {time.perf_counter() - started:.0f} s")
    done = {line["id"] for line in finished(part.out / STUDENTS)}
    slowest, trained = 0.0, 0
    for seed, branch in itertools.product(range(plan.seeds), plan.branches):
        identity = identity_of(plan, branch, seed, route, data, compute)
        if identity in done:
            continue
        if part.smoke and trained == _SMOKE_STUDENTS:
            said(f"  {plan.name}: {trained} students, enough for a trial")
            return
        if part.left() < 1.2 * slowest + 2:
            said(f"  {plan.name}: {trained} students; the time was spent before {branch}, seed {seed}")
            return
        before = time.perf_counter()
        line = _student(plan, branch, seed, route, data, compute, part)
        if line is None:
            said(f"  {plan.name}: {trained} students; the time was spent within {branch}, seed {seed}, which is lost")
            return
        slowest, trained = max(slowest, time.perf_counter() - before), trained + 1
        line = {"id": identity, "plan": plan.name, "branch": branch, "seed": seed, **line, "teacher_test_accuracy": accuracy}
        _append(part.out / STUDENTS, line)
        said(f"  {plan.name}, {branch}, seed {seed}: {100 * line['figures']['test_accuracy']:.2f} % on the test part")
    said(f"  {plan.name}: all its students are there")


def _append(path: Path, line: dict[str, Any]) -> None:
    """Add a line, also after half a one."""
    half = path.is_file() and not path.read_bytes().endswith(b"\n")
    with path.open("a") as lines:
        lines.write("\n" * half + json.dumps(line) + "\n")


def identity_of(plan: Plan, branch: str, seed: int, route: Route, data: Dataset, compute: ComputeConfig) -> str:
    """Of all that a student depends on here: its settings, its teacher, its data, the precision, the kind of device."""
    told = {
        "settings": plan.config(branch, seed).to_flat(),
        "route": [c.sha256 for c in route.checkpoints],
        "data": data.manifest.digest,
        "compute": [compute.device, compute.precision],
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:32]


def _student(
    plan: Plan, branch: str, seed: int, route: Route, data: Dataset, compute: ComputeConfig, part: Part
) -> dict[str, Any] | None:
    """Train and measure one; None: the time was over first."""
    config = plan.config(branch, seed)
    student = NetworkSpec.of(config.student, data.manifest).build(seed)
    started, rows = time.perf_counter(), []
    epochs: Iterator[dict[str, Any]] = distill_route(
        student,
        route,
        data,
        anchors=config.anchors,
        objective=config.objective,
        train=config.student_train,
        compute=compute,
    )
    for row in epochs:
        rows.append(row)
        if part.left() < 1:
            return None
    seconds = time.perf_counter() - started
    measured = evaluate(
        student.to(compute.device), data.split("test"), num_classes=data.manifest.num_classes, device=compute.device
    )
    return {
        "settings": {**plan.settings, **plan.branches[branch]},
        "data": {"name": Path(data.manifest.source).name, "digest": data.manifest.digest},
        "machine": {**machine(compute.device), "hardware": hardware(compute), "precision": compute.precision},
        "figures": {
            "test_accuracy": measured["accuracy"],
            "test_cross_entropy": measured["cross_entropy"],
            "test_ece": measured["ece"],
            "val_accuracy": rows[-1]["val_accuracy"],
            "kl_to_teacher": rows[-1]["kl_to_teacher"],
            "anchor_epochs": [list(epochs) for epochs in dict.fromkeys(tuple(row["anchor_epochs"]) for row in rows)],
            "epochs": len(rows),
            "seconds": seconds,
        },
    }


# --- the teacher ------------------------------------------------------------------------------------------------------------


def _route(part: Part, plan: Plan, data: Dataset, compute: ComputeConfig) -> Route | None:
    """The plan's route: the one that is kept, or a new one. None: there was no time to train it."""
    config = plan.config(next(iter(plan.branches)), 0)
    spec = NetworkSpec.of(config.teacher, data.manifest)
    kept, folder = part.out / f"route-{plan.name}.tar", part.scratch / f"route-{plan.name}"
    folder.mkdir(exist_ok=True)
    if kept.is_file():
        try:
            return _unpacked(kept, folder / "kept", spec, data)
        except (InputError, tarfile.TarError, OSError) as error:
            said(f"  {kept.name} is not used, its teacher is trained anew: {error}")
    for row in train_teacher(
        data, spec, config.teacher_train, compute, checkpoint_every=config.route.checkpoint_every, folder=folder / "new"
    ):
        if part.left() < 2:
            said(f"  {plan.name}: the time was spent at epoch {row['epoch']} of its teacher, which is lost")
            return None
    half = part.scratch / kept.name
    with tarfile.open(half, "w") as tar:
        for file in sorted((folder / "new").iterdir()):
            tar.add(file, file.name)
    kept.write_bytes(half.read_bytes())
    return Route.open(folder / "new")


def _unpacked(kept: Path, folder: Path, spec: NetworkSpec, data: Dataset) -> Route:
    """A kept route, verified.

    Raises:
        InputError: damaged, or of another teacher or other data.
    """
    with tarfile.open(kept) as tar:
        tar.extractall(folder, filter="data")
    route = Route.open(folder)
    route.verify()
    if route.network != spec or route.data_digest != data.manifest.digest:
        raise InputError("route", kept.name, "is of another teacher, or of other data", "Remove it")
    return route


def _tested(route: Route, data: Dataset, compute: ComputeConfig) -> tuple[str, float]:
    """The converged teacher's checkpoint, and its accuracy on the test part."""
    point = route.checkpoints[-1]
    network = load_network(route.folder / point.file, expected_sha256=point.sha256, spec=route.network).to(compute.device)
    measured = evaluate(network, data.split("test"), num_classes=data.manifest.num_classes, device=compute.device)
    return point.file, float(measured["accuracy"])
