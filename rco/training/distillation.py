"""One stage of distillation, and the walk along a whole route.

In a stage the student, starting from the weights the last stage left, learns from one frozen anchor with a fresh optimiser and
schedule (Jin et al. 2019). It hands on its last weights, never those of a "best" epoch: the next stage starts where
this one ended. So do the weights that an objective has of its own, such as a hint's regressor (ours).

Whatever a stage mimics, the greedy search's hardness is the KL of the logits on the probe samples. Every network yields those,
and nats mean the same for any objective. But a stage that mimics embeddings does not aim at its anchor's logits, so the
ratios may say little of what it has learnt; the other strategies do not depend on them. Probe samples are of known classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from rco.core.settings import from_dict, jsonable
from rco.data.dataset import Dataset
from rco.models.predict import accuracy, predict
from rco.models.route import Route
from rco.models.spec import load_network
from rco.objectives.base import Objective
from rco.objectives.config import ObjectiveConfig
from rco.objectives.make import feature_shapes, make, taps_of
from rco.strategies import anchors as choosing
from rco.strategies.config import AnchorConfig
from rco.strategies.hardness import kl, route_hardness
from rco.training.anchor import StoredLogits, check_size, folder_from_environment
from rco.training.config import ComputeConfig, TrainConfig
from rco.training.loop import Checkpointer, fit, of_this_training


@dataclass(frozen=True)
class ProbeTargets:
    """What a stage compares its student with on the probe samples: logits (N, K) of its anchor and of the converged teacher."""

    anchor: NDArray[np.float32]
    teacher: NDArray[np.float32]


def probe_logits(model: nn.Module, data: Dataset, compute: ComputeConfig) -> NDArray[np.float32]:
    """A model's logits (N, K) on the data set's probe samples."""
    logits, _ = predict(model, data.probe(), device=compute.device, precision=compute.precision, workers=compute.workers)
    return logits


def make_objective(
    config: ObjectiveConfig, student: nn.Module, anchor: nn.Module, data: Dataset, train: TrainConfig
) -> Objective:
    """The objective of all stages of a student. Any anchor of the route will do: they differ in weights alone.

    Raises:
        InputError: a tap that cannot be used.
    """
    taps = taps_of(config, student, anchor)
    return make(config, taps, feature_shapes(config, student, anchor, data.manifest.image_shape), seed=train.seed)


def distill_stage(
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
    loss: Objective | None = None,
    anchor_id: str = "",
    checkpointer: Checkpointer | None = None,
) -> Iterator[dict[str, Any]]:
    """Train `student` in place on one anchor.

    Args:
        targets: for the KL columns; of the probe samples.
        stage: its number, from 1; logged.
        epochs: of this stage; optimiser and schedule span exactly these.
        first_epoch: number of this stage's first epoch on the student's one axis over all stages.
        loss: what `make_objective` makes of `objective`, as the last stage left it (what it learns it learns in place); None: a
            new one.
        anchor_id: sha256 of the anchor's weights; with it, kept logits are shared through the folder that the environment
            names, if it names one (`rco.training.anchor`).
        checkpointer: as for `rco.training.loop.fit`.

    Yields:
        one row an epoch: what `rco.training.loop.fit` yields, and stage, val_accuracy, kl_to_anchor, kl_to_teacher
        (congruence on the probe samples at the objective's temperature, nats).
    """
    if loss is None:
        loss = make_objective(objective, student, anchor, data, train)
    validation, probe = data.split("val"), np.asarray(data.manifest.probe)
    teacher: nn.Module | StoredLogits | None = anchor if loss.needs_anchor else None
    if objective.views and loss.needs_anchor:
        split = data.split("train")
        check_size(min(objective.views, epochs), len(split), data.manifest.num_classes)
        teacher = StoredLogits(
            anchor=anchor,
            train=split,
            augment=train.augment,
            views=objective.views,
            compute=compute,
            batch_size=train.batch_size,
            anchor_id=anchor_id,
            folder=folder_from_environment(),
        )
    for fitted in fit(
        student,
        data.split("train"),
        loss,
        train,
        compute,
        epochs=epochs,
        first_epoch=first_epoch,
        anchor=teacher,
        checkpointer=checkpointer,
    ):
        logits, labels = predict(
            student, validation, device=compute.device, precision=compute.precision, workers=compute.workers
        )
        yield {
            **fitted,
            "epoch": int(fitted["epoch"]),
            "stage": stage,
            "val_accuracy": accuracy(logits, labels),
            "kl_to_anchor": kl(targets.anchor, logits[probe], objective.tau),
            "kl_to_teacher": kl(targets.teacher, logits[probe], objective.tau),
        }


def distill_route(
    student: nn.Module,
    route: Route,
    data: Dataset,
    *,
    anchors: AnchorConfig | None = None,
    objective: ObjectiveConfig | None = None,
    train: TrainConfig | None = None,
    compute: ComputeConfig,
    checkpointer: Checkpointer | None = None,
) -> Iterator[dict[str, Any]]:
    """Distil `student` in place along a route: the whole method in one process, for notebooks.

    Args:
        checkpointer: as for `rco.training.loop.fit`; with the training goes how far the walk was.

    Yields:
        the rows of every stage, with anchor_epoch and reason added.

    Raises:
        InputError: a strategy that the route cannot serve, or a damaged checkpoint.
    """
    anchors, objective, train = anchors or AnchorConfig(), objective or ObjectiveConfig(), train or TrainConfig()
    _, route_logits = route.probe()
    stages = choosing.stage_count(anchors, route.epochs, route.decay_epochs)
    chosen: list[int] = []
    done = 0
    loss = None
    choice: choosing.Choice | None = None
    student.to(compute.device)
    if checkpointer is not None:
        if (before := checkpointer.take("walk")) is not None:
            with of_this_training():
                chosen, done = [int(i) for i in before["chosen"]], int(before["done"])
                choice = from_dict(choosing.Choice, before["choice"])
                if not all(0 <= i < len(route.checkpoints) for i in (*chosen, choice.index)) or done < 0:
                    raise ValueError("it speaks of other anchors")
        checkpointer.add("walk", lambda: {"chosen": chosen, "done": done, "choice": jsonable(choice)})
    while True:
        if choice is None:
            hardness = route_hardness(route_logits, probe_logits(student, data, compute), objective.tau)
            choice = choosing.next_anchor(anchors, route.epochs, route.decay_epochs, chosen=chosen, hardness=hardness)
        if choice is None:
            return
        point = route.checkpoints[choice.index]
        anchor = load_network(route.folder / point.file, expected_sha256=point.sha256, spec=route.network)
        epochs = choosing.stage_epochs(train.epochs, stages, choice.stage, last=choice.last)
        targets = ProbeTargets(route_logits[choice.index], route_logits[-1])
        if loss is None:
            loss = make_objective(objective, student, anchor, data, train)
        for row in distill_stage(
            student,
            anchor,
            data,
            objective,
            train,
            compute,
            targets,
            stage=choice.stage,
            epochs=epochs,
            first_epoch=done + 1,
            loss=loss,
            anchor_id=point.sha256,
            checkpointer=checkpointer,
        ):
            yield {**row, "anchor_epoch": choice.epoch, "reason": choice.reason}
        chosen.append(choice.index)
        done += epochs
        choice = None
