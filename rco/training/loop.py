"""The one training loop: teacher, stages and baselines differ only in objective, anchor and length."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rco.core.errors import DivergenceError, InputError
from rco.data.dataset import Split
from rco.data.images import Rows
from rco.models.weights import load_weights
from rco.objectives.stage import StageLoss
from rco.training.anchor import Anchor
from rco.training.balance import class_weights
from rco.training.checkpointer import MISFIT, Checkpointer, restoring
from rco.training.config import ComputeConfig, TrainConfig
from rco.training.device import autocast, random_state, set_random_state, unfilled
from rco.training.distributed import World
from rco.training.ema import Ema
from rco.training.learner import Learner, shared
from rco.training.optimizers.state import FACTOR, load_optimizer_state, make_optimizer
from rco.training.progress import Progress
from rco.training.schedule import learning_rate

_CHECK_EVERY = 100  # steps between two checks of the loss: each makes the program wait for the GPU once
_APART = 2**40  # between the seeds of two workers


@dataclass
class OneSchedule:
    """One schedule and one optimiser over several trainings: the stages of a route that do not restart.

    Attributes:
        epochs: of all of them; the first one's first epoch is epoch 1.
        optimizer: the optimiser's state by the parameter's number, as the training before left it; None: it is fresh. A
            training that has ended leaves its own.
    """

    epochs: int
    optimizer: Mapping[str, Any] | None = None


def fit(
    model: nn.Module,
    train: Split,
    objective: StageLoss,
    config: TrainConfig,
    compute: ComputeConfig,
    *,
    epochs: int,
    first_epoch: int = 1,
    anchor: Anchor | None = None,
    checkpointer: Checkpointer | None = None,
    one_schedule: OneSchedule | None = None,
    ema: Ema | None = None,
) -> Iterator[dict[str, float]]:
    """Train `model` in place with a fresh optimiser and schedule; yields one row of metrics after each epoch.

    All workers of a task (`rco.training.distributed`) call it alike and get equal rows. Each trains on its share of every
    batch; the gradients are the means over the whole. Statistics that a network takes of a batch are of the share, unless
    `compute.sync_batchnorm`; the running ones are those of worker 0.

    Args:
        objective: its parts are summed, averaged over the epoch, and logged under their names. Its taps are observed in the
            forward passes of this training and no others; its own parameters are trained along, in place.
        epochs: length of this training; the schedule spans it.
        first_epoch: number of the first epoch. Order and augmentation of the images are functions of (seed, epoch), so stages
            that count on do not see the same order again.
        anchor: sees the batches that the student sees; or its logits are stored, and the student sees the views that they
            are of.
        checkpointer: saves the part "training". If it has one, this training goes on from there, and only epochs that end after
            that are yielded. On a CPU the weights come out the same to the last bit. The caller must have taken up an epoch's
            row by the time it asks for the next.
        one_schedule: neither optimiser nor schedule is fresh: they go on from the training before, and on to the next.
        ema: keeps an average of the network's weights, from the first step on.

    Yields:
        epoch, lr (of the epoch's last step), loss, the objective's parts, images_per_second.

    Raises:
        DivergenceError: a loss, or a weight, is not a finite number.
        InputError: there is no whole batch to train on, workers cannot share it, or the saved state is of another training.
    """
    trainer = Trainer(
        model,
        train,
        objective,
        config,
        compute,
        epochs=epochs,
        first_epoch=first_epoch,
        anchor=anchor,
        one_schedule=one_schedule,
        ema=ema,
    )
    if checkpointer is not None:
        trainer.attach(checkpointer)
    yield from trainer.epochs()


class Trainer:
    """A training of `fit`, whose arguments these are."""

    def __init__(
        self,
        model: nn.Module,
        train: Split,
        objective: StageLoss,
        config: TrainConfig,
        compute: ComputeConfig,
        *,
        epochs: int,
        first_epoch: int,
        anchor: Anchor | None,
        one_schedule: OneSchedule | None = None,
        ema: Ema | None = None,
    ) -> None:
        self.train, self.config, self.compute, self.anchor, self.ema = train, config, compute, anchor, ema
        self.world = World.current()
        self.world.check_batch(config.batch_size)
        self.device = torch.device(compute.device)
        self.model = model.to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        objective.set_labels(config.label_smoothing, _class_weights(train, config))
        self.objective = objective.to(self.device)
        if self.ema is not None:
            self.ema.begin(self.model)
        self.learner = Learner(self.model, self.objective)
        self.learn = shared(self.learner, self.world, sync_batchnorm=compute.sync_batchnorm)
        self.optimizer = make_optimizer(self.learner, config)
        self.first_epoch, self.last_epoch = first_epoch, first_epoch + epochs - 1
        self.one_schedule = one_schedule
        #: What the schedule spans: its first epoch, and its length.
        self.begins, self.length = (1, one_schedule.epochs) if one_schedule else (first_epoch, epochs)
        self.steps_per_epoch = train.num_batches(config.batch_size)
        self.progress = Progress(first_epoch)
        self.checkpointer: Checkpointer | None = None
        self._restored_random: Mapping[str, Tensor] | None = None
        self._first_step: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        #: When, and the model's state dict then; in the computer's memory: the device's is scarce.
        self._last_finite: tuple[str, dict[str, Tensor]] | None = None
        if one_schedule is not None and one_schedule.optimizer is not None:
            self._take_optimizer(one_schedule.optimizer)

    def epochs(self) -> Iterator[dict[str, float]]:
        """Train to the end; yields as `fit`."""
        while self.progress.epoch <= self.last_epoch:
            with unfilled():
                row = self._train_epoch()
            self.progress = Progress(self.progress.epoch + 1)
            yield row
            if self.checkpointer is not None and self.checkpointer.due():
                self.checkpointer.keep()
        if self.one_schedule is not None:
            self.one_schedule.optimizer = self.optimizer.state_dict()["state"]

    def _train_epoch(self) -> dict[str, float]:
        """Train the current epoch, or the rest of it; returns its row."""
        progress = self.progress
        started = time.perf_counter() - progress.seconds
        view = self.anchor.prepare_epoch(progress.epoch) if self.anchor is not None else None
        self.model.train()
        self._seed_epoch()
        batches = self.train.indexed_batches(
            self.config.batch_size,
            device=self.compute.device,
            seed=self.config.seed,
            epoch=progress.epoch,
            augment=self.config.augmentation,
            workers=self.compute.workers,
            view=view,
            kept=True,
            skip=progress.batches,
            share=self.world,
            balanced=self.config.class_balance == "sampling",
        )
        for x, labels, rows in batches:
            self._step(x, labels, rows, view)
            if progress.batches < self.steps_per_epoch:  # the end of the epoch has a check of its own
                self._between_steps(started)
        if not progress.images:
            raise InputError(
                "batch_size",
                self.config.batch_size,
                "leaves no batch to train on",
                f"There are {len(self.train)} training images",
            )
        self.world.same_buffers(self.learner)
        self._check_finite(weights=True)
        means = progress.means()
        row = {"epoch": progress.epoch, "lr": self._rate(self.steps_per_epoch - 1), "loss": sum(means.values()), **means}
        row["images_per_second"] = progress.images / (time.perf_counter() - started)
        self._keep_finite(f"after epoch {progress.epoch}")
        return row

    def _step(self, x: Tensor, labels: Tensor, rows: Rows, view: int | None) -> None:
        """Train on this worker's share of one batch and count the whole of it.

        Args:
            x: (B, C, H, W), as the images are kept: of them teacher and student make what they take.
        """
        count = min(self.config.batch_size, len(self.train) - self.progress.batches * self.config.batch_size)
        kept, seen = x, self.train.seen
        x = (x if seen is None else seen(x)).contiguous(memory_format=torch.channels_last)
        rate = self._rate(self.progress.batches)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get(FACTOR, 1.0)
        with autocast(self.compute):
            anchor_out = self.anchor.output(x if seen is None else kept, rows, view) if self.anchor is not None else None
            parts = self.learn(x, anchor_out, labels)
        values = torch.stack(list(parts.values()))
        self.optimizer.zero_grad(set_to_none=True)
        # The workers' gradients are averaged, each counting as much; the last batch may not have cut into equal shares.
        loss = values.sum() if self.world.alone else values.sum() * (self.world.size * self.world.weight(count))
        loss.backward()  # type: ignore[no-untyped-call]
        if self.config.clip_norm:
            nn.utils.clip_grad_norm_(self.learner.parameters(), self.config.clip_norm)
        with self._first_step:
            self.optimizer.step()
        if self.ema is not None:
            self.ema.update(self.model)
        self._first_step = contextlib.nullcontext()
        self.progress.add(parts, self.world.mean(values.detach(), count), count)

    def _between_steps(self, started: float) -> None:
        """Save the state if it is time to, of finite numbers only; check the loss now and then."""
        if self.checkpointer is not None and self.checkpointer.due():
            self.progress.seconds = time.perf_counter() - started
            self._check_finite(weights=True)
            self.checkpointer.keep()
        elif self.progress.batches % _CHECK_EVERY == 0:
            self._check_finite(weights=False)

    def _rate(self, batches: int) -> float:
        """The learning rate of the step after `batches` batches of the current epoch."""
        step = (self.progress.epoch - self.begins) * self.steps_per_epoch + batches
        return learning_rate(self.config, step, steps_per_epoch=self.steps_per_epoch, epochs=self.length)

    def _seed_epoch(self) -> None:
        """Dropout and the like draw from the global generator: make that a function of (seed, epoch) as well."""
        torch.manual_seed(self.config.seed * 1_000_003 + self.progress.epoch + self.world.rank * _APART)
        if self._restored_random is not None and self.progress.batches:
            set_random_state(self._restored_random, self.device)

    def _keep_finite(self, when: str) -> None:
        if self.world.main:  # which writes them, if the training diverges
            weights = {name: t.detach().to("cpu", copy=True) for name, t in self.model.state_dict().items()}
            self._last_finite = when, weights

    def _check_finite(self, *, weights: bool) -> None:
        """Raise DivergenceError if a part of the loss is not finite, or, if they are to be checked too, one of the weights."""
        culprit = self.progress.first_not_finite()
        if culprit is None and weights and not self.world.every(_all_finite(self.learner)):
            culprit = "a weight", self.progress.batches
        if culprit is None:
            return
        part, step = culprit
        one_of_many = len(self.progress.names) > 1 and part != "label_loss"
        when, last_finite = self._last_finite or ("", None)
        raise DivergenceError(
            part,
            epoch=self.progress.epoch,
            step=step,
            steps=self.steps_per_epoch,
            lr=self._rate(step - 1),
            advice="Lower lr or lengthen warmup_epochs"
            + (f", or give {part} less weight (such as lam, or tau)" if one_of_many else "")
            + (", or use precision = fp32" if self.compute.precision != "fp32" else ""),
            weights=last_finite,
            weights_of=when,
        )

    def attach(self, checkpointer: Checkpointer) -> None:
        """Have the state saved from now on; take up the one that is saved.

        Raises:
            InputError: it is of another training.
        """
        self.checkpointer = checkpointer
        checkpointer.add("training", self.state)
        if (saved := checkpointer.take("training")) is not None:
            self.load_state(saved)

    def state(self) -> dict[str, Any]:
        """All that this training needs to go on; the names are those in a resume point."""
        return {
            "learner": self.learner.state_dict(),
            "optimizer": self.optimizer.state_dict()["state"],
            "random": self.world.gathered(random_state(self.device)),
            "progress": vars(self.progress),
            **({"ema": self.ema.averaged.state_dict()} if self.ema is not None else {}),
        }

    def load_state(self, saved: Mapping[str, Any]) -> None:
        """Take up what `state` of an interrupted training returned.

        Raises:
            InputError: it is of another training.
        """
        with restoring():
            load_weights(self.learner, saved["learner"], "a resume point")
            self._take_optimizer(saved["optimizer"])
            if self.ema is not None:
                self.ema.load_state(saved["ema"])
            self.progress = Progress.restored(saved["progress"], self.first_epoch, self.last_epoch, self.device)
            self._restored_random = self.world.own({k: v for k, v in saved["random"].items() if torch.is_tensor(v)})
            if self._restored_random is not None:
                set_random_state(self._restored_random, self.device)
        epoch, batches = self.progress.epoch, self.progress.batches
        self._keep_finite(f"at step {batches} of epoch {epoch}" if batches else f"after epoch {epoch - 1}")

    def _take_optimizer(self, state: Mapping[str, Any]) -> None:
        """Go on with the optimiser's state of another process, or of the stage before."""
        with restoring():
            load_optimizer_state(self.optimizer, state)
        self._first_step = restoring(MISFIT)  # which values an optimiser needs is known to its first step


def _class_weights(train: Split, config: TrainConfig) -> Tensor | None:
    if config.class_balance != "weights":
        return None
    return torch.from_numpy(class_weights(train.labels.numpy(), train.manifest.num_classes))


def _all_finite(module: nn.Module) -> bool:
    floats = [tensor for tensor in module.state_dict().values() if tensor.is_floating_point()]
    return bool(torch.stack([torch.isfinite(tensor).all() for tensor in floats]).all())
