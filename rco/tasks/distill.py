"""The task that trains students through the stages of one step."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from rco.config.branches import branch_params, student_key
from rco.core.words import counted
from rco.data.dataset import Dataset
from rco.data.network_input import NetworkInput
from rco.models.route import Route
from rco.strategies.hardness import route_hardness
from rco.tasks.launch import in_workers
from rco.tasks.process import log, read_settings, task
from rco.tasks.selection import Stage, write_anchors
from rco.tasks.settings import DistillSettings
from rco.tasks.stage import distill_stage
from rco.tasks.students import PROBE, anchor_indices, read_logits, seed_folder
from rco.tracking.record import FILE as RECORD
from rco.tracking.record import Record
from rco.training import resume
from rco.training.resume import Group

if TYPE_CHECKING:
    from rco.training.distributed import World


@task
@in_workers(lambda settings: settings["stage"]["compute"])
def distill_students(
    settings: Mapping[str, Any], *, selection: Mapping[str, Any], dataset: Path, anchors: Path, students: Path, distilled: Path
) -> dict[str, Any]:
    """Train the student of every seed through the stages of this step; one with nothing left to learn is handed on. A retried
    task finds the stages that are finished among the resume points.

    Args:
        selection: what `rco.tasks.selection.select_anchors` returned for this step.
        students: as the step before left them.
        distilled: the same after this step.

    Returns:
        figures for the artifact's metadata.
    """
    distilled.mkdir(parents=True, exist_ok=True)
    s = read_settings(DistillSettings, settings)
    from rco.training.fed import fed

    if len(s.seeds) > 1:
        # Kubeflow's MLflow plugin makes one run for this task; several students would mix their epochs in it.
        os.environ.pop("MLFLOW_RUN_ID", None)
    stages = {seed: [Stage.of(stage) for stage in selection[str(seed)]["stages"]] for seed in s.seeds}
    route, made = Route.open(anchors), []
    teacher_input = fed(route, Dataset.open(dataset)).input
    with resume.group(sum(map(len, stages.values()))) as group:
        for seed, of_seed in stages.items():
            before, after = seed_folder(students, seed), seed_folder(distilled, seed)
            if not of_seed and _world().main:
                shutil.copytree(before, after, dirs_exist_ok=True)
            # Beside what is handed on: a process that is killed leaves it there.
            with _scratch(distilled.parent) as scratch:
                folders = {"student": before, "distilled": after, "scratch": scratch}
                made.append(_train(s, seed, of_seed, group, teacher_input, dataset=dataset, route=route, **folders))
    return _figures(s, made)


def _train(
    s: DistillSettings,
    seed: int,
    stages: list[Stage],
    group: Group,
    teacher_input: NetworkInput,
    *,
    dataset: Path,
    route: Route,
    student: Path,
    distilled: Path,
    scratch: Path,
) -> list[dict[str, Any]]:
    """The stages of one student, one after the other; returns the figures of each."""
    key, single = student_key(s.branch, seed), replace(s.stage, train=replace(s.stage.train, seed=seed))
    params: dict[str, Any] = {}
    tags: dict[str, str] = {}
    if s.branch:
        params = {**branch_params(s.branch, s.kind, s.stage), "seed": seed}
        tags = {"rco.branch": s.branch, "rco.seed": str(seed), "rco.strategy": s.kind}
    figures = []
    world = _world()
    for i, stage in enumerate(stages):
        out = distilled if i == len(stages) - 1 else scratch / f"stage-{stage.stage}"
        if world.main:
            _write_anchors(scratch / f"anchor-{stage.stage}", route, stage.anchors, student, s.stage.objective.tau)
        world.barrier()  # anchors, and the student of the stage before, lie there
        figures.append(
            distill_stage(
                single,
                stage,
                dataset=dataset,
                anchor=scratch / f"anchor-{stage.stage}",
                teacher_input=teacher_input,
                student=student,
                distilled=out,
                key=key,
                params=params,
                tags=tags,
                resumable=group.resumable,
            )
        )
        student = out
    return figures


def _world() -> World:
    from rco.training.distributed import World

    return World.current()


@contextmanager
def _scratch(parent: Path) -> Iterator[Path]:
    """A folder for what is between two stages, one for all workers."""
    world = _world()
    with TemporaryDirectory(dir=parent) if world.main else nullcontext("") as own:
        yield Path(world.of_main(own))
        world.barrier()  # until none reads there any more


def _write_anchors(folder: Path, route: Route, anchors: tuple[int, ...], student: Path, tau: float) -> None:
    _, route_logits = route.probe()
    (answers,) = read_logits(student / PROBE, route_logits.shape[1:], "logits")
    mimicked = anchor_indices(Record.read(student).stages[-1]) if (student / RECORD).is_file() else ()
    write_anchors(folder, route, anchors, route_logits, route_hardness(route_logits, answers, tau), mimicked, tau)


def _figures(s: DistillSettings, made: list[list[dict[str, Any]]]) -> dict[str, Any]:
    """What the artifact says of this step: of one student its last stage, of several how many were trained."""
    if len(made) == 1:
        (stages,) = made
        if not stages:
            log.info("nothing to do in this stage")
        return stages[-1] if stages else {"skipped": True}
    found = sum(bool(stages) and all("trained_by" in stage for stage in stages) for stages in made)
    passed_on = sum(not stages for stages in made)
    trained = len(made) - found - passed_on
    ready = f"{found} found, " if found else ""
    log.info("%s: %s trained, %s%d passed on", s.branch, counted(trained, "student"), ready, passed_on)
    return {"branch": s.branch, "trained": trained, **({"found": found} if found else {})}
