"""What a network costs: parameters, multiply-accumulates and latency, measured on the module."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from rco.core.errors import InputError
from rco.models.predict import evaluation_mode

if TYPE_CHECKING:
    import torch
    from torch import nn


def parameter_count(model: nn.Module) -> int:
    """The number of parameters, trainable or not, shared ones once. Buffers do not count."""
    return sum(p.numel() for p in model.parameters())


def count_macs(model: nn.Module, image_shape: Sequence[int]) -> int:
    """Multiply-accumulates of one image in matrix products, convolutions and attention; other operators do not count.

    One blank image is run on the model's device, in evaluation mode. The model stays as it was.

    Args:
        image_shape: (C, H, W).
    """
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    image = _blank(model, (1, *image_shape))
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    fused = torch.backends.mha.get_fastpath_enabled()
    # The counter takes fused attention for nothing (the fast path of evaluation mode), or does not know it on every device
    # (older versions): let PyTorch compute it as matrix products.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        as_products = sdpa_kernel(SDPBackend.MATH)
        with evaluation_mode(model), torch.no_grad(), as_products, FlopCounterMode(display=False) as counter:
            torch.func.functional_call(model, buffers, (image,))
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return int(counter.get_total_flops()) // 2  # the counter counts a multiply and an add as two


@dataclass(frozen=True)
class Latency:
    """Time of one forward pass."""

    median_ms: float
    p95_ms: float
    repeats: int
    """Timed passes: fewer than asked for if the time ran out. The p95 of few passes is that of the slowest."""


def latency(
    model: nn.Module,
    image_shape: Sequence[int],
    *,
    device: str = "cpu",
    batch_size: int = 1,
    repeats: int = 100,
    warmup: int = 10,
    seconds: float = 1.0,
) -> Latency:
    """Time the forward pass of a batch on the device, in evaluation mode, with the process's thread count.

    Args:
        model: stays as it was; a copy is timed if the model is on another device.
        image_shape: (C, H, W).
        repeats: upper limit of timed passes.
        warmup: upper limit of passes before them, which are not timed.
        seconds: limit for warm-up and timing together; each has one pass at least.

    Raises:
        InputError: repeats, warmup or batch_size below 1.
    """
    for name, value in (("repeats", repeats), ("warmup", warmup), ("batch_size", batch_size)):
        if value < 1:
            raise InputError(name, value, "must be 1 or more", "Give a whole number above 0")
    import torch

    images = _blank(model, (batch_size, *image_shape)).to(device)
    if any(t.device != images.device for t in (*model.parameters(), *model.buffers())):
        from copy import deepcopy

        model = deepcopy(model).to(device)

    def timed() -> float:
        start = time.perf_counter()
        model(images)
        if images.is_cuda:
            torch.cuda.synchronize(images.device)  # kernels run on after the call has returned
        return time.perf_counter() - start

    started = time.perf_counter()
    times: list[float] = []
    with evaluation_mode(model), torch.inference_mode():
        for done in range(warmup):
            if done and time.perf_counter() - started > seconds / 2:
                break
            timed()
        while not times or (len(times) < repeats and time.perf_counter() - started < seconds):
            times.append(timed())
    median, p95 = 1000 * np.percentile(times, (50, 95))
    return Latency(median_ms=float(median), p95_ms=float(p95), repeats=len(times))


def _blank(model: nn.Module, shape: tuple[int, ...]) -> torch.Tensor:
    import torch

    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    return torch.zeros(shape, device=like.device, dtype=like.dtype)
