"""The one training loop: teacher, stages and baselines differ only in objective, anchor and length."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from rco.core.errors import DivergenceError, InputError
from rco.data.dataset import Split
from rco.models.taps import Output, observe
from rco.models.weights import load_weights
from rco.objectives.base import Objective
from rco.training.anchor import StoredLogits
from rco.training.config import ComputeConfig, TrainConfig
from rco.training.device import autocast
from rco.training.lean import lean
from rco.training.schedule import learning_rate

_LOOK = 100  # steps between looks at the loss: each makes the program wait for the GPU once


class Checkpointer(Protocol):
    """Who keeps the state of a training for when it is interrupted; see `rco.training.resume`. A state has parts, one of
    each who knows what it means."""

    def add(self, part: str, make: Callable[[], Any], files: Callable[[], Mapping[str, str]] | None = None) -> None:
        """From now on keep what `make` makes (tensors, arrays, JSON), and the files that `files` names, with their sha256."""

    def take(self, part: str) -> Any:
        """What was kept of a part, once; None: nothing was."""

    def due(self) -> bool:
        """Whether it is time to keep the state. Asked after every step."""

    def keep(self) -> None:
        """Keep all parts as they are now; may end the process after that, if it has been asked to."""


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


@dataclass
class _Progress:
    """Where a training is: in `epoch`, after `batches` of it, which showed it `images` in `seconds`.

    The parts of the loss are summed on the device: reading one there would make every step wait for the GPU. A sum that is
    once not finite stays so, so the steps after which it was finite say which step was the first bad one.
    """

    epoch: int
    batches: int = 0
    images: int = 0
    seconds: float = 0.0
    names: Sequence[str] = ()
    sums: Tensor | None = None  # (P,)
    finite: Tensor | None = None  # (P,) int64

    def add(self, parts: Mapping[str, Tensor], values: Tensor, images: int) -> None:
        """Count a step.

        Args:
            values: (P,) of `parts`, means over `images` images.
        """
        if self.sums is None or self.finite is None:
            self.names = tuple(parts)
            self.sums, self.finite = torch.zeros_like(values), torch.zeros_like(values, dtype=torch.int64)
        self.sums += values * images
        self.finite += torch.isfinite(self.sums)
        self.batches += 1
        self.images += images

    def check(self, first: int, last: int) -> None:
        """Raise TypeError or ValueError if this cannot be where a training of the epochs `first` to `last` is."""
        counts = (self.epoch, self.batches, self.images)
        if not all(type(count) is int and 0 <= count < 2**40 for count in counts) or not first <= self.epoch <= last + 1:
            raise ValueError(f"it is at {counts}")
        if type(self.seconds) not in (int, float) or not self.seconds >= 0:
            raise ValueError(f"it took {self.seconds} s")
        if not all(isinstance(name, str) for name in self.names):
            raise TypeError("its parts have no names")
        shape = (len(self.names),)
        if (self.sums is None) != (self.finite is None):
            raise ValueError("it has half of its sums")
        if self.sums is not None and self.finite is not None:
            dtypes = self.sums.is_floating_point(), self.finite.dtype
            if dtypes != (True, torch.int64) or {tuple(self.sums.shape), tuple(self.finite.shape)} != {shape}:
                raise ValueError("it has other sums than parts")

    def first_bad(self) -> tuple[str, int] | None:
        """The part of the loss that was the first not to be finite, and the step, counted from 1. Waits for the device."""
        steps = [] if self.finite is None else self.finite.tolist()
        if min(steps, default=self.batches) == self.batches:
            return None
        return self.names[steps.index(min(steps))], min(steps) + 1

    def means(self) -> dict[str, float]:
        """Of the parts, over the images of the epoch."""
        return {} if self.sums is None else {n: s / self.images for n, s in zip(self.names, self.sums.tolist(), strict=True)}


def _all_finite(module: nn.Module) -> bool:
    floats = [tensor for tensor in module.state_dict().values() if tensor.is_floating_point()]
    return bool(torch.stack([torch.isfinite(tensor).all() for tensor in floats]).all())


def _load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Give an optimiser the state of another one like it; keys are numbers in words."""
    optimizer.load_state_dict(
        {"state": {int(i): dict(own) for i, own in state.items()}, "param_groups": optimizer.state_dict()["param_groups"]}
    )
    known = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    for parameter, own in optimizer.state.items():
        if parameter not in known:
            raise ValueError("it has more parameters")
        for name, value in own.items():
            if torch.is_tensor(value) and value.dim():
                if value.shape != parameter.shape:
                    raise ValueError(f"{name} of {tuple(value.shape)} for a parameter of {tuple(parameter.shape)}")
                # Fused steps walk through memory: the layout must be the parameter's.
                own[name] = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)


def _random_state(device: torch.device) -> dict[str, Tensor]:
    """Of the generators that dropout and the like draw from."""
    cuda = {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {}
    return {"cpu": torch.get_rng_state(), **cuda}


def _set_random_state(state: Mapping[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def fit(
    model: nn.Module,
    train: Split,
    objective: Objective,
    config: TrainConfig,
    compute: ComputeConfig,
    *,
    epochs: int,
    first_epoch: int = 1,
    anchor: nn.Module | StoredLogits | None = None,
    checkpointer: Checkpointer | None = None,
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
        checkpointer: keeps the part "training". If it has one, this training goes on from there, and only epochs that end after
            that are yielded. On a CPU the weights come out the same to the last bit. What the caller keeps of an epoch must be
            kept by the time it asks for the next.

    Yields:
        epoch, lr (of the epoch's last step), loss, the objective's parts, images_per_second.

    Raises:
        DivergenceError: a loss, or a weight, is not a finite number.
        InputError: there is no whole batch to train on, or what was kept is of another training.
    """
    device = torch.device(compute.device)
    model.to(device).to(memory_format=torch.channels_last)
    kept = anchor if isinstance(anchor, StoredLogits) else None
    teach = (
        _Teacher(anchor, objective.taps.anchor, train.manifest.image_shape, device) if isinstance(anchor, nn.Module) else None
    )
    objective.to(device)
    learner = nn.ModuleDict({"model": model, "objective": objective})
    optimizer = make_optimizer(learner, config)
    steps_per_epoch = train.num_batches(config.batch_size)
    now = _Progress(first_epoch)
    good: tuple[str, dict[str, Tensor]] | None = None  # in the computer's memory: the device's is scarce

    def state() -> dict[str, Any]:
        return {
            "learner": learner.state_dict(),
            "optimizer": optimizer.state_dict()["state"],
            "random": _random_state(device),
            "progress": vars(now),
        }

    def rate(batches: int) -> float:
        step = (now.epoch - first_epoch) * steps_per_epoch + batches
        return learning_rate(config, step, steps_per_epoch=steps_per_epoch, epochs=epochs)

    def look(closely: bool) -> None:
        bad = now.first_bad()
        if bad is None and closely and not _all_finite(learner):
            bad = "a weight", now.batches
        if bad is None:
            return
        part, step = bad
        raise DivergenceError(
            part,
            epoch=now.epoch,
            step=step,
            steps=steps_per_epoch,
            lr=rate(step - 1),
            advice="Lower lr or lengthen warmup_epochs"
            + (f", or give {part} less weight (such as lam, or tau)" if len(now.names) > 1 and part != "label_loss" else "")
            + (", or use precision = fp32" if compute.precision != "fp32" else ""),
            weights=good[1] if good else None,
            weights_of=good[0] if good else "",
        )

    def is_good(when: str) -> None:
        nonlocal good
        good = when, {name: tensor.detach().to("cpu", copy=True) for name, tensor in model.state_dict().items()}

    random = None
    taking_up: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
    if checkpointer is not None:
        checkpointer.add("training", state)
        if (saved := checkpointer.take("training")) is not None:
            random = _take_up(saved, learner, optimizer, now, first_epoch + epochs - 1, device)
            taking_up = of_this_training(*_UNFIT)  # which values an optimiser needs is known to its first step
            is_good(f"at step {now.batches} of epoch {now.epoch}" if now.batches else f"after epoch {now.epoch - 1}")
    while now.epoch < first_epoch + epochs:
        started = time.perf_counter() - now.seconds
        view = kept.view_of(now.epoch) if kept else None
        if kept and view is not None:
            kept.prepare(view)
        model.train()
        # Dropout and the like draw from the global generator: make that a function of (seed, epoch) as well.
        torch.manual_seed(config.seed * 1_000_003 + now.epoch)
        if random is not None and now.batches:
            _set_random_state(random, device)
        for x, y, rows in train.indexed_batches(
            config.batch_size,
            device=compute.device,
            seed=config.seed,
            epoch=now.epoch,
            augment=config.augment,
            workers=compute.workers,
            view=view,
            skip=now.batches,
        ):
            x = x.contiguous(memory_format=torch.channels_last)
            for group in optimizer.param_groups:
                group["lr"] = rate(now.batches)
            with autocast(compute):
                anchor_out = teach(x) if teach else None
                if kept and view is not None:
                    anchor_out = Output(kept.logits(view, rows))
                parts = objective(observe(model, x, objective.taps.student), anchor_out, y)
            values = torch.stack(list(parts.values()))
            optimizer.zero_grad(set_to_none=True)
            values.sum().backward()  # type: ignore[no-untyped-call]
            with taking_up:
                optimizer.step()
            taking_up = contextlib.nullcontext()
            now.add(parts, values.detach(), len(y))
            if now.batches < steps_per_epoch:  # the end of the epoch looks for itself
                if checkpointer is not None and checkpointer.due():
                    now.seconds = time.perf_counter() - started
                    look(closely=True)
                    checkpointer.keep()
                elif now.batches % _LOOK == 0:
                    look(closely=False)
        if not now.images:
            raise InputError(
                "batch_size", config.batch_size, "leaves no batch to train on", f"There are {len(train)} training images"
            )
        look(closely=True)
        means = now.means()
        row = {"epoch": now.epoch, "lr": rate(steps_per_epoch - 1), "loss": sum(means.values()), **means}
        row["images_per_second"] = now.images / (time.perf_counter() - started)
        is_good(f"after epoch {now.epoch}")
        now = _Progress(now.epoch + 1)
        yield row
        if checkpointer is not None and checkpointer.due():
            checkpointer.keep()


_UNFIT = (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError)


@contextlib.contextmanager
def of_this_training(*kinds: type[Exception]) -> Iterator[None]:
    """Take up what a resume point holds, each value as it should be.

    Args:
        kinds: of errors that show that it does not fit.

    Raises:
        InputError: what was saved is of another training, or of none.
    """
    try:
        yield
    except kinds or (*_UNFIT, RuntimeError) as error:  # noqa: B030 (both are tuples)
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            "resume point", type(error).__name__, f"is of another training ({reason})", "Delete it, or name another place"
        ) from None


def _take_up(
    saved: Mapping[str, Any],
    learner: nn.Module,
    optimizer: torch.optim.Optimizer,
    now: _Progress,
    last: int,
    device: torch.device,
) -> Mapping[str, Tensor]:
    """Put everything where it was; returns the state of the random numbers.

    Args:
        last: epoch of this training.

    Raises:
        InputError: what was saved is of another training.
    """
    with of_this_training():
        load_weights(learner, saved["learner"], "a resume point")
        _load_optimizer(optimizer, saved["optimizer"])
        progress = _Progress(**saved["progress"])
        progress.check(now.epoch, last)
        random: Mapping[str, Tensor] = {name: state for name, state in saved["random"].items() if torch.is_tensor(state)}
        _set_random_state(random, device)
    for name, value in vars(progress).items():
        setattr(now, name, value.to(device) if torch.is_tensor(value) else value)
    return random
