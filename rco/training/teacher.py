"""Train a teacher and keep its route."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from rco.core.errors import InputError
from rco.core.settings import from_dict, jsonable
from rco.core.tensors import load_state
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


def read_state(path: Path) -> dict[str, Any]:
    """A state dict from a safetensors file or a torch file; never unpickles objects.

    Wrappers that trainers put around it are taken off: a "state_dict" or "model" key, a "module." prefix.

    Raises:
        InputError: not a state dict, or a file that would need unpickling.
    """
    if path.suffix == ".safetensors":
        state: Any = load_state(path)[0]
    else:
        if not path.is_file():
            raise InputError("checkpoint", str(path), "is missing", "Check the path")
        try:
            state = _read_torch_file(path)
        except Exception as error:  # as many kinds as there are ways in which a file can be broken
            reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
            raise InputError(
                "checkpoint",
                str(path),
                f"cannot be read as plain weights ({reason})",
                "Save model.state_dict(), best as safetensors",
            ) from None
    for wrapper in ("state_dict", "model", "model_state_dict"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if (
        not isinstance(state, dict)
        or not state
        or not all(isinstance(k, str) and hasattr(v, "shape") for k, v in state.items())
    ):
        raise InputError("checkpoint", str(path), "holds no state dict", "Save model.state_dict(), best as safetensors")
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def _read_torch_file(path: Path) -> Any:
    """What torch reads without unpickling objects.

    Raises:
        ValueError: an archive that is larger inside than outside.
        Exception: what torch makes of other files.
    """
    import warnings
    import zipfile

    import torch

    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            # torch writes its files uncompressed, one beside the other.
            if sum(member.file_size for member in archive.infolist()) > path.stat().st_size:
                raise ValueError("it is an archive that grows when it is read")
            programs = [io.BytesIO(archive.read(name)) for name in archive.namelist() if name.endswith(".pkl")]
        for program in programs:
            _require_plain(program)
    else:  # as torch wrote them until 2020: a number, a version, a description, the state dict, its storages
        content = io.BytesIO(path.read_bytes())  # of which no more can be read than there is, whatever it says
        for _ in range(4):
            _require_plain(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of old protocols
        return torch.load(path, map_location="cpu", weights_only=True)


_PLAIN = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_(tensor_v2|parameter)|torch \w+Storage|torch\.storage \w+Storage"
    r"|torch (Size|device|b?float\d+|double|half|float|u?int\d+|long|int|short|bool|complex\d+)"
)


def _require_plain(program: IO[bytes]) -> None:
    """Read one pickle without running it, and refuse what a state dict does not need. Some of what torch runs all the same (a
    tensor or an array of bytes, of any length) lets two dozen bytes ask for all memory.

    Raises:
        ValueError: it is no pickle, or names something else.
    """
    import pickletools

    for code, argument, _ in pickletools.genops(program):
        if code.name in ("STACK_GLOBAL", "INST", "OBJ", "EXT1", "EXT2", "EXT4"):
            raise ValueError(f"it is no state dict ({code.name})")
        if code.name == "GLOBAL" and not _PLAIN.fullmatch(str(argument)):
            raise ValueError(f"it holds {str(argument).replace(' ', '.')}, which a state dict does not need")
