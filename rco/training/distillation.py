"""One stage of distillation, and the walk along a whole route.

In a stage the student, starting from the weights that the stage before left, learns from one frozen anchor with a fresh
optimiser and schedule (Jin et al. 2019), unless `stage_schedule` is continuous (ours). It hands on its last weights, never
those of a "best" epoch: the next stage starts where this one ended. An objective's own weights, such as those of a hint's
regressor, go on in the same way (ours).

Whatever a stage mimics, the greedy search's hardness is the KL of the logits on the probe samples. Every network has logits,
and nats mean the same for any objective. But a stage that mimics embeddings does not aim at its anchor's logits, so the
ratios may say little about what it has learnt; the other strategies do not depend on them. Probe samples are of known classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from rco.core.errors import InputError
from rco.core.settings import from_dict, jsonable
from rco.data.dataset import Dataset
from rco.models.mean import MeanTarget
from rco.models.predict import accuracy
from rco.models.route import Route
from rco.models.spec import NetworkSpec, load_network
from rco.objectives.config import ObjectiveConfig
from rco.objectives.make import make_objective
from rco.objectives.stage import StageLoss
from rco.strategies.base import StudentLevel, TrainedRoute
from rco.strategies.config import AnchorConfig
from rco.strategies.hardness import kl, stage_target
from rco.strategies.walk import Choice, next_anchor, stage_epochs
from rco.training.anchor import Anchor, LiveAnchor, StoredLogits, check_size, folder_from_environment
from rco.training.checkpointer import Checkpointer, restoring
from rco.training.config import ComputeConfig, TrainConfig
from rco.training.distributed import answers
from rco.training.ema import Ema
from rco.training.fed import fed
from rco.training.loop import OneSchedule, fit


@dataclass(frozen=True)
class ProbeTargets:
    """What a stage compares its student with on the probe samples: logits (N, K) of its anchor and of the converged teacher."""

    anchor: NDArray[np.float32]
    teacher: NDArray[np.float32]


def probe_logits(model: nn.Module, data: Dataset, compute: ComputeConfig) -> NDArray[np.float32]:
    """A model's logits (N, K) on the data set's probe samples."""
    logits, _ = answers(model, data.probe(), compute)
    return logits


def anchor_of(files: Sequence[tuple[Path, str]], spec: NetworkSpec, objective: ObjectiveConfig) -> tuple[nn.Module, str]:
    """The network that a stage learns from, and a name for its answers: of one checkpoint, or of the mean of several.

    Args:
        files: of the anchors, each with its sha256.
        spec: what they are.

    Raises:
        InputError: a damaged file, or several anchors for an objective that compares more than logits.
    """
    objective.require_logits_alone(len(files))
    networks = [load_network(path, expected_sha256=sha256, spec=spec) for path, sha256 in files]
    if len(networks) == 1:
        return networks[0], files[0][1]
    name = f"mean at tau {objective.tau!r} of {' '.join(sha256 for _, sha256 in files)}"
    return MeanTarget(networks, objective.tau), hashlib.sha256(name.encode()).hexdigest()


def train_stage(
    student: nn.Module,
    anchor: nn.Module,
    data: Dataset,
    objective: ObjectiveConfig,
    train: TrainConfig,
    compute: ComputeConfig,
    targets: ProbeTargets,
    *,
    stage: int,
    epochs: int,
    first_epoch: int,
    anchor_data: Dataset | None = None,
    loss: StageLoss | None = None,
    anchor_id: str = "",
    checkpointer: Checkpointer | None = None,
    one_schedule: OneSchedule | None = None,
    ema: Ema | None = None,
) -> Iterator[dict[str, Any]]:
    """Train `student` in place on one anchor.

    Args:
        anchor: frozen in place, and run only if the objective needs it (`anchor_of`).
        targets: for the KL columns.
        stage: its number, from 1; logged.
        epochs: length of this stage; optimiser and schedule span exactly these, unless there is `one_schedule`.
        first_epoch: number of this stage's first epoch on the student's one axis over all stages.
        anchor_data: the data as the anchor takes them (`Dataset.seen_by`); None: as the student does.
        loss: the objective that `objective` describes, as the stage before left it (its own weights are trained in place);
            None: a new one.
        anchor_id: names the anchor's answers (`anchor_of`); with it, stored logits are shared through the folder that the
            environment names, if it names one (`rco.training.anchor`).
        checkpointer, one_schedule, ema: as for `rco.training.loop.fit`.

    Yields:
        one row an epoch: the row of `rco.training.loop.fit`, and stage, val_accuracy, kl_to_anchor, kl_to_teacher
        (congruence on the probe samples at the objective's temperature, nats); with `ema` also val_accuracy_ema.

    Raises:
        InputError: settings that mean nothing without a labels' term, stored logits that are too large, and what
            `rco.training.loop.fit` refuses.
    """
    train.require_fit(objective)
    anchor_data = anchor_data or data
    shape, anchor_shape = data.manifest.image_shape, anchor_data.manifest.image_shape
    if loss is None:
        loss = make_objective(objective, student, anchor, shape, anchor_shape=anchor_shape, seed=train.seed)
    split, validation, probe = data.split("train"), data.split("val"), np.asarray(data.manifest.probe)
    working: Anchor | None = None
    if loss.needs_anchor and objective.views:
        check_size(min(objective.views, epochs), len(split), data.manifest.num_classes)
        working = StoredLogits(
            anchor=anchor,
            train=anchor_data.split("train"),
            augment=train.augmentation,
            views=objective.views,
            compute=compute,
            batch_size=train.batch_size,
            anchor_id=anchor_id,
            folder=folder_from_environment(),
        )
    elif loss.needs_anchor:
        seen = anchor_data.split("train").seen
        working = LiveAnchor(anchor, anchor_shape, compute.device, loss.taps.anchor, seen)
    for fitted in fit(
        student,
        split,
        loss,
        train,
        compute,
        epochs=epochs,
        first_epoch=first_epoch,
        anchor=working,
        checkpointer=checkpointer,
        one_schedule=one_schedule,
        ema=ema,
    ):
        logits, labels = answers(student, validation, compute)
        of_ema = {"val_accuracy_ema": accuracy(*answers(ema.network, validation, compute))} if ema is not None else {}
        yield {
            **fitted,
            "epoch": int(fitted["epoch"]),
            "stage": stage,
            "val_accuracy": accuracy(logits, labels),
            **of_ema,
            "kl_to_anchor": kl(targets.anchor, logits[probe], objective.tau),
            "kl_to_teacher": kl(targets.teacher, logits[probe], objective.tau),
        }


@dataclass
class _Walk:
    """How far a student is along a route.

    Attributes:
        chosen: of the stages that have ended, the indices of their anchors.
        done: epochs of these stages.
        choice: the anchor of the stage in progress; None between two stages.
    """

    chosen: list[tuple[int, ...]] = field(default_factory=list)
    done: int = 0
    choice: Choice | None = None

    def state(self) -> dict[str, Any]:
        """For a resume point; the names are those in it."""
        return {"chosen": self.chosen, "done": self.done, "choice": jsonable(self.choice)}

    @classmethod
    def restored(cls, saved: Mapping[str, Any], checkpoints: int) -> _Walk:
        """The walk whose `state` was saved.

        Args:
            checkpoints: how many the route has.

        Raises:
            InputError: it is a walk along another route.
        """
        with restoring():
            chosen, done = [tuple(int(i) for i in anchors) for anchors in saved["chosen"]], int(saved["done"])
            choice = from_dict(Choice, saved["choice"])
            indices = [i for anchors in (*chosen, choice.anchors) for i in anchors]
            if not choice.anchors or not all(0 <= i < checkpoints for i in indices) or done < 0:
                raise ValueError("it speaks of other anchors")
        return cls(chosen, done, choice)

    def end_stage(self, anchors: tuple[int, ...], epochs: int) -> None:
        """Count a stage of `epochs` epochs that has learnt from the anchors of these indices."""
        self.chosen.append(anchors)
        self.done += epochs
        self.choice = None


def distill_route(
    student: nn.Module,
    route: Route,
    data: Dataset,
    *,
    teacher: NetworkSpec | None = None,
    anchors: AnchorConfig | None = None,
    objective: ObjectiveConfig | None = None,
    train: TrainConfig | None = None,
    compute: ComputeConfig,
    checkpointer: Checkpointer | None = None,
    ema: Ema | None = None,
) -> Iterator[dict[str, Any]]:
    """Distil `student` in place along a route: the whole method in one process, for notebooks.

    Args:
        teacher: what the caller says the route's checkpoints are. Needed if they are built by code that is not ours: it is run
            because the user names it, never because a file does.
        checkpointer: as for `rco.training.loop.fit`; it also saves the part "walk".
        ema: as for `train_stage`. Each stage has an average of its own; the next one starts from the last weights themselves.

    Yields:
        the rows of every stage, with anchor_epoch (of several anchors the last), anchor_epochs and reason added.

    Raises:
        InputError: a strategy that the route cannot serve, a damaged checkpoint, or code that only the route names.
    """
    if teacher is None and route.network.is_foreign:
        problem = f"is code that {route.folder} names"
        raise InputError("teacher", route.network.model, problem, "Name it as teacher= to say that it may run")
    anchors = anchors or AnchorConfig()
    strategy = anchors.strategy
    objective, train = objective or ObjectiveConfig(), train or TrainConfig()
    labels, route_logits = route.probe()
    trained, anchor_data = TrainedRoute.of(route), fed(route, data)
    shape, anchor_shape = data.manifest.image_shape, anchor_data.manifest.image_shape
    stages = strategy.most_stages(trained)
    student.to(compute.device)
    walk = _Walk()
    if checkpointer is not None:
        if (saved := checkpointer.take("walk")) is not None:
            walk = _Walk.restored(saved, len(route.checkpoints))
        checkpointer.add("walk", walk.state)

    def choose() -> Choice | None:
        level = StudentLevel.of(labels, route_logits, probe_logits(student, data, compute), objective.tau)
        return next_anchor(strategy, trained, chosen=walk.chosen, student=level)

    # Whatever the walk, its stages have all of the student's epochs: how long the one schedule is, is known beforehand.
    one_schedule = OneSchedule(train.epochs) if anchors.continuous else None
    loss: StageLoss | None = None
    while (choice := walk.choice or choose()) is not None:
        walk.choice = choice
        points = [route.checkpoints[i] for i in choice.anchors]
        files = [(route.folder / point.file, point.sha256) for point in points]
        anchor, anchor_id = anchor_of(files, teacher or route.network, objective)
        target = stage_target(route_logits, choice.anchors, objective.tau)
        if loss is None:
            loss = make_objective(objective, student, anchor, shape, anchor_shape=anchor_shape, seed=train.seed)
        epochs = stage_epochs(train.epochs, stages, done=walk.done, remaining=choice.remaining, last=choice.last)
        rows = train_stage(
            student,
            anchor,
            data,
            objective,
            train,
            compute,
            ProbeTargets(target, route_logits[-1]),
            stage=choice.stage,
            epochs=epochs,
            first_epoch=walk.done + 1,
            anchor_data=anchor_data,
            loss=loss,
            anchor_id=anchor_id,
            checkpointer=checkpointer,
            one_schedule=one_schedule,
            ema=ema,
        )
        for row in rows:
            anchors_of_stage = {"anchor_epoch": choice.anchor_epochs[-1], "anchor_epochs": [*choice.anchor_epochs]}
            yield {**row, **anchors_of_stage, "reason": choice.reason}
        walk.end_stage(choice.anchors, epochs)
