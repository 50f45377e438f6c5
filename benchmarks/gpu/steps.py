"""One distillation step: this project, two plain loops, and its peers; images/s, and how far that is from what the GPU can do.

All train the same networks by the same loss and optimiser on the same images with the same augmentation (crop and flip). Each
contender takes turns with the plain loop on resident tensors, an epoch each; a ratio is the median of the ratios within turns.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from contenders import Pictures, sgd
from harness import machine, median_seconds
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks.gpu.common import LR, STEPS, TAU, Part, calibrated, cifar, cores, reason, said, timed
from benchmarks.gpu.graphs import CompiledTrainer, GraphedTrainer
from rco.data.dataset import Dataset
from rco.models.build import build_network
from rco.objectives.config import ObjectiveConfig
from rco.objectives.stage import StageLoss
from rco.training.anchor import Anchor, LiveAnchor, StoredLogits
from rco.training.config import ComputeConfig, TrainConfig
from rco.training.device import prepare_process
from rco.training.loop import Trainer

AIM = 1.3  # times the plain loop on resident tensors
PEERS = ("KD_Lib", "torchdistill")
RESIDENT = "plain loop, resident tensors"
_TURNS = 3

Epoch = Callable[[], int]  # trains one, and returns how many images


@dataclass(frozen=True)
class Pair:
    """Who teaches whom, in batches of what size."""

    teacher: str
    student: str
    batch: int

    @property
    def name(self) -> str:
        return f"{self.teacher} -> {self.student}, batch {self.batch}"


PAIRS = (
    Pair("resnet32x4", "resnet8x4", 256),
    Pair("torchvision/resnet50", "mobilenetv2-t6-w0.5", 256),
    Pair("resnet32x4", "resnet8x4", 64),
)
SMOKE = (Pair("resnet8", "resnet8", 8),)


@dataclass
class Bench:
    """A pair on its images, and what the contenders share."""

    part: Part
    pair: Pair
    data: Dataset
    turns: int = _TURNS
    rows: list[dict[str, Any]] = field(default_factory=list)

    def networks(self) -> tuple[nn.Module, nn.Module]:
        """Teacher, frozen, and student: the same for all contenders."""
        manifest = self.data.manifest
        shape = {
            "in_channels": manifest.image_shape[0],
            "num_classes": manifest.num_classes,
            "image_size": manifest.image_shape[1],
        }
        names = (self.pair.teacher, self.pair.student)
        teacher, student = (build_network(name, **shape, seed=seed) for seed, name in enumerate(names))
        teacher = calibrated(teacher, manifest.image_shape, self.part.device).requires_grad_(False)
        return teacher, student.to(self.part.device)


# --- contenders -------------------------------------------------------------------------------------------------------------


def ours(bench: Bench, *, graphs: bool = False, compiled: bool = False, kept: bool = False) -> Epoch:
    """This project's loop; `graphs` and `compiled` are trials of what it does not do by itself."""
    part, data, batch = bench.part, bench.data, bench.pair.batch
    teacher, student = bench.networks()
    split = data.split("train")
    compute = ComputeConfig(device=part.device, precision=part.precision, threads=torch.get_num_threads(), workers=0)
    prepare_process(compute)
    config = TrainConfig.of(epochs=10**6, batch_size=batch, lr=LR, schedule="constant", augment="crop-flip")
    anchor: Anchor
    if kept:
        anchor = StoredLogits(anchor=teacher, train=split, augment="crop-flip", views=1, compute=compute, batch_size=batch)
        anchor.prepare(0)
    else:
        anchor = LiveAnchor(teacher, data.manifest.image_shape, part.device)
    if compiled:
        for network in (student, anchor.network) if isinstance(anchor, LiveAnchor) else (student,):
            network.compile(**compiler(part))
    kind = GraphedTrainer if graphs else CompiledTrainer if compiled else Trainer
    trainer = kind(
        student, split, StageLoss(ObjectiveConfig(tau=TAU)), config, compute, epochs=10**6, first_epoch=1, anchor=anchor
    )
    rows = trainer.epochs()

    def epoch() -> int:
        next(rows)
        return trained(bench)

    return epoch


def trained(bench: Bench) -> int:
    """Images of an epoch of this project's loop: a last batch of a single one is left out."""
    split, batch = bench.data.split("train"), bench.pair.batch
    return min(len(split), split.num_batches(batch) * batch)


def compiler(part: Part) -> dict[str, Any]:
    """How `torch.compile` is asked. On a CPU there may be no C++ compiler: networks are traced, and run as they are."""
    return {} if part.on_gpu else {"backend": "eager"}


def resident(bench: Bench) -> Epoch:
    """The plain loop of a person who keeps the images on the device, and augments whole batches there."""
    device, manifest = bench.part.device, bench.data.manifest
    images, labels = (t.to(device) for t in tensors(bench.data))
    mean, std = (torch.tensor(v, device=device).view(-1, 1, 1) for v in (manifest.mean, manifest.std))
    padded = F.pad(images, (4,) * 4)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for x, y in crops_and_flips(padded, labels, bench.pair.batch):
            yield x.float().div_(255).sub_(mean).div_(std), y

    return plain_loop(bench, batches)


def crops_and_flips(padded: Tensor, labels: Tensor, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """An epoch of batches (B, C, H, W) in random order, each image cut at random out of its padded one, every other mirrored.

    Args:
        padded: (N, C, H + 8, W + 8).
    """
    device = padded.device
    line = torch.arange(padded.shape[-1] - 8, device=device)
    order = torch.randperm(len(padded), device=device)
    for i in range(0, len(padded) - batch + 1, batch):
        chosen = order[i : i + batch]
        top, left = torch.randint(0, 9, (2, batch, 1), device=device)
        columns = left + line
        columns = torch.where(torch.rand(batch, 1, device=device) < 0.5, columns.flip(1), columns)
        # (B, H, W, C): channels last, as the convolutions want it.
        x = padded[chosen[:, None, None], :, (top + line)[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
        yield x, labels[chosen]


def pictures(bench: Bench) -> Epoch:
    """The plain loop as most training code has it: PIL pictures, torchvision's transforms, as many workers as cores."""
    part = bench.part
    images, labels = tensors(bench.data)
    loader: DataLoader[Any] = DataLoader(
        Pictures(images.permute(0, 2, 3, 1).contiguous().numpy(), labels.numpy()),
        batch_size=bench.pair.batch,
        shuffle=True,
        drop_last=True,
        num_workers=1 if part.smoke else cores(),
        persistent_workers=True,
        pin_memory=part.on_gpu,
    )

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        for x, y in loader:
            yield x.to(part.device, non_blocking=True), y.to(part.device, non_blocking=True)

    return plain_loop(bench, batches)


def plain_loop(bench: Bench, batches: Callable[[], Iterator[tuple[Tensor, Tensor]]]) -> Epoch:
    """What a careful person writes: bf16, channels_last, no gradients for the teacher, nothing read from the device."""
    part = bench.part
    teacher, student = (n.to(memory_format=torch.channels_last) for n in bench.networks())  # type: ignore[call-overload]
    optimizer = sgd(student)

    def epoch() -> int:
        student.train()
        images = 0
        for x, y in batches():
            x = x.contiguous(memory_format=torch.channels_last)
            with torch.autocast("cuda", dtype=torch.bfloat16) if part.on_gpu else contextlib.nullcontext():
                with torch.no_grad():
                    target = F.log_softmax(teacher(x).float() / TAU, dim=1)
                logits = student(x).float()
            mimicry = F.kl_div(F.log_softmax(logits / TAU, dim=1), target, reduction="batchmean", log_target=True)
            loss = F.cross_entropy(logits, y) + TAU**2 * mimicry
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            images += len(y)
        return images

    return epoch


def tensors(data: Dataset) -> tuple[Tensor, Tensor]:
    """The training images (N, C, H, W) uint8, and labels."""
    from rco.core.tensors import load_arrays

    found, _ = load_arrays(data.folder / "train.safetensors")
    return torch.from_numpy(found["images"]), torch.from_numpy(found["labels"])


def peer(bench: Bench, name: str) -> Epoch:
    """KD_Lib or torchdistill, in a process of its own (`benchmarks/contenders.py`)."""
    from kd_step import Contender, Setup

    try:
        known = importlib.util.find_spec(name) is not None
    except ImportError:
        known = False
    if not known:
        raise ModuleNotFoundError("it is not installed for this Python")
    pair, part = bench.pair, bench.part
    setup = Setup(str(bench.data.folder.parent), pair.batch, cores(), pair.teacher, pair.student, part.device)
    contender = Contender(name, setup, sys.executable)
    return lambda: int(contender.epoch()["images"])


# --- bounds -----------------------------------------------------------------------------------------------------------------


def measured_rates(part: Part) -> dict[str, float]:
    """What large matrix products (FLOP/s) and copies (B/s) reach on this device, in the precision of the steps."""
    dtype = torch.bfloat16 if part.on_gpu else torch.float32
    side, numbers, times = (8192, 2**28, 7) if part.on_gpu else (512, 2**18, 1)
    a, b = (torch.randn(side, side, device=part.device).to(dtype) for _ in range(2))
    x = torch.randn(numbers, device=part.device)
    y = torch.empty_like(x)
    product = median_seconds(lambda: a @ b, times, part.wait)
    copy = median_seconds(lambda: y.copy_(x), times, part.wait)
    return {"flop_per_s": 2 * side**3 / product, "bytes_per_s": 2 * 4 * numbers / copy}


def layers(network: nn.Module, shape: tuple[int, ...]) -> list[tuple[str, float, float]]:
    """Of one image's forward pass: each convolution, linear layer and BatchNorm, its FLOP, and the values it reads and writes.

    A BatchNorm's arithmetic counts for nothing.
    """
    found: list[tuple[str, float, float]] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        flop = 0.0
        if isinstance(module, nn.Conv2d):
            flop = 2.0 * output.numel() * module.weight[0].numel()
        elif isinstance(module, nn.Linear):
            flop = 2.0 * output.numel() * module.in_features
        found.append((type(module).__name__, flop, float(inputs[0].numel() + output.numel())))

    kinds = (nn.Conv2d, nn.Linear, nn.BatchNorm2d)
    hooks = [m.register_forward_hook(note) for m in network.modules() if isinstance(m, kinds)]
    device = next(network.parameters()).device
    with torch.no_grad():
        network.eval()(torch.zeros(1, *shape, device=device))
    for hook in hooks:
        hook.remove()
    return found


def bounds(bench: Bench, rates: dict[str, float]) -> dict[str, float]:
    """Images/s that no loop with a live teacher can pass: by arithmetic alone, and by the roofline of every layer.

    The teacher's forward pass (its BatchNorms folded away), and three times the student's: forward, and backward twice as much.
    The roofline gives each layer the longer of its arithmetic at the matrix rate and of its activations, each read or written
    once in the precision of the step, at the copy rate. Weights, optimiser, loss and images are left out: it is a bound.
    """
    shape = bench.data.manifest.image_shape
    teacher, student = (layers(network, shape) for network in bench.networks())
    work = [(flop, values) for kind, flop, values in teacher if kind != "BatchNorm2d"]
    work += [(3 * flop, 3 * values) for _, flop, values in student]
    width = 2 if bench.part.on_gpu else 4  # bytes of a value
    flop = sum(f for f, _ in work)
    roofline = sum(max(f / rates["flop_per_s"], width * values / rates["bytes_per_s"]) for f, values in work)
    return {"flop_per_image": flop, "matrix_rate": rates["flop_per_s"] / flop, "roofline": 1 / roofline}


# --- turns ------------------------------------------------------------------------------------------------------------------


def contenders(part: Part) -> dict[str, Callable[[Bench], Epoch]]:
    """In the order in which they get the time. Compilation takes long, so it comes after what does not compile."""
    by_name: dict[str, Callable[[Bench], Epoch]] = {
        "ours, eager": ours,
        "ours, CUDA graphs": lambda bench: ours(bench, graphs=True),
        "plain loop, PIL and workers": pictures,
        "ours, eager, kept logits": lambda bench: ours(bench, kept=True),
        "ours, torch.compile": lambda bench: ours(bench, compiled=True),
        "ours, torch.compile and CUDA graphs": lambda bench: ours(bench, graphs=True, compiled=True),
    }
    if part.smoke:  # compiling is slow, and its parts are tried already
        del by_name["ours, torch.compile and CUDA graphs"]
    return by_name | {name: (lambda bench, name=name: peer(bench, name)) for name in PEERS}


def measure(bench: Bench, name: str, make: Callable[[Bench], Epoch], beside: Epoch) -> dict[str, Any]:
    """Turns of a contender and of the plain loop on resident tensors."""
    part = bench.part
    if part.on_gpu:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    started = time.perf_counter()
    epoch = make(bench)
    epoch()
    part.wait()
    ready = time.perf_counter() - started
    speeds, ratios = [], []
    for _ in range(bench.turns):
        plain, plain_images = timed(part, beside)
        own, images = timed(part, epoch)
        speeds.append(images / own)
        ratios.append(speeds[-1] * plain / plain_images)
        if part.left() < 2 * (own + plain):
            break
    row: dict[str, Any] = {
        "contender": name,
        "images_per_second": statistics.median(speeds),
        "lowest": min(speeds),
        "highest": max(speeds),
        "over_resident": statistics.median(ratios),
        "turns": len(speeds),
        "seconds_until_ready": ready,
    }
    if part.on_gpu and name not in PEERS:
        row["peak_mb"] = (torch.cuda.max_memory_allocated() - before) / 2**20
    return row


def run(part: Part, number: int) -> None:
    """Measure one pair, and add it to the results as contenders end."""
    pair = (SMOKE if part.smoke else PAIRS)[number]
    data, images = cifar(part)
    bench = Bench(part, pair, data, turns=1 if part.smoke else _TURNS)
    rates = measured_rates(part)
    bound = bounds(bench, rates)
    before = part.saved(STEPS) or {"machine": machine(part.device), "aim": AIM, "pairs": []}
    result = {
        "pair": pair.name,
        "images": images,
        "images_an_epoch": len(data.split("train")),
        "precision": part.precision,
        "rates": rates,
        "bounds": bound,
        "rows": bench.rows,
    }
    before["pairs"].append(result)
    said(f"{pair.name}; {images}; matrix products {rates['flop_per_s'] / 1e12:.4g} TFLOP/s, {part.precision}")
    beside = resident(bench)
    beside()
    for name, make in {RESIDENT: None, **contenders(part)}.items():
        if part.left() < (0 if part.smoke else 10):
            row: dict[str, Any] = {"contender": name, "skipped": "the time was spent"}
        else:
            try:
                row = measure(bench, name, make or (lambda _: beside), beside)
            except (Exception, SystemExit) as error:  # one contender takes no other down
                row = {"contender": name, "skipped": reason(error)}
            forget(part)
        if "skipped" not in row and "kept" not in name:
            row["of_matrix_rate"] = row["images_per_second"] / bound["matrix_rate"]
            row["of_roofline"] = row["images_per_second"] / bound["roofline"]
        bench.rows.append(row)
        part.save(STEPS, before)
        said("  " + words(row))


def forget(part: Part) -> None:
    """Free what a contender had: the next one's memory, and its compilations, are its own."""
    gc.collect()
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
    if part.on_gpu:
        torch.cuda.empty_cache()


def words(row: dict[str, Any]) -> str:
    """A row in one line."""
    if "skipped" in row:
        return f"{row['contender']}: not measured: {row['skipped']}"
    of = f", {100 * row['of_matrix_rate']:.1f} % of the matrix rate" if "of_matrix_rate" in row else ""
    return f"{row['contender']}: {row['images_per_second']:,.0f} images/s, {row['over_resident']:.2f} x resident{of}"
