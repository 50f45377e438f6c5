"""One distillation step, as this project does it and as others do: the contenders of `kd_step.py`.

`python benchmarks/contenders.py NAME SETUP` sets one up, says "ready", and for each line on stdin trains one epoch and prints
what it took, as JSON. SETUP is JSON: folder, batch, threads, teacher, student, device. All train the same networks, from the
same weights, on the same images with the same augmentation, in the same batches, by the same loss (up to a constant factor)
and optimiser.
"""

from __future__ import annotations

import json
import resource
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

TAU, LR = 4.0, 0.01
MEAN, STD = (0.491, 0.482, 0.447), (0.247, 0.244, 0.262)

Epoch = Callable[[], int]
Setup = types.SimpleNamespace


def networks(setup: Setup, shape: dict[str, int]) -> tuple[nn.Module, nn.Module]:
    """Teacher and student, the same for all contenders."""
    from rco.models.build import build_network

    teacher, student = (build_network(name, **shape, seed=seed) for seed, name in enumerate((setup.teacher, setup.student)))
    with torch.no_grad():  # a network that was never trained has statistics of 0 and 1, and logits far off
        for _ in range(10):
            teacher(torch.randn(64, shape["in_channels"], shape["image_size"], shape["image_size"]))
    return teacher.eval().to(setup.device), student.to(setup.device)


def sgd(student: nn.Module) -> torch.optim.Optimizer:
    """As a user of PyTorch would write it."""
    return torch.optim.SGD(student.parameters(), lr=LR, momentum=0.9, nesterov=True, weight_decay=5e-4)


class Pictures(torch.utils.data.Dataset[Any]):
    """Images as PIL pictures through torchvision's transforms, as most training code has them."""

    def __init__(self, images: np.ndarray, labels: np.ndarray) -> None:
        from torchvision import transforms

        size = images.shape[1]
        self.images, self.labels = images, labels
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(size, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        from PIL import Image

        return self.transform(Image.fromarray(self.images[index])), int(self.labels[index])


class KL(nn.Module):
    """KL(P_t || P_s) of probabilities, for a library that hands its loss probabilities."""

    def forward(self, teacher: torch.Tensor, student: torch.Tensor) -> torch.Tensor:
        return F.kl_div(student.log(), teacher, reduction="batchmean")


def ours(setup: Setup, precision: str = "fp32", views: int = 0, teacher_name: str = "") -> Epoch:
    """This project's loop; with `views`, the logits are looked up (they are computed in the epochs before the first one)."""
    from rco.data.dataset import Dataset
    from rco.objectives.config import ObjectiveConfig
    from rco.objectives.stage import StageLoss
    from rco.training.anchor import LiveAnchor, StoredLogits
    from rco.training.config import ComputeConfig, TrainConfig
    from rco.training.device import prepare_process
    from rco.training.loop import fit

    batch, data = setup.batch, Dataset.open(Path(setup.folder) / "prepared")
    split, manifest = data.split("train"), data.manifest
    channels, size, _ = manifest.image_shape
    shape = {"in_channels": channels, "num_classes": manifest.num_classes, "image_size": size}
    teacher, student = networks(setup, shape)
    compute = ComputeConfig(device=setup.device, precision=precision, threads=torch.get_num_threads(), workers=0)
    prepare_process(compute)
    config = TrainConfig.of(epochs=10**6, batch_size=batch, lr=LR, schedule="constant", augment="crop-flip")
    anchor: Any = LiveAnchor(teacher, manifest.image_shape, setup.device)
    if views:
        anchor = StoredLogits(anchor=teacher, train=split, augment="crop-flip", views=views, compute=compute, batch_size=batch)
        for view in range(views):
            anchor.prepare(view)
    rows = fit(student, split, StageLoss(ObjectiveConfig(tau=TAU)), config, compute, epochs=10**6, anchor=anchor)
    images = min(len(split), split.num_batches(batch) * batch)

    def epoch() -> int:
        next(rows)
        return images

    return epoch


def arrays(setup: Setup) -> tuple[np.ndarray, np.ndarray]:
    """The images (N, H, W, C) uint8 and labels of the prepared training part."""
    from rco.core.tensors import load_arrays

    found, _ = load_arrays(Path(setup.folder) / "prepared" / "train.safetensors")
    return np.ascontiguousarray(found["images"].transpose(0, 2, 3, 1)), found["labels"]


def loader(setup: Setup) -> tuple[DataLoader[Any], dict[str, int]]:
    """A DataLoader that augments in worker processes."""
    images, labels = arrays(setup)
    loaded: DataLoader[Any] = DataLoader(Pictures(images, labels), batch_size=setup.batch, shuffle=True, **loading(setup))
    shape = {"in_channels": images.shape[3], "num_classes": int(labels.max()) + 1, "image_size": images.shape[1]}
    return loaded, shape


def loading(setup: Setup) -> dict[str, Any]:
    """A worker a core, up to eight; they stay. Pinned memory for a GPU."""
    workers = min(8, setup.threads)
    return {"num_workers": workers, "persistent_workers": True, "drop_last": True, "pin_memory": setup.device == "cuda"}


def plain(setup: Setup) -> Epoch:
    """The loop that a careful person writes: no gradients for the teacher, nothing read from the device within an epoch."""
    batches, shape = loader(setup)
    teacher, student = networks(setup, shape)
    optimizer = sgd(student)

    def epoch() -> int:
        student.train()
        images = 0
        for pictures, labels in batches:
            x, y = pictures.to(setup.device, non_blocking=True), labels.to(setup.device, non_blocking=True)
            with torch.no_grad():
                target = F.log_softmax(teacher(x) / TAU, dim=1)
            logits = student(x)
            mimicry = F.kl_div(F.log_softmax(logits / TAU, dim=1), target, reduction="batchmean", log_target=True)
            loss = F.cross_entropy(logits, y) + TAU**2 * mimicry
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            images += len(y)
        return images

    return epoch


def kd_lib(setup: Setup) -> Epoch:
    """KD_Lib's VanillaKD. After an epoch it measures the student on validation images: one batch of them."""
    import contextlib
    import io

    # Its package imports its text models, which need a transformers of long ago; they play no part here.
    text = types.ModuleType("KD_Lib.KD.text")
    text.BERT2LSTM = text.get_essentials = None  # type: ignore[attr-defined]
    sys.modules["KD_Lib.KD.text"] = text
    from KD_Lib.KD import VanillaKD

    batches, shape = loader(setup)
    teacher, student = networks(setup, shape)
    images, labels = arrays(setup)
    batch = setup.batch
    few: DataLoader[Any] = DataLoader(Pictures(images[:batch], labels[:batch]), batch_size=batch)
    distiller = VanillaKD(
        teacher, student, batches, few, None, sgd(student), loss_fn=KL(), temp=TAU, distil_weight=0.5, device=setup.device
    )

    def epoch() -> int:
        with contextlib.redirect_stdout(io.StringIO()):
            distiller.train_student(epochs=1, plot_losses=False, save_model=False)
        return len(batches) * batch

    return epoch


def torchdistill(setup: Setup) -> Epoch:
    """torchdistill's DistillationBox, with the loop of its example for image classification."""
    import logging

    from torchdistill.core.distillation import get_distillation_box

    logging.disable(logging.WARNING)
    _, shape = loader(setup)
    teacher, student = networks(setup, shape)
    forward = {"forward_proc": "forward_batch_only", "requires_grad": True}
    terms = {
        "temperature": TAU,
        "alpha": 0.5,
        "reduction": "batchmean",
        **{
            f"{role}_module_{key}": value for role in ("student", "teacher") for key, value in (("path", "."), ("io", "output"))
        },
    }
    config = {
        "num_epochs": 10**6,
        "train_data_loader": {
            "dataset_id": "train",
            "sampler": {"class_or_func": torch.utils.data.RandomSampler, "kwargs": {}},
            "kwargs": {"batch_size": setup.batch, **loading(setup)},
        },
        "teacher": {**forward, "requires_grad": False},
        "student": forward,
        "optimizer": {
            "key": "SGD",
            "kwargs": {"lr": LR, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4},
        },
        "criterion": {
            "key": "WeightedSumLoss",
            "kwargs": {"sub_terms": {"kd": {"criterion": {"key": "KDLoss", "kwargs": terms}, "weight": 1.0}}},
        },
    }
    train = Pictures(*arrays(setup))
    box = get_distillation_box(teacher, student, {"train": train}, config, torch.device(setup.device), None, False, 1.0)

    def epoch() -> int:
        box.student_model.train()
        box.teacher_model.eval()
        images = 0
        for pictures, labels, extra in box.train_data_loader:
            x, y = pictures.to(setup.device, non_blocking=True), labels.to(setup.device, non_blocking=True)
            box.pre_forward_process()
            loss = box.forward_process(x, y, extra)
            box.post_forward_process(loss)
            images += len(y)
        return images

    return epoch


CONTENDERS: dict[str, Callable[[Setup], Epoch]] = {
    "KD_Lib": kd_lib,
    "torchdistill": torchdistill,
    "plain loop": plain,
    "rco fp32": ours,
    "rco bf16": lambda setup: ours(setup, "bf16"),
    "rco fp32 kept": lambda setup: ours(setup, views=2),
    "rco bf16 kept": lambda setup: ours(setup, "bf16", views=2),
}


def main() -> int:
    """Run epochs on demand."""
    name, setup = sys.argv[1], Setup(**json.loads(sys.argv[2]))
    torch.set_num_threads(setup.threads)
    on_gpu = setup.device == "cuda"
    out, sys.stdout = sys.stdout, sys.stderr  # libraries print
    epoch = CONTENDERS[name](setup)
    epoch()
    print("ready", file=out, flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        images = epoch()
        if on_gpu:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
        own, children = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        told = {"images": images, "seconds": seconds, "peak_mb": own / 1024, "peak_child_mb": children / 1024}
        if on_gpu:
            told["peak_mb"] = torch.cuda.max_memory_allocated() / 2**20
        print(json.dumps(told), file=out, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
