"""Make a route from checkpoints that exist: a route of another run, or the files of a training that is over."""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from rco.core.errors import InputError
from rco.data.config import InputConfig
from rco.data.dataset import Dataset
from rco.models.importing import read_network
from rco.models.predict import accuracy
from rco.models.route import Checkpoint, Route, checkpoint_file
from rco.models.spec import NetworkSpec, load_network, save_network
from rco.training.config import ComputeConfig
from rco.training.distributed import answers
from rco.training.doubts import doubts
from rco.training.fed import differences, fed

log = logging.getLogger("rco")


def adopt_route(
    source: Route,
    data: Dataset,
    spec: NetworkSpec,
    compute: ComputeConfig,
    folder: Path,
    *,
    asked: InputConfig | None = None,
) -> Route:
    """Copy a verified route into `folder`; measure its checkpoints again if they were measured on another data set. Its teacher
    is fed as the route says, and a line says so where the student is fed otherwise.

    Args:
        data: as they were prepared.
        spec: the teacher in the user's settings; it must agree with the route.
        asked: the teacher's input in the user's settings; likewise.

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
    teachers = fed(source, data, asked)
    if difference := differences(teachers.input, data.input):
        log.info("the route's teacher is fed as it was trained: %s", difference)
    folder.mkdir(parents=True, exist_ok=True)
    for c in source.checkpoints:
        shutil.copyfile(source.folder / c.file, folder / c.file)
    known = bool(source.mean or (asked and asked.image_mean))
    if source.data_digest == data.manifest.digest and known == bool(source.mean):
        source.write_index(folder)
        return Route.open(folder)
    return _write_measured(source.checkpoints, teachers, spec, compute, folder, source.decay_epochs, (), known)


def import_route(
    files: Sequence[tuple[int, Path]],
    data: Dataset,
    spec: NetworkSpec,
    compute: ComputeConfig,
    folder: Path,
    *,
    decay_epochs: Sequence[int] = (),
    choice: str = "",
) -> Route:
    """Make a route from checkpoints of any training. The folder is whole, or it is not there. What was done to the weights'
    names, or chosen among them, is logged.

    Args:
        files: (epoch, file) in increasing order of epochs. Each file is a checkpoint: safetensors, or a torch file, of which
            nothing but tensors is taken. A single file gives a route of one anchor, which is plain distillation. Epochs that
            are counted from 0 become those that are counted from 1, which a route has.
        data: as the teacher takes them (`Dataset.seen_by`): the user has said how it was fed, or left it as it is for the data.
        spec: its stem may be `auto`; then it is the one that fits the weights.
        folder: is not there yet, or empty.
        decay_epochs: epochs after which that training decayed its learning rate, if known, counted like those of the files.
        choice: where the weights are in a file with several networks: see `rco.models.checkpoints.find_weights`.

    Raises:
        InputError: epochs out of order, an unreadable file, weights that do not fit `spec`, a folder with something in it.
    """
    epochs = [epoch for epoch, _ in files]
    if not epochs or epochs != sorted(set(epochs)) or epochs[0] < 0:
        raise InputError("epochs", epochs, "must increase, from 0 or more", "Name the checkpoints in the order of the training")
    first = 1 if epochs[0] == 0 else 0
    notes: dict[str, list[str]] = {}
    with _made_whole(folder) as scratch:
        checkpoints = []
        for counted, path in files:
            epoch = counted + first
            found = read_network(path, spec, choice=choice)
            model, spec = found.model, found.spec
            for note in found.notes:
                notes.setdefault(note, []).append(path.name)
            file = checkpoint_file(epoch)
            digest = save_network(scratch / file, model, spec, epoch=epoch)
            checkpoints.append(Checkpoint(epoch=epoch, lr=None, train_loss=None, val_accuracy=0.0, file=file, sha256=digest))
        for note, names in notes.items():
            log.warning("%s%s: %s", names[0], f" and {len(names) - 1} more" if len(names) > 1 else "", note)
        _write_measured(checkpoints, data, spec, compute, scratch, [epoch + first for epoch in decay_epochs], (), True)
    return Route.open(folder)


@contextmanager
def _made_whole(folder: Path) -> Iterator[Path]:
    """A scratch folder on the file system of `folder`, which it becomes at the end of the block; of an error nothing is left.

    Raises:
        InputError: something else is there, at the start or at the end.
    """
    _require_new(folder)
    folder = Path(os.path.abspath(folder))
    beside = next(parent for parent in folder.parents if parent.is_dir())
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=beside))
    try:
        yield scratch
        _require_new(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch.chmod(0o755)  # mkdtemp's 0700 would lock other users out
        scratch.replace(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _require_new(folder: Path) -> None:
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise InputError("output", str(folder), "is not empty" if folder.is_dir() else "is a file", "Name a new folder")


def _write_measured(
    checkpoints: Sequence[Checkpoint],
    data: Dataset,
    spec: NetworkSpec,
    compute: ComputeConfig,
    folder: Path,
    decay_epochs: Sequence[int],
    history: Sequence[dict[str, Any]],
    fed_is_known: bool,
) -> Route:
    """Write a route whose weights lie in `folder`, with accuracy and probe logits measured on `data`.

    Args:
        data: as the teacher takes them.
        fed_is_known: whether the route is to say by which mean and deviation.
    """
    probe = np.asarray(data.manifest.probe)
    validation = data.split("val")
    with_accuracy, probe_logits = [], []
    labels, logits = np.empty(0, dtype=np.int64), np.empty((0, 0), dtype=np.float32)
    for c in checkpoints:
        model = load_network(folder / c.file, expected_sha256=c.sha256, spec=spec).to(compute.device)
        logits, labels = answers(model, validation, compute)
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
        mean=data.manifest.mean if fed_is_known else (),
        std=data.manifest.std if fed_is_known else (),
        crop=data.input.crop,
    )
