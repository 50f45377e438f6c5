"""The task that chooses the anchor of the next stage."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from rco.core.documents import read_as, write_json
from rco.core.files import atomically, verify
from rco.core.settings import from_dict, jsonable
from rco.core.tensors import save_arrays
from rco.models.route import Anchor, Route, anchor_folder, anchor_folders
from rco.strategies.base import StudentLevel, TrainedRoute
from rco.strategies.hardness import relative_to_stage, stage_target
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

_USED = "anchors.json"


@dataclass(frozen=True, kw_only=True)
class _Used:
    """The epochs of the anchors that were used, as the file beside them has them."""

    epochs: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """The stage that comes next: which anchors, for how long. It travels between tasks as JSON.

    Attributes:
        chosen: of each stage so far, this one the last, the indices of its anchors on the route.
        stage: its number, from 1.
        anchor_epochs: of its anchors.
        reason: why they were chosen, in words.
        epochs: its length.
        first_epoch: number of its first epoch on the student's one axis over all stages.
        skip: the route has been walked: the student is passed on, and the rest speaks of the stage before.
    """

    chosen: tuple[tuple[int, ...], ...]
    stage: int
    anchor_epochs: tuple[int, ...]
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
    def anchors(self) -> tuple[int, ...]:
        """Indices of its anchors on the route."""
        return self.chosen[-1]

    @property
    def label(self) -> str:
        """The stage and its anchors, in words."""
        return f"stage {self.stage}, {anchors_in_words(self.anchor_epochs)}"

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
    """Choose the anchor of the next stage with the student that will learn from it, and hand out that one checkpoint; or
    those, if the stage has several.

    Args:
        previous: what this function returned for the stage before; empty before stage 1.
        anchors: receives the list of all anchors chosen so far; from the last stage's task their checkpoints too, for the
            report, and the converged teacher, for the evaluation (`used_anchors`, `converged_teacher`).
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
    mimicked = before.anchors if before else ()
    write_anchors(anchor, weights, stage.anchors, route_logits, level.hardness, mimicked, s.tau)
    used = sorted({i for anchors_of_stage in stage.chosen for i in anchors_of_stage})
    write_json(anchors / _USED, _Used(epochs=tuple(index.epochs[i] for i in used)))
    if last_stage:
        for i in {*used, len(index.epochs) - 1}:
            write_anchor(anchors / anchor_folder(index.epochs[i]), weights, i)
    return dict(jsonable(stage))


def used_anchors(anchors: Path) -> list[Path]:
    """The folders of the anchors that the student learnt from.

    Args:
        anchors: from the last stage's `select_anchor`.
    """
    used = read_as(_Used, anchors / _USED, "Run the anchor's selection again")
    return [anchors / anchor_folder(epoch) for epoch in used.epochs]


def converged_teacher(anchors: Path) -> Path:
    """The folder of the converged teacher, the last of the checkpoints.

    Args:
        anchors: as for `used_anchors`.
    """
    return anchor_folders(anchors)[-1]


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
    words = anchors_in_words(choice.anchor_epochs)
    log.info("%sstage %d: %s (%s), %d epochs", prefix, choice.stage, words, choice.reason, epochs)
    return Stage(
        chosen=(*chosen, choice.anchors),
        stage=choice.stage,
        anchor_epochs=choice.anchor_epochs,
        reason=choice.reason,
        epochs=epochs,
        first_epoch=previous.last_epoch + 1 if previous else 1,
    )


def anchors_in_words(epochs: Sequence[int]) -> str:
    """ "anchor epoch 4", or "anchor epochs 2, 4 and 6"."""
    if len(epochs) == 1:
        return f"anchor epoch {epochs[0]}"
    return f"anchor epochs {', '.join(map(str, epochs[:-1]))} and {epochs[-1]}"


def write_anchors(
    folder: Path,
    route: Route,
    anchors: Sequence[int],
    logits: np.ndarray,
    hardness: np.ndarray,
    mimicked: Sequence[int],
    tau: float,
) -> None:
    """A stage's anchor as an artifact, and the probe logits that the stage compares with; of several anchors, each in a folder
    of its own.

    Args:
        anchors: indices on the route.
        logits: (M, N, K), of every checkpoint on the probe samples.
        hardness: (M,), of every checkpoint for the student before the stage.
        mimicked: indices of the anchors of the stage before; empty: there was none.
        tau: relaxation temperature of the mean of several anchors.
    """
    ratio = relative_to_stage(hardness, mimicked)
    for i in anchors:
        write_anchor(folder / anchor_folder(route.epochs[i]) if len(anchors) > 1 else folder, route, i, hardness, ratio)
    save_arrays(folder / TARGETS, {"anchor": stage_target(logits, anchors, tau), "teacher": logits[-1]})


def write_anchor(
    folder: Path, route: Route, i: int, hardness: np.ndarray | None = None, ratio: np.ndarray | None = None
) -> None:
    """One checkpoint as an artifact: weights, and what is known of it."""
    point = route.checkpoints[i]
    source = route.folder / point.file
    verify(source, point.sha256)
    atomically(folder / ANCHOR, lambda temporary: shutil.copyfile(source, temporary))
    Anchor(
        **asdict(point),
        model=route.network.model,
        index=i,
        hardness=None if hardness is None else float(hardness[i]),
        hardness_of_route=() if hardness is None else tuple(float(h) for h in hardness),
        relative_hardness=None if ratio is None else float(ratio[i]),
    ).write(folder)
