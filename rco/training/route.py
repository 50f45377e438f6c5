"""Make a route from checkpoints that exist: a route of another run, or the files of a training that is over."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rco.core.errors import InputError
from rco.data.dataset import Dataset
from rco.models.predict import accuracy, predict
from rco.models.route import Checkpoint, Route, checkpoint_file
from rco.models.spec import NetworkSpec, load_network, save_network
from rco.models.weights import load_weights, read_state
from rco.training.config import ComputeConfig
from rco.training.doubts import doubts

log = logging.getLogger(__name__)


def adopt_route(source: Route, data: Dataset, spec: NetworkSpec, compute: ComputeConfig, folder: Path) -> Route:
    """Copy a verified route into `folder`; measure its checkpoints again if they were measured on another data set.

    Args:
        spec: the teacher in the user's settings; it must agree with the route.

    Raises:
        InputError: a damaged or missing checkpoint, a teacher of another shape; with open classes, a route of other data.
    """
    source.verify()
    if source.network != spec:
        raise InputError(
            "route",
            str(source.folder),
            f"is a route of {source.network}, not of {spec}",
            "Set teacher, teacher_stem and dataset to match",
        )
    if data.manifest.open_classes and source.data_digest != data.manifest.digest:
        raise InputError(
            "route",
            str(source.folder),
            f"is of other data, so its teacher may have seen the open classes ({', '.join(data.manifest.open_classes)})",
            "Use the data settings of the route's own run, or import its checkpoints with these open_classes",
        )
    folder.mkdir(parents=True, exist_ok=True)
    for c in source.checkpoints:
        shutil.copyfile(source.folder / c.file, folder / c.file)
    if source.data_digest == data.manifest.digest:
        source.write_index(folder)
        return Route.open(folder)
    return _write_measured(source.checkpoints, data, spec, compute, folder, source.decay_epochs, ())


def import_route(
    files: Sequence[tuple[int, Path]],
    data: Dataset,
    spec: NetworkSpec,
    compute: ComputeConfig,
    folder: Path,
    *,
    decay_epochs: Sequence[int] = (),
) -> Route:
    """Make a route from checkpoints of any training.

    Args:
        files: (epoch, file) in increasing order of epochs. Each file is a state dict: safetensors, or a torch file that
            is read with `weights_only`. A single file gives a route of one anchor, which is plain distillation.
        decay_epochs: epochs after which that training decayed its learning rate, if known.

    Raises:
        InputError: epochs out of order, an unreadable file, weights that do not fit `spec`.
    """
    epochs = [epoch for epoch, _ in files]
    if not epochs or epochs != sorted(set(epochs)) or epochs[0] < 1:
        raise InputError("epochs", epochs, "must increase, from 1 or more", "Name the checkpoints in the order of the training")
    folder.mkdir(parents=True, exist_ok=True)
    checkpoints = []
    for epoch, path in files:
        model = spec.build()
        load_weights(model, read_state(path), path)
        file = checkpoint_file(epoch)
        digest = save_network(folder / file, model, spec, epoch=epoch)
        checkpoints.append(Checkpoint(epoch=epoch, lr=None, train_loss=None, val_accuracy=0.0, file=file, sha256=digest))
    return _write_measured(checkpoints, data, spec, compute, folder, decay_epochs, ())


def _write_measured(
    checkpoints: Sequence[Checkpoint],
    data: Dataset,
    spec: NetworkSpec,
    compute: ComputeConfig,
    folder: Path,
    decay_epochs: Sequence[int],
    history: Sequence[dict[str, Any]],
) -> Route:
    """Write a route whose weights lie in `folder`, with accuracy and probe logits measured on `data`."""
    probe = np.asarray(data.manifest.probe)
    validation = data.split("val")
    with_accuracy, probe_logits = [], []
    labels, logits = np.empty(0, dtype=np.int64), np.empty((0, 0), dtype=np.float32)
    for c in checkpoints:
        model = load_network(folder / c.file, expected_sha256=c.sha256, spec=spec).to(compute.device)
        logits, labels = predict(model, validation, device=compute.device, precision=compute.precision, workers=compute.workers)
        with_accuracy.append(dataclasses.replace(c, val_accuracy=accuracy(logits, labels)))
        probe_logits.append(logits[probe])
    for doubt in doubts(logits, labels, data.manifest.class_names):
        log.warning("warning: %s", doubt)
    return Route.write(
        folder,
        network=spec,
        data_digest=data.manifest.digest,
        checkpoints=with_accuracy,
        decay_epochs=decay_epochs,
        history=history,
        probe_labels=labels[probe],
        probe_logits=np.stack(probe_logits),
    )
