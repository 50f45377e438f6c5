"""The workers of one task: several processes on one machine that train one model, or measure it, together.

Which worker this process is, is asked from torch.distributed (`World.current`); a process that has joined no group is the only
worker, and everything here then does nothing. Worker 0 is the one that writes files, tracks and says how it goes.

What goes from one worker to another is tensors and JSON, never a pickle.

    RCO_WORKERS_TIMEOUT   seconds that workers wait for each other, at the beginning and later (1800)
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from rco.core.errors import InputError
from rco.data.dataset import Split
from rco.data.share import Share
from rco.models.predict import predict
from rco.training.config import ComputeConfig
from rco.training.packing import packed, unpacked

TIMEOUT = "RCO_WORKERS_TIMEOUT"
#: For workers: what torch's C++ warns of (weights on which no logit depends were looked for in vain) is no news.
QUIET = {"TORCH_CPP_LOG_LEVEL": "ERROR"}
_SECONDS = 1800
_BATCH = 256  # images that a network answers at once
_DTYPES = {str(dtype): dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)}


class WorkerLostError(RuntimeError):
    """Another worker of the task has ended, or does not answer."""


@dataclass(frozen=True)
class World(Share):
    """All workers of the task, and this one among them: number `rank` of `size`."""

    @classmethod
    def current(cls) -> World:
        """As this process has joined; by itself, if it has not."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    @property
    def main(self) -> bool:
        """Whether this is the worker that writes, tracks and speaks."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        """Whether there is no other worker."""
        return self.size == 1

    def barrier(self) -> None:
        """Wait until all workers are here."""
        self.most(0)

    def most(self, number: int) -> int:
        """The largest of the workers' numbers."""
        if self.alone:
            return number
        box = torch.tensor([number], dtype=torch.int64)
        with _together():
            dist.all_reduce(box, dist.ReduceOp.MAX)
        return int(box)

    def every(self, holds: bool) -> bool:
        """Whether it holds in every worker."""
        return not self.most(not holds)

    def mean(self, values: Tensor, count: int) -> Tensor:
        """The means over a batch of `count` images, of which `values` (P,) are those over this worker's share."""
        if self.alone:
            return values
        means = values * self.weight(count)
        with _together():
            dist.all_reduce(means)
        return means

    def of_main(self, value: Any) -> Any:
        """What worker 0 gives: JSON with tensors and arrays in it, which become tensors on the CPU; tuples become lists."""
        if self.alone:
            return value
        tensors: dict[str, Tensor] = {}
        document: dict[str, Any] = {}
        if self.main:
            document = {"value": packed(value, "", tensors)}
            document["tensors"] = {name: [str(t.dtype), *t.shape] for name, t in tensors.items()}
        document = self._document(document)
        for name, (dtype, *shape) in document["tensors"].items():
            tensor = tensors[name].cpu().contiguous() if self.main else torch.empty(shape, dtype=_DTYPES[dtype])
            if tensor.numel():
                with _together():
                    dist.broadcast(tensor.view(-1).view(torch.uint8), 0)
            tensors[name] = tensor
        return unpacked(document["value"], tensors)

    def _document(self, document: Mapping[str, Any]) -> dict[str, Any]:
        text = torch.frombuffer(bytearray(json.dumps(document).encode()), dtype=torch.uint8)
        length = torch.tensor([len(text)])
        with _together():
            dist.broadcast(length, 0)
            text = text if self.main else torch.empty(int(length), dtype=torch.uint8)
            dist.broadcast(text, 0)
        received: dict[str, Any] = json.loads(text.numpy().tobytes())
        return received

    def joined(self, rows: Tensor) -> Tensor:
        """The workers' rows (n_i, ...) on the CPU, one after the other: (sum of n_i, ...), in every worker."""
        if self.alone:
            return rows
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        with _together():
            dist.all_gather(sizes, torch.tensor([len(rows)]))
            most = int(max(sizes))
            own = rows.new_zeros((most, *rows.shape[1:]))
            own[: len(rows)] = rows
            everyone = [torch.empty_like(own) for _ in range(self.size)]
            dist.all_gather(everyone, own)
        return torch.cat([part[: int(size)] for part, size in zip(everyone, sizes, strict=True)])

    def gathered(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Small tensors on the CPU of all workers: those of worker 0 under their names, those of worker r as NAME@r."""
        return {
            f"{name}@{rank}" if rank else name: row
            for name, tensor in tensors.items()
            for rank, row in enumerate(self.joined(tensor[None]) if not self.alone else [tensor])
        }

    def own(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """This worker's of what `gathered` has returned; None: it was gathered from fewer workers."""
        suffix = f"@{self.rank}" if self.rank else ""
        named = ((*name.partition("@"), tensor) for name, tensor in tensors.items())
        found = {name: tensor for name, at, rank, tensor in named if at + rank == suffix}
        return found if found or self.main else None

    def same_buffers(self, module: nn.Module) -> None:
        """Give a module, in place, the buffers that it has in worker 0, such as BatchNorm's running statistics."""
        if self.alone:
            return
        with _together(), torch.no_grad():
            for buffer in module.buffers():
                dist.broadcast(buffer, 0)

    def check_batch(self, batch_size: int) -> None:
        """Refuse a batch that the workers cannot share evenly.

        Raises:
            InputError: it does not divide, or leaves a worker less than two images.
        """
        check_batch("batch_size", batch_size, self.size)


def check_batch(parameter: str, batch_size: int, workers: int) -> None:
    """Raise InputError unless so many workers can share a batch evenly, with two images each or more."""
    if workers > 1 and (batch_size % workers or batch_size < 2 * workers):
        problem = f"cannot be shared by {workers} workers, evenly and with at least two images each"
        nearest = max(2, round(batch_size / workers)) * workers
        raise InputError(parameter, batch_size, problem, f"Use {nearest}, or another workers_per_task")


def answers(model: nn.Module, split: Split, compute: ComputeConfig) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Logits (N, K) and labels (N,) of a whole split, in its order, in every worker: `rco.models.predict.predict`, shared.

    Workers take whole batches, those that one process would make: so the logits are the same to the last bit.
    """
    how: dict[str, Any] = {"device": compute.device, "precision": compute.precision, "workers": compute.workers}
    world = World.current()
    if world.alone:
        return predict(model, split, **how)
    world.same_buffers(model)
    part = _Batches(split, world.batches(-(-len(split) // _BATCH)))
    own = predict(model, part, batch_size=_BATCH, **how) if part.number else None
    width = world.most(own[0].shape[1] if own else 0)
    logits, labels = own or (np.empty((0, width), np.float32), np.empty(0, np.int64))
    return world.joined(torch.from_numpy(logits)).numpy(), world.joined(torch.from_numpy(labels)).numpy()


@dataclass(frozen=True)
class _Batches:
    """Some batches of a split (a `rco.models.predict.Split`)."""

    split: Split
    which: slice

    @property
    def number(self) -> int:
        return int(self.which.stop - self.which.start)

    def batches(self, batch_size: int, *, device: str, seed: int | None, workers: int) -> Iterator[tuple[Tensor, Tensor]]:
        for x, labels, _ in self.split.indexed_batches(
            batch_size, device=device, seed=seed, workers=workers, skip=self.which.start, count=self.number
        ):
            yield x, labels


def timeout() -> timedelta:
    """How long workers wait for each other.

    Raises:
        InputError: RCO_WORKERS_TIMEOUT is not a number of seconds above 0.
    """
    text = os.environ.get(TIMEOUT, "") or str(_SECONDS)
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise InputError(TIMEOUT, text, "is not a number of seconds", "Give one above 0, such as 1800")
    return timedelta(seconds=seconds)


@contextlib.contextmanager
def joined_group(compute: ComputeConfig) -> Iterator[World]:
    """Be one of the workers that a launcher has started (RANK, WORLD_SIZE and the like in the environment), until the end of
    the block: gloo on CPUs; on GPUs NCCL, and gloo for what lies in the computer's memory.

    Raises:
        WorkerLostError: the others did not come in time.
    """
    if compute.device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    if sys.platform == "linux":  # a pod's host name may lead nowhere, and all workers are here
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ.setdefault(name, "lo")
    patience, rank, size = timeout(), int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    backend = "cpu:gloo,cuda:nccl" if compute.device == "cuda" else "gloo"
    try:
        dist.init_process_group(backend, store=_store(rank, size, patience), rank=rank, world_size=size, timeout=patience)
    except RuntimeError as error:
        words = f"worker {rank} of {size}: the others did not come within {patience.total_seconds():g} s"
        raise WorkerLostError(f"{words} ({_brief(error)}). {_LONGER}") from error
    try:
        yield World.current()
    finally:
        dist.destroy_process_group()


def _store(rank: int, size: int, patience: timedelta) -> Any:
    """Where workers find each other: at the launcher's, if it has one, or at worker 0's."""
    served = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == str(True)
    from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

    store = TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        size,
        is_master=rank == 0 and not served,
        timeout=patience,
        wait_for_workers=False,
    )
    # The launcher's still has the addresses of workers that have died.
    return PrefixStore(f"attempt-{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)


_LONGER = f"If they are only slow, set {TIMEOUT} to more seconds"


@contextlib.contextmanager
def _together() -> Iterator[None]:
    """Work that all workers do together: an error in it means that one of them has gone."""
    try:
        yield
    except RuntimeError as error:
        raise lost(error) from error


def lost(error: BaseException) -> WorkerLostError:
    """Words for what torch.distributed says when a worker has gone, or does not answer."""
    world = World.current()
    return WorkerLostError(f"worker {world.rank} of {world.size} waits for the others in vain ({_brief(error)}). {_LONGER}")


def _brief(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
