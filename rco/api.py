"""The whole method in three calls, for notebooks and scripts: no pipeline, no tracking server."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from rco.config.parameters import RunConfig
from rco.data.config import DataConfig
from rco.data.dataset import Dataset
from rco.data.prepare import prepare
from rco.data.sources.kinds import source_digest
from rco.models.config import ModelConfig
from rco.models.modules import spec_of
from rco.models.route import Route
from rco.models.spec import NetworkSpec
from rco.models.weights import state_digest
from rco.objectives.config import ObjectiveConfig
from rco.strategies.config import AnchorConfig
from rco.training import device
from rco.training.config import ComputeConfig, TrainConfig
from rco.training.distillation import distill_route
from rco.training.ema import Ema
from rco.training.fed import fed
from rco.training.resume_points import ResumePoints
from rco.training.teacher import train_teacher


def prepare_dataset(dataset: str, folder: str | Path, *, kept_size: int = 0, **options: Any) -> Dataset:
    """Read, split and store a data set.

    Args:
        dataset: name, folder, file or s3:// address; see `rco.data.config.DataConfig` for this and the options, and
            `rco.data.sources` for those of a kind of source.
        folder: for the prepared data set.
        kept_size: height and width at which images are kept, if a teacher is to take more pixels than `image_size`, the
            student's.
    """
    config = DataConfig.of(dataset=dataset, **options)
    prepare(config, Path(folder), source_digest(config), kept_size=kept_size)
    return Dataset.open(Path(folder))


def train_route(
    data: Dataset,
    teacher: str | nn.Module,
    folder: str | Path,
    *,
    train: TrainConfig | None = None,
    checkpoint_every: int = 4,
    stem: str = "auto",
    embedding_dim: int = 0,
    compute: ComputeConfig | None = None,
    resume: str | Path = "",
) -> Route:
    """Train a teacher and write its route into `folder`.

    Args:
        data: as the teacher takes them: `data.seen_by(rco.NetworkInput(size=64, mean=..., std=...))` where it is not as the
            student does. The route says so, and `distill_student` feeds the teacher by it.
        teacher: a model's name, or a module of your own. A copy of it is trained, from its weights; its route is followed with
            the module as `teacher` of `distill_student`.
        resume: folder or s3:// address for resume points, from which the same call goes on after an interruption; empty: none.
    """
    resolved = device.resolve(compute or ComputeConfig())
    device.prepare_process(resolved)
    spec = (
        spec_of(teacher, data.manifest, "teacher")
        if isinstance(teacher, nn.Module)
        else NetworkSpec.of(ModelConfig(model=teacher, stem=stem, embedding_dim=embedding_dim), data.manifest)
    )
    config = train or RunConfig().teacher_train
    identity = {
        "teacher": state_digest(teacher) if isinstance(teacher, nn.Module) else spec,
        "train": config,
        "checkpoint_every": checkpoint_every,
        "compute": resolved,
        "data": data.manifest.digest,
        **({"input": data.input} if data.is_seen else {}),
    }
    points = ResumePoints(str(resume), identity, files=Path(folder))
    for _ in train_teacher(
        data, spec, config, resolved, checkpoint_every=checkpoint_every, folder=Path(folder), checkpointer=points
    ):
        pass
    points.clear()
    return Route.open(Path(folder))


def distill_student(
    student: str | nn.Module,
    route: Route,
    data: Dataset,
    *,
    teacher: str | nn.Module = "",
    anchors: AnchorConfig | None = None,
    objective: ObjectiveConfig | None = None,
    train: TrainConfig | None = None,
    stem: str = "auto",
    embedding_dim: int = 0,
    compute: ComputeConfig | None = None,
    resume: str | Path = "",
    ema: Ema | None = None,
) -> tuple[nn.Module, list[dict[str, Any]]]:
    """Distil a student along a route.

    Args:
        student: a model's name, or a module of your own (trained in place).
        data: as they were prepared; the teacher takes them as the route says.
        teacher: the name of the route's model, or a module like it (a copy gets the anchors' weights). Needed if it is not of
            this project or torchvision: code is run because you name it, never because a route does.
        resume: as for `train_route`.
        ema: has in the end the moving average of the student's weights over the last stage (`rco.training.ema`).

    Returns:
        the student in evaluation mode, and one row of metrics per epoch.
    """
    resolved = device.resolve(compute or ComputeConfig())
    device.prepare_process(resolved)
    train = train or RunConfig().student_train
    module = (
        student
        if isinstance(student, nn.Module)
        else NetworkSpec.of(ModelConfig(model=student, stem=stem, embedding_dim=embedding_dim), data.manifest).build(train.seed)
    )
    teachers = fed(route, data)
    identity = {
        "student": state_digest(module),
        "route": [c.sha256 for c in route.checkpoints],
        "data": data.manifest.digest,
        **{"anchors": anchors, "objective": objective, "train": train, "compute": resolved},
        **({"ema_decay": ema.decay} if ema is not None else {}),
        **({"teacher_input": teachers.input} if teachers.is_seen else {}),
    }
    points = ResumePoints(str(resume), identity)
    rows = list(points.take("rows") or [])
    points.add("rows", lambda: rows)
    if isinstance(teacher, nn.Module):
        named: NetworkSpec | None = spec_of(teacher, teachers.manifest, "teacher")
    else:
        named = replace(route.network, model=teacher) if teacher else None
    epochs = distill_route(
        module,
        route,
        data,
        teacher=named,
        anchors=anchors,
        objective=objective,
        train=train,
        compute=resolved,
        checkpointer=points,
        ema=ema,
    )
    for row in epochs:
        rows.append(row)  # noqa: PERF402 (a point may be written between two rows)
    points.clear()
    return module.eval(), rows
