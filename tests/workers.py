"""What the tests of several workers have each worker do: python -m tests.workers DATA FOLDER SIZE...

PyTorch is imported once: workers are forked, SIZE of them, and then so many as the next SIZE says. Every worker writes what a
case returns to FOLDER/SIZE/CASE-RANK.json.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rco.core.errors import DivergenceError
from rco.data.dataset import Dataset
from rco.models.route import Route
from rco.models.spec import NetworkSpec
from rco.models.weights import state_digest
from rco.objectives.config import ObjectiveConfig
from rco.objectives.stage import labels_only
from rco.strategies.config import AnchorConfig
from rco.training.config import TrainConfig
from rco.training.distillation import distill_route
from rco.training.distributed import QUIET, World, answers, joined_group
from rco.training.ema import Ema
from rco.training.loop import fit
from rco.training.resume_points import ResumePoints
from rco.training.shared_points import SharedPoints
from rco.training.teacher import train_teacher
from tests.conftest import CPU

TEACHER = NetworkSpec(model="digits-cnn-s", stem="auto", in_channels=1, num_classes=10, image_size=8)
STUDENT = NetworkSpec(model="digits-mlp", stem="auto", in_channels=1, num_classes=10, image_size=8)
TRAIN = TrainConfig.of(epochs=2, batch_size=128, lr=0.05, augment="shift")
STOPS = 5  # points after which an interrupted training ends


class FrozenNorm(nn.BatchNorm2d):
    """BatchNorm that never leaves evaluation mode, as in fine-tuning."""

    def train(self, mode: bool = True) -> FrozenNorm:
        return super().train(False)


def convolutions(norm: Callable[[int], nn.Module]) -> nn.Module:
    """A small network with BatchNorm, with a part on which no logit depends."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), norm(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 10)
    )
    network.idle = nn.Linear(2, 2)
    network.forward = lambda x: nn.Sequential.forward(network[:6], x)  # type: ignore[method-assign]
    return network


def summed(network: nn.Module) -> dict[str, Any]:
    """Weights and buffers as JSON."""
    return {name: tensor.double().flatten().tolist() for name, tensor in network.state_dict().items()}


def points(folder: Path, every: float = 0.0, files: Path | None = None) -> ResumePoints:
    """Resume points in a folder, of one worker or of several."""
    world = World.current()
    if world.alone:
        return ResumePoints(str(folder), {"of": "test"}, every=every, files=files)
    return SharedPoints(str(folder), {"of": "test"}, every=every, files=files, world=world)


def still(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows without how fast they came."""
    return [{name: value for name, value in row.items() if name != "images_per_second"} for row in rows]


def trained(data: Dataset, network: nn.Module, batch_size: int = 128, **more: Any) -> dict[str, Any]:
    """Train on the labels."""
    config = TRAIN.with_values(batch_size=batch_size)
    rows = list(fit(network, data.split("train"), labels_only(), config, CPU, epochs=2, **more))
    return {"rows": still(rows), "weights": summed(network)}


def batch_leaving(data: Dataset, accepts: Callable[[int], bool]) -> int:
    """The first batch size, for one, two and four workers, of which an epoch's last batch has a size that is accepted."""
    images = len(data.split("train"))
    return next(size for size in range(64, images, 4) if accepts(images % size))


def uneven(data: Dataset, folder: Path) -> dict[str, Any]:
    return trained(data, STUDENT.build(0), batch_leaving(data, lambda rest: rest > 8 and rest % 4 != 0))


def tiny_last(data: Dataset, folder: Path) -> dict[str, Any]:
    return trained(data, STUDENT.build(0), batch_leaving(data, lambda rest: 2 <= rest < 4))


def frozen_norm(data: Dataset, folder: Path) -> dict[str, Any]:
    return trained(data, convolutions(FrozenNorm))


def batch_norm(data: Dataset, folder: Path) -> dict[str, Any]:
    return trained(data, convolutions(nn.BatchNorm2d), batch_leaving(data, lambda rest: rest > 8 and rest % 4 != 0))


def regularised(data: Dataset, folder: Path) -> dict[str, Any]:
    """Everything that happens to images, labels, gradients and weights at once."""
    config = TRAIN.with_values(
        **{"auto_augment": "trivialaugment", "erasing": 0.3, "mixup": 0.3, "cutmix": 1.0},
        **{"label_smoothing": 0.1, "class_balance": "weights", "clip_norm": 0.5},
    )
    network, ema = STUDENT.build(0), Ema(0.8)
    rows = list(fit(network, data.split("train"), labels_only(), config, CPU, epochs=2, ema=ema))
    logits, _ = answers(ema.network, data.probe(), CPU)
    return {"rows": still(rows), "weights": summed(network), "ema": summed(ema.network), "of_ema": logits.tolist()}


def measured(data: Dataset, folder: Path) -> dict[str, Any]:
    logits, labels = answers(STUDENT.build(0), data.split("train"), CPU)
    few, _ = answers(STUDENT.build(0), data.probe(), CPU)
    return {"logits": logits.tolist(), "labels": labels.tolist(), "few": few.tolist()}


def route(data: Dataset, folder: Path) -> dict[str, Any]:
    """A route whose checkpoints are float by float another, but whose anchors are chosen alike: greedily."""
    rows = list(train_teacher(data, STUDENT, TRAIN.with_values(epochs=4), CPU, checkpoint_every=1, folder=folder / "route"))
    World.current().barrier()
    taught = Route.open(folder / "route")
    result: dict[str, Any] = {"teacher": still(rows), "files": sorted(path.name for path in taught.folder.iterdir())}
    for name, objective in (("live", ObjectiveConfig()), ("kept", ObjectiveConfig(views=2))):
        os.environ["RCO_LOGITS"] = str(folder / "logits")
        student = STUDENT.build(1)
        anchors = AnchorConfig.of(strategy="greedy", delta=1.2, n_anchors=3)
        walked = distill_route(
            student, taught, data, anchors=anchors, objective=objective, train=TRAIN.with_values(epochs=6), compute=CPU
        )
        result[name] = still(list(walked))
        result[f"{name} weights"] = summed(student)
    result["logits"] = len(list((folder / "logits").iterdir()))
    return result


def stopped(train: Callable[[ResumePoints], object], folder: Path) -> int:
    """Train until SIGTERM has reached the last worker alone, in the middle of an epoch; returns the exit status."""
    kept = points(folder)
    due, asked = kept.due, 0

    def count() -> bool:
        nonlocal asked
        asked += 1
        if asked == STOPS and World.current().rank == World.current().size - 1:
            kept.stopping = signal.SIGTERM
        return due()

    kept.due = count  # type: ignore[method-assign]
    try:
        train(kept)
    except SystemExit as end:
        World.current().barrier()
        return int(end.code or 0)
    raise AssertionError


def with_dropout(data: Dataset, kept: ResumePoints | None = None) -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, 10))
    list(fit(network, data.split("train"), labels_only(), TRAIN, CPU, epochs=2, checkpointer=kept))
    return network


def resumed(data: Dataset, folder: Path) -> dict[str, Any]:
    """As many workers go on from the point of those that were stopped: to the last bit, random numbers and all."""
    status = stopped(lambda kept: with_dropout(data, kept), folder)
    twin = with_dropout(data, points(folder, every=1e9))
    return {"status": status, "same": state_digest(with_dropout(data)) == state_digest(twin)}


def handed_over(data: Dataset, folder: Path) -> dict[str, Any]:
    """Other numbers of workers go on from the points of these, and these from that of one."""

    def train(kept: ResumePoints) -> dict[str, Any]:
        return trained(data, STUDENT.build(0), checkpointer=kept)

    stopped(train, folder / "left")
    if World.current().main:
        shutil.copytree(folder.parent.parent / "1" / "handed_over" / "left", folder / "found", dirs_exist_ok=True)
    World.current().barrier()
    return train(points(folder / "found", every=1e9))


def diverged(data: Dataset, folder: Path) -> dict[str, Any]:
    """One image, of one share, is what no network can learn from."""
    network = STUDENT.build(0)
    config = TRAIN.with_values(lr=1e30)
    try:
        list(fit(network, data.split("train"), labels_only(), config, CPU, epochs=2))
    except DivergenceError as error:
        return {"where": error.where}
    raise AssertionError


CASES: dict[str, Callable[[Dataset, Path], dict[str, Any]]] = {
    case.__name__: case
    for case in (uneven, tiny_last, frozen_norm, batch_norm, regularised, measured, route, resumed, handed_over, diverged)
}


def alone(data: Path, folder: Path, name: str) -> dict[str, Any]:
    """A case in this process, the only worker."""
    (folder / name).mkdir(parents=True)
    result: dict[str, Any] = CASES[name](Dataset.open(data), folder / name)
    return result


def together(data: Path, folder: Path, *sizes: int) -> dict[int, dict[str, list[dict[str, Any]]]]:
    """All cases with so many workers each: what every worker has returned."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.workers", str(data), str(folder), *map(str, sizes)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "RCO_WORKERS_TIMEOUT": "120", **QUIET},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert not done.stdout, "several workers say nothing of their own"
    return {
        size: {
            name: [json.loads((folder / str(size) / f"{name}-{rank}.json").read_text()) for rank in range(size)]
            for name in CASES
        }
        for size in sizes
    }


def work(data: Path, folder: Path) -> None:
    with joined_group(CPU) as world:
        for name, case in CASES.items():
            (folder / name).mkdir(parents=True, exist_ok=True)
            world.barrier()
            (folder / f"{name}-{world.rank}.json").write_text(json.dumps(case(Dataset.open(data), folder / name)))


def forked(data: Path, folder: Path, size: int) -> bool:
    """Whether all workers have ended well."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size)}
    children = []
    for rank in range(size):
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        if not (child := os.fork()):
            status = 1
            try:
                work(data, folder / str(size))
                status = 0
            except BaseException:
                traceback.print_exc()
            os._exit(status)
        children.append(child)
    return sum(os.waitpid(child, 0)[1] for child in children) == 0


def main(arguments: list[str]) -> int:
    data, folder, *sizes = arguments
    return 0 if all(forked(Path(data), Path(folder), int(size)) for size in sizes) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
