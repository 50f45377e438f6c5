"""One stage of distillation, and the walk along a whole route.

In a stage the student, starting from the weights the last stage left, learns from one frozen anchor with a fresh optimiser and
schedule (Jin et al. 2019). It hands on its last weights, never those of a "best" epoch: the next stage starts where
this one ended.

Whatever a stage mimics, the greedy search's hardness is the KL of the logits on the probe samples. Every network yields those,
and nats mean the same for any size of embedding. But a stage that mimics embeddings does not aim at its anchor's logits, so the
ratios may say little of what it has learnt; the other strategies do not depend on them. Probe samples are of known classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from rco import anchors as choosing
from rco.config import AnchorConfig, ComputeConfig, ObjectiveConfig, TrainConfig
from rco.data import Dataset
from rco.embeddings import Embedded, EmbeddingLoss
from rco.engine import fit
from rco.evaluate import accuracy, predict
from rco.hardness import kl, route_hardness
from rco.objectives import Objective, RouteLoss
from rco.route import Route
from rco.spec import load_network


@dataclass(frozen=True)
class ProbeTargets:
    """What a stage compares its student with on the probe samples: logits (N, K) of its anchor and of the converged teacher."""

    anchor: NDArray[np.float32]
    teacher: NDArray[np.float32]


def probe_logits(model: nn.Module, data: Dataset, compute: ComputeConfig) -> NDArray[np.float32]:
    """A model's logits (N, K) on the data set's probe samples."""
    logits, _ = predict(model, data.probe(), device=compute.device, precision=compute.precision, workers=compute.workers)
    return logits


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
) -> Iterator[dict[str, Any]]:
    """Train `student` in place on one anchor.

    Args:
        targets: for the KL columns; of the probe samples.
        stage: its number, from 1; logged.
        epochs: of this stage; optimiser and schedule span exactly these.
        first_epoch: number of this stage's first epoch on the student's one axis over all stages.

    Yields:
        one row an epoch: what `rco.engine.fit` yields, and stage, val_accuracy, kl_to_anchor, kl_to_teacher (congruence on
        the probe samples at the objective's temperature, nats).
    """
    validation, probe = data.split("val"), np.asarray(data.manifest.probe)
    loss, learner, example = _mimicry(objective, student, anchor)
    for fitted in fit(
        learner, data.split("train"), loss, train, compute, epochs=epochs, first_epoch=first_epoch, anchor=example
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


def _mimicry(objective: ObjectiveConfig, student: nn.Module, anchor: nn.Module) -> tuple[Objective, nn.Module, nn.Module]:
    """The loss of a stage, and student and anchor as modules that yield what it compares. They share weights and modes with
    the networks they are made from.
    """
    if objective.objective == "embedding":
        return EmbeddingLoss(lambda_=objective.lambda_), Embedded(student), Embedded(anchor)
    return RouteLoss(tau=objective.tau, lambda_=objective.lambda_), student, anchor


def distill_route(
    student: nn.Module,
    route: Route,
    data: Dataset,
    *,
    anchors: AnchorConfig | None = None,
    objective: ObjectiveConfig | None = None,
    train: TrainConfig | None = None,
    compute: ComputeConfig,
) -> Iterator[dict[str, Any]]:
    """Distil `student` in place along a route: the whole method in one process, for notebooks.

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
    student.to(compute.device)
    while True:
        hardness = route_hardness(route_logits, probe_logits(student, data, compute), objective.tau)
        choice = choosing.next_anchor(anchors, route.epochs, route.decay_epochs, chosen=chosen, hardness=hardness)
        if choice is None:
            return
        point = route.checkpoints[choice.index]
        anchor = load_network(route.folder / point.file, expected_sha256=point.sha256, spec=route.network)
        epochs = choosing.stage_epochs(train.epochs, stages, choice.stage, last=choice.last)
        targets = ProbeTargets(route_logits[choice.index], route_logits[-1])
        for row in distill_stage(
            student, anchor, data, objective, train, compute, targets, stage=choice.stage, epochs=epochs, first_epoch=done + 1
        ):
            yield {**row, "anchor_epoch": choice.epoch, "reason": choice.reason}
        chosen.append(choice.index)
        done += epochs
