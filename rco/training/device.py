"""Where numbers are computed, and how exactly."""

from __future__ import annotations

import contextlib
import dataclasses
import platform
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.utils.deterministic
from joblib import cpu_count
from torch import Tensor

from rco.core.errors import InputError
from rco.training.config import ComputeConfig
from rco.training.distributed import World


def resolve(compute: ComputeConfig) -> ComputeConfig:
    """Replace every `auto` by what it means on this machine.

    Resolved settings are part of a task's cache key: bf16 and fp32 results are not the same results. A device that the settings
    name is not checked: on a cluster the task that resolves has no GPU, the tasks that compute do (see `require_device`). For
    the same reason workers_per_task stays 0 for a GPU that the settings name.

    Raises:
        InputError: SyncBatchNorm on a CPU.
    """
    cuda = torch.cuda.is_available()
    device = ("cuda" if cuda else "cpu") if compute.device == "auto" else compute.device
    precision = ("bf16" if device == "cuda" else "fp32") if compute.precision == "auto" else compute.precision
    here = torch.cuda.device_count() if compute.device == "auto" else 0  # named, they may be on another machine
    workers = compute.workers_per_task or (here if device == "cuda" else 1)
    threads = compute.threads or min(8, cpu_count())  # as affinity and the container's limit allow
    return dataclasses.replace(compute, device=device, precision=precision, threads=threads, workers_per_task=workers)


def require_device(compute: ComputeConfig) -> None:
    """Refuse a GPU on a machine without one.

    Raises:
        InputError: device = cuda without a usable CUDA GPU.
    """
    if compute.device == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "device", "cuda", "no CUDA GPU can be used here", "Use device = cpu, or check the driver with nvidia-smi"
        )


def count_workers(compute: ComputeConfig) -> int:
    """How many workers a task has, here where it runs.

    Raises:
        InputError: as `require_device`; or fewer GPUs than workers.
    """
    require_device(compute)
    if compute.device == "cpu":
        return compute.workers_per_task or 1
    there = torch.cuda.device_count()
    asked = compute.workers_per_task or there
    if asked > there:
        raise InputError(
            "workers_per_task",
            asked,
            f"needs a GPU for each, and there {'is' if there == 1 else 'are'} {there} here",
            f"Use {there} or fewer, or 0; on a cluster, give the task more (train.gpus)",
        )
    return asked


def prepare_process(compute: ComputeConfig) -> None:
    """Set this process up for resolved settings: thread count, and on CPU only algorithms that repeat bit for bit.

    Raises:
        InputError: as `require_device`.
    """
    require_device(compute)
    torch.set_num_threads(max(1, compute.threads // World.current().size))
    if compute.device == "cpu":
        torch.use_deterministic_algorithms(True)
    else:
        torch.set_float32_matmul_precision("high")


@contextlib.contextmanager
def unfilled() -> Iterator[None]:
    """Leave memory that PyTorch allocates as it is. With deterministic algorithms it is filled with NaN first, so that a use of
    what nobody has written shows: within steps, whose operations write all of it, that takes up to 5 % of the time."""
    settings: Any = torch.utils.deterministic
    before = settings.fill_uninitialized_memory
    settings.fill_uninitialized_memory = False
    try:
        yield
    finally:
        settings.fill_uninitialized_memory = before


def hardware(compute: ComputeConfig) -> str:
    """What computes with resolved settings, as far as the last bits of a result depend on it: the GPU's model, or the
    instructions that the processor has."""
    if compute.device == "cuda":
        return torch.cuda.get_device_name()
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def autocast(compute: ComputeConfig) -> contextlib.AbstractContextManager[Any]:
    """Mixed precision as set; master weights and losses stay float32."""
    if compute.precision == "bf16":
        return torch.autocast(compute.device, dtype=torch.bfloat16)
    return contextlib.nullcontext()


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The state of the generators from which dropout and the like draw."""
    cuda = {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {}
    return {"cpu": torch.get_rng_state(), **cuda}


def set_random_state(state: Mapping[str, Tensor], device: torch.device) -> None:
    """Give the generators the state that `random_state` has returned, also on another device: it then keeps its own."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
