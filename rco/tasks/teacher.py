"""The task that trains the teacher and keeps its route, or adopts a route."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rco.config.plugins import used_by
from rco.core.errors import InputError
from rco.data.config import InputConfig
from rco.data.dataset import Dataset
from rco.data.network_input import NetworkInput
from rco.data.referred import open_dataset
from rco.models.route import MANIFEST, PROBE, Route, checkpoint_file
from rco.models.spec import NetworkSpec
from rco.tasks.launch import in_workers
from rco.tasks.process import EpochLines, log, read_settings, task
from rco.tasks.settings import TeacherSettings
from rco.tasks.students import as_training, data_summary, found_again, logged, settings_as_params, taken_up
from rco.tasks.weights import initial_networks
from rco.tracking.context import Context
from rco.tracking.record import Record
from rco.tracking.tracker import tracked
from rco.training import resume
from rco.training.config import TrainConfig
from rco.training.identity import for_any_workers
from rco.training.results import Result, Training
from rco.training.schedule import checkpoint_epochs


@task
@in_workers(lambda settings: settings["compute"] if settings.get("train") else None)
def train_teacher(settings: Mapping[str, Any], *, dataset: Path, route: Path, route_index: Path) -> dict[str, Any]:
    """Train the teacher and keep its route, or adopt the route that the settings name.

    Returns:
        figures for the artifact's metadata.
    """
    s = read_settings(TeacherSettings, settings)
    from rco.core.storage.transfer import fetch
    from rco.training.device import prepare_process
    from rco.training.distributed import World
    from rco.training.fed import fed
    from rco.training.route import adopt_route

    prepare_process(s.compute)
    prepared = open_dataset(dataset)
    data = prepared.seen_by(NetworkInput.asked(s.teacher_input or InputConfig(), prepared.manifest))
    spec = NetworkSpec.of(s.teacher, data.manifest)
    record = Record(key="teacher", params=settings_as_params(s), data=data_summary(data))
    context = Context.from_environment()
    if s.train is None or s.checkpoint_every is None:
        with tracked(context, record) as tracker:
            log.info("adopting the route at %s", s.route)
            with TemporaryDirectory(dir=route.parent if route.parent.is_dir() else None) as scratch:
                source = fetch(s.route, Path(scratch))
                existing = Route.open(source)
                if existing.data_digest != data.manifest.digest:
                    log.warning(
                        "the route was made on other data: its checkpoints are measured again; their validation accuracy "
                        "flatters if the teacher was trained on images that are held out here"
                    )
                spec = NetworkSpec.of(s.teacher, fed(existing, prepared, s.teacher_input).manifest)
                adopted = adopt_route(existing, prepared, spec, s.compute, route, asked=s.teacher_input)
            rows: Sequence[Mapping[str, Any]] = adopted.history or [
                {"epoch": c.epoch, "val_accuracy": c.val_accuracy} for c in adopted.checkpoints
            ]
            for row in rows:
                tracker.log(int(row["epoch"]), logged(row))
        kept = _file_route(route, route_index, record)
        figures: dict[str, str] = {}
    else:
        figures = _train(s, s.train, s.checkpoint_every, data, spec, record, route, route_index)
        if not World.current().main:
            return {}
        kept = Route.open(route)
    log.info("the route has %d checkpoints: epochs %s", len(kept.epochs), ", ".join(map(str, kept.epochs)))
    last = kept.checkpoints[-1]
    return {"checkpoints": len(kept.epochs), "epochs": last.epoch, "val_accuracy": last.val_accuracy, **figures}


def _train(
    s: TeacherSettings,
    train: TrainConfig,
    checkpoint_every: int,
    data: Dataset,
    spec: NetworkSpec,
    record: Record,
    route: Path,
    route_index: Path,
) -> dict[str, str]:
    """Train the teacher, or find the route that the same training has left. Of several workers the first one writes it.

    Returns:
        trained_by, if nothing was trained: the pipeline run whose route was found.
    """
    from rco.training import teacher
    from rco.training.device import hardware
    from rco.training.distributed import World

    label, context, world = f"teacher {spec.model}", Context.from_environment(), World.current()
    identity = {"settings": s, "data": data.manifest.digest}
    computation = {**identity, "plugins": used_by(train), "hardware": hardware(s.compute), "workers": world.size}
    checkpoints = (checkpoint_file(epoch) for epoch in checkpoint_epochs(train, checkpoint_every))
    result = Result("route", for_any_workers(computation), (MANIFEST, PROBE, *checkpoints), label=label)
    found = result.find(route, partial(_check, train.epochs)) if world.main else None
    if world.of_main(found is not None):
        if found is None:
            return {}
        log.info("%s: %s", label, found.words)
        resume.forget("train_teacher", identity)
        record = found_again(record, found)
        with tracked(context, record, first_step=1):
            pass  # MLflow is told of the epochs
        _file_route(route, route_index, record)
        return {"trained_by": found.pipeline_run}
    say = EpochLines(label, train.epochs)
    with resume.resumable(
        "train_teacher", identity, label=label, network=spec.written, prefix="teacher_", files=route
    ) as points:
        record = taken_up(points, record)
        ((_, initial),) = initial_networks("teacher", s.start, spec, (train.seed,))
        with tracked(context, record) as tracker:
            for row in teacher.train_teacher(
                data,
                spec,
                train,
                s.compute,
                checkpoint_every=checkpoint_every,
                folder=route,
                initial=initial,
                checkpointer=points,
            ):
                tracker.log(row["epoch"], logged(row))
                say(row)
        if world.main:
            _file_route(route, route_index, record)
            result.store(route, as_training(record, tracker))
    return {}


def _check(epochs: int, folder: Path, training: Training) -> None:
    """Refuse a route that is not one, or a training of another length."""
    Route.open(folder)
    if [row.step for row in training.rows] != list(range(1, epochs + 1)):
        raise InputError("result", folder.name, "lacks epochs", "Delete it")


def _file_route(route: Path, route_index: Path, record: Record) -> Route:
    kept = Route.open(route)
    kept.write_index(route_index)
    record.write(route_index)
    return kept
