"""Whether bf16 pays on a CPU: a step of distillation, timed in both precisions.

A processor may have instructions for bf16 and be no faster with it: a small network spends its time elsewhere, and every layer
converts its weights and inputs.
"""

from __future__ import annotations

import contextlib
import platform
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rco.models.spec import NetworkSpec
from rco.training.config import ComputeConfig
from rco.training.device import autocast, unfilled
from rco.training.lean import lean

#: Seconds that a trial may take, once it has its fewest rounds.
LIMIT = 2.0
_FEWEST, _MOST = 5, 100  # rounds, a step in each precision; the first ones do not count: they are never the fastest
_LARGEST_BATCH = 32  # more images change the ratio little
#: How many times as fast bf16 must be to be chosen: less is within what two trials on one machine differ by.
PAYS = 1.2
_INSTRUCTIONS = {"avx512_bf16", "amx_bf16", "bf16"}  # as Linux calls them on x86 and on ARM


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A processor's seconds for a step, on one core: of the fastest, which says least of what else the machine did."""

    fp32: float
    bf16: float

    @property
    def ratio(self) -> float:
        """How many times as fast bf16 is."""
        return self.fp32 / self.bf16

    @property
    def precision(self) -> str:
        """The one to compute in."""
        return "bf16" if self.ratio >= PAYS else "fp32"


def cpu_computes_bf16() -> bool:
    """Whether the processor has instructions for bf16. Where it has none, PyTorch emulates them, many times slower. Where the
    system does not say (it is not Linux), no."""
    with contextlib.suppress(OSError):
        return platform.system() == "Linux" and not _INSTRUCTIONS.isdisjoint(Path("/proc/cpuinfo").read_text().split())
    return False


def try_precisions(student: NetworkSpec, teacher: NetworkSpec, batch_size: int) -> Trial:
    """Time a step of distillation in fp32 and in bf16, in turn, on random images and with random weights: forward passes of
    student and frozen teacher, the route's loss, the student's backward pass. It computes on one core and counts that one's
    time: several would wait for each other where another process works beside them, longer than any precision makes up for.
    """
    before, random = torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(1)
    try:
        steps = {
            precision: _Step(student, teacher, min(batch_size, _LARGEST_BATCH), precision) for precision in ("fp32", "bf16")
        }
        taken: dict[str, list[float]] = {precision: [] for precision in steps}
        began, rounds = time.perf_counter(), 0
        while rounds < _FEWEST or (rounds < _MOST and time.perf_counter() - began < LIMIT):
            for precision, step in steps.items():
                started = time.thread_time()
                with unfilled():
                    step.take()
                taken[precision].append(time.thread_time() - started)
            rounds += 1
    finally:
        torch.set_num_threads(before)
        torch.set_rng_state(random)
    return Trial(**{precision: min(seconds) for precision, seconds in taken.items()})


class _Step:
    """A step on one batch that stays the same."""

    def __init__(self, student: NetworkSpec, teacher: NetworkSpec, batch_size: int, precision: str) -> None:
        self.compute = ComputeConfig(device="cpu", precision=precision)
        self.student: nn.Module = student.build(0).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        shape = (teacher.in_channels, teacher.image_size, teacher.image_size)
        self.teacher = lean(teacher.build(0), shape, "cpu")
        generator = torch.Generator().manual_seed(0)
        self.images, self.anchors_images = (_images(spec, batch_size, generator) for spec in (student, teacher))
        self.labels = torch.arange(batch_size) % student.num_classes

    def take(self) -> None:
        """Forward and backward."""
        with autocast(self.compute):
            with torch.inference_mode():
                target = self.teacher(self.anchors_images)
            logits = self.student(self.images).float()
        mimicry = F.kl_div(logits.log_softmax(1), target.float().clone().log_softmax(1), reduction="batchmean", log_target=True)
        self.student.zero_grad(set_to_none=True)
        (F.cross_entropy(logits, self.labels) + mimicry).backward()  # type: ignore[no-untyped-call]


def _images(spec: NetworkSpec, count: int, generator: torch.Generator) -> Tensor:
    images = torch.rand(count, spec.in_channels, spec.image_size, spec.image_size, generator=generator)
    return images.contiguous(memory_format=torch.channels_last)
