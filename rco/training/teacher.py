"""Train a teacher and keep its route."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from rco.core.errors import InputError
from rco.core.settings import from_dict, jsonable
from rco.data.dataset import Dataset
from rco.models.predict import accuracy
from rco.models.route import Checkpoint, Route, checkpoint_file
from rco.models.spec import NetworkSpec, save_network
from rco.objectives.stage import labels_only
from rco.training.checkpointer import Checkpointer, restoring
from rco.training.config import ComputeConfig, TrainConfig
from rco.training.distributed import World, answers
from rco.training.loop import fit
from rco.training.schedule import checkpoint_epochs


def train_teacher(
    data: Dataset,
    spec: NetworkSpec,
    config: TrainConfig,
    compute: ComputeConfig,
    *,
    checkpoint_every: int,
    folder: Path,
    initial: nn.Module | None = None,
    checkpointer: Checkpointer | None = None,
) -> Iterator[dict[str, Any]]:
    """Train a teacher on the labels; keep checkpoints and their logits on the probe samples.

    The route is complete in `folder` once the iteration has ended. Of several workers (`rco.training.distributed`), which all
    call this alike, the first one writes it.

    Args:
        data: as the teacher takes them (`Dataset.seen_by`); the route says how.
        initial: the network as it begins, trained in place; None: with random weights of the seed.
        checkpointer: as for `rco.training.loop.fit`; it also saves the part "route", and restores its files in `folder`.

    Yields:
        one row an epoch: the row of `rco.training.loop.fit`, and val_accuracy.

    Raises:
        InputError: the saved state is of another training, or what `rco.training.loop.fit` refuses.
    """
    world, model = World.current(), initial if initial is not None else spec.build(config.seed)
    validation = data.split("val")
    epochs_to_keep = set(checkpoint_epochs(config, checkpoint_every))
    folder.mkdir(parents=True, exist_ok=True)
    growing = _GrowingRoute(folder, spec, data)
    if checkpointer is not None and world.main:
        if (saved := checkpointer.take("route")) is not None:
            growing.load_state(saved)
        checkpointer.add("route", growing.state, files=growing.files)
    for fitted in fit(
        model, data.split("train"), labels_only(), config, compute, epochs=config.epochs, checkpointer=checkpointer
    ):
        logits, labels = answers(model, validation, compute)
        row: dict[str, Any] = {**fitted, "epoch": int(fitted["epoch"]), "val_accuracy": accuracy(logits, labels)}
        if world.main:
            growing.add_epoch(row, labels)
            if row["epoch"] in epochs_to_keep:
                growing.add_checkpoint(model, row, logits)
        yield row
    if world.main:
        growing.write(config.decay_epochs(config.epochs))


class _GrowingRoute:
    """The route of a teacher in training: its checkpoints lie in `folder`, what was measured is here."""

    def __init__(self, folder: Path, spec: NetworkSpec, data: Dataset) -> None:
        self.folder, self.spec, self.data = folder, spec, data
        self.probe = np.asarray(data.manifest.probe)
        self.checkpoints: list[Checkpoint] = []
        self.probe_logits: list[NDArray[np.float32]] = []
        self.history: list[dict[str, Any]] = []
        self.labels: NDArray[np.int64] = np.empty(0, dtype=np.int64)  # of the validation part, once it has been measured

    def add_epoch(self, row: Mapping[str, Any], labels: NDArray[np.int64]) -> None:
        self.labels = labels
        self.history.append({name: row[name] for name in ("epoch", "lr", "loss", "val_accuracy")})

    def add_checkpoint(self, model: nn.Module, row: Mapping[str, Any], logits: NDArray[np.float32]) -> None:
        """Save the model as it is after the epoch of `row`; `logits` are those of the validation part."""
        file = checkpoint_file(row["epoch"])
        self.checkpoints.append(
            Checkpoint(
                epoch=row["epoch"],
                lr=row["lr"],
                train_loss=row["loss"],
                val_accuracy=row["val_accuracy"],
                file=file,
                sha256=save_network(self.folder / file, model, self.spec, epoch=row["epoch"]),
            )
        )
        self.probe_logits.append(logits[self.probe])

    def write(self, decay_epochs: Sequence[int]) -> None:
        """Complete the route in the folder.

        Raises:
            InputError: a resume point of the end of the training has brought no checkpoints.
        """
        if not self.checkpoints:
            raise InputError("resume point", "route", "is at the end of the training, without checkpoints", "Delete it")
        Route.write(
            self.folder,
            network=self.spec,
            data_digest=self.data.manifest.digest,
            checkpoints=self.checkpoints,
            decay_epochs=decay_epochs,
            history=self.history,
            probe_labels=self.labels[self.probe],
            probe_logits=np.stack(self.probe_logits),
            mean=self.data.manifest.mean,
            std=self.data.manifest.std,
            crop=self.data.input.crop,
        )

    def state(self) -> dict[str, Any]:
        """For a resume point; the names are those in it."""
        return {
            "checkpoints": jsonable(self.checkpoints),
            "probe_logits": self.probe_logits,
            "history": self.history,
            "labels": self.labels,
        }

    def files(self) -> dict[str, str]:
        """The checkpoints' files and their sha256."""
        return {c.file: c.sha256 for c in self.checkpoints}

    def load_state(self, saved: Mapping[str, Any]) -> None:
        """Take up what `state` of an interrupted training returned; its files lie in the folder.

        Raises:
            InputError: it is of another training.
        """
        with restoring():
            self.checkpoints = [from_dict(Checkpoint, c) for c in saved["checkpoints"]]
            self.probe_logits = [np.asarray(logits, np.float32) for logits in saved["probe_logits"]]
            self.history = [dict(row) for row in saved["history"]]
            self.labels = np.asarray(saved["labels"], np.int64)
            if not {logits.shape for logits in self.probe_logits} <= {(len(self.probe), self.data.manifest.num_classes)}:
                raise ValueError("it has logits of another shape")
            images = len(self.data.split("val")) if self.history else 0
            if len(self.probe_logits) != len(self.checkpoints) or self.labels.shape != (images,):
                raise ValueError("it has logits of other checkpoints")
