"""The task that chooses the anchors of the next step, and what a stage is told of its own."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rco.core.files import atomically, verify
from rco.core.settings import from_dict, jsonable
from rco.core.tensors import save_arrays
from rco.models.route import Anchor, Route, anchor_folder
from rco.strategies.base import StudentLevel, TrainedRoute
from rco.strategies.hardness import relative_to_stage, stage_target
from rco.strategies.walk import next_anchor, stage_epochs
from rco.tasks.process import log, read_settings, task
from rco.tasks.settings import AnchorSettings
from rco.tasks.students import ANCHOR, PROBE, TARGETS, read_logits, seed_folder


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
    """

    chosen: tuple[tuple[int, ...], ...]
    stage: int
    anchor_epochs: tuple[int, ...]
    reason: str
    epochs: int
    first_epoch: int

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
def select_anchors(
    settings: Mapping[str, Any],
    *,
    previous: Mapping[str, Any],
    last_step: bool,
    route: Path,
    route_index: Path,
    students: Path,
    anchors: Path,
) -> dict[str, Any]:
    """Choose, seed by seed, the anchors of the next step with the students that will learn from them, and hand out those
    checkpoints.

    Args:
        previous: what this function returned for the step before; empty before the first.
        last_step: whether it is the pipeline's last: it hands out the converged teacher as well, for the evaluation.
        anchors: becomes a route with the weights of these checkpoints only.

    Returns:
        by seed: last (its last stage so far) and stages (those of this step; empty: the route has been walked).
    """
    anchors.mkdir(parents=True, exist_ok=True)
    s = read_settings(AnchorSettings, settings)
    index = Route.open(route_index)
    labels, route_logits = index.probe()
    selection: dict[str, Any] = {}
    needed = {len(index.epochs) - 1} if last_step else set[int]()
    for seed in s.seeds:
        (student_logits,) = read_logits(seed_folder(students, seed) / PROBE, route_logits.shape[1:], "logits")
        level = StudentLevel.of(labels, route_logits, student_logits, s.tau)
        before = previous.get(str(seed), {}).get("last")
        last = Stage.of(before) if before else None
        stages: list[Stage] = []
        while not (s.one_by_one and stages):
            stage = next_stage(s, index, last, level)
            if stage is None:
                break
            words = anchors_in_words(stage.anchor_epochs)
            prefix = f"seed {seed}, " if len(s.seeds) > 1 else ""
            log.info("%sstage %d: %s (%s), %d epochs", prefix, stage.stage, words, stage.reason, stage.epochs)
            stages.append(stage)
            needed.update(stage.anchors)
            last = stage
        selection[str(seed)] = {"last": jsonable(last) if last else {}, "stages": jsonable(_restarted(stages, s.lengths))}
    if not any(chosen["stages"] for chosen in selection.values()):
        log.info("the route has been walked: this step passes the students on")
    weights = Route.open(route)
    weights.write_index(anchors)
    for i in needed:
        point = weights.checkpoints[i]
        verify(weights.folder / point.file, point.sha256)
        atomically(anchors / point.file, partial(shutil.copyfile, weights.folder / point.file))
    return selection


def _restarted(stages: list[Stage], lengths: Sequence[int]) -> list[Stage]:
    """One stage cut into several of the same anchor: each starts optimiser and schedule anew."""
    if not stages or not lengths:
        return stages
    (whole,) = stages
    return [
        replace(whole, stage=k, epochs=length, first_epoch=1 + sum(lengths[: k - 1]), reason="the converged teacher")
        for k, length in enumerate(lengths, start=1)
    ]


def next_stage(s: AnchorSettings, index: Route, previous: Stage | None, student: StudentLevel) -> Stage | None:
    """The stage after `previous` (None: the first); None when the route has been walked.

    Args:
        student: as it is now.
    """
    chosen, strategy = previous.chosen if previous else (), s.anchors.strategy
    route = TrainedRoute.of(index)
    choice = next_anchor(strategy, route, chosen=chosen, student=student)
    if choice is None:
        return None
    epochs = stage_epochs(
        s.student_epochs,
        strategy.most_stages(route),
        done=previous.last_epoch if previous else 0,
        remaining=choice.remaining,
        last=choice.last,
    )
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
