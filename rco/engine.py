"""The one training loop: teacher, stages and baselines differ only in objective, anchor and length."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from joblib import cpu_count
from torch import Tensor, nn

from rco.config import ComputeConfig, TrainConfig
from rco.data import Split
from rco.errors import InputError
from rco.frozen import lean
from rco.kept import KeptLogits
from rco.objectives import Objective
from rco.schedule import learning_rate
from rco.taps import Output, observe


class DivergenceError(RuntimeError):
    """A loss stopped being a finite number."""


def resolve(compute: ComputeConfig) -> ComputeConfig:
    """Replace every `auto` by what it means on this machine.

    Resolved settings are part of a task's cache key: bf16 and fp32 results are not the same results. A device that is named
    is taken at its word: on a cluster the task that resolves has no GPU, the tasks that compute do (see `require_device`).
    """
    cuda = torch.cuda.is_available()
    device = ("cuda" if cuda else "cpu") if compute.device == "auto" else compute.device
    precision = ("bf16" if device == "cuda" else "fp32") if compute.precision == "auto" else compute.precision
    threads = compute.threads or min(8, cpu_count())  # as affinity and the container's limit allow
    return dataclasses.replace(compute, device=device, precision=precision, threads=threads)


def require_device(compute: ComputeConfig) -> None:
    """Refuse a GPU where there is none.

    Raises:
        InputError: device = cuda without a usable CUDA GPU.
    """
    if compute.device == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "device", "cuda", "no CUDA GPU can be used here", "Use device = cpu, or check the driver with nvidia-smi"
        )


def prepare_process(compute: ComputeConfig) -> None:
    """Set this process up for resolved settings: thread count, and on CPU only algorithms that repeat bit for bit.

    Raises:
        InputError: as `require_device`.
    """
    require_device(compute)
    torch.set_num_threads(compute.threads)
    if compute.device == "cpu":
        torch.use_deterministic_algorithms(True)
    else:
        torch.set_float32_matmul_precision("high")


def autocast(compute: ComputeConfig) -> contextlib.AbstractContextManager[Any]:
    """Mixed precision as set; master weights and losses stay float32."""
    if compute.precision == "bf16":
        return torch.autocast(compute.device, dtype=torch.bfloat16)
    return contextlib.nullcontext()


class _Teacher:
    """An anchor at work: frozen, and as lean as what is asked of it allows."""

    def __init__(self, anchor: nn.Module, tap: str, image_shape: Sequence[int], device: torch.device) -> None:
        self.tap, self.network = tap, lean(anchor, image_shape, device, fold=not tap)

    def __call__(self, x: Tensor) -> Output:
        with torch.inference_mode():
            out = observe(self.network, x, self.tap)
        # What autograd may keep for the backward pass must be no inference tensor.
        return Output(out.logits.clone(), None if out.features is None else out.features.clone())


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """A fresh optimiser; its learning rate is set before every step."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay, fused=True)
    return torch.optim.SGD(
        parameters,
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.momentum > 0,
        weight_decay=config.weight_decay,
        fused=True,
    )


def fit(
    model: nn.Module,
    train: Split,
    objective: Objective,
    config: TrainConfig,
    compute: ComputeConfig,
    *,
    epochs: int,
    first_epoch: int = 1,
    anchor: nn.Module | KeptLogits | None = None,
) -> Iterator[dict[str, float]]:
    """Train `model` in place with a fresh optimiser and schedule; yields one row of metrics after each epoch.

    Args:
        objective: its parts are summed, averaged over the epoch, and logged under their names. What it taps is observed, in the
            forward passes of this training and no others; parameters of its own are trained along, in place.
        epochs: length of this training; the schedule spans it.
        first_epoch: what the first epoch is called. Order and augmentation of the images are functions of (seed, epoch),
            so stages that count on do not see the same order again.
        anchor: frozen by this function; it sees the batches that the student sees. Or its logits, computed once and kept: then
            the student sees the views that they are of.

    Yields:
        epoch, lr (of the epoch's last step), loss, the objective's parts, images_per_second.

    Raises:
        DivergenceError: a loss is not finite at the end of an epoch.
        InputError: there is no whole batch to train on.
    """
    device = torch.device(compute.device)
    model.to(device).to(memory_format=torch.channels_last)
    kept = anchor if isinstance(anchor, KeptLogits) else None
    teach = (
        _Teacher(anchor, objective.taps.anchor, train.manifest.image_shape, device) if isinstance(anchor, nn.Module) else None
    )
    objective.to(device)
    optimizer = make_optimizer(nn.ModuleList([model, objective]), config)
    steps_per_epoch = train.num_batches(config.batch_size)
    step = 0
    for epoch in range(first_epoch, first_epoch + epochs):
        started, images = time.perf_counter(), 0
        view = kept.view_of(epoch) if kept else None
        if kept and view is not None:
            kept.prepare(view)
        model.train()
        # Dropout and the like draw from the global generator: make that a function of (seed, epoch) as well.
        torch.manual_seed(config.seed * 1_000_003 + epoch)
        totals: dict[str, torch.Tensor] = {}
        for x, y, rows in train.indexed_batches(
            config.batch_size,
            device=compute.device,
            seed=config.seed,
            epoch=epoch,
            augment=config.augment,
            workers=compute.workers,
            view=view,
        ):
            x = x.contiguous(memory_format=torch.channels_last)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(config, step, steps_per_epoch=steps_per_epoch, epochs=epochs)
            with autocast(compute):
                anchor_out = teach(x) if teach else None
                if kept and view is not None:
                    anchor_out = Output(kept.logits(view, rows))
                parts = objective(observe(model, x, objective.taps.student), anchor_out, y)
            loss = torch.stack(list(parts.values())).sum()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            # Sums stay on the device: reading one would make every step wait for the GPU.
            for name, part in parts.items():
                totals[name] = totals.get(name, 0) + part.detach() * len(y)
            images += len(y)
            step += 1
        if not images:
            raise InputError(
                "batch_size", config.batch_size, "leaves no batch to train on", f"There are {len(train)} training images"
            )
        means = {name: float(total) / images for name, total in totals.items()}
        row = {"epoch": epoch, "lr": optimizer.param_groups[0]["lr"], "loss": sum(means.values()), **means}
        bad = [name for name in means if not torch.isfinite(torch.tensor(means[name]))]
        if bad:
            raise DivergenceError(
                f"{bad[0]} is {means[bad[0]]} in epoch {epoch} (learning rate {row['lr']:g}). "
                "Lower lr, lengthen warmup_epochs, or lower lam or tau"
            )
        row["images_per_second"] = images / (time.perf_counter() - started)
        yield row
