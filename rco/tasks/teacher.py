"""The task that trains the teacher and keeps its route, or adopts a route."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rco.data.dataset import Dataset
from rco.models.route import Route
from rco.models.spec import NetworkSpec
from rco.tasks.process import EpochLines, log, read_settings, task
from rco.tasks.settings import (
    TeacherSettings,
)
from rco.tasks.students import (
    data_summary,
    logged,
    settings_as_params,
    taken_up,
)
from rco.tracking.context import Context
from rco.tracking.record import Record
from rco.tracking.tracker import tracked
from rco.training import resume


@task
def train_teacher(settings: Mapping[str, Any], *, dataset: Path, route: Path, route_index: Path) -> dict[str, Any]:
    """Train the teacher and keep its route, or adopt the route that the settings name.

    Returns:
        figures for the artifact's metadata.
    """
    s = read_settings(TeacherSettings, settings)
    from rco.core.storage.transfer import fetch
    from rco.training import teacher
    from rco.training.device import prepare_process
    from rco.training.route import adopt_route

    prepare_process(s.compute)
    data = Dataset.open(dataset)
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
                adopted = adopt_route(existing, data, spec, s.compute, route)
            rows: Sequence[Mapping[str, Any]] = adopted.history or [
                {"epoch": c.epoch, "val_accuracy": c.val_accuracy} for c in adopted.checkpoints
            ]
            for row in rows:
                tracker.log(int(row["epoch"]), logged(row))
        kept = _file_route(route, route_index, record)
    else:
        say = EpochLines(f"teacher {spec.model}", s.train.epochs)
        with resume.resumable(
            "train_teacher",
            {"settings": s, "data": data.manifest.digest},
            label=f"teacher {spec.model}",
            network=spec.written,
            prefix="teacher_",
            files=route,
        ) as points:
            record = taken_up(points, record)
            with tracked(context, record) as tracker:
                for row in teacher.train_teacher(
                    data, spec, s.train, s.compute, checkpoint_every=s.checkpoint_every, folder=route, checkpointer=points
                ):
                    tracker.log(row["epoch"], logged(row))
                    say(row)
            kept = _file_route(route, route_index, record)
    log.info("the route has %d checkpoints: epochs %s", len(kept.epochs), ", ".join(map(str, kept.epochs)))
    return {"checkpoints": len(kept.epochs), "epochs": kept.epochs[-1], "val_accuracy": kept.checkpoints[-1].val_accuracy}


def _file_route(route: Path, route_index: Path, record: Record) -> Route:
    kept = Route.open(route)
    kept.write_index(route_index)
    record.write(route_index)
    return kept
