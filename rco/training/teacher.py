"""Train a teacher and keep its route."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from rco.core.errors import InputError
from rco.core.settings import from_dict, jsonable
from rco.data.dataset import Dataset
from rco.models.predict import accuracy, predict
from rco.models.route import Checkpoint, Route, checkpoint_file
from rco.models.spec import NetworkSpec, save_network
from rco.objectives.route import Labels
from rco.training.config import ComputeConfig, TrainConfig
from rco.training.loop import Checkpointer, fit, of_this_training
from rco.training.schedule import checkpoint_epochs


def train_teacher(
    data: Dataset,
    spec: NetworkSpec,
    config: TrainConfig,
    compute: ComputeConfig,
    *,
    checkpoint_every: int,
    folder: Path,
    checkpointer: Checkpointer | None = None,
) -> Iterator[dict[str, Any]]:
    """Train a teacher on the labels; keep checkpoints and their logits on the probe samples.

    The route stands in `folder` once the iteration has ended.

    Args:
        checkpointer: as for `rco.training.loop.fit`; the route so far goes with the training, and its files lie in `folder`
            again.

    Yields:
        one row an epoch: what `rco.training.loop.fit` yields, and val_accuracy.
    """
    model = spec.build(config.seed)
    validation = data.split("val")
    kept = set(checkpoint_epochs(config, checkpoint_every))
    checkpoints: list[Checkpoint] = []
    probe_logits: list[np.ndarray] = []
    history: list[dict[str, Any]] = []
    probe = np.asarray(data.manifest.probe)
    labels = np.empty(0, dtype=np.int64)
    folder.mkdir(parents=True, exist_ok=True)
    if checkpointer is not None:
        if (before := checkpointer.take("route")) is not None:
            with of_this_training():
                checkpoints = [from_dict(Checkpoint, c) for c in before["checkpoints"]]
                probe_logits = [np.asarray(logits, np.float32) for logits in before["probe_logits"]]
                history, labels = [dict(row) for row in before["history"]], np.asarray(before["labels"], np.int64)
                if not {logits.shape for logits in probe_logits} <= {(len(probe), data.manifest.num_classes)}:
                    raise ValueError("it has answers of another shape")
                if len(probe_logits) != len(checkpoints) or labels.shape != (len(validation) if history else 0,):
                    raise ValueError("it has other answers than checkpoints")
        checkpointer.add(
            "route",
            lambda: {
                "checkpoints": jsonable(checkpoints),
                "probe_logits": probe_logits,
                "history": history,
                "labels": labels,
            },
            files=lambda: {c.file: c.sha256 for c in checkpoints},
        )
    for fitted in fit(model, data.split("train"), Labels(), config, compute, epochs=config.epochs, checkpointer=checkpointer):
        logits, labels = predict(model, validation, device=compute.device, precision=compute.precision, workers=compute.workers)
        row: dict[str, Any] = {**fitted, "epoch": int(fitted["epoch"]), "val_accuracy": accuracy(logits, labels)}
        history.append({name: row[name] for name in ("epoch", "lr", "loss", "val_accuracy")})
        if row["epoch"] in kept:
            file = checkpoint_file(row["epoch"])
            digest = save_network(folder / file, model, spec, epoch=row["epoch"])
            checkpoints.append(
                Checkpoint(
                    epoch=row["epoch"],
                    lr=row["lr"],
                    train_loss=row["loss"],
                    val_accuracy=row["val_accuracy"],
                    file=file,
                    sha256=digest,
                )
            )
            probe_logits.append(logits[probe])
        yield row
    if not checkpoints:
        raise InputError("resume point", "route", "is at the end of the training, without checkpoints", "Delete it")
    Route.write(
        folder,
        network=spec,
        data_digest=data.manifest.digest,
        checkpoints=checkpoints,
        decay_epochs=config.decay_epochs(config.epochs),
        history=history,
        probe_labels=labels[probe],
        probe_logits=np.stack(probe_logits),
    )
