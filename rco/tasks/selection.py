"""The task that chooses the anchor of the next stage."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from rco.core.documents import write_json
from rco.core.files import atomically, verify
from rco.core.settings import from_dict, jsonable
from rco.core.tensors import save_arrays
from rco.models.route import Anchor, Route
from rco.strategies.base import StudentLevel, TrainedRoute
from rco.strategies.hardness import relative
from rco.strategies.walk import next_anchor, stage_epochs
from rco.tasks.process import log, read_settings, task
from rco.tasks.settings import (
    AnchorSettings,
)
from rco.tasks.students import (
    ANCHOR,
    PROBE,
    TARGETS,
    read_logits,
)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """The stage that comes next: which anchor, for how long. It travels between tasks as JSON.

    Attributes:
        chosen: indices on the route of the anchors so far, this stage's the last.
        stage: its number, from 1.
        epoch: of its anchor.
        reason: why that anchor was chosen, in words.
        epochs: its length.
        first_epoch: number of its first epoch on the student's one axis over all stages.
        skip: the route has been walked: the student is passed on, and the rest speaks of the stage before.
    """

    chosen: tuple[int, ...]
    stage: int
    epoch: int
    reason: str
    epochs: int
    first_epoch: int
    skip: bool = False

    @classmethod
    def of(cls, selection: Mapping[str, Any]) -> Stage:
        """A stage from its JSON.

        Raises:
            InputError: it is not one.
        """
        return from_dict(cls, selection)

    @property
    def last_epoch(self) -> int:
        """Number of its last epoch, on the same axis as `first_epoch`."""
        return self.first_epoch + self.epochs - 1


@task
def select_anchor(
    settings: Mapping[str, Any],
    *,
    previous: Mapping[str, Any],
    route: Path,
    route_index: Path,
    student: Path,
    anchor: Path,
    anchors: Path,
    last_stage: bool = False,
) -> dict[str, Any]:
    """Choose the anchor of the next stage with the student that will learn from it, and hand out that one checkpoint.

    Args:
        previous: what this function returned for the stage before; empty before stage 1.
        anchors: receives the list of all anchors chosen so far; from the last stage's task their checkpoints too, for the
            report.
        last_stage: whether this is the pipeline's last stage.

    Returns:
        a `Stage`, JSON-ready.
    """
    s = read_settings(AnchorSettings, settings)
    index = Route.open(route_index)
    labels, route_logits = index.probe()
    before = Stage.of(previous) if previous else None
    (student_logits,) = read_logits(student / PROBE, route_logits.shape[1:], "logits")
    level = StudentLevel.of(labels, route_logits, student_logits, s.tau)
    stage = next_stage(s, index, before, level)
    if stage.skip:
        log.info("the route has been walked: this stage passes the student through")
    weights = Route.open(route)
    ratio = relative(level.hardness, before.chosen[-1]) if before else None
    write_anchor(anchor, weights, stage.chosen[-1], route_logits, level.hardness, ratio)
    write_json(anchors / "anchors.json", [index.epochs[i] for i in stage.chosen])
    if last_stage:
        for i in stage.chosen:
            write_anchor(anchors / f"epoch-{index.epochs[i]:04d}", weights, i, route_logits, None, None)
    return dict(jsonable(stage))


def next_stage(s: AnchorSettings, index: Route, previous: Stage | None, student: StudentLevel, prefix: str = "") -> Stage:
    """The stage after `previous` (None: the first).

    Args:
        student: as it is now.
        prefix: of the line in the log.
    """
    chosen, strategy = previous.chosen if previous else (), s.anchors.strategy
    route = TrainedRoute.of(index)
    choice = next_anchor(strategy, route, chosen=chosen, student=student)
    if choice is None:
        assert previous is not None  # a route has a checkpoint
        return replace(previous, skip=True)
    epochs = stage_epochs(
        s.student_epochs,
        strategy.most_stages(route),
        done=previous.last_epoch if previous else 0,
        remaining=choice.remaining,
        last=choice.last,
    )
    log.info("%sstage %d: anchor epoch %d (%s), %d epochs", prefix, choice.stage, choice.epoch, choice.reason, epochs)
    return Stage(
        chosen=(*chosen, choice.index),
        stage=choice.stage,
        epoch=choice.epoch,
        reason=choice.reason,
        epochs=epochs,
        first_epoch=previous.last_epoch + 1 if previous else 1,
    )


def write_anchor(
    folder: Path, route: Route, i: int, logits: np.ndarray, hardness: np.ndarray | None, ratio: np.ndarray | None
) -> None:
    """One checkpoint as an artifact: weights, what is known of it, and the probe logits that its stage compares with."""
    point = route.checkpoints[i]
    source = route.folder / point.file
    verify(source, point.sha256)
    atomically(folder / ANCHOR, lambda temporary: shutil.copyfile(source, temporary))
    save_arrays(folder / TARGETS, {"anchor": logits[i], "teacher": logits[-1]})
    Anchor(
        **asdict(point),
        model=route.network.model,
        index=i,
        hardness=None if hardness is None else float(hardness[i]),
        hardness_of_route=() if hardness is None else tuple(float(h) for h in hardness),
        relative_hardness=None if ratio is None else float(ratio[i]),
    ).write(folder)
