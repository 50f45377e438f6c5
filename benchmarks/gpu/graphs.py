"""Trials of what the loop of `rco.training.loop` does not do: compiled networks, and steps that are replayed as a CUDA graph.

They have never run on a GPU. They train as that loop does (on a CPU, where a recorded step is simply called again, to the last
bit: tests/release/test_gpu_benchmark.py).
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rco.data.images import Rows
from rco.models.taps import Output, observe
from rco.training.anchor import LiveAnchor
from rco.training.device import autocast
from rco.training.loop import Trainer

_EAGER = 3  # first steps: libraries choose their algorithms, and the optimiser makes its state


class CompiledTrainer(Trainer):
    """`Trainer` of networks that were compiled (`torch.nn.Module.compile`). Only whole batches run compiled: the last one of an
    epoch, of another size, is not worth a compilation."""

    def _step(self, x: Tensor, labels: Tensor, rows: Rows, view: int | None) -> None:
        whole = len(labels) == self.config.batch_size or "torch._dynamo" not in sys.modules
        with contextlib.nullcontext() if whole else torch.compiler.set_stance("force_eager"):
            super()._step(x, labels, rows, view)


class GraphedTrainer(CompiledTrainer):
    """`Trainer`, but that all steps on whole batches, after the first few, are one graph: forward passes, backward, optimiser.

    Choosing, augmenting and normalising the images stay outside of it, as do the sums of the loss. A batch of another size
    (the last one of an epoch) is trained on as ever.
    """

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._steps = 0
        self._replay: Callable[[], None] | None = None
        self._x = self._labels = torch.empty(0)
        self._logits: Tensor | None = None  # of an anchor that is looked up
        self._values = torch.empty(0)
        self._names: tuple[str, ...] = ()
        self._rate_now = torch.zeros((), device=self.device)
        self._gradients: list[Tensor | None] = []

    def _step(self, x: Tensor, labels: Tensor, rows: Rows, view: int | None) -> None:
        if len(labels) != self.config.batch_size:
            super()._step(x, labels, rows, view)
            return
        if self._steps < _EAGER:
            self._steps += 1
            self._apart(lambda: super(GraphedTrainer, self)._step(x, labels, rows, view))
            return
        if self._replay is None:
            self._x = x.contiguous(memory_format=torch.channels_last).clone(memory_format=torch.preserve_format)
            self._labels = labels.clone()
            self._logits = self._looked_up(x, rows, view)
        else:
            self._x.copy_(x)
            self._labels.copy_(labels)
            if self._logits is not None:
                self._logits.copy_(self._looked_up(x, rows, view))  # type: ignore[arg-type]
        self._rate_now.fill_(self._rate(self.progress.batches))
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate_now
        if self._replay is None:
            self._replay = self._recorded()
        self._replay()
        self.progress.add(dict.fromkeys(self._names, self._values), self._values, len(labels))

    def _looked_up(self, x: Tensor, rows: Rows, view: int | None) -> Tensor | None:
        if self.anchor is None or isinstance(self.anchor, LiveAnchor):
            return None
        return self.anchor.output(x, rows, view).logits

    def _whole_step(self) -> None:
        """From the images in `_x` to the stepped weights."""
        self.optimizer.zero_grad(set_to_none=True)
        with autocast(self.compute):
            anchor_out = None if self._logits is None else Output(self._logits)
            if isinstance(self.anchor, LiveAnchor):
                anchor_out = self.anchor.output(self._x, _NO_ROWS, None)
            parts = self.objective(observe(self.model, self._x, self.objective.taps.student), anchor_out, self._labels)
        values = torch.stack(list(parts.values()))
        values.sum().backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self._names, self._values = tuple(parts), values.detach()

    def _recorded(self) -> Callable[[], None]:
        if self.device.type != "cuda":
            return self._whole_step
        graph = torch.cuda.CUDAGraph()
        self.optimizer.zero_grad(set_to_none=True)
        torch.cuda.synchronize()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads may be pinning memory
            self._whole_step()
        # The graph's kernels write to these; an eager step between replays must not free them.
        self._gradients = [p.grad for p in self.learner.parameters()]
        return graph.replay

    def _apart(self, step: Callable[[], None]) -> None:
        """Run an eager step on a stream of its own, as a capture that follows needs it."""
        if self.device.type != "cuda":
            step()
            return
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            step()
        torch.cuda.current_stream().wait_stream(stream)


_NO_ROWS: Any = None  # a live anchor looks at the images alone
